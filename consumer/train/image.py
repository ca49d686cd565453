"""Judging the detector of the task `image`: on photos whose main object is known, and on the same photos changed.

No package registry offers photos with boxes that people drew, so there is no average precision here.  What can be
measured: is the main object of a photo found and named, and is what is found in it found again when the photo is
encoded, sized, coloured or mirrored another way?
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.table import Table

from consumer.errors import BadRecord, Fatal
from consumer.exits import Exit
from consumer.local.uploads import PHOTOS, photo
from consumer.records import Event
from consumer.task import Device
from consumer.tasks.image import ImageTask

__all__ = ["evaluate", "train"]

SURE = 0.5
MATCH = 0.5
"""Intersection over union from which on two boxes of one label are the same object."""


def _as(kind: str, **options: Any) -> Callable[[Image.Image], tuple[str, bytes]]:
    def encode(image: Image.Image) -> tuple[str, bytes]:
        file = BytesIO()
        image.save(file, kind.partition("/")[2].upper(), **options)
        return kind, file.getvalue()

    return encode


def _halved(image: Image.Image) -> Image.Image:
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)


PLAIN = _as("image/png")
CHANGES: dict[str, Callable[[Image.Image], tuple[str, bytes]]] = {
    "JPEG, quality 60": _as("image/jpeg", quality=60),
    "WebP, quality 60": _as("image/webp", quality=60),
    "half the size": lambda image: PLAIN(_halved(image)),
    "mirrored": lambda image: PLAIN(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    "in grey": lambda image: PLAIN(image.convert("L")),
}


def train(data: Path | None = None, out: Path | None = None) -> None:
    """There is nothing to train: the detector comes as it is.  Raises Fatal."""
    raise Fatal(
        "the detector of the task image is not trained here: bring your own in a file (--option detector=FILE)",
        exit_code=Exit.USAGE,
    )


def evaluate(data: Path | None = None, *, as_json: bool = False) -> dict[str, Any]:
    """Measure, print, and return the figures of the model card."""
    if data is not None:
        raise Fatal("the task image has no labelled data to read: leave --data out", exit_code=Exit.USAGE)
    task = ImageTask()
    task.load(Device())
    photos = {name: photo(name) for name in PHOTOS}
    plain = {name: detect(task, *PLAIN(image)) for name, image in photos.items()}
    found = {"version": task.version, "photos": len(photos), **judged(plain)}
    found["kept"] = {
        name: agreement(
            plain,
            {which: mend(name, detect(task, *change(image))) for which, image in photos.items()},
        )
        for name, change in CHANGES.items()
    }
    if as_json:
        Console().print_json(data=found)
    else:
        Console().print(as_table(found))
    return found


def detect(task: ImageTask, kind: str, data: bytes) -> list[Event]:
    """Objects of a photo."""
    (item,) = task.prepare([{**task.example, "media_type": kind, "data": data}], [None])
    if isinstance(item, BadRecord):
        raise item
    (seen,) = task.run([item.value])
    objects: list[Event] = seen["objects"]
    return objects


def judged(plain: dict[str, list[Event]]) -> dict[str, Any]:
    """Of the photos with a known object: how many show it first, or at all; of those without: objects all the same."""
    named = {name: [one["label"] for one in seen] for name, seen in plain.items()}
    known = {name: label for name, label in PHOTOS.items() if label}
    return {
        "known": len(known),
        "first": sum(named[name][:1] == [label] for name, label in known.items()),
        "at_all": sum(label in named[name] for name, label in known.items()),
        "invented": sum(len(named[name]) for name, label in PHOTOS.items() if not label),
        "objects": sum(map(len, named.values())),
    }


def agreement(plain: dict[str, list[Event]], changed: dict[str, list[Event]]) -> dict[str, float]:
    """Share of the plain photos' objects that are found again, share of the found that were there before, and the
    first for the objects that were sure."""
    again = sum(matches(seen, changed[name]) for name, seen in plain.items())
    before, after = (sum(map(len, seen.values())) for seen in (plain, changed))
    sure = {name: [one for one in seen if one["score"] >= SURE] for name, seen in plain.items()}
    sure_again = sum(matches(seen, changed[name]) for name, seen in sure.items())
    return {
        "found_again": round(again / max(1, before), 3),
        "not_new": round(again / max(1, after), 3),
        "sure_again": round(sure_again / max(1, sum(map(len, sure.values()))), 3),
    }


def matches(first: Sequence[Event], second: Sequence[Event]) -> int:
    """How many objects of the first have a partner of their own in the second."""
    free, count = list(second), 0
    for one in first:
        fitting = [other for other in free if other["label"] == one["label"] and overlap(one, other) >= MATCH]
        if fitting:
            free.remove(max(fitting, key=lambda other: overlap(one, other)))
            count += 1
    return count


def overlap(one: Event, other: Event) -> float:
    """Intersection over union of two boxes."""
    common = 1.0
    for begin, length in (("left", "width"), ("top", "height")):
        end = min(one[begin] + one[length], other[begin] + other[length])
        common *= max(0.0, end - max(one[begin], other[begin]))
    both = one["width"] * one["height"] + other["width"] * other["height"]
    return float(common / (both - common)) if both > common else 0.0


def mend(change: str, objects: list[Event]) -> list[Event]:
    """Boxes of a mirrored photo, mirrored back."""
    if change != "mirrored":
        return objects
    return [{**one, "left": 1.0 - one["left"] - one["width"]} for one in objects]


def as_table(found: dict[str, Any]) -> Table:
    grid = Table(title=f"image {found['version']}: {found['photos']} photos, no drawn boxes")
    grid.add_column("measured", no_wrap=True)
    grid.add_column("figure", justify="right")
    grid.add_row("main object named first", f"{found['first']} of {found['known']}")
    grid.add_row("main object named at all", f"{found['at_all']} of {found['known']}")
    grid.add_row("objects where there is none", str(found["invented"]))
    for name, kept in found["kept"].items():
        grid.add_row(f"found again: {name}", f"{kept['found_again']:.0%}, sure ones {kept['sure_again']:.0%}")
    grid.caption = (
        f"found again: share of {found['objects']} objects with the same label and IoU of {MATCH} or more"
    )
    return grid
