"""Frames of a video at even times.  Only the container that the bytes are is opened: others can name foreign files."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import Any

import av
import av.logging
import numpy as np

from consumer.errors import BadRecord
from consumer.media import Limits, Pixels, broken

__all__ = ["sampled"]

_CONTAINERS = {"video/mp4": "mov", "video/webm": "matroska", "video/avi": "avi"}
_SEEK_S = 10.0
"""Samples further apart than this are sought for; closer ones are decoded up to, which is cheaper than from a key."""
av.logging.set_level(av.logging.PANIC)


def sampled(body: bytes, kind: str, limits: Limits) -> tuple[dict[str, Any], bytes]:
    """Size, duration, times and shape of the sampled frames, and the frames.  Raises BadRecord."""
    try:
        with av.open(BytesIO(body), format=_CONTAINERS[kind]) as container:
            if not container.streams.video:
                raise BadRecord("no_picture", f"{kind} without a video stream")
            return _sampled(container, container.streams.video[0], kind, limits)
    except (BadRecord, MemoryError):
        raise
    except Exception as error:
        raise broken(kind, error) from error


def _sampled(container: Any, stream: Any, kind: str, limits: Limits) -> tuple[dict[str, Any], bytes]:
    seconds = _duration_s(container, stream)
    if seconds is not None and seconds > limits.max_video_s:
        raise BadRecord("video_too_long", f"{seconds:.1f} s; {limits.max_video_s:g} are the most accepted")
    _check_pixels(stream.width, stream.height, limits)
    stream.codec_context.thread_count = 1
    times, frames, last, turned = [], [], 0.0, 0
    step = max(limits.frame_every_s, (seconds or 0.0) / limits.max_frames)
    for at, frame, is_due in _frames(container, stream, step, limits):
        last = max(last, at)
        if is_due:
            turned = frame.rotation % 360
            times.append(round(at * 1000))
            frames.append(_picture(frame, limits, turned))
            if frames[0].shape != frames[-1].shape:
                raise BadRecord("broken_media", f"{kind} changes the size of its pictures at {at:.1f} s")
            if len(frames) == limits.max_frames:
                break
    else:
        _check_end(stream, kind, last, seconds)
    if not frames:
        raise BadRecord("no_picture", f"{kind} without a single frame that can be decoded")
    width, height = (stream.width, stream.height) if turned % 180 == 0 else (stream.height, stream.width)
    head = {
        "width": width,
        "height": height,
        "duration_ms": None if seconds is None else round(seconds * 1000),
    }
    pictures = np.stack(frames)
    return {**head, "times_ms": times, "shape": list(pictures.shape)}, pictures.tobytes()


def _frames(container: Any, stream: Any, step: float, limits: Limits) -> Iterator[tuple[float, Any, bool]]:
    """(seconds since the begin, frame, whether it is the first at or after 0, step, 2 step, ...)."""
    begin: float | None = None
    due, sought = 0.0, True
    while sought:
        sought = False
        for frame in container.decode(stream):
            now = 0.0 if frame.time is None else frame.time
            begin = now if begin is None else begin
            at = now - begin
            if at > limits.max_video_s:
                raise BadRecord(
                    "video_too_long", f"more than {limits.max_video_s:g} s, whatever its header says"
                )
            _check_pixels(frame.width, frame.height, limits)
            is_due = at + 1e-3 >= due
            yield at, frame, is_due
            if is_due:
                due = (int((at + 1e-3) / step) + 1) * step
                if step > _SEEK_S:
                    container.seek(int((begin + due) * 1_000_000))
                    sought = True
                    break


def _check_end(stream: Any, kind: str, last: float, seconds: float | None) -> None:
    """The last frame is shown until the end; what ends long before was cut off."""
    shown = 0.5 + 2 / float(stream.average_rate or 1)
    if seconds is not None and last + shown < seconds:
        raise BadRecord("truncated_media", f"{kind} should last {seconds:.1f} s, but ends after {last:.1f} s")


def _duration_s(container: Any, stream: Any) -> float | None:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None else container.duration / 1_000_000


def _check_pixels(width: int, height: int, limits: Limits) -> None:
    if width * height > limits.max_video_pixels:
        raise BadRecord(
            "too_many_pixels",
            f"{width} x {height} a frame; {limits.max_video_pixels:,} are the most accepted",
        )


def _picture(frame: Any, limits: Limits, turned: int) -> Pixels:
    """(h, w, 3), upright, its longer side `limits.size`."""
    ratio = min(limits.size / frame.width, limits.size / frame.height)
    width, height = max(1, round(frame.width * ratio)), max(1, round(frame.height * ratio))
    small = frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA")
    picture: Pixels = np.rot90(small.to_ndarray(), turned // 90)
    return np.ascontiguousarray(picture)
