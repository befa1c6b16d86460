"""Memory for large reads. NumPy is loaded on first use: the command line does without it."""

Bytes = bytes | memoryview


def new_buffer(size: int) -> memoryview:
    """Writable memory of so many bytes, not cleared.

    NumPy asks the kernel for huge pages where it allocates megabytes, `bytes` does not: filling
    fresh memory of 4 KiB pages costs twice what the copy itself costs.
    """
    import numpy as np

    return np.empty(size, np.uint8).data


def is_part_of(data: Bytes, buffer: memoryview) -> bool:
    """Whether `data` lies in the same memory."""
    return isinstance(data, memoryview) and data.obj is buffer.obj


def copy_into(buffer: memoryview, start: int, data: Bytes) -> None:
    """Copies `data` to a place in a buffer, while other threads go on."""
    import numpy as np

    target = np.frombuffer(buffer[start : start + len(data)], np.uint8)
    np.copyto(target, np.frombuffer(data, np.uint8))
