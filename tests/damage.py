"""Damage to files, which must be found before a byte of them is used."""

from pathlib import Path


def flip_bit(file: Path, place: int, bit: int = 0) -> None:
    """Changes one bit of the byte at `place`; from the end where that is negative."""
    data = bytearray(file.read_bytes())
    data[place] ^= 1 << bit
    file.write_bytes(data)
