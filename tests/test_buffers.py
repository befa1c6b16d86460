"""Memory of large reads is used again, but never while something refers to any part of it."""

import gc

import numpy as np
import pytest

from distgan import buffers
from distgan.buffers import new_buffer

SIZE = 3_000_000


@pytest.fixture(autouse=True)
def nothing_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "_free", {})


def address(buffer: memoryview) -> int:
    return np.frombuffer(buffer, np.uint8).ctypes.data


def test_memory_that_nobody_uses_is_used_again() -> None:
    first = new_buffer(SIZE)
    at = address(first)
    del first
    again = new_buffer(SIZE - 1000)
    assert address(again) == at and len(again) == SIZE - 1000
    other = new_buffer(SIZE)
    assert address(other) != at


@pytest.mark.parametrize("part", [
    lambda buffer: buffer[1_000_000:1_000_010],
    lambda buffer: np.frombuffer(buffer[7:], np.uint8)[10:20],
    lambda buffer: np.asarray(buffer).reshape(2, -1)[1:, :5],
], ids=["view", "array of a view", "part of an array"])  # fmt: skip
def test_a_part_holds_all_of_it(part: object) -> None:
    assert callable(part)
    first = new_buffer(SIZE)
    at, held = address(first), part(first)
    del first
    gc.collect()
    assert address(new_buffer(SIZE)) != at
    del held
    assert address(new_buffer(SIZE)) == at or at in {
        whole.ctypes.data for whole in buffers._free.values()
    }


def test_what_is_kept_is_bounded() -> None:
    held = [new_buffer(buffers.KEPT_BYTES // 4) for _ in range(9)]
    held.clear()
    assert sum(whole.size for whole in buffers._free.values()) <= buffers.KEPT_BYTES
    assert len(buffers._free) == 4
    small = new_buffer(100)
    del small
    assert len(buffers._free) == 4, "small ones are not worth it"


def test_far_larger_memory_is_not_taken_for_a_small_read() -> None:
    large = new_buffer(10 * SIZE)
    at = address(large)
    del large
    assert address(new_buffer(SIZE)) != at


def test_smaller_memory_is_not_taken_for_a_larger_read() -> None:
    small = new_buffer(SIZE)
    del small
    large = new_buffer(SIZE + 1)
    assert len(large) == SIZE + 1 and len(buffers._free) == 1
