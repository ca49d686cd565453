"""`consumer show`: a result found again in Kafka, with its upload, as a picture.

result's id ─scan─► detection ─source topic, partition, offset─► upload ─► decoded in a sandbox ─► drawn
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Consumer, TopicPartition
from PIL import Image

from consumer.codec import Decoder
from consumer.config import Settings
from consumer.errors import BadRecord, Fatal, Retry
from consumer.exits import Exit
from consumer.local.pictures import annotated, contact_sheet
from consumer.lookup import event_schema, registry_of, result_schema, schema_folders
from consumer.media import Limits
from consumer.ops.scan import reader, scan
from consumer.records import Event
from consumer.sandbox import Sandbox
from consumer.storage import Storage

__all__ = ["depict"]

_PATIENCE_S = 15.0
_SIDE = 1_280
"""Pixels of a photo's longer side, at most."""
_DECODE_S, _DECODE_BYTES = 30.0, 1 << 30
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


def depict(settings: Settings, result_id: str, file: Path) -> None:
    """Write the picture of one detection to `file`: a photo with boxes, a video as a contact sheet.

    `settings` are complete (`Settings.for_task`).  Raises Fatal, which says what is missing, and Retry where Kafka or
    the storage does not answer.
    """
    form = _FORMATS.get(file.suffix.lower())
    if form is None:
        raise Fatal(f"{file} must end in {', '.join(_FORMATS)}", exit_code=Exit.USAGE)
    if not file.parent.is_dir():
        raise Fatal(f"there is no folder {file.parent}", exit_code=Exit.USAGE)
    result = _result(settings, result_id)
    with reader(settings.admin_conf()) as client:
        upload = _upload(client, settings, result)
    picture = drawn(result, upload, settings.task_arguments())
    picture.save(file, form)


def drawn(result: Event, upload: Event, options: dict[str, Any]) -> Image.Image:
    """`options` are the task's: where referenced files lie, and the limits that it looked at videos with."""
    name = f"upload {result['event_id']}"
    try:
        data = _file(upload, options)
        if result["kind"] == "image":
            (photo,), _ = _pictures(data, upload["media_type"], replace(Limits(), size=_size(result)))
            return annotated(photo, result["objects"])
        given = {
            name: type(value)(options[name]) for name, value in Limits().as_head().items() if name in options
        }
        frames, times = _pictures(data, upload["media_type"], Limits(**given))
    except BadRecord as error:
        raise Fatal(f"{name} cannot be shown: {error}") from error
    nearest = [
        min(range(len(times)), key=lambda n: abs(times[n] - at["time_ms"])) for at in result["timeline"]
    ]
    return contact_sheet([frames[number] for number in nearest], result["timeline"])


def _size(result: Event) -> int:
    return min(_SIDE, int(max(result["width"], result["height"])))


def _file(upload: Event, options: dict[str, Any]) -> bytes:
    if upload.get("data") is not None:
        return bytes(upload["data"])
    return Storage.of(options).read(str(upload.get("uri")), upload.get("sha256") or "")


def _pictures(data: bytes, media_type: str, limits: Limits) -> tuple[list[Image.Image], list[int]]:
    sandbox = Sandbox("consumer.media:decode", cpu_s=_DECODE_S, memory_bytes=_DECODE_BYTES)
    try:
        head, body = sandbox.call({"media_type": media_type, "squares": False, **limits.as_head()}, data)
    finally:
        sandbox.close()
    pixels = np.frombuffer(body, np.uint8).reshape(head["shape"])
    return [Image.fromarray(one) for one in pixels], head["times_ms"]


def _result(settings: Settings, result_id: str) -> Event:
    """The detection of that event.  A record that does not hold the id's bytes is not even decoded."""
    schema = result_schema("detection", schema_folders(settings))
    decoder = Decoder(schema, registry=registry_of(settings))
    wanted, looked, found = result_id.encode(), 0, None
    for record in scan(settings.admin_conf(), settings.output_topic):
        looked += 1
        value = record.value()
        if value is not None and wanted in value:
            (result,) = decoder.decode_many([value])
            if not isinstance(result, BadRecord) and result["event_id"] == result_id:
                found = result
    if found is None:
        raise Fatal(
            f"topic {settings.output_topic} has no result of an event {result_id!r} ({looked:,} looked at): it may not "
            f"have one yet, retention may have deleted it, or {settings.dead_letter_topic} says why there is none"
        )
    return found


def _upload(client: Consumer, settings: Settings, result: Event) -> Event:
    place = TopicPartition(result["source_topic"], result["source_partition"], result["source_offset"])
    where = f"{place.topic}, partition {place.partition}, offset {place.offset}"
    gone = f"the upload is gone ({where})"
    if place.topic not in client.list_topics(timeout=_PATIENCE_S).topics:
        raise Fatal(f"{gone}: there is no such topic any more")
    low, high = client.get_watermark_offsets(
        TopicPartition(place.topic, place.partition), timeout=_PATIENCE_S
    )
    if not low <= place.offset < high:
        raise Fatal(f"{gone}: retention has deleted it, the oldest record there has offset {low:,}")
    client.assign([place])
    record = client.poll(_PATIENCE_S)
    if record is None:
        raise Retry(f"Kafka does not give the upload ({where}) within {_PATIENCE_S:.0f} s")
    if record.error() is not None or record.offset() != place.offset:
        raise Fatal(f"{gone}: nothing stands there any more")
    schema = event_schema("upload", schema_folders(settings))
    (event,) = Decoder(schema, registry=registry_of(settings)).decode_many([record.value()])
    if isinstance(event, BadRecord):
        raise Fatal(f"the upload cannot be read ({where}): {event}")
    if event["id"] != result["event_id"]:
        raise Fatal(f"{gone}: there is {event['id']!r} now; the topic was made anew")
    return event
