"""Detections drawn: the boxes are where they should be, and every frame of a video is on its sheet."""

from __future__ import annotations

import numpy as np
from PIL import Image

from consumer.local.pictures import annotated, contact_sheet
from consumer.records import Event


def seen(label: str, left: float, top: float, width: float, height: float) -> Event:
    return {"label": label, "score": 0.8, "left": left, "top": top, "width": width, "height": height}


def changed(before: Image.Image, after: Image.Image) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what differs."""
    ys, xs = np.nonzero((np.asarray(before) != np.asarray(after)).any(axis=2))
    return int(xs.min()), int(ys.min()), int(xs.max()), int(ys.max())


def test_a_box_is_drawn_where_the_object_is_and_the_picture_stays_as_it_was() -> None:
    photo = Image.new("RGB", (400, 300), "white")
    made = annotated(photo, [seen("cat", 0.25, 0.5, 0.5, 0.25)])
    left, top, right, bottom = changed(photo, made)
    assert (left, right, bottom) == (100, 299, 224)
    assert 120 <= top < 150, "the label stands above the box"
    assert photo.getcolors() == [(400 * 300, (255, 255, 255))]


def test_labels_stay_within_the_picture() -> None:
    photo = Image.new("RGB", (200, 100), "white")
    for box in ((0.9, 0.0, 0.1, 0.1), (0.0, 0.0, 1.0, 1.0), (1.0, 1.0, 0.0, 0.0)):
        made = annotated(photo, [seen("traffic light", *box)])
        assert made.size == (200, 100)
        assert made.getcolors(100_000) != photo.getcolors()


def test_a_label_has_its_own_colour_and_keeps_it_over_the_frames() -> None:
    frame = Image.new("RGB", (320, 240), "white")
    whole = (0.0, 0.0, 1.0, 1.0)
    cat, dog = seen("cat", *whole), seen("dog", *whole)
    corner = (0, 239)
    labels = ["cat", "dog"]
    as_cat = annotated(frame, [cat], labels).getpixel(corner)
    as_dog = annotated(frame, [dog], labels).getpixel(corner)
    assert as_cat != as_dog
    assert annotated(frame, [dog], ["cat", "dog", "cat"]).getpixel(corner) == as_dog


def test_a_sheet_shows_all_frames_side_by_side() -> None:
    colours = ["red", "green", "blue", "yellow", "purple"]
    frames = [Image.new("RGB", (640, 480), colour) for colour in colours]
    timeline: list[Event] = [{"time_ms": 1_000 * n, "objects": []} for n in range(5)]
    timeline[1]["objects"] = [seen("a very long label " * 5, 0.1, 0.1, 0.5, 0.5)]
    sheet = contact_sheet(frames, timeline)
    assert sheet.width > 4 * 320 and sheet.height > 2 * 240
    shown = {colour for _, colour in sheet.getcolors(1_000_000) or []}
    assert {Image.new("RGB", (1, 1), colour).getpixel((0, 0)) for colour in colours} <= shown


def test_a_sheet_of_one_small_frame() -> None:
    sheet = contact_sheet([Image.new("RGB", (40, 30))], [{"time_ms": 0, "objects": []}])
    assert sheet.width < 60
