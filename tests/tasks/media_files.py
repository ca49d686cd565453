"""Photos and videos, good and broken ones, made here."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from functools import cache
from io import BytesIO
from typing import Any

import av
import numpy as np
from PIL import Image

from consumer.local.uploads import photo, video

__all__ = ["BROKEN", "encoded", "still"]


@cache
def still(kind: str, name: str = "astronaut.png") -> bytes:
    return encoded(photo(name), kind)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind.partition("/")[2].upper(), **options)
    return file.getvalue()


@cache
def moving(kind: str, seconds: float = 4.0, side: int = 96) -> bytes:
    form, codec = {
        "video/mp4": ("mp4", "mpeg4"), "video/webm": ("webm", "libvpx"), "video/avi": ("avi", "mpeg4")
    }[kind]  # fmt: skip
    return video(photo("chelsea.png"), seconds=seconds, form=form, codec=codec, side=side, fps=4)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 0) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(chunks) + chunk(b"IEND", b"")


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def webp_header(width: int, height: int) -> bytes:
    sides = b"".join((side - 1).to_bytes(3, "little") for side in (width, height))
    body = b"VP8X" + struct.pack("<IB3x", 10, 0) + sides
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def sound() -> bytes:
    file = BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream("aac", rate=16_000)
        stream.layout = "mono"
        samples = np.zeros((1, 1_024), np.float32)
        for number in range(8):
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16_000, number * 1_024
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def box_of(width: int, height: int) -> bytes:
    """An AVI of one frame."""
    file = BytesIO()
    with av.open(file, "w", format="avi") as container:
        stream: Any = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        container.mux(stream.encode(av.VideoFrame(width, height, "yuv420p")))
        container.mux(stream.encode(None))
    return file.getvalue()


JPEG, PNG, WEBP, GIF, MP4, WEBM, AVI = (
    "image/jpeg", "image/png", "image/webp", "image/gif", "video/mp4", "video/webm", "video/avi"
)  # fmt: skip
GREY_ROWS = 10_000

BROKEN: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "no bytes, photo": (PNG, lambda: b"", "empty_media"),
    "no bytes, video": (MP4, lambda: b"", "empty_media"),
    "zeros": (JPEG, lambda: bytes(5_000), "media_type_mismatch"),
    "noise": (PNG, lambda: np.random.default_rng(0).bytes(5_000), "media_type_mismatch"),
    "a page": (PNG, lambda: b"<html><body>hello</body></html>", "media_type_mismatch"),
    "a drawing": (PNG, lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "media_type_mismatch"),
    "JPEG said to be PNG": (PNG, lambda: still(JPEG), "media_type_mismatch"),
    "photo said to be a video": (MP4, lambda: still(PNG), "media_type_mismatch"),
    "video said to be a photo": (JPEG, lambda: moving(MP4), "media_type_mismatch"),
    "MP4 said to be WebM": (WEBM, lambda: moving(MP4), "media_type_mismatch"),
    "photo in a video's box": (MP4, lambda: b"\0\0\0\x18ftypheic" + bytes(500), "media_type_mismatch"),
    "a playlist of foreign files": (MP4, lambda: b"#EXTM3U\nfile:///etc/passwd\n", "media_type_mismatch"),
    "TIFF": ("image/tiff", lambda: b"II*\0" + bytes(100), "unsupported_media_type"),
    "no type": ("", lambda: still(PNG), "unsupported_media_type"),
    "half a JPEG": (JPEG, lambda: half(still(JPEG)), "truncated_media"),
    "half a PNG": (PNG, lambda: half(still(PNG)), "truncated_media"),
    "half a GIF": (GIF, lambda: half(still(GIF)), "truncated_media"),
    "half a WebP": (WEBP, lambda: half(still(WEBP)), "broken_media"),
    "JPEG of three bytes": (JPEG, lambda: b"\xff\xd8\xff", "broken_media"),
    "PNG of its signature": (PNG, lambda: b"\x89PNG\r\n\x1a\n", "broken_media"),
    "PNG without pixels": (PNG, lambda: png(64, 64), "broken_media"),
    "PNG with a wrong checksum": (PNG, lambda: flipped(still(PNG), 20), "broken_media"),
    "PNG of no width": (PNG, lambda: png(0, 64, chunk(b"IDAT", zlib.compress(b""))), "broken_media"),
    "PNG of 100 megapixels": (
        PNG,
        lambda: png(GREY_ROWS, GREY_ROWS, chunk(b"IDAT", zlib.compress(bytes((GREY_ROWS + 1) * GREY_ROWS)))),
        "too_many_pixels",
    ),
    "JPEG of 100 megapixels": (
        JPEG, lambda: encoded(Image.new("L", (GREY_ROWS, GREY_ROWS)), JPEG, quality=10), "too_many_pixels"
    ),
    "PNG that says it is endless": (PNG, lambda: png(2**31 - 1, 2**31 - 1), "too_many_pixels"),
    "GIF that says it is huge": (
        GIF, lambda: b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\2L\1\0;", "too_many_pixels"
    ),
    "WebP that says it is huge": (WEBP, lambda: webp_header(16_000, 16_000), "broken_media"),
    "PNG with a text of 200 MB": (
        PNG,
        lambda: png(8, 8, chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200_000_000), 9))),
        "broken_media",
    ),
    "half an MP4": (MP4, lambda: half(moving(MP4)), "broken_media"),
    "half a WebM": (WEBM, lambda: half(moving(WEBM)), "truncated_media"),
    "half an AVI": (AVI, lambda: half(moving(AVI)), "truncated_media"),
    "MP4 of its first box": (MP4, lambda: b"\0\0\0\x18ftypisom" + bytes(16), "broken_media"),
    "WebM of its first bytes": (WEBM, lambda: b"\x1a\x45\xdf\xa3" + bytes(64), "broken_media"),
    "sound only": (MP4, sound, "no_picture"),
    "video of ten minutes": (MP4, lambda: moving(MP4, 600.0, 32), "video_too_long"),
    "video of 20 megapixels": (AVI, lambda: box_of(5_000, 4_000), "too_many_pixels"),
}  # fmt: skip
"""What it is -> (said type, bytes, reason)."""
