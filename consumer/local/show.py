"""`consumer show`: a result found again in Kafka, with its upload, as a picture.

result's id ─scan─► detection ─source topic, partition, offset─► upload ─► decoded in a sandbox ─► drawn
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition
from PIL import Image

from consumer.codec import Decoder
from consumer.config import Settings
from consumer.errors import BadRecord, Fatal, Retry
from consumer.exits import Exit
from consumer.local.pictures import annotated, contact_sheet
from consumer.lookup import event_schema, registry_of, result_schema, schema_folders
from consumer.media import Limits
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
    with _reader(settings) as reader:
        result = _result(reader, settings, result_id)
        upload = _upload(reader, settings, result)
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
    storage = Storage(options.get("shared_folder"), options.get("bucket"), options.get("s3"))
    return storage.read(str(upload.get("uri")), upload.get("sha256") or "")


def _pictures(data: bytes, media_type: str, limits: Limits) -> tuple[list[Image.Image], list[int]]:
    sandbox = Sandbox("consumer.media:decode", cpu_s=_DECODE_S, memory_bytes=_DECODE_BYTES)
    try:
        head, body = sandbox.call({"media_type": media_type, "squares": False, **limits.as_head()}, data)
    finally:
        sandbox.close()
    pixels = np.frombuffer(body, np.uint8).reshape(head["shape"])
    return [Image.fromarray(one) for one in pixels], head["times_ms"]


def _result(reader: Consumer, settings: Settings, result_id: str) -> Event:
    """The detection of that event.  A record that does not hold the id's bytes is not even decoded."""
    schema = result_schema("detection", schema_folders(settings))
    decoder = Decoder(schema, registry=registry_of(settings))
    wanted, looked, found = result_id.encode(), 0, None
    for record in _all(reader, settings.output_topic):
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


def _upload(reader: Consumer, settings: Settings, result: Event) -> Event:
    place = TopicPartition(result["source_topic"], result["source_partition"], result["source_offset"])
    where = f"{place.topic}, partition {place.partition}, offset {place.offset}"
    gone = f"the upload is gone ({where})"
    if place.topic not in reader.list_topics(timeout=_PATIENCE_S).topics:
        raise Fatal(f"{gone}: there is no such topic any more")
    low, high = reader.get_watermark_offsets(
        TopicPartition(place.topic, place.partition), timeout=_PATIENCE_S
    )
    if not low <= place.offset < high:
        raise Fatal(f"{gone}: retention has deleted it, the oldest record there has offset {low:,}")
    reader.assign([place])
    record = reader.poll(_PATIENCE_S)
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


def _all(reader: Consumer, topic: str) -> Iterator[Message]:
    """Every committed record that is in the topic now, oldest first in each partition."""
    left = set(_partitions(reader, topic))
    reader.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in left])
    while left:
        record = reader.poll(_PATIENCE_S)
        if record is None:
            raise Retry(f"Kafka does not give the results in {topic}: nothing came for {_PATIENCE_S:.0f} s")
        failure = record.error()
        if failure is None:
            yield record
        elif failure.code() == KafkaError._PARTITION_EOF:
            left.discard(record.partition())
        else:
            raise KafkaException(failure)


def _partitions(reader: Consumer, topic: str) -> list[int]:
    there = reader.list_topics(topic, timeout=_PATIENCE_S).topics[topic]
    if there.error is not None:
        raise Fatal(f"there is no topic {topic}: name it with --output-topic", exit_code=Exit.USAGE)
    return list(there.partitions)


@contextmanager
def _reader(settings: Settings) -> Iterator[Consumer]:
    conf = settings.consumer_conf() | {
        "group.id": f"consumer-show-{uuid.uuid4().hex[:8]}",
        "isolation.level": "read_committed",
        "auto.offset.reset": "error",
        "enable.partition.eof": True,
        "log_level": 0,
    }
    conf.pop("group.instance.id", None)  # that is a worker's name
    reader = Consumer(conf)
    try:
        yield reader
    except KafkaException as error:
        raise Retry(f"Kafka at {settings.brokers()} does not answer: {error.args[0].str()}") from error
    finally:
        reader.close()
