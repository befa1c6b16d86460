"""The mark of a commit is created once: of several writers, one at most believes that it did it."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from distgan import storage
from distgan.checkpoint import committed_steps, load_newest, whole
from distgan.create_once import creating, put_new
from distgan.errors import UserError
from distgan.object_store import ObjectStore
from distgan.saving import Saver
from distgan.team import Alone
from tests.fault_proxy import FaultProxy, Request
from tests.object_servers import BUCKET, moto_server, options_for, rclone_server, with_options

WRITERS = 3


@pytest.fixture(scope="module")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Knows no conditional writes."""
    with rclone_server(tmp_path_factory.mktemp("rclone")) as port:
        yield port


@pytest.fixture(scope="module")
def moto() -> Iterator[int]:
    """Knows them."""
    with moto_server() as port, with_options(options_for(port)):
        storage._store(f"s3://{BUCKET}/").s3_call("create_bucket", f"s3://{BUCKET}/")
        yield port


@pytest.fixture(params=["rclone", "moto"])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    port = int(request.getfixturevalue(request.param))
    with with_options(options_for(port)):
        yield port


def race(port: int, url: str) -> list[bytes]:
    """What those wrote who believe that they created it, each with a connection of its own."""
    start, winners = threading.Barrier(WRITERS), list[bytes]()

    def write(number: int) -> None:
        store, data = ObjectStore("s3", options_for(port)), f"writer {number}".encode()
        store.names(url)
        start.wait(20)
        try:
            with creating(store, url) as create:
                create(data)
        except FileExistsError:
            return
        winners.append(data)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return winners


def test_of_several_writers_at_once_one_succeeds_at_most(port: int) -> None:
    for attempt in range(2):
        folder = f"s3://{BUCKET}/race-{attempt}"
        winners = race(port, f"{folder}/MARK")
        assert len(winners) <= 1
        if winners:
            assert storage.read_bytes(f"{folder}/MARK") == winners[0]
        assert storage.list_names(folder) == (["MARK"] if winners else [])


@pytest.mark.parametrize("folder", ["s3", "memory", "local"])
def test_what_is_there_stays(folder: str, moto: int, tmp_path: Path) -> None:
    url = {"s3": f"s3://{BUCKET}/there", "memory": "memory://there", "local": str(tmp_path)}[folder]
    with with_options(options_for(moto)):
        with storage.creating(f"{url}/MARK") as create:
            create(b"first")
        with pytest.raises(FileExistsError), storage.creating(f"{url}/MARK"):
            pytest.fail("it was let in")
        assert storage.read_bytes(f"{url}/MARK") == b"first"
        assert storage.list_names(url) == ["MARK"]


def test_the_server_itself_refuses_a_second_writer(moto: int) -> None:
    """Also one that has looked before the first one came."""
    with with_options(options_for(moto)):
        url = f"s3://{BUCKET}/conditional/MARK"
        store = storage._store(url)
        assert put_new(store, url, b"first") and not put_new(store, url, b"second")
        assert storage.read_bytes(url) == b"first"


def test_an_answer_that_is_lost_is_no_other_writer(moto: int) -> None:
    """The first attempt has written it, and the next one is refused."""
    lost: list[int] = []

    def lose_the_first_mark(number: int, request: Request) -> str:
        if request.method != "PUT" or not request.target.endswith("/MARK") or lost:
            return ""
        lost.append(number)
        return "half_body"

    with FaultProxy(moto, lose_the_first_mark) as proxy, with_options(options_for(proxy.port)):
        with storage.creating(f"s3://{BUCKET}/lost/MARK") as create:
            create(b"mine")
        assert lost and storage.read_bytes(f"s3://{BUCKET}/lost/MARK") == b"mine"


def test_two_runs_in_one_folder_do_not_both_commit(port: int) -> None:
    run = f"s3://{BUCKET}/two-runs"
    one, two = Saver(run, 2, Alone()), Saver(run, 2, Alone())
    one.begin(1, whole({"x": torch.zeros(3)}), {"step": 1})
    one.finish()
    with pytest.raises(UserError, match="two runs are writing"):
        two.begin(1, whole({"x": torch.ones(3)}), {"step": 1})
    loaded, problems = load_newest(run)
    assert loaded is not None and loaded.tensors["x"].eq(0).all() and not problems
    two._folder, two._state = one._folder, {"step": 1}  # it began before the other committed
    with pytest.raises(UserError, match="two runs are writing"):
        two._commit([{"files": {}, "pieces": {}}])
    assert committed_steps(run) == [1] and load_newest(run)[1] == []
