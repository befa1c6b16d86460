"""Files larger than they say, as sparse files are at no cost: refused before they are read."""

import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from distgan import storage
from distgan.config_loading import load_config, read_yaml
from distgan.data.indexing import index
from distgan.data.manifest import read_manifest
from distgan.data.shard_cache import ShardCache
from distgan.data.shard_reader import read_shard
from distgan.data.verify import verify
from distgan.errors import TooLargeError, UserError
from distgan.export import load_generator
from distgan.local import train_locally
from tests.object_servers import BUCKET, options_for, rclone_server, with_options
from tests.tiny import TINY

SIZE = 64 * 2**30


@pytest.fixture
def data(tiny_data: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_data, tmp_path / "data"))


@pytest.fixture(scope="module")
def finished(tiny_data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("oversized") / "run"
    train(folder, tiny_data)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    before = peak_bytes()
    yield
    assert peak_bytes() - before < 500 * 2**20


def peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def train(run: Path, data: str) -> None:
    overrides = [*TINY, f"run.dir={run}", f"data.shards={data}", "train.max_steps=2"]
    train_locally(load_config(overrides=overrides), show_progress=False)


def test_a_shard_counts_as_damaged(data: Path) -> None:
    manifest, _ = read_manifest(str(data))
    entry = manifest.shards[1]
    os.truncate(data / entry.name, SIZE)
    shard = read_shard(str(data), manifest, 1)
    assert shard.damage is not None and len(shard.damage.samples) == entry.samples
    assert verify(str(data), processes=1, show_progress=False)[1] == [
        f"{entry.name}: has far more than the {entry.bytes} bytes of the manifest; copy it again, "
        "or prepare again"
    ]


def test_a_cached_shard_is_read_anew(tiny_data: str, tmp_path: Path) -> None:
    manifest, _ = read_manifest(tiny_data)
    entry = manifest.shards[0]
    cache = ShardCache(load_config(overrides=[f"data.cache_dir={tmp_path}"]).data)
    cached = tmp_path / f"{entry.sha256}.tar"
    cached.touch()
    os.truncate(cached, SIZE)
    original = str(Path(tiny_data, entry.name))
    data = cache.read(original, entry.sha256, bool, size=entry.bytes, max_bytes=entry.bytes)
    assert data == Path(original).read_bytes() and not cached.exists()


def test_the_facts_of_a_data_set(data: Path) -> None:
    os.truncate(data / "videos.jsonl", SIZE)
    (problem,) = verify(str(data), processes=1, show_progress=False)[1]
    assert problem.startswith("videos.jsonl: is damaged")
    os.truncate(data / "shard-000000.tar", SIZE)
    os.truncate(data / "manifest.json", SIZE)
    with pytest.raises(UserError, match=r"manifest\.json has \d+ bytes, more than"):
        read_manifest(str(data))
    (data / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"shard-000000\.tar has \d+ bytes, more than"):
        index(str(data), processes=1, show_progress=False)


@pytest.mark.parametrize(
    "name", ["COMMITTED", "manifest.json", "state.json", "rank-00000-*.safetensors"]
)
def test_a_checkpoint_is_damaged(name: str, run: Path, tiny_data: str) -> None:
    (file,) = (run / "checkpoints/step_00000002").glob(name)
    os.truncate(file, SIZE)
    with pytest.raises(
        UserError, match=rf"every checkpoint .* is damaged: .*{file.name} has \d+ bytes"
    ):
        train(run, tiny_data)


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl"])
def test_a_run_folder_is_refused(name: str, run: Path, tiny_data: str) -> None:
    os.truncate(run / name, SIZE)
    with pytest.raises(UserError, match=rf"{name} has \d+ bytes, more than"):
        train(run, tiny_data)


@pytest.mark.parametrize("name", ["generator.json", "model.safetensors"])
def test_an_exported_generator_is_refused(name: str, run: Path) -> None:
    os.truncate(run / "generator" / name, SIZE)
    with pytest.raises(UserError, match=rf"{name} has \d+ bytes, more than"):
        load_generator(str(run / "generator"), torch.device("cpu"))


def test_a_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("seed: 1\n")
    assert read_yaml(tmp_path / "c.yaml") == {"seed": 1}
    os.truncate(tmp_path / "c.yaml", SIZE)
    with pytest.raises(UserError, match=r"c\.yaml has \d+ bytes, more than"):
        read_yaml(tmp_path / "c.yaml")
    with pytest.raises(UserError, match="no regular file"):
        read_yaml(Path("/dev/zero"))


def test_a_configuration_of_many_values_is_given_up_early(tmp_path: Path) -> None:
    """Not when all million of them are there, at a kilobyte each."""
    (tmp_path / "c.yaml").write_text(f"seed: [{'1,' * 1_000_000}]")
    with pytest.raises(UserError, match="more than 10000 values"):
        read_yaml(tmp_path / "c.yaml")


def test_an_object_is_not_fetched(tmp_path: Path) -> None:
    with rclone_server(tmp_path) as port, with_options(options_for(port)):
        url = f"s3://{BUCKET}/large"
        storage.write_bytes(url, bytes(1000))
        assert len(storage.read_bytes(url, max_bytes=1000)) == 1000
        with pytest.raises(TooLargeError, match="1000 bytes, more than the 999 it may have"):
            storage.read_bytes(url, max_bytes=999)
        with pytest.raises(TooLargeError):  # also if its size was thought to be known
            storage.read_large(url, is_right=lambda _: False, size=10, max_bytes=20)
