"""Uploads as events of the schema `upload`: the photos that scikit-image ships, cut, turned and encoded anew each time,
and short videos that travel over them.

A stream of real photos without labels of objects; what each shows is in the names of PHOTOS.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from consumer.errors import Fatal
from consumer.records import Event

__all__ = ["PHOTOS", "photo", "uploads", "video"]

PHOTOS = {
    "astronaut.png": "person",
    "camera.png": "person",
    "chelsea.png": "cat",
    "coffee.png": "cup",
    "horse.png": "horse",
    "motorcycle_left.png": "motorcycle",
    "motorcycle_right.png": "motorcycle",
    "rocket.jpg": None,
    "clock_motion.png": "clock",
    "brick.png": None,
    "grass.png": None,
    "moon.png": None,
}
"""File -> the one of COCO's 80 classes that a person sees in it first."""
_BEGIN_MS = 1_772_366_400_000
_USERS = 40
_VIDEO_SHARE = 0.1


def photo(name: str) -> Image.Image:
    """One of PHOTOS in RGB.  The package is found, not imported: its import takes seconds."""
    spec = find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise Fatal("the photos are in scikit-image: pip install 'stream-consumer[local]'")
    with Image.open(Path(next(iter(spec.submodule_search_locations))) / "data" / name) as image:
        return image.convert("RGB")


def uploads(*, seed: int = 0) -> Iterator[Event]:
    """Without end: another photo, cut, format and size each time; about every tenth is a video."""
    dice = random.Random(seed)
    photos = [photo(name) for name in PHOTOS]
    number, now = 0, _BEGIN_MS
    while True:
        image = _cut(dice.choice(photos), dice)
        if dice.random() < _VIDEO_SHARE:
            kind, data = "video/mp4", video(image, seconds=dice.randint(2, 6))
        else:
            kind = dice.choice(["image/jpeg", "image/jpeg", "image/png", "image/webp"])
            data = _encoded(image, kind)
        now += dice.randint(50, 5_000)
        user = f"u{dice.randrange(_USERS):02}"
        event = {"id": f"upload-{seed}-{number:06}", "user": user, "media_type": kind, "time": now}
        yield {**event, "data": data, "uri": None, "sha256": None}
        number += 1


def video(
    image: Image.Image,
    *,
    seconds: float,
    form: str = "mp4",
    codec: str = "mpeg4",
    fps: int = 8,
    side: int = 320,
) -> bytes:
    """A camera that travels from left to right over a photo."""
    image = image.resize((side * 2, side))
    file = BytesIO()
    with av.open(file, "w", format=form) as container:
        stream: Any = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = side, side, "yuv420p"
        stream.bit_rate = 400_000
        count = max(1, round(seconds * fps))
        for number in range(count):
            left = round(side * number / count)
            part = np.asarray(image.crop((left, 0, left + side, side)))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(part, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def _cut(image: Image.Image, dice: random.Random) -> Image.Image:
    """At least 85 % of each side, in another size, sometimes mirrored."""
    width, height = (round(side * dice.uniform(0.85, 1.0)) for side in image.size)
    left, top = dice.randint(0, image.width - width), dice.randint(0, image.height - height)
    part = image.crop((left, top, left + width, top + height))
    if dice.random() < 0.5:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    side = dice.choice([480, 640, 960])
    part.thumbnail((side, side))
    return part


def _encoded(image: Image.Image, kind: str) -> bytes:
    file = BytesIO()
    image.save(file, kind.partition("/")[2].upper())
    return file.getvalue()
