"""Prepare from end to end: what comes out, bad input, and that nothing half-written stays."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distgan.config import Config
from distgan.config_loading import with_values
from distgan.data.clip_formats import decode
from distgan.data.manifest import MANIFEST_NAME, Manifest, read_manifest
from distgan.data.prepare import prepare
from distgan.data.prepare_report import summary
from distgan.data.shard_reader import read_shard
from distgan.data.workers import no_ctrl_c_in_new_processes
from distgan.errors import UserError
from tests.processes import running
from tests.video_makers import numbered, psnr, read_number, sample_videos, textured, write_video

BASE = with_values(
    Config(),
    {
        "data.resolution": 32,
        "data.clip_frames": 8,
        "prepare.num_processes": 1,
        "prepare.denoise.kind": "none",
        "prepare.clip_format": "npy",
    },
)


def run(source: Path, out: Path, **changes: Any) -> Manifest:
    values = {key.replace("__", "."): value for key, value in changes.items()}
    return prepare(str(source), str(out), with_values(BASE, values), show_progress=False)


def samples(out: Path) -> list[tuple[dict[str, Any], np.ndarray]]:
    manifest, _ = read_manifest(str(out))
    found = []
    for index in range(len(manifest.shards)):
        shard = read_shard(str(out), manifest, index)
        for facts, clip in zip(shard.facts, shard.clips, strict=True):
            assert facts is not None and clip is not None
            found.append((json.loads(facts), decode(clip, manifest.clip.clip_format)))
    return found


def tree(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good, short, black, frozen, broken, strip-shaped and oversized videos in nested folders."""
    root = tmp_path_factory.mktemp("mixed")
    write_video(root / "a/good.mp4", numbered(40))
    two_scenes = np.concatenate([textured(20) // 3, 255 - textured(20, seed=1) // 3])
    write_video(root / "b/two_scenes.mkv", two_scenes)
    write_video(root / "b/short.mp4", textured(10))
    write_video(root / "b/c/black.mp4", np.zeros((32, 64, 64, 3), np.uint8))
    write_video(root / "b/c/frozen.mp4", np.repeat(textured(1), 32, axis=0))
    write_video(root / "strip.mkv", textured(32, 320, 32))
    write_video(root / "big.mkv", textured(8, 400, 300))
    (root / "broken.mp4").write_bytes(b"nothing to see here" * 20)
    (root / "list.mp4").write_text("#EXTM3U\n#EXTINF:2,\na/good.mp4\n#EXT-X-ENDLIST\n")
    (root / "readme.txt").write_text("not a video")
    return root


def test_what_goes_in_what_is_dropped_and_what_comes_out(mixed: Path, tmp_path: Path) -> None:
    manifest = run(mixed, tmp_path / "out", prepare__limits__max_pixels=320 * 240)
    assert manifest.dropped == {
        "videos_unreadable": 2,
        "videos_over_max_pixels": 1,
        "videos_over_max_aspect": 1,
        "videos_too_short": 1,
        "videos_black": 1,
        "videos_frozen": 1,
        "frames_black": 32,
        "clips_frozen": 2,
        "segments_too_short": 1,
        "other_files_skipped": 1,
    }
    assert manifest.counts["videos_found"] == 9
    assert manifest.counts["videos_used"] == 2 and manifest.counts["videos_repeated"] == 0
    # 40 frames at 16 Hz are 20 at 8 Hz: two clips of 8. Twice 20 are twice 10: one clip each.
    assert manifest.samples == manifest.counts["clips"] == 4
    text = summary(manifest)
    for word in (
        "videos found",
        "videos over max pixels",
        "clips frozen",
        "shards",
        "32x32",
        "8 Hz",
    ):
        assert word in text
    report = [json.loads(line) for line in (tmp_path / "out/videos.jsonl").read_text().splitlines()]
    assert {line["video"]: line["cause"] for line in report}["b/c/black.mp4"] == "videos_black"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        MANIFEST_NAME,
        "shard-000000.tar",
        "videos.jsonl",
    ]


def test_equal_videos_are_counted(tmp_path: Path) -> None:
    write_video(tmp_path / "in/a.mp4", numbered(40))
    for name in ("b.mp4", "c.mp4"):
        shutil.copy(tmp_path / "in/a.mp4", tmp_path / "in" / name)
    for name in ("d.mp4", "e.mp4"):  # too large to be read at all
        (tmp_path / "in" / name).write_bytes(name.encode() * 2**19)
    manifest = run(tmp_path / "in", tmp_path / "out", prepare__limits__max_megabytes=1)
    assert manifest.counts["videos_used"] == 3 and manifest.counts["videos_repeated"] == 2


def test_a_video_dropped_half_way_leaves_no_clips_and_no_counts(tmp_path: Path) -> None:
    write_video(tmp_path / "in/a.h264", textured(64))  # a raw stream doesn't tell its length
    write_video(tmp_path / "in/b.h264", textured(32))
    manifest = run(tmp_path / "in", tmp_path / "out", prepare__limits__max_frames=50)
    assert manifest.dropped == {"videos_over_max_frames": 1}
    assert manifest.counts["clips"] == manifest.samples > 0
    assert manifest.counts["frames_decoded"] == 32
    assert {facts["source"] for facts, _ in samples(tmp_path / "out")} == {"b.h264"}


def test_clips_hold_the_right_frames(mixed: Path, tmp_path: Path) -> None:
    run(mixed / "a", tmp_path / "out", prepare__clip_step=6)
    found = samples(tmp_path / "out")
    assert [facts["start_s"] for facts, _ in found] == [0.0, 0.75, 1.5]
    for facts, clip in found:
        first = round(facts["start_s"] * 16)
        assert facts["source"] == "good.mp4" and facts["frame_rate_hz"] == 8
        assert [read_number(frame) for frame in clip] == list(range(first, first + 16, 2))


def test_one_and_two_processes_give_the_same_bytes(mixed: Path, tmp_path: Path) -> None:
    common = {"prepare__clip_format": "mp4", "prepare__denoise__kind": "atadenoise"}
    run(mixed, tmp_path / "one", prepare__shard_megabytes=0.01, **common)
    run(mixed, tmp_path / "two", prepare__shard_megabytes=0.01, prepare__num_processes=2, **common)
    one = tree(tmp_path / "one")
    assert one == tree(tmp_path / "two")
    assert sum(name.startswith("shard-") for name in one) > 1


def test_denoised_clips_are_closer_to_the_clean_ones(tmp_path: Path) -> None:
    clean = np.repeat(textured(32, 64, 64)[..., :1], 3, axis=3)
    noise = np.random.default_rng(0).normal(0, 12, clean.shape)
    write_video(tmp_path / "clean/v.mkv", clean)
    write_video(tmp_path / "noisy/v.mkv", np.clip(clean + noise, 0, 255).astype(np.uint8))
    big = {"data__resolution": 64}
    run(tmp_path / "clean", tmp_path / "c", **big)
    run(tmp_path / "noisy", tmp_path / "n", **big)
    run(tmp_path / "noisy", tmp_path / "d", prepare__denoise__kind="bm3d", **big)
    truth, noisy, denoised = (samples(tmp_path / name)[0][1] for name in "cnd")
    assert psnr(denoised, truth) > psnr(noisy, truth) + 1


def test_an_equal_data_set_is_left_alone_and_another_refused(mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = run(mixed / "a", out)
    before = {p: p.stat().st_mtime_ns for p in out.iterdir()}
    assert run(mixed / "a", out, prepare__num_processes=2) == first
    assert {p: p.stat().st_mtime_ns for p in out.iterdir()} == before
    with pytest.raises(UserError, match=r"prepare.fit=crop there, pad here.*another folder"):
        run(mixed / "a", out, prepare__fit="pad")
    with pytest.raises(UserError, match="other videos"):
        run(mixed / "b", out)


@pytest.mark.parametrize("name", ["keep.txt", ".prepare", "shard-000000.tar"])
def test_a_folder_with_something_else_is_refused_untouched(
    mixed: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_bytes(b"precious")
    with pytest.raises(UserError, match="empty or new folder"):
        run(mixed / "a", out)
    assert tree(out) == {name: b"precious"}


def bad_inputs(root: Path) -> dict[str, tuple[Path, dict[str, Any], str]]:
    (root / "empty").mkdir()
    (root / "texts").mkdir()
    (root / "texts/a.txt").write_text("x")
    (root / "broken").mkdir()
    (root / "broken/a.mp4").write_bytes(b"x" * 500)
    write_video(root / "fine/a.mkv", textured(32))
    (root / "file.mp4").write_bytes(b"x")
    return {
        "empty": (root / "empty", {}, "no videos in .*folder that holds videos"),
        "texts": (root / "texts", {}, "no videos in .*1 files with other endings"),
        "missing": (root / "nowhere", {}, "nowhere.*not a folder"),
        "file": (root / "file.mp4", {}, "file.mp4.*not a folder"),
        "broken": (root / "broken", {}, r"1 videos unreadable \(a.mp4: .*whole videos"),
        "pixels": (root / "fine", {"prepare__limits__max_pixels": 99}, "96x64.*limits.max_pixels"),
        "frames": (root / "fine", {"prepare__limits__max_frames": 9}, "raise .*limits.max_frames"),
        "hours": (root / "fine", {"prepare__limits__max_seconds": 1}, "raise .*limits.max_seconds"),
        "bytes": (root / "fine", {"prepare__limits__max_megabytes": 1e-3}, "limits.max_megabytes"),
        "cpu": (root / "fine", {"prepare__limits__max_cpu_seconds": 1e-9}, "max_cpu_seconds"),
        "long clip": (root / "fine", {"data__clip_frames": 64}, "16 frames.*needs 64.*clip_frames"),
        "strength": (
            root / "fine",
            {"prepare__denoise__kind": "nlmeans", "prepare__denoise__strength": 9},
            "strength=9.*nlmeans",
        ),
    }


CASES = ["empty", "texts", "missing", "file", "broken", "pixels", "frames", "hours", "bytes", "cpu"]


@pytest.mark.parametrize("case", [*CASES, "long clip", "strength"])
@pytest.mark.parametrize("exists", [False, True])
def test_bad_input_is_one_clear_message_and_leaves_nothing(
    tmp_path: Path, case: str, exists: bool
) -> None:
    source, changes, message = bad_inputs(tmp_path)[case]
    out = tmp_path / "out"
    if exists:
        out.mkdir()
    with pytest.raises(UserError, match=message) as caught:
        run(source, out, **changes)
    assert "\n" not in str(caught.value)
    assert out.exists() == exists
    assert not exists or not list(out.iterdir())


def test_an_output_that_cannot_be_written_is_named(mixed: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for out in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(UserError, match=r"--output .*file"):
            run(mixed / "a", out)


PROGRAM = """
import sys

if __name__ == "__main__":  # workers import this file
    from distgan.config_loading import with_values
    from distgan.data.prepare import prepare
    from distgan.interrupts import sigterm_interrupts
    from tests.test_prepare import BASE

    config = with_values(BASE, {"prepare.num_processes": int(sys.argv[3])})
    try:
        with sigterm_interrupts():
            prepare(sys.argv[1], sys.argv[2], config, show_progress=False)
    except KeyboardInterrupt as error:
        sys.exit(getattr(error, "exit_code", 130))
"""


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"]
)
def test_an_interruption_ends_soon_and_keeps_what_is_done(
    tmp_path: Path, processes: int, number: signal.Signals, code: int
) -> None:
    scene = write_video(tmp_path / "scene.h264", textured(24, 320, 240)).read_bytes()
    (tmp_path / "in").mkdir()
    for name in "bc":  # half a minute of work each
        (tmp_path / f"in/{name}.h264").write_bytes(scene * 800)
    (tmp_path / "in/a.h264").write_bytes(scene)
    (tmp_path / "program.py").write_text(PROGRAM)
    out = tmp_path / "out"
    command = [str(tmp_path / "program.py"), str(tmp_path / "in"), str(out), str(processes)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["", *sys.path])}

    def at_work_on_a_video() -> bool:
        done = (out / ".prepare/00000000.tar").exists()
        return done and any(out.glob(".prepare/0000000[12].tar.*.partial"))

    with running([sys.executable, *command], environment, at_work_on_a_video) as child:
        if number == signal.SIGINT:
            os.killpg(child.pid, number)  # as a terminal does: the workers get it too
        else:
            child.send_signal(number)
        _, errors = child.communicate(timeout=12)
    assert child.returncode == code, errors
    assert "Traceback" not in errors
    assert sorted(tree(out)) == ["00000000.tar", "lock", "plan.json"]
    with pytest.raises(UserError, match=r"prepare has not finished it.*run its command again"):
        read_manifest(str(out))


def test_new_processes_never_see_ctrl_c() -> None:
    program = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    with no_ctrl_c_in_new_processes():
        child = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True)
    assert child.stdout == b"True\n"
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_real_videos(tmp_path: Path) -> None:
    manifest = run(sample_videos(), tmp_path / "out", prepare__denoise__kind="atadenoise")
    assert manifest.samples > 20
    assert "videos_unreadable" not in manifest.dropped
    for facts, clip in samples(tmp_path / "out")[:5]:
        assert clip.shape == (8, 32, 32, 3) and facts["frames"] == 8
