"""Object storage over HTTP, with a proxy that makes faults: nothing is lost, errors are clear."""

import copy
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from distgan import drivers, object_store, storage
from distgan.buffers import Bytes
from distgan.config import StorageConfig
from distgan.errors import StorageError, UserError
from distgan.object_store import ObjectStore
from distgan.range_reader import RangeReader
from tests.fault_proxy import (
    FAULTS,
    Chooser,
    FaultProxy,
    Request,
    always,
    for_seconds,
    writes_denied,
)
from tests.object_servers import (
    BUCKET,
    KEY,
    SECRET,
    moto_server,
    options_for,
    rclone_server,
    with_options,
)

OUTAGE_S = 3.0
LARGE = 12_000_000  # bytes: three parts
PASSING = [fault for fault in FAULTS if fault not in ("denied", "expired")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with rclone_server(tmp_path_factory.mktemp("rclone")) as port:
        yield port


@pytest.fixture(scope="module")
def moto() -> Iterator[int]:
    with moto_server() as port, with_options(options_for(port)):
        storage._store(f"s3://{BUCKET}/").s3_call("create_bucket", f"s3://{BUCKET}/")
        yield port


@pytest.fixture
def url(server: int, request: pytest.FixtureRequest) -> Iterator[str]:
    """A folder of its own on rclone's server."""
    with with_options(options_for(server)):
        yield f"s3://{BUCKET}/{abs(hash(request.node.name))}"


@pytest.fixture
def proxy(server: int) -> Iterator[FaultProxy]:
    """Between this process and rclone's server."""
    with FaultProxy(server) as proxy, with_options(options_for(proxy.port)):
        yield proxy


def use_folder_like_a_run(folder: str) -> None:
    """Every function of the door, with small and large files and a copy's check."""
    small, large = b"abc", os.urandom(LARGE)
    storage.write_bytes(f"{folder}/a/small", small)
    storage.write_bytes(f"{folder}/a/empty", b"")
    storage.write_bytes(f"{folder}/large", large)
    assert storage.read_bytes(f"{folder}/a/small") == small
    assert storage.read_bytes(f"{folder}/a/empty") == b""
    assert storage.read_bytes(f"{folder}/large") == large
    assert (
        storage.read_range(f"{folder}/large", 4_999_999, 6_000_000) == large[4_999_999:10_999_999]
    )
    assert storage.read_range(f"{folder}/a/small", 1, 10) == b"bc"
    assert storage.read_range(f"{folder}/a/small", 3, 1) == b""
    assert storage.size(f"{folder}/large") == LARGE
    assert storage.list_names(folder) == ["a", "large"]
    assert storage.exists(f"{folder}/a") and storage.exists(f"{folder}/large")
    assert not storage.exists(f"{folder}/b") and storage.list_names(f"{folder}/b") == []
    storage.write_bytes(f"{folder}/a/small", b"other")
    assert storage.read_bytes(f"{folder}/a/small") == b"other"
    storage.rename(f"{folder}/a", f"{folder}/b")
    assert storage.list_names(f"{folder}/b") == ["empty", "small"]
    assert storage.list_names(f"{folder}/a") == []
    storage.remove(f"{folder}/b/small")
    storage.remove_tree(f"{folder}/b")
    assert storage.list_names(folder) == ["large"]
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(f"{folder}/b/small")
    with pytest.raises(IsADirectoryError):
        storage.read_bytes(folder)


def test_local_files(tmp_path: Path) -> None:
    use_folder_like_a_run(str(tmp_path / "run"))
    use_folder_like_a_run(f"file://{tmp_path}/other%20run")
    assert (tmp_path / "other run" / "large").stat().st_size == LARGE


def test_rclone(url: str) -> None:
    use_folder_like_a_run(url)
    assert storage.list_tree(url) == {"large": LARGE}


def test_moto(moto: int) -> None:
    with with_options(options_for(moto, checksums="when_supported")):
        use_folder_like_a_run(f"s3://{BUCKET}/run")


def test_another_scheme() -> None:
    use_folder_like_a_run("memory://bucket/run")


def test_fetch_is_exact(url: str, tmp_path: Path) -> None:
    data = os.urandom(LARGE)
    storage.write_bytes(f"{url}/video", data)
    storage.fetch(f"{url}/video", tmp_path / "video")
    assert (tmp_path / "video").read_bytes() == data


def write_and_read_during(fault: str, server: int, scratch: Path) -> list[str]:
    """Starts in the middle of an outage; returns the names that are there in the end."""
    with FaultProxy(server, for_seconds(OUTAGE_S, always(fault))) as proxy:
        store = ObjectStore("s3", options_for(proxy.port))
        folder = f"s3://{BUCKET}/outage-{fault}"
        for number in range(3):
            data = os.urandom(200_000)
            store.write(f"{folder}/{number}", data)
            assert store.read(f"{folder}/{number}", lambda got, data=data: got == data) == data
            store.fetch(f"{folder}/{number}", scratch / fault)
            assert (scratch / fault).read_bytes() == data
        assert proxy.made.count(fault) >= (1 if fault == "stall" else 2)
        return store.names(folder)


@pytest.fixture(scope="module")
def outages(
    server: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[list[str]]]]:
    """Outages of every kind at the same time, each between its own client and the server."""
    scratch = tmp_path_factory.mktemp("outages")
    with with_options(options_for(server)), ThreadPoolExecutor(len(PASSING)) as pool:
        yield {f: pool.submit(write_and_read_during, f, server, scratch) for f in PASSING}


@pytest.mark.parametrize("fault", PASSING)
def test_an_outage_loses_nothing(outages: dict[str, Future[list[str]]], fault: str) -> None:
    """Writes and reads that start in the middle of it come through, byte for byte."""
    assert outages[fault].result() == ["0", "1", "2"]


def test_faults_now_and_then_in_large_objects(proxy: FaultProxy) -> None:
    with proxy.failing(always("slow_down", "reset", "half_body", probability=0.3)):
        use_folder_like_a_run(f"s3://{BUCKET}/now-and-then")
    assert {"slow_down", "reset", "half_body"} <= set(proxy.made)
    with proxy.failing(always("flip", "internal", probability=0.3)):
        data = os.urandom(LARGE)
        storage.write_bytes(f"s3://{BUCKET}/large", data)
        for _ in range(5):  # the object's MD5 vouches where the caller has no digest
            assert storage.read_bytes(f"s3://{BUCKET}/large") == data
    assert "flip" in proxy.made


def first_reads(count: int, fault: str) -> Chooser:
    """A fault on the first reads of objects' bytes."""
    left = count

    def choose(number: int, request: Request) -> str:
        nonlocal left
        left -= request.reads_object
        return fault if request.reads_object and left >= 0 else ""

    return choose


def test_wrong_bytes_are_fetched_again(proxy: FaultProxy, tmp_path: Path) -> None:
    data = os.urandom(100_000)
    storage.write_bytes(f"s3://{BUCKET}/wrong", data)
    with proxy.failing(first_reads(2, "flip")):
        storage.fetch(f"s3://{BUCKET}/wrong", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    with proxy.failing(first_reads(2, "flip")):
        assert storage.read_bytes(f"s3://{BUCKET}/wrong") == data
    assert proxy.made == ["flip"] * 4


def test_an_answer_that_ends_early_without_a_length(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drivers notice a body shorter than announced; one without a length is ours to notice."""
    storage.write_bytes(f"s3://{BUCKET}/short", b"0123456789")
    whole, answers = RangeReader.read, [b"", b"0123", b"01234567890123"]

    async def shortened(*arguments: Any) -> Bytes:
        return answers.pop() if answers else await whole(*arguments)

    monkeypatch.setattr(RangeReader, "read", shortened)
    assert storage.read_range(f"s3://{BUCKET}/short", 0, 10) == b"0123456789"
    assert not answers


def test_an_upload_that_nobody_reads_is_given_up(proxy: FaultProxy) -> None:
    """The HTTP client's own timeouts begin only when it has sent everything."""
    data = os.urandom(4_900_000)  # in one request
    stalls = 1

    def stall_first_upload(number: int, request: Request) -> str:
        nonlocal stalls
        if request.method == "PUT" and stalls:
            stalls -= 1
            return "stall"
        return ""

    start = time.monotonic()
    with proxy.failing(stall_first_upload):
        storage.write_bytes(f"s3://{BUCKET}/stalled", data)
    assert time.monotonic() - start < 15
    assert storage.read_bytes(f"s3://{BUCKET}/stalled") == data


@pytest.mark.parametrize("fault", ["unavailable", "stall"])
def test_a_spent_budget_gives_one_clear_error(proxy: FaultProxy, fault: str) -> None:
    storage.configure(options_for(proxy.port, retry_seconds=1.5))
    start = time.monotonic()
    with (
        proxy.failing(always(fault)),
        pytest.raises(StorageError, match=rf"s3://{BUCKET}/x.*retry_seconds=1.5") as caught,
    ):
        storage.read_bytes(f"s3://{BUCKET}/x")
    assert time.monotonic() - start < 8
    expected = "503" if fault == "unavailable" else "Timeout"
    assert expected in str(caught.value) and "\n" not in str(caught.value)


class _TlsPort(BaseHTTPRequestHandler):
    """What Go's servers say over plain HTTP on the port of HTTPS."""

    def do_HEAD(self) -> None:
        self.send_response(400)
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(b"Client sent an HTTP request to an HTTPS server.\n")

    def log_message(self, *_: object) -> None:
        """Silence."""


def test_the_wrong_scheme_is_told_at_once(server: int) -> None:
    start = time.monotonic()
    options = options_for(server, retry_seconds=60)
    with (
        with_options(options.model_copy(update={"endpoint_url": f"https://127.0.0.1:{server}"})),
        pytest.raises(UserError, match=r"speak http, not https; correct storage\.endpoint_url"),
    ):
        storage.read_bytes(f"s3://{BUCKET}/x")
    with ThreadingHTTPServer(("127.0.0.1", 0), _TlsPort) as tls:
        threading.Thread(target=tls.serve_forever, daemon=True).start()
        with with_options(options_for(tls.server_address[1], retry_seconds=60)):
            for read in (storage.exists, storage.list_names, storage.read_bytes):
                with pytest.raises(UserError, match="speak https, not http; correct"):
                    read(f"s3://{BUCKET}/x")
        tls.shutdown()
    assert time.monotonic() - start < 20


def test_damage_at_rest_is_told_at_once(url: str, proxy: FaultProxy) -> None:
    storage.write_bytes(f"{url}/x", b"damaged")
    start = time.monotonic()
    assert storage.read_bytes(f"{url}/x", is_right=lambda data: data == b"whole") == b"damaged"
    assert time.monotonic() - start < 2


def test_unfinished_uploads_are_called_off(proxy: FaultProxy) -> None:
    """Nothing is there afterwards: no object, and no parts that cost money."""
    storage.configure(options_for(proxy.port, retry_seconds=1.0))
    folder = f"s3://{BUCKET}/unfinished"

    def parts_fail(number: int, request: Request) -> str:
        return "internal" if "partNumber=3" in request.target else ""

    with proxy.failing(parts_fail), pytest.raises(StorageError):
        storage.write_bytes(f"{folder}/large", os.urandom(LARGE))
    assert not storage.exists(f"{folder}/large")
    answer = storage._store(folder).file_system().call_s3("list_multipart_uploads", Bucket=BUCKET)
    assert not answer.get("Uploads")


def test_bytes_damaged_on_their_way_in_are_refused(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request carries its content's MD5, whatever the options for other checksums."""
    monkeypatch.setattr(object_store, "_md5_raw", lambda data: hashlib.md5(data + b"!").digest())
    storage.configure(storage.options().model_copy(update={"retry_seconds": 0.5}))
    with pytest.raises(StorageError, match="BadDigest"):
        storage.write_bytes(f"{url}/x", b"abc")
    assert not storage.exists(f"{url}/x")


def test_a_read_only_bucket(proxy: FaultProxy) -> None:
    with proxy.failing(writes_denied), pytest.raises(UserError, match="read-only") as caught:
        storage.write_bytes(f"s3://{BUCKET}/x", b"abc")
    assert "s3:PutObject" in str(caught.value)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("s3://nowhere/x", "there is no bucket 'nowhere'"),
        ("s3://Not_a_bucket!/x", "not a valid bucket"),
        ("s3://", "names no bucket"),
        ("s3:///folder/file", "names no bucket"),
        ("nonsense://bucket/x", "no storage is known by nonsense://"),
        ("simplecache::s3://bucket/x", "chained"),
        ("s3://key:hush-hush@bucket/x", "credentials"),
    ],
)
def test_bad_urls_are_named(url: str, path: str, words: str) -> None:
    for use in (storage.read_bytes, storage.list_names, storage.exists, storage.size):
        with pytest.raises(UserError, match=words) as caught:
            use(path)
        assert "hush" not in str(caught.value)
    with pytest.raises(UserError, match=words):
        storage.write_bytes(path, b"")


def test_renewed_credentials_are_read_again(
    proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mounted file that is renewed while the program runs, as Kubernetes does."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    mounted = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(mounted))
    text = f"[default]\naws_secret_access_key = {SECRET}\naws_access_key_id = "
    mounted.write_text(text + "old-key-id\n")

    def expired(number: int, request: Request) -> str:
        if b"old-key-id" not in request.head:
            return ""
        mounted.write_text(text + f"{KEY}\n")
        return "expired"

    with proxy.failing(expired):
        storage.write_bytes(f"s3://{BUCKET}/renewed", b"abc")
    assert proxy.made == ["expired"]
    assert storage.read_bytes(f"s3://{BUCKET}/renewed") == b"abc"


def test_options_reach_the_driver() -> None:
    options = drivers.s3_options(
        StorageConfig(endpoint_url="http://x", region="eu-north-1", addressing="virtual")
    )
    assert options["endpoint_url"] == "http://x"
    assert options["client_kwargs"] == {"region_name": "eu-north-1"}
    assert options["config_kwargs"]["s3"] == {"addressing_style": "virtual"}
    assert options["config_kwargs"]["request_checksum_calculation"] == "when_supported"


@pytest.mark.parametrize("size", [10, LARGE])
def test_a_write_that_is_refused_before_its_body_is_read_says_so_soon(
    size: int, tmp_path: Path
) -> None:
    """Such a server answers 500 at once; asked for a word before the body, it would give none."""
    with (
        rclone_server(tmp_path, read_only=True) as port,
        with_options(options_for(port, retry_seconds=1, read_timeout_seconds=20)),
    ):
        start = time.monotonic()
        with pytest.raises(StorageError, match=r"InternalError \(HTTP 500\)"):
            storage.write_bytes(f"s3://{BUCKET}/refused", bytes(size))
        assert time.monotonic() - start < 15


def test_the_file_system_can_be_copied_as_ray_does() -> None:
    fs = drivers.connect("s3", StorageConfig()).fs
    copied = copy.deepcopy(fs)
    assert copied.storage_options == fs.storage_options
