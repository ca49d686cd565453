"""Detections drawn onto the pictures that they are about.  Pure."""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from consumer.records import Event

__all__ = ["annotated", "contact_sheet"]

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_CELL = 320
_COLUMNS = 4
_CAPTION = 22
_GAP = 6


def annotated(picture: Image.Image, objects: Sequence[Event]) -> Image.Image:
    """A copy with box, label and score of each object (fields of the schema `detection`), the surest on top."""
    made = picture.convert("RGB")
    draw = ImageDraw.Draw(made)
    width = max(2, round(max(made.size) / 250))
    font = ImageFont.load_default(max(12, round(max(made.size) / 40)))
    for one in reversed(objects):
        left, top = one["left"] * made.width, one["top"] * made.height
        right, bottom = left + one["width"] * made.width, top + one["height"] * made.height
        colour = _colour(one["label"])
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=width)
        _write(draw, (left, top), f"{one['label']} {100 * one['score']:.0f} %", font, colour)
    return made


def contact_sheet(frames: Sequence[Image.Image], timeline: Sequence[Event]) -> Image.Image:
    """The frames side by side, each with its objects drawn and its time and labels beneath."""
    shown = [annotated(_within(frame), at["objects"]) for frame, at in zip(frames, timeline, strict=True)]
    columns = min(_COLUMNS, len(shown))
    cell = max(one.width for one in shown), max(one.height for one in shown) + _CAPTION
    rows = -(-len(shown) // columns)
    size = columns * (cell[0] + _GAP) + _GAP, rows * (cell[1] + _GAP) + _GAP
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for number, (one, at) in enumerate(zip(shown, timeline, strict=True)):
        left = _GAP + number % columns * (cell[0] + _GAP)
        top = _GAP + number // columns * (cell[1] + _GAP)
        sheet.paste(one, (left, top))
        labels = ", ".join(dict.fromkeys(found["label"] for found in at["objects"])) or "nothing known"
        text = f"{at['time_ms'] / 1000:.1f} s  {labels}"
        while len(text) > 8 and draw.textlength(text, font) > cell[0]:
            text = text[:-2].rstrip("…") + "…"
        draw.text((left, top + one.height + 3), text, "black", font)
    return sheet


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


def _colour(label: str) -> str:
    """Always the same for a label."""
    red, green, blue = colorsys.hls_to_rgb(zlib.crc32(label.encode()) % 360 / 360, 0.38, 0.8)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"
