"""Task `image`: what is to be seen in a photo or video?  Objects with label, score and box; of a video also when."""

from __future__ import annotations

import logging
import math
from base64 import b64decode
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from consumer.errors import BadRecord, Fatal, Retry
from consumer.exits import Exit
from consumer.media import SQUARE, Limits, Pixels
from consumer.models.boxes import Found, objects
from consumer.models.detector import load_detector
from consumer.models.unsafe import load_unsafe
from consumer.records import Event
from consumer.sandbox import Sandbox
from consumer.storage import Storage, s3_options
from consumer.task import Budget, Item, State
from consumer.torch_task import TorchTask

__all__ = ["ImageTask", "Pictures"]

log = logging.getLogger(__name__)

MIB = 1 << 20
FETCHED_AT_ONCE = 4
"""Referenced files that one prepare call reads ahead, side by side: so many more are in memory whole."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """What was decoded of one upload: frames (n, h, w, 3) uint8 RGB, the longer side as the detector wants it."""

    frames: Pixels
    width: int
    height: int
    duration_ms: int | None
    times_ms: tuple[int, ...]
    is_video: bool
    squares: Pixels | None = None
    """The same for the judgement of safety, (n, SQUARE, SQUARE, 3)."""


class ImageTask(TorchTask):
    """Detections for each upload.  A video is one event; its sampled frames are several pictures of one item."""

    name = "image"
    events = ("upload",)
    result = "detection"
    budget = Budget(max_batch_items=32, max_batch_tokens=32)
    prepare_slice = 8
    tolerance = 0.05
    example: ClassVar[Event] = {
        "id": "9f1c",
        "user": "u42",
        "media_type": "image/png",
        "data": b64decode(
            "iVBORw0KGgoAAAANSUhEUgAAAEAAAAAwBAMAAABTZWEsAAAAMFBMVEX68DzmwwCU3ACduQAs1wAorQDWigDWbgDSSg"
            "AmigAmbgAqSgDcGQCaGQBaGQAcGQDVFUCDAAAAy0lEQVR42uWSQQ6CMBBFX3UOgDfhCGw8gnfyLmzYWxOP4BG4Qd0X"
            "qAsJtKWVxMQEYzdTpr9DZ/5TDgDcIx3ZsbL+S9Bdo3x3GzfKjV/7MphgDUgFCGgA+qCABeg0UqnLlDx6gvNvDUoMHL"
            "KnBuQVQBXB0YScTBkTXd1Ym+n+tm/Wfe7iFXQkmAkVnSlRjnRL5tc9gG08N5clbBPYHS9bRzzAiaH9xCzfoSEnMLOJ"
            "EZpLu52JIJcUC6qA9t0jnVkHxiQF/hiK7xOlxvgEqF073VDPRiEAAAAASUVORK5CYII="
        ),
        "uri": None,
        "sha256": None,
        "time": 1_772_366_400_000,
    }

    def __init__(
        self,
        threshold: float | str = 0.35,
        detector: str | Path | None = None,
        labels: str | Path | None = None,
        shared_folder: str | Path | None = None,
        bucket: str | None = None,
        s3_endpoint: str | None = None,
        s3_region: str | None = None,
        s3_path_style: bool | str = True,
        s3_key_id: str | None = None,
        s3_secret: str | None = None,
        max_bytes: int | str = 32 * MIB,
        decode_s: float | str = 10.0,
        decode_memory_bytes: int | str = 768 * MIB,
        unsafe: bool | str = True,
        **limits: float | str,
    ) -> None:
        """`threshold`: score from which on an object counts.  `detector` and `labels` replace the shipped detector by
        a file (`consumer.models.detector`).  `shared_folder`, `bucket`: where referenced uploads may be.  `s3_...`:
        where the bucket is and who asks; what is left out comes from the AWS_... variables.
        `decode_s`: CPU seconds that decoding one upload may take.  `unsafe`: whether to judge that too.  `limits`:
        fields of `consumer.media.Limits`.
        """
        self._threshold = _number("threshold", threshold, float, 1e-6, 1.0)
        self._files = (detector, labels)
        self._judges_safety = _says_yes(unsafe)
        self._limits = _limits(limits)
        self._max_bytes = int(_number("max_bytes", max_bytes, int, 1, 1 << 40))
        s3 = s3_options(bucket, s3_endpoint, s3_region, s3_path_style, s3_key_id, s3_secret)
        self._storage = Storage(shared_folder, bucket, s3, self._max_bytes)
        self._sandbox = Sandbox(
            "consumer.media:decode",
            cpu_s=_number("decode_s", decode_s, float, 0.1, 3_600),
            memory_bytes=int(_number("decode_memory_bytes", decode_memory_bytes, int, 64 * MIB, 1 << 40)),
        )
        self._fetchers = ThreadPoolExecutor(4 * FETCHED_AT_ONCE, "fetch")

    def build(self, device: torch.device) -> None:
        try:
            self._storage.open()
        except Retry as outage:
            log.warning("%s; uploads that lie there wait until it does", outage)
        loaded = load_detector(*self._files)
        if loaded.size != self._limits.size:
            raise Fatal(
                f"the detector wants pictures of {loaded.size} pixels, option size is {self._limits.size}"
            )
        self._model = loaded.model.to(device)
        self._unsafe = load_unsafe().to(device) if self._judges_safety else None
        self._labels = loaded.labels
        self.version = loaded.version

    def prepare(self, events: Sequence[Event], recalled: Sequence[Any]) -> Sequence[Item | BadRecord]:
        """Decoded pictures of each upload; an item costs as many tokens as it has pictures."""
        return list(map(self._item, events, self._fetched(events)))

    def _fetched(self, events: Sequence[Event]) -> Iterator[bytes | BadRecord]:
        """The bytes of each, in order; the next few are fetched while one is decoded."""
        ahead: deque[Future[bytes | BadRecord]] = deque()
        for event in events:
            ahead.append(self._fetchers.submit(self._file, event))
            if len(ahead) > FETCHED_AT_ONCE:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def largest(self) -> Item:
        size, count = self._limits.size, self._limits.max_frames
        frames = np.zeros((count, size, size, 3), np.uint8)
        squares = np.zeros((count, SQUARE, SQUARE, 3), np.uint8) if self._judges_safety else None
        return _item(Pictures(frames, size, size, 1_000, tuple(range(count)), True, squares))

    def collate(self, items: Sequence[Pictures]) -> Mapping[str, torch.Tensor]:
        """All pictures of all items, (pictures, size, size, 3), padded with black at right and bottom."""
        size = self._limits.size
        page = np.zeros((sum(len(item.frames) for item in items), size, size, 3), np.uint8)
        begin = 0
        for item in items:
            count, height, width, _ = item.frames.shape
            page[begin : begin + count, :height, :width] = item.frames
            begin += count
        squares = [item.squares for item in items if item.squares is not None]
        given = {"squares": torch.from_numpy(np.concatenate(squares))} if squares else {}
        return {"pictures": torch.from_numpy(page), **given}

    def forward(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """pictures (n, size, size, 3) -> (n, places + 1, 4 + classes); the last place holds how unsafe it is."""
        found: torch.Tensor = self._model(tensors["pictures"])
        last = found.new_zeros(found.shape[0], 1, found.shape[2])
        if self._unsafe is not None:
            last += self._unsafe(tensors["squares"])[:, None, None]
        return torch.cat([found, last], 1)

    def read(self, outputs: torch.Tensor, items: Sequence[Pictures]) -> Sequence[Event]:
        found = outputs.split([len(item.frames) for item in items])
        return [self._seen_in(item, places) for item, places in zip(items, found, strict=True)]

    def finish(self, event: Event, output: Event, state: State) -> Event:
        return {"user": event["user"], "time": event["time"], **output}

    def _file(self, event: Event) -> bytes | BadRecord:
        """The bytes of an upload, wherever they are."""
        data, uri, sha256 = event.get("data"), event.get("uri"), event.get("sha256")
        try:
            if (data is None) == (uri is None):
                both = "both of `data` and `uri` are" if uri else "neither `data` nor `uri` is"
                raise BadRecord("no_media", f"{both} given; exactly one must be")
            if uri is not None:
                return self._storage.read(uri, sha256 or "")
            self._storage.check(data or b"", sha256)
        except BadRecord as error:
            return error
        return data or b""

    def _item(self, event: Event, file: bytes | BadRecord) -> Item | BadRecord:
        if isinstance(file, BadRecord):
            return file
        if not file:
            return BadRecord("empty_media", "the upload has no bytes")
        asked = {"media_type": event["media_type"], "squares": self._judges_safety, **self._limits.as_head()}
        try:
            head, body = self._sandbox.call(asked, file)
        except BadRecord as error:
            return error
        flat, rest = np.split(np.frombuffer(body, np.uint8), [math.prod(head["shape"])])
        frames = flat.reshape(head["shape"])
        squares = rest.reshape(-1, SQUARE, SQUARE, 3) if self._judges_safety else None
        size = (head["width"], head["height"], head["duration_ms"])
        return _item(Pictures(frames, *size, tuple(head["times_ms"]), head["is_video"], squares))

    def _seen_in(self, item: Pictures, places: torch.Tensor) -> Event:
        _, height, width, _ = item.frames.shape
        scale = (self._limits.size / width, self._limits.size / height)
        frames = [
            [_object(found, self._labels, scale) for found in objects(one, self._threshold)]
            for one in places[:, :-1]
        ]
        timeline = [{"time_ms": ms, "objects": seen} for ms, seen in zip(item.times_ms, frames, strict=True)]
        return {
            "kind": "video" if item.is_video else "image",
            "width": item.width,
            "height": item.height,
            "duration_ms": item.duration_ms,
            "objects": [] if item.is_video else frames[0],
            "timeline": timeline if item.is_video else [],
            "seen": _summary(timeline),
            "unsafe": float(places[:, -1, 0].max()) if self._judges_safety else None,
        }


def _says_yes(option: bool | str) -> bool:
    return str(option).lower() not in ("no", "false", "0", "off")


def _item(pictures: Pictures) -> Item:
    squares = 0 if pictures.squares is None else pictures.squares.nbytes
    return Item(pictures, tokens=len(pictures.frames), nbytes=pictures.frames.nbytes + squares)


def _object(found: Found, labels: Sequence[str], scale: tuple[float, float]) -> Event:
    """Shares of the padded square -> shares of the picture."""
    left, top, right, bottom = (
        min(1.0, max(0.0, side * scale[place % 2])) for place, side in enumerate(found.box)
    )
    box = {"left": left, "top": top, "width": max(0.0, right - left), "height": max(0.0, bottom - top)}
    return {"label": labels[found.label], "score": found.score, **box}


def _summary(timeline: Sequence[Event]) -> list[Event]:
    """Each label of the frames, the surest first."""
    seen: dict[str, Event] = {}
    for frame in timeline:
        labels = [one["label"] for one in frame["objects"]]
        for one in frame["objects"]:
            fresh = {
                "label": one["label"],
                "score": 0.0,
                "most": 0,
                "frames": 0,
                "first_ms": frame["time_ms"],
            }
            label = seen.setdefault(one["label"], {**fresh, "last_ms": -1})
            label["score"] = max(label["score"], one["score"])
            label["most"] = max(label["most"], labels.count(one["label"]))
            label["frames"] += label["last_ms"] != frame["time_ms"]
            label["last_ms"] = frame["time_ms"]
    return sorted(seen.values(), key=lambda label: (-label["score"], label["label"]))


def _limits(given: Mapping[str, float | str]) -> Limits:
    kinds: dict[str, type] = {name: type(value) for name, value in Limits().as_head().items()}
    unknown = ", ".join(given.keys() - kinds.keys())
    if unknown:
        raise Fatal(
            f"the task image has no option {unknown}; its limits are {', '.join(kinds)}", exit_code=Exit.USAGE
        )
    return Limits(**{name: _number(name, value, kinds[name], 0.01, 1e12) for name, value in given.items()})


def _number(name: str, given: float | str, kind: type, least: float, most: float) -> Any:
    try:
        number = kind(given)
    except ValueError:
        number = -1
    if not least <= number <= most:
        raise Fatal(
            f"option {name} is {given!r}: it must be a number from {least:g} to {most:g}",
            exit_code=Exit.USAGE,
        )
    return number
