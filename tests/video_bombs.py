"""Small files that ask for a lot: each is written by a function of `BOMBS`, named like a video."""

import struct
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

MANY_FRAMES = 80_000


def png_16k(folder: Path) -> Path:
    """Some kilobytes that decode to 256 MB: one black frame."""
    path = folder / "png_16k.mov"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=1)
        stream.width = stream.height = 16_000
        stream.pix_fmt = "gray"
        container.start_encoding()
        head = struct.pack(">IIBBBBB", 16_000, 16_000, 8, 0, 0, 0, 0)
        chunks = ((b"IHDR", head), (b"IDAT", _packed_zeros(16_000 * 16_001)), (b"IEND", b""))
        picture = b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in chunks
        )
        packet = av.Packet(picture)
        packet.stream, packet.time_base, packet.pts, packet.dts = stream, Fraction(1), 0, 0
        packet.is_keyframe = True
        container.mux(packet)
    return path


def png_16k_that_claims_64(folder: Path) -> Path:
    data = png_16k(folder).read_bytes()
    data = data.replace(struct.pack(">HH", 16_000, 16_000), struct.pack(">HH", 64, 64))
    return _write(folder / "png_claims_64.mov", data)


def claims_65535_squared(folder: Path) -> Path:
    data = _black(folder / "small.mp4", 64, 64).read_bytes()
    (folder / "small.mp4").unlink()
    old, new = struct.pack(">HH", 64, 64), struct.pack(">HH", 65_535, 65_535)
    data = data.replace(b"avc1" + bytes(6) + b"\0\1" + bytes(16) + old,
                        b"png " + bytes(6) + b"\0\1" + bytes(16) + new)  # fmt: skip
    assert new in data
    return _write(folder / "claims_65535.mp4", data)


def long_black_4k(folder: Path) -> Path:
    return _black(folder / "long_4k.mp4", 3840, 2160, MANY_FRAMES)


def long_black_4k_that_says_nothing(folder: Path) -> Path:
    """A raw stream: neither frames nor seconds are stated."""
    return _black(folder / "long_4k.h264", 3840, 2160, MANY_FRAMES)


def claims_2_to_the_31_frames(folder: Path) -> Path:
    data = bytearray(_black(folder / "a.mp4", 64, 64).read_bytes())
    (folder / "a.mp4").unlink()
    place = data.index(b"stts") + 12
    data[place : place + 4] = struct.pack(">I", 2**31 - 1)
    return _write(folder / "claims_frames.mp4", bytes(data))


def claims_5_frames_of_many(folder: Path) -> Path:
    data = bytearray(_black(folder / "b.avi", 64, 64, MANY_FRAMES).read_bytes())
    (folder / "b.avi").unlink()
    for tag, offset in ((b"avih", 24), (b"strh", 40)):
        place = data.index(tag) + offset
        data[place : place + 4] = struct.pack("<I", 5)
    return _write(folder / "claims_5_frames.avi", bytes(data))


def playlist_hls(folder: Path) -> Path:
    entries = "#EXTINF:9,\n/dev/zero\n" * 1000
    text = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n{entries}#EXT-X-ENDLIST\n"
    return _write(folder / "hls.mp4", text.encode())


def playlist_concat(folder: Path) -> Path:
    text = "ffconcat version 1.0\n" + "file /dev/zero\n" * 1000
    return _write(folder / "concat.mkv", text.encode())


def subtitles(folder: Path) -> Path:
    entries = "".join(f"{n}\n00:00:00,000 --> 99:59:59,999\n<b>x</b>\n\n" for n in range(20_000))
    return _write(folder / "subtitles.mp4", entries.encode())


def nine_hundred_tracks(folder: Path) -> Path:
    """A header that holds the same track again and again; FFmpeg itself takes a thousand."""
    data = _black(folder / "c.mp4", 64, 64).read_bytes()
    (folder / "c.mp4").unlink()
    moov = data.index(b"moov") - 4
    trak = data.index(b"trak") - 4
    (size,) = struct.unpack(">I", data[trak : trak + 4])
    (moov_size,) = struct.unpack(">I", data[moov : moov + 4])
    extra = data[trak : trak + size] * 900
    header = struct.pack(">I", moov_size + len(extra))
    data = data[:moov] + header + data[moov + 4 : trak] + extra + data[trak:]
    return _write(folder / "tracks.mp4", data)


def nested_boxes(folder: Path) -> Path:
    data = b""
    for _ in range(20_000):
        data = struct.pack(">I", len(data) + 8) + b"moov" + data
    return _write(folder / "nested.mp4", b"\0\0\0\x14ftypisom\0\0\2\0isom" + data)


def packed_header(folder: Path) -> Path:
    """A zip bomb where QuickTime may pack its header: 1 MB that unpacks to 1 GiB."""
    cmvd = _box(b"cmvd", struct.pack(">I", 2**30) + _packed_zeros(2**30))
    moov = _box(b"moov", _box(b"cmov", _box(b"dcom", b"zlib") + cmvd))
    return _write(folder / "packed.mov", b"\0\0\0\x14ftypqt  \0\0\2\0qt  " + moov)


def packed_blocks(folder: Path) -> Path:
    """A zip bomb in Matroska: each block unpacks to a thousand times its size."""
    block = zlib.compress(bytes(9_000_000), 9)
    encoding = _ebml("5034", _ebml("4254", b""))  # ContentCompression: zlib
    video = _ebml("b0", b"\x40") + _ebml("ba", b"\x40")
    track = (
        _ebml("d7", b"\1") + _ebml("73c5", b"\1") + _ebml("83", b"\1")
        + _ebml("86", b"V_VP9") + _ebml("e0", video) + _ebml("6d80", _ebml("6240", encoding))
    )  # fmt: skip
    blocks = b"".join(
        _ebml("a3", b"\x81" + struct.pack(">h", n) + b"\x80" + block) for n in range(200)
    )
    cluster = _ebml("1f43b675", _ebml("e7", b"\0") + blocks)
    head = _ebml("1a45dfa3", _ebml("4282", b"matroska"))
    segment = _ebml("18538067", _ebml("1654ae6b", _ebml("ae", track)) + cluster)
    return _write(folder / "packed.mkv", head + segment)


def gif_65535(folder: Path) -> Path:
    head = b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + b"\x80\0\0" + bytes(6)
    image = b"," + struct.pack("<HHHH", 0, 0, 65_535, 65_535) + b"\0\2\2L\1\0"
    return _write(folder / "huge.gif", head + image * 200 + b";")


def y4m_200k(folder: Path) -> Path:
    return _write(
        folder / "huge.y4m", b"YUV4MPEG2 W200000 H200000 F25:1 C420\nFRAME\n" + bytes(9999)
    )


BOMBS: dict[str, Callable[[Path], Path]] = {
    make.__name__: make
    for make in (
        png_16k, png_16k_that_claims_64, claims_65535_squared, long_black_4k,
        long_black_4k_that_says_nothing, claims_2_to_the_31_frames, claims_5_frames_of_many,
        playlist_hls, playlist_concat, subtitles, nine_hundred_tracks, nested_boxes,
        packed_header, packed_blocks, gif_65535, y4m_200k,
    )
}  # fmt: skip


def _black(path: Path, width: int, height: int, num_frames: int = 20) -> Path:
    """Black frames; after the first ones the same packet, which says that nothing changes."""
    codec = "mpeg4" if path.suffix == ".avi" else "libx264"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        if codec == "libx264":
            stream.options = {"preset": "ultrafast", "g": "100000"}
        image = av.VideoFrame.from_ndarray(np.zeros((height, width, 3), np.uint8), format="rgb24")
        image = image.reformat(format="yuv420p")
        packets = []
        for number in range(min(num_frames, 20)):
            image.pts = number
            packets += stream.encode(image)
        packets += stream.encode()
        container.mux(packets)
        last = bytes(packets[-1])
        for number in range(len(packets), num_frames):
            packet = av.Packet(last)
            packet.stream, packet.time_base = stream, packets[0].time_base
            packet.pts = packet.dts = number * (packets[1].pts - packets[0].pts)
            container.mux(packet)
    return path


def _packed_zeros(count: int) -> bytes:
    """So many zeros as zlib packs them, at once: a flushed block may stand any number of times."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    rest = packer.compress(bytes(count % 2**20)) + packer.flush()
    adler = (count % 65_521) << 16 | 1
    return b"\x78\xda" + block * (count // 2**20) + rest + struct.pack(">I", adler)


def _box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content) + 8) + name + content


def _ebml(identifier: str, content: bytes) -> bytes:
    return bytes.fromhex(identifier) + struct.pack(">Q", len(content) | 1 << 56) + content


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
