"""What the writer leaves in a run folder, read back as scripts and TensorBoard read it."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distgan.data import demo
from distgan.errors import UserError
from distgan.metrics.writer import MetricsWriter, read_metrics


def events(run_dir: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"images": 0})
    accumulator.Reload()
    return accumulator


def write_steps(run_dir: Path, steps: range, start_step: int = 0, offset: float = 0.0) -> None:
    with MetricsWriter(str(run_dir), start_step) as writer:
        for step in steps:
            writer.scalars(step, {"loss/generator": step + offset, "time/step_s": 0.5})


def test_lines_and_tags_agree(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 4))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines[0] == '{"step": 1, "loss/generator": 1.0, "time/step_s": 0.5}'
    accumulator = events(tmp_path)
    assert set(accumulator.Tags()["scalars"]) == {"loss/generator", "time/step_s"}
    points = [(e.step, e.value) for e in accumulator.Scalars("loss/generator")]
    assert points == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert read_metrics(str(tmp_path / "metrics.jsonl"))[2] == {
        "step": 3,
        "loss/generator": 3.0,
        "time/step_s": 0.5,
    }


def test_lines_are_readable_at_once(tmp_path: Path) -> None:
    writer = MetricsWriter(str(tmp_path))
    writer.scalars(1, {"loss/generator": 2.0})
    assert len(read_metrics(str(tmp_path / "metrics.jsonl"))) == 1
    writer.flush()
    assert events(tmp_path).Scalars("loss/generator")[0].value == 2.0
    writer.close()
    writer.close()


def test_numbers_that_are_not_finite_keep_the_file_valid(tmp_path: Path) -> None:
    with MetricsWriter(str(tmp_path)) as writer:
        writer.scalars(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": np.float32(0.5)})
    text = (tmp_path / "metrics.jsonl").read_text()
    strict = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert strict == {"step": 1, "a": "nan", "b": "inf", "c": "-inf", "d": 0.5}
    [line] = read_metrics(str(tmp_path / "metrics.jsonl"))
    assert math.isnan(line["a"]) and line["b"] == math.inf and line["c"] == -math.inf
    assert math.isnan(events(tmp_path).Scalars("a")[0].value)


def test_resume_forgets_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 8))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "loss/gen')  # the process died here
    write_steps(tmp_path, range(5, 7), start_step=4, offset=100)
    straight = [1.0, 2.0, 3.0, 4.0, 105.0, 106.0]
    metrics = read_metrics(str(tmp_path / "metrics.jsonl"))
    assert [line["loss/generator"] for line in metrics] == straight
    assert [line["step"] for line in metrics] == [1, 2, 3, 4, 5, 6]
    assert [e.value for e in events(tmp_path).Scalars("loss/generator")] == straight


def test_a_fresh_start_in_a_used_folder_forgets_all(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 5))
    write_steps(tmp_path, range(1, 3), offset=10)
    assert len(read_metrics(str(tmp_path / "metrics.jsonl"))) == 2
    assert [e.value for e in events(tmp_path).Scalars("loss/generator")] == [11.0, 12.0]


def test_an_untouched_file_is_not_rewritten(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 5))
    before = (tmp_path / "metrics.jsonl").stat()
    MetricsWriter(str(tmp_path), start_step=4).close()
    after = (tmp_path / "metrics.jsonl").stat()
    assert (before.st_ino, before.st_size) == (after.st_ino, after.st_size)


@pytest.mark.parametrize("damage", ["\x00\x00", '{"loss": 1}', "[1]", '{"step": "one"}', ""])
def test_damage_in_the_middle_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + damage + '\n{"step": 3}\n')
    with pytest.raises(UserError, match="line 2 is damaged"):
        MetricsWriter(str(tmp_path), start_step=3)
    with pytest.raises(UserError, match="line 2 is damaged"):
        read_metrics(str(path))


def test_videos_move_in_tensorboard(tmp_path: Path) -> None:
    clips = demo.render_clips(5, seed=0, size=32)
    with MetricsWriter(str(tmp_path)) as writer:
        writer.video("samples/ema", 20, clips, 8.0)
    [event] = events(tmp_path).Images("samples/ema")
    assert event.step == 20
    with Image.open(io.BytesIO(event.encoded_image_string)) as picture:
        assert picture.format == "GIF" and getattr(picture, "n_frames", 1) == 8
        assert picture.size == (event.width, event.height)
        assert picture.info["duration"] == 120 and picture.info["loop"] == 0


def test_pictures_and_texts(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    with MetricsWriter(str(tmp_path)) as writer:
        writer.image("samples/grid", 3, picture)
        writer.text("config", "seed: **0**")
    accumulator = events(tmp_path)
    [event] = accumulator.Images("samples/grid")
    with Image.open(io.BytesIO(event.encoded_image_string)) as read:
        np.testing.assert_array_equal(np.asarray(read), picture)
    [text] = accumulator.Tensors("config")
    assert text.tensor_proto.string_val[0] == b"seed: **0**"
