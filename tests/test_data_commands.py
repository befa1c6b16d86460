"""launch.py data verify, show and index, as users run them, on folders and on s3://."""

import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distgan.data.clip_formats import encode
from distgan.data.indexing import index
from distgan.data.manifest import MANIFEST_NAME, read_manifest
from distgan.data.show import show
from distgan.data.verify import verify
from distgan.errors import UserError
from distgan.paths import absolute
from launch import main
from tests.damage import clip_places, flip_bit
from tests.numbered_clips import make_data
from tests.object_servers import BUCKET, CREDENTIALS, OPTIONS, rclone_server
from tests.tiny import REPOSITORY, TINY, launch, one_thread


@pytest.fixture
def data(tiny_data: str, tmp_path: Path) -> Path:
    """A copy of a prepared data set."""
    return Path(shutil.copytree(tiny_data, tmp_path / "data"))


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """launch.py with credentials, and `folder` as its working directory."""
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "launch.py"), *arguments],
        env={**one_thread(), **CREDENTIALS},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def flip_in_clip(shard: Path, number: int = 0) -> None:
    flip_bit(shard, clip_places(shard)[number][1] + 600)


def test_verify_says_what_is_wrong_line_by_line(data: Path) -> None:
    done = launch("data", "verify", "--data", str(data), "--processes", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("sound: 40 samples in ") and "verify: 100%" in done.stderr
    manifest, _ = read_manifest(str(data))
    names = [entry.name for entry in manifest.shards]
    flip_in_clip(data / names[0], 1)
    (data / names[1]).unlink()
    shutil.copy(data / names[2], data / "shard-000099.tar")
    done = launch("data", "verify", "--data", str(data), "--processes", "2")
    assert done.returncode == 2
    assert done.stdout.splitlines() == [
        f"{names[0]}: has another sha256 than the manifest says; copy it again, or prepare again",
        f"{names[0]}: {manifest.shards[0].keys[1]}: the clip's crc32 differs from the manifest's",
        f"{names[1]}: is missing; copy it again, or prepare again",
        "shard-000099.tar: lies in the folder, but the manifest does not name it",
    ]
    last = done.stderr.splitlines()[-1]
    assert last.startswith("launch.py data verify: 4 problems") and "Traceback" not in done.stderr


def test_verify_holds_the_report_of_videos_to_the_manifest(data: Path) -> None:
    report = data / "videos.jsonl"

    def problems() -> list[str]:
        return verify(str(data), processes=1, show_progress=False)[1]

    text = report.read_text()
    assert problems() == []
    report.write_text(text.replace('"sha256": "', '"sha256": "f', 1))
    assert problems() == [
        "videos.jsonl: names other videos than the manifest was made of; copy it again, or "
        "prepare again"
    ]
    report.write_text(text[:-5])
    assert problems() == ["videos.jsonl: is damaged; copy it again, or prepare again"]
    report.unlink()
    assert problems() == ["videos.jsonl: is missing; copy it again, or prepare again"]


def test_doctor_names_a_missing_shard(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "shard-000000.tar").unlink()
    assert main(["doctor", *TINY, f"data.shards={data}", f"run.dir={tmp_path / 'run'}"]) == 2
    assert "shard-000000.tar has 0 bytes" in capsys.readouterr().err


def test_verify_holds_each_sample_and_the_manifest_itself_to_account(data: Path) -> None:
    path = data / MANIFEST_NAME
    text = path.read_text()

    def problems_with(change: str, value: object) -> list[str]:
        tree = json.loads(text)
        tree["shards"][0][change] = value
        path.write_text(json.dumps(tree))
        return verify(str(data), processes=1, show_progress=False)[1]

    first = json.loads(text)["shards"][0]
    (problem, _) = problems_with("crc32", [0, *first["crc32"][1:]])
    assert "does not hold the samples" in problem
    assert "bytes instead of" in problems_with("bytes", first["bytes"] + 1)[0]
    assert "sha256" in problems_with("sha256", "0" * 64)[0]
    second = json.loads(text)["shards"][1]
    assert "names it 2 times" in problems_with("name", second["name"])[0]
    with pytest.raises(UserError, match=r"shards\.0.*samples"):
        problems_with("samples", first["samples"] + 1)
    with pytest.raises(UserError, match=r"shards\.0\.name"):
        problems_with("name", "../shard-000000.tar")


def test_show_prints_facts_and_draws_clips(data: Path, tmp_path: Path) -> None:
    done = run(tmp_path, "data", "show", "--data", "data")
    assert done.returncode == 0, done.stderr
    for words in (" 40\n", "videos used", "6 frames of 16x16", "npy; ", "prepare.denoise", " MB"):
        assert words in done.stdout, words
    with Image.open(tmp_path / "data_sheet.png") as sheet:
        assert sheet.width > 6 * 64 and sheet.height > 8 * 64
    manifest, _ = read_manifest(str(data))
    flip_in_clip(data / manifest.shards[0].name)
    text = show(str(data), str(tmp_path / "second.png"))
    assert f"damaged: {manifest.shards[0].name} has another sha256" in text
    first = manifest.shards[0].keys[0]
    assert f"{manifest.shards[0].name}: {first}: the clip's crc32 differs" in text
    assert "7 clips to look at" in text
    for entry in manifest.shards:
        (data / entry.name).unlink()
    with pytest.raises(UserError, match=r"no whole clip to show.*data verify"):
        show(str(data), str(tmp_path / "third.png"))


def test_index_describes_shards_without_a_manifest(data: Path) -> None:
    before, _ = read_manifest(str(data))
    done = launch("data", "index", "--data", str(data))
    assert done.returncode == 2 and "has a manifest already" in done.stderr
    (data / MANIFEST_NAME).unlink()
    for command in (("data", "verify", "--data", str(data)), ("train", f"data.shards={data}")):
        done = launch(*command)
        assert done.returncode == 2 and f"launch.py data index --data {data}" in done.stderr
    done = launch("data", "index", "--data", str(data), "--processes", "2")
    assert done.returncode == 0, done.stderr
    assert "indexed 40 clips" in done.stdout and "6 frames of 16x16, npy" in done.stdout
    after, _ = read_manifest(str(data))
    assert (after.shards, after.clip) == (before.shards, before.clip)
    assert verify(str(data), processes=1, show_progress=False)[1] == []


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def clip(frames: int = 3, size: int = 8, clip_format: str = "npy", width: int = 0) -> bytes:
    pixels = np.zeros((frames, size, width or size, 3), np.uint8)
    return encode(pixels, 8, "mp4" if clip_format == "mp4" else "npy")


def test_index_takes_tars_that_others_made(tmp_path: Path) -> None:
    """Other members stay unread; long names and folders are part of keys; rates may differ."""
    long = "folder/" + "x" * 150
    write_tar(tmp_path / "shard-a.tar", {f"{long}.npy": clip(), f"{long}.txt": b"caption"})
    write_tar(tmp_path / "shard-b.tar", {"k.json": b'{"frame_rate_hz": 4}', "k.npy": clip()})
    manifest = index(str(tmp_path), processes=1, show_progress=False)
    assert [entry.keys for entry in manifest.shards] == [(long,), ("k",)]
    assert (manifest.clip.stored_frames, manifest.clip.frame_rate_hz) == (3, 0)
    assert verify(str(tmp_path), processes=1, show_progress=False)[1] == []
    assert "2 clips to look at" in show(str(tmp_path), str(tmp_path / "sheet.png"))


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({}, "no clips"),
        ({"a.txt": b""}, "no clips"),
        ({"a.npy": clip(), "b.mp4": clip(clip_format="mp4")}, "members ending in mp4, npy"),
        ({"a.npy": b"rubbish"}, "a.npy does not decode"),
        ({"a.npy": clip(width=10)}, "10x8 pixels"),
        ({"a.npy": clip(), "b.npy": clip(frames=4)}, "stored_frames=4"),
        ({"a.npy": clip(), "b.npy": clip(size=4)}, "resolution=4"),
        ({"a.npy": clip(), "a.json": b"{broken"}, "a.json is no JSON object"),
    ],
)
def test_index_refuses_what_is_no_data_set(
    members: dict[str, bytes], words: str, tmp_path: Path
) -> None:
    write_tar(tmp_path / "shard-000000.tar", members)
    with pytest.raises(UserError, match=words):
        index(str(tmp_path), processes=1, show_progress=False)
    assert not (tmp_path / MANIFEST_NAME).exists()


def test_index_leaves_no_tar_out_silently(tmp_path: Path) -> None:
    for name in ("shard-000000.tar", "train-000000.tar"):
        write_tar(tmp_path / name, {"a.npy": clip()})
    with pytest.raises(UserError, match=r"train-000000.tar is not named shard-\*.tar"):
        index(str(tmp_path), processes=1, show_progress=False)


def test_a_manifest_that_lost_a_shard_is_refused(tmp_path: Path) -> None:
    make_data(tmp_path, [4, 3])
    (tmp_path / MANIFEST_NAME).unlink()
    index(str(tmp_path), processes=1, show_progress=False)
    manifest = json.loads((tmp_path / MANIFEST_NAME).read_text())
    lost = manifest["shards"].pop()
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(manifest))
    (tmp_path / lost["name"]).unlink()
    for command in (("data", "verify", "--data"), ("data", "show", "--data")):
        done = launch(*command, str(tmp_path))
        assert done.returncode == 2
        assert "it counts 7 clips, but its shards list 4" in done.stderr


def test_a_sheet_that_can_not_be_written_is_said(data: Path) -> None:
    with pytest.raises(UserError, match=r"can't write /proc/sheet.png: .*; name another"):
        show(str(data), "/proc/sheet.png")


def test_index_refuses_damaged_tars_and_unfinished_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no shards"):
        index(str(tmp_path), show_progress=False)
    make_data(tmp_path, [4, 4])
    (tmp_path / MANIFEST_NAME).unlink()
    shard = tmp_path / "shard-000001.tar"
    right, places = shard.read_bytes(), clip_places(shard)
    flip_bit(shard, places[1][1] - 500)
    with pytest.raises(UserError, match=r"shard-000001.tar is damaged at byte"):
        index(str(tmp_path), processes=2, show_progress=False)
    for length in (places[2][1] + 7, places[1][0], 0):
        shard.write_bytes(right[:length])
        with pytest.raises(UserError, match=r"shard-000001.tar is damaged|ends too early"):
            index(str(tmp_path), processes=1, show_progress=False)
    (tmp_path / ".prepare").mkdir()
    with pytest.raises(UserError, match="unfinished"):
        index(str(tmp_path), show_progress=False)


def test_other_keys_and_missing_folders_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "verify", "--data", str(tmp_path), "seed=3"]) == 2
    assert "storage section only" in capsys.readouterr().err
    for command in ("verify", "show", "index"):
        assert main(["data", command, "--data", str(tmp_path / "nowhere")]) == 2
        errors = capsys.readouterr().err
        assert errors.startswith(f"launch.py data {command}: no ") and "launch.py prepare" in errors


def test_all_three_on_s3(data: Path, tmp_path: Path) -> None:
    root = tmp_path / "server"
    with rclone_server(root) as port:
        shutil.copytree(data, root / BUCKET / "data")
        options = (*OPTIONS, f"storage.endpoint_url=http://127.0.0.1:{port}")
        url = ("--data", "s3://bucket/data", *options)
        (root / BUCKET / "data" / MANIFEST_NAME).unlink()
        done = run(tmp_path, "data", "index", *url)
        assert done.returncode == 0, done.stderr
        done = run(tmp_path, "data", "show", *url, "--output", "s3://bucket/sheet.png")
        assert done.returncode == 0, done.stderr
        assert (root / BUCKET / "sheet.png").read_bytes().startswith(b"\x89PNG")
        assert list(tmp_path.glob("*.png")) == []
        flip_in_clip(root / BUCKET / "data" / "shard-000000.tar")
        done = run(tmp_path, "data", "verify", *url, "--processes", "2")
    assert done.returncode == 2, done.stderr
    assert len(done.stdout.splitlines()) == 2 and "crc32 differs" in done.stdout


@pytest.mark.parametrize("url", ["s3:/bucket/data", "S3:/bucket", "s3://", "s3:///"])
def test_urls_that_name_no_bucket_are_refused_in_words(url: str) -> None:
    done = launch("data", "verify", "--data", url)
    assert done.returncode == 2 and "write s3://BUCKET/FOLDER" in done.stderr
    assert repr(url) in done.stderr


def test_capitals_in_a_scheme_do_not_matter() -> None:
    assert absolute("S3://Bucket/Data/") == "s3://Bucket/Data"
