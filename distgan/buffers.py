"""Memory for large reads and batches.

NumPy is loaded on first use: the command line does without it.
"""

from __future__ import annotations

import math
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Bytes = bytes | memoryview

KEPT_BYTES = 256_000_000
"""Of memory that nobody uses any more, a process keeps about so much for its next reads."""
_SMALL_BYTES = 1 << 20

_free: dict[int, NDArray[np.uint8]] = {}


def new_buffer(size: int) -> memoryview:
    """Writable memory of so many bytes, not cleared: used before, if there is any.

    Copying into fresh memory of 4 KiB pages costs 6 times the copy itself, into the huge pages that
    NumPy asks the kernel for twice, and more on virtual machines that give free memory back. It is
    used again when nothing refers to it any more, also no part of it.
    """
    import numpy as np

    if size < _SMALL_BYTES:
        return np.empty(size, np.uint8).data
    whole = _used_before(size)
    if whole is None:
        whole = np.empty(size, np.uint8)
    part = whole[:size]
    weakref.finalize(part, _keep, whole).atexit = False
    return part.data


def new_array(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Such memory as an array of bytes."""
    import numpy as np

    return np.frombuffer(new_buffer(math.prod(shape)), np.uint8).reshape(shape)


def _used_before(size: int) -> NDArray[np.uint8] | None:
    # Only what is atomic: memory can be given back at any moment, in any thread.
    for key, whole in list(_free.items()):
        if size <= whole.size <= 2 * size and _free.pop(key, None) is not None:
            return whole
    return None


def _keep(whole: NDArray[np.uint8]) -> None:
    if sum(other.size for other in list(_free.values())) + whole.size <= KEPT_BYTES:
        _free[id(whole)] = whole


def is_part_of(data: Bytes, buffer: memoryview) -> bool:
    """Whether `data` lies in the same memory."""
    return isinstance(data, memoryview) and data.obj is buffer.obj


def copy_into(buffer: memoryview, start: int, data: Bytes) -> None:
    """Copies `data` to a place in a buffer, while other threads go on."""
    import numpy as np

    target = np.frombuffer(buffer[start : start + len(data)], np.uint8)
    np.copyto(target, np.frombuffer(data, np.uint8))
