"""Bytes of photos and videos to pictures of one size: runs in a sandbox, for the bytes come from anybody.

The bytes themselves say what they are; a type that says otherwise is refused.  Every bound is checked before the memory
or time is spent.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from consumer.errors import BadRecord

__all__ = ["SQUARE", "TYPES", "Limits", "Pixels", "decode", "media_type", "sniff"]

Pixels = npt.NDArray[np.uint8]
SQUARE = 224

TYPES = {
    "image/jpeg": ("image/jpg", "image/pjpeg"),
    "image/png": ("image/apng", "image/x-png"),
    "image/webp": (),
    "image/gif": (),
    "video/mp4": ("video/quicktime", "video/x-m4v"),
    "video/webm": ("video/x-matroska", "video/matroska"),
    "video/avi": ("video/x-msvideo", "video/msvideo", "video/vnd.avi"),
}
"""What is accepted -> its other names."""
_NAMES = {name: kind for kind, names in TYPES.items() for name in (kind, *names)}
_STILL_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"hevc", b"heif", b"mif1", b"msf1")
Image.MAX_IMAGE_PIXELS = None  # our own bound is checked instead, and by what the settings say


@dataclass(frozen=True, slots=True)
class Limits:
    """What one upload may take.  All are settings of the task."""

    size: int = 416
    """Pixels of the longer side that pictures are brought to."""
    max_pixels: int = 50_000_000
    """Of a photo."""
    max_video_pixels: int = 9_000_000
    """Of one frame: 4096 x 2160 fits."""
    max_video_s: float = 120.0
    max_frames: int = 16
    """Sampled from a video, evenly, no closer than `frame_every_s`."""
    frame_every_s: float = 1.0

    def as_head(self) -> dict[str, Any]:
        return asdict(self)


def media_type(said: str) -> str:
    """The accepted type that a media type names.  Raises BadRecord for others."""
    kind = _NAMES.get(said.partition(";")[0].strip().lower())
    if kind is None:
        raise BadRecord("unsupported_media_type", f"{said[:80]!r} is none of {', '.join(TYPES)}")
    return kind


def sniff(data: bytes) -> str | None:
    """What the first bytes say: one of TYPES, another type by name, or None."""
    starts = ((b"\xff\xd8\xff", "image/jpeg"), (b"\x89PNG\r\n\x1a\n", "image/png"), (b"GIF8", "image/gif"))
    for start, kind in (*starts, (b"\x1a\x45\xdf\xa3", "video/webm"), (b"%PDF", "application/pdf")):
        if data.startswith(start):
            return kind
    if data[:4] == b"RIFF":
        return {b"WEBP": "image/webp", b"AVI ": "video/avi"}.get(data[8:12])
    if data[4:8] == b"ftyp":
        return "image/heif" if data[8:12] in _STILL_BRANDS else "video/mp4"
    return "video/mp4" if data[4:8] in (b"moov", b"mdat", b"wide") else None


def decode(head: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    """{media_type, squares, **Limits} and the bytes -> size, duration, times, shape; and the pictures, end to end.

    Where `squares` is true, a picture of SQUARE x SQUARE of each follows behind all of them.  Raises BadRecord that
    says what is wrong with the bytes.
    """
    said, wants_squares = media_type(head.pop("media_type")), head.pop("squares")
    limits = Limits(**head)
    kind = sniff(body)
    if kind != said:
        what = (
            f"are {kind}"
            if kind
            else f"begin with {body[:8].hex(' ')}, which none of the accepted types does"
        )
        raise BadRecord("media_type_mismatch", f"it is sent as {said}, but its {len(body)} bytes {what}")
    if said.startswith("video/"):
        from consumer.video import sampled

        found, pictures = sampled(body, said, limits)
    else:
        found, pictures = _photo(body, said, limits)
    if wants_squares:
        pictures += squares(np.frombuffer(pictures, np.uint8).reshape(found["shape"]))
    return {**found, "is_video": said.startswith("video/")}, pictures


def _photo(body: bytes, kind: str, limits: Limits) -> tuple[dict[str, Any], bytes]:
    form = kind.partition("/")[2].upper()
    try:
        with Image.open(BytesIO(body), formats=[form]) as image:
            width, height = image.size
            if width * height > limits.max_pixels:
                raise BadRecord(
                    "too_many_pixels",
                    f"{width} x {height} pixels; {limits.max_pixels:,} are the most accepted",
                )
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            image.draft("RGB", (limits.size * 2, limits.size * 2))  # JPEG: most of the work is left out
            small = fitted(image, limits.size)
            small = ImageOps.exif_transpose(_with_orientation(small, image))
            picture: Pixels = np.asarray(small)
    except (BadRecord, MemoryError):
        raise
    except Exception as error:
        raise broken(kind, error) from error
    size = {"width": height, "height": width} if turned else {"width": width, "height": height}
    return {**size, "duration_ms": None, "times_ms": [0], "shape": [1, *picture.shape]}, picture.tobytes()


def fitted(image: Image.Image, size: int) -> Image.Image:
    """RGB, its longer side `size`; transparent parts lie on white, as a page shows them."""
    image.load()
    ratio = min(size / image.width, size / image.height)
    wanted = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
    if image.mode.startswith("I"):  # 16 bits
        image = Image.fromarray((np.asarray(image).clip(0, 65_535) >> 8).astype(np.uint8))
    elif image.mode in ("P", "PA", "1", "LA"):
        clear = image.mode in ("PA", "LA") or "transparency" in image.info
        image = image.convert("RGBA" if clear else "RGB")
    elif "transparency" in image.info and image.mode in ("RGB", "L"):
        image = image.convert("RGBA")
    small = image.resize(wanted, Image.Resampling.BILINEAR, reducing_gap=3.0)
    if small.mode != "RGBA":
        return small.convert("RGB")
    page = Image.new("RGB", wanted, "white")
    page.paste(small, mask=small.getchannel("A"))
    return page


def squares(pictures: Pixels) -> bytes:
    """Pictures (n, h, w, 3) as open_nsfw was taught to see them: distorted to 256 x 256, through JPEG, the middle."""
    made = []
    for picture in pictures:
        file = BytesIO()
        Image.fromarray(picture).resize((256, 256), Image.Resampling.BILINEAR).save(file, "JPEG")
        edge = (256 - SQUARE) // 2
        with Image.open(file) as image:
            made.append(np.asarray(image)[edge : edge + SQUARE, edge : edge + SQUARE].tobytes())
    return b"".join(made)


def _with_orientation(small: Image.Image, original: Image.Image) -> Image.Image:
    small.info = {}
    small.getexif()[0x0112] = original.getexif().get(0x0112, 1)
    return small


def broken(kind: str, error: Exception) -> BadRecord:
    """What a decoder's exception says of the bytes."""
    text = f"{type(error).__name__}: {error}"[:300]
    ends = isinstance(error, EOFError) or "truncated" in text.lower()
    return BadRecord("truncated_media" if ends else "broken_media", f"{kind} cannot be decoded: {text}")
