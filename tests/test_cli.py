"""launch.py as users meet it: what works ends with 0, bad input with 2 and one clear message."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from distgan.checkpoint import load_newest
from distgan.data.demo import render_demo_videos
from tests.test_writer import events
from tests.tiny import TINY, launch


def refused(*arguments: str) -> str:
    """Runs a command that must be refused; returns its one message."""
    done = launch(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("launch.py ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def train(run_dir: Path, data: str) -> str:
    """Trains to the end; returns what was printed."""
    done = launch(
        "train", *TINY, f"data.shards={data}", f"run.dir={run_dir}",
        "log.proxy_interval_steps=6", "log.proxy_clips=16", "log.sample_interval_steps=6",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run_dir(tiny_data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short finished run."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert "stopped at step 12: train.max_steps=12" in train(folder, tiny_data)
    return folder


def test_run_folder_holds_what_is_promised(run_dir: Path) -> None:
    names = {path.name for path in run_dir.iterdir()}
    assert {
        "config.yaml", "metrics.jsonl", "tensorboard", "samples", "checkpoints", "generator",
    } <= names  # fmt: skip
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    expected = {
        "loss/generator", "loss/discriminator", "penalty/r1", "penalty/r2", "score/sign",
        "gradient_norm/generator", "gradient_norm/discriminator", "learning_rate/generator",
        "learning_rate/discriminator", "time/step_s", "time/data_s", "time/generator_s",
        "time/discriminator_s", "time/checkpoint_s", "throughput/clips_per_s",
        "quality/proxy_frechet_ema",
    }  # fmt: skip
    assert expected <= set(lines[-1])
    assert Image.open(run_dir / "samples" / "step_00000012.gif").n_frames == 4  # type: ignore[attr-defined]
    [text] = events(run_dir).Tensors("config")
    assert "max_steps: 12" in text.tensor_proto.string_val[0].decode()


def test_finished_run_is_left_as_it_is(run_dir: Path, tiny_data: str) -> None:
    before = (run_dir / "metrics.jsonl").read_bytes()
    train(run_dir, tiny_data)
    assert (run_dir / "metrics.jsonl").read_bytes() == before


def test_generate_is_reproducible_from_run_and_from_export(run_dir: Path, tmp_path: Path) -> None:
    one, two, export = tmp_path / "one", tmp_path / "two", tmp_path / "export"
    for source, output, extra in (
        (run_dir, one, ("--num", "3", "--seed", "5")),
        (run_dir, two, ("--num", "1", "--seed", "6")),
        (run_dir / "generator", export, ("--num", "3", "--seed", "5")),
    ):
        done = launch("generate", "--run", str(source), "--output", str(output), *extra)
        assert done.returncode == 0, done.stderr
    assert (one / "video_000006.mp4").read_bytes() == (two / "video_000006.mp4").read_bytes()
    assert (one / "video_000005.mp4").read_bytes() == (export / "video_000005.mp4").read_bytes()
    assert (one / "video_000005.mp4").read_bytes() != (one / "video_000006.mp4").read_bytes()
    assert (one / "contact_sheet.png").exists()
    with av.open(str(one / "video_000005.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 4


def test_prediction_keeps_the_given_frames(tiny_data: str, tmp_path: Path) -> None:
    """Trains with conditioning.task=prediction and continues videos that it never saw."""
    run = tmp_path / "run"
    done = launch(
        "train", *TINY, f"data.shards={tiny_data}", f"run.dir={run}", "train.max_steps=3",
        "conditioning.task=prediction", "conditioning.context_frames=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    videos = tmp_path / "videos"
    render_demo_videos(str(videos), num_videos=2, seed=9, size=32)
    output = tmp_path / "output"
    arguments = ("generate", "--run", str(run), "--output", str(output), "--num", "3")
    done = launch(*arguments, "--input", str(videos))
    assert done.returncode == 0, done.stderr
    frames = []
    for container in (
        av.open(str(output / "video_000000.mp4")),
        av.open(str(videos / "video-00000.mp4")),
    ):
        with container:
            frame = next(iter(container.decode(video=0))).to_ndarray(format="rgb24")
            step = len(frame) // 16
            frames.append(frame.reshape(16, step, 16, step, 3).mean((1, 3)))
    assert np.abs(frames[0] - frames[1]).mean() < 12  # the given frame, after two lossy codecs
    assert "give videos with --input" in refused(*arguments)


def test_divergence_ends_with_3_and_a_rerun_stops_at_once(tiny_data: str, tmp_path: Path) -> None:
    arguments = (
        "train", *TINY, f"data.shards={tiny_data}", f"run.dir={tmp_path / 'run'}",
        "optim.discriminator.kind=sgd", "optim.discriminator.lr=1e12", "train.max_steps=40",
    )  # fmt: skip
    done = launch(*arguments)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "is nan" in done.stderr or "is inf" in done.stderr
    again = launch(*arguments)
    assert again.returncode == 3
    assert "diverged at step" in again.stderr and "delete" in again.stderr


def test_doctor_reports(tiny_data: str, tmp_path: Path) -> None:
    done = launch("doctor", *TINY, f"data.shards={tiny_data}", f"run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert "40 clips" in done.stdout and "all is well" in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.attention.kindd=self", "did you mean 'model.attention.kind'"),
        ("optim.generator.lr=fast", "optim.generator.lr"),
        ("data.resolution=18", "data.resolution"),
        ("train.batch_size=6", "data.lanes"),
        ("train.device=cuda", "train.device"),
    ],
)
def test_bad_configuration_is_refused(
    tiny_data: str, tmp_path: Path, override: str, words: str
) -> None:
    if override == "train.device=cuda":
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("there is a GPU here")
    run = tmp_path / "run"
    message = refused("train", *TINY, f"data.shards={tiny_data}", f"run.dir={run}", override)
    assert words in message
    assert not run.exists(), "nothing half-written"


def test_other_configuration_in_the_same_folder_is_refused(run_dir: Path, tiny_data: str) -> None:
    message = refused(
        "train", *TINY, f"data.shards={tiny_data}", f"run.dir={run_dir}",
        "optim.generator.lr=0.5", "seed=4",
    )  # fmt: skip
    assert "optim.generator.lr (was 0.0002, now 0.5)" in message and "seed (was 0" in message


def test_folder_with_something_else_is_refused(tiny_data: str, tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("dear diary")
    arguments = ("train", *TINY, f"data.shards={tiny_data}", f"run.dir={tmp_path}")
    assert "holds no run" in refused(*arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["letters.txt"]


def test_other_data_set_is_refused_on_resume(run_dir: Path, tmp_path: Path) -> None:
    from tests.tiny import make_tiny_data

    other = make_tiny_data(tmp_path, num_videos=8)
    message = refused(
        "train", *TINY, f"data.shards={other}", f"run.dir={run_dir}", "train.max_steps=13",
        "log.proxy_interval_steps=6", "log.proxy_clips=16", "log.sample_interval_steps=6",
    )  # fmt: skip
    assert "not the data set" in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", *TINY), "data.shards is not set"),
        (("train", *TINY, "data.shards=nowhere"), "no data set"),
        (("train", "--config", "nowhere.yaml"), "nowhere.yaml"),
        (("generate", "--run", "nowhere", "--output", "out"), "no trained generator"),
        (("prepare", "--input", "nowhere", "--output", "out"), "nowhere"),
    ],
)
def test_missing_things_are_named(arguments: tuple[str, ...], words: str) -> None:
    assert words in refused(*arguments)


def test_weights_can_start_another_run(run_dir: Path, tiny_data: str, tmp_path: Path) -> None:
    arguments = ("train", *TINY, f"data.shards={tiny_data}", f"run.init_from={run_dir}")
    new = f"run.dir={tmp_path / 'new'}"
    done = launch(*arguments, new, "seed=7", "train.max_steps=2")
    assert done.returncode == 0, done.stderr
    source, after = (load_newest(str(run))[0] for run in (run_dir, tmp_path / "new"))
    assert source is not None and after is not None
    names = [name for name in after.tensors if name.startswith("ema/")]
    moved, trained = (
        sum(float((after.tensors[f"{of}/{n[4:]}"] - source.tensors[n]).norm()) for n in names)
        for of in ("ema", "generator")
    )
    assert 0 < moved < 0.01 * trained, "the average is taken over, too"
    assert "run.init_from" in refused(*arguments, new, f"run.init_from={tmp_path}", "seed=7")
    for file in (tmp_path / "new" / "checkpoints").rglob("COMMITTED"):
        file.unlink()  # as if it had been killed before the first one
    without = [argument for argument in arguments if "init_from" not in argument]
    done = launch(*without, new, "seed=7", "train.max_steps=2")
    assert done.returncode == 0, done.stderr
    again = load_newest(str(tmp_path / "new"))[0]
    assert again is not None and all(again.tensors[n].equal(after.tensors[n]) for n in names)
    message = refused(*arguments, f"run.dir={tmp_path / 'other'}", "model.generator.channels=[8,8]")
    assert "same model section" in message
    assert not (tmp_path / "other").exists(), "nothing half-written"
