"""Detections drawn onto the pictures that they are about.  Pure."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from consumer.records import Event

__all__ = ["annotated", "contact_sheet"]

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_CELL = 320
_COLUMNS = 4
_CAPTION = 22
_GAP = 6


def annotated(picture: Image.Image, objects: Sequence[Event], labels: Sequence[str] = ()) -> Image.Image:
    """A copy with box, label and score of each object (fields of the schema `detection`), the surest on top.

    labels: the first of them get the colours that they have in other pictures of the same list.
    """
    made = picture.convert("RGB")
    draw = ImageDraw.Draw(made)
    width = max(2, round(max(made.size) / 250))
    font = ImageFont.load_default(max(12, round(max(made.size) / 40)))
    names = list(dict.fromkeys([*labels, *(one["label"] for one in objects)]))
    for one in reversed(objects):
        left, top = one["left"] * made.width, one["top"] * made.height
        right, bottom = left + one["width"] * made.width, top + one["height"] * made.height
        colour = _colour(names.index(one["label"]))
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=width)
        _write(draw, (left, top), f"{one['label']} {100 * one['score']:.0f} %", font, colour)
    return made


def contact_sheet(frames: Sequence[Image.Image], timeline: Sequence[Event]) -> Image.Image:
    """The frames side by side, each with its objects drawn and its time and labels beneath."""
    labels = [found["label"] for at in timeline for found in at["objects"]]
    pairs = zip(frames, timeline, strict=True)
    shown = [annotated(_within(frame), at["objects"], labels) for frame, at in pairs]
    columns = min(_COLUMNS, len(shown))
    width, height = max(one.width for one in shown), max(one.height for one in shown) + _CAPTION
    rows = -(-len(shown) // columns)
    sheet = Image.new("RGB", (columns * (width + _GAP) + _GAP, rows * (height + _GAP) + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for number, (one, at) in enumerate(zip(shown, timeline, strict=True)):
        left = _GAP + number % columns * (width + _GAP)
        top = _GAP + number // columns * (height + _GAP)
        sheet.paste(one, (left, top))
        draw.text((left, top + one.height + 3), _caption(at, draw, font, width), "black", font)
    return sheet


def _caption(at: Event, draw: ImageDraw.ImageDraw, font: _Font, width: int) -> str:
    labels = ", ".join(dict.fromkeys(found["label"] for found in at["objects"])) or "nothing known"
    text = f"{at['time_ms'] / 1000:.1f} s  {labels}"
    while len(text) > 8 and draw.textlength(text, font) > width:
        text = text[:-2] + "…"
    return text


def _within(frame: Image.Image) -> Image.Image:
    small = frame.convert("RGB")
    small.thumbnail((_CELL, _CELL))
    return small


def _write(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, font: _Font, colour: str) -> None:
    """On a ground of its own, within the picture."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font)
    x = max(0.0, min(at[0], draw.im.size[0] - (right - left) - 6))
    y = max(0.0, at[1] - (bottom - top) - 6) if at[1] > bottom - top + 6 else at[1]
    draw.rectangle((x, y, x + right - left + 6, y + bottom - top + 6), fill=colour)
    draw.text((x + 3 - left, y + 3 - top), text, "white", font)


def _colour(number: int) -> str:
    """Neighbours in number are far apart in hue."""
    red, green, blue = colorsys.hls_to_rgb((0.36 + 0.618 * number) % 1, 0.36, 0.8)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"
