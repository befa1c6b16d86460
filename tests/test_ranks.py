"""Any number of ranks and loader workers reads the same global order, also over kill and resume."""

import contextlib
import itertools
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distgan.data.damage import DamageTally
from distgan.errors import UserError
from tests.damage import flip_bit
from tests.numbered_clips import make_data, open_stream
from tests.order_program import lines_of

ROOT = Path(__file__).parent.parent
SIZES = [7, 3, 12, 9, 4, 11, 5, 2]  # 53 clips: no lane, batch or epoch boundary divides another
TOTAL, LANES, BATCH = sum(SIZES), 4, 8


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_data(tmp_path_factory.mktemp("data"), SIZES)


def order_of(data: str, *, ranks: int, workers: int = 0, start: int = 0, batches: int) -> str:
    """The global order as text, a line a clip, put together from all ranks."""

    def read(rank: int) -> list[str]:
        stream = open_stream(
            data, lanes=LANES, batch=BATCH, workers=workers, rank=rank, ranks=ranks
        )
        with contextlib.closing(stream.batches(start)) as endless:
            own = list(itertools.islice(endless, batches))
        assert {len(batch.places) for batch in own} == {BATCH // ranks}
        return [line for n, batch in enumerate(own) for line in lines_of(batch, start + n * BATCH)]

    return "\n".join(sorted(line for rank in range(ranks) for line in read(rank)))


@pytest.fixture(scope="module")
def undisturbed(data: str) -> str:
    return order_of(data, ranks=1, batches=2 * TOTAL // BATCH + 1)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_order_is_the_same_for_every_number_of_ranks_and_workers(
    ranks: int, workers: int, data: str, undisturbed: str
) -> None:
    batches = 2 * TOTAL // BATCH + 1
    assert order_of(data, ranks=ranks, workers=workers, batches=batches) == undisturbed


def test_each_clip_comes_exactly_once_an_epoch(undisturbed: str) -> None:
    shown = [int(line.split()[1]) for line in undisturbed.splitlines()]
    for epoch in range(2):
        assert sorted(shown[epoch * TOTAL : (epoch + 1) * TOTAL]) == list(range(TOTAL))


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("done", [1, 6, 7])
def test_a_start_at_another_number_of_ranks_goes_on_with_the_order(
    ranks: int, done: int, data: str, undisturbed: str
) -> None:
    batches = 2 * TOTAL // BATCH + 1
    rest = order_of(data, ranks=ranks, start=done * BATCH, batches=batches - done)
    assert rest == "\n".join(undisturbed.splitlines()[done * BATCH :])


def whole_batches(file: Path) -> list[list[str]]:
    """The lines of each batch that was written to its end."""
    batches: list[list[str]] = [[]]
    for line in file.read_text().splitlines() if file.exists() else []:
        if line.startswith("batch"):
            batches.append([])
        else:
            batches[-1].append(line)
    return batches[:-1]


@pytest.mark.parametrize(("before", "after"), [(4, 2), (1, 4)])
def test_a_kill_and_a_start_at_another_number_of_ranks_lose_and_repeat_nothing(
    before: int, after: int, data: str, undisturbed: str, tmp_path: Path
) -> None:
    done = 9  # batches in the checkpoint: more than an epoch
    numbers = [str(n) for n in (before, 1, LANES, BATCH, 0, 100_000)]
    command = [sys.executable, "-m", "tests.order_program", data, str(tmp_path / "order")]
    killed = [subprocess.Popen([*command, str(rank), *numbers], cwd=ROOT) for rank in range(before)]
    files = [tmp_path / f"order.{rank}" for rank in range(before)]
    try:
        deadline = time.monotonic() + 90
        while min(len(whole_batches(file)) for file in files) < done:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        for process in killed:
            process.kill()
        for process in killed:
            process.wait()
    lines = [line for file in files for batch in whole_batches(file)[:done] for line in batch]
    batches = 2 * TOTAL // BATCH + 1
    resumed = order_of(data, ranks=after, start=done * BATCH, batches=batches - done)
    assert "\n".join([*sorted(lines), resumed]) == undisturbed


def test_ranks_that_do_not_share_the_lanes_evenly_are_refused(data: str) -> None:
    with pytest.raises(UserError, match=r"data\.lanes=4 .*3 training processes"):
        open_stream(data, lanes=LANES, batch=BATCH, ranks=3)


def test_damage_that_ranks_find_adds_up_to_what_one_process_finds(tmp_path: Path) -> None:
    data = make_data(tmp_path, SIZES)
    for number, place in ((1, 3000), (4, 5000), (6, 700)):
        flip_bit(tmp_path / f"shard-{number:06d}.tar", place)

    def found(rank: int, ranks: int) -> DamageTally:
        stream = open_stream(
            data, lanes=LANES, batch=BATCH, rank=rank, ranks=ranks, max_damaged=1.0
        )
        batches = stream.batches()
        for _ in range(TOTAL // BATCH + 1):
            next(batches)
        return stream.damage

    alone, parts = found(0, 1), [found(rank, 2) for rank in range(2)]
    assert alone.num_shards == 3
    assert {part.num_shards for part in parts} != {3}, "each of them found everything"
    parts[0].merge([parts[1].state()])
    assert parts[0].state() == alone.state() and parts[0].metrics() == alone.metrics()
