"""Topics read once from a place to their present end, without a group."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message
from confluent_kafka import TopicPartition as ClientPartition

from consumer.errors import Fatal, Retry
from consumer.records import Record

__all__ = ["follow", "partitions_of", "reader", "record_at", "scan"]

_CALL_S = 10.0
_SILENCE_S = 30.0
_MANY = 1_000
Progress = Callable[[int, int], None]
"""(records passed, records in all), both by offsets."""


@contextmanager
def reader(conf: Mapping[str, Any]) -> Iterator[Consumer]:
    """A client that sees what is committed, joins no group and commits nothing.  Raises Retry and Fatal."""
    consumer = Consumer(
        {
            "log_level": 0,
            **conf,
            "group.id": "consumer-reader",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 100,
            "error_cb": lambda error: None,
        }
    )
    try:
        yield consumer
    except KafkaException as error:
        raise Retry(f"Kafka does not answer as it should: {error.args[0].str()}") from error
    finally:
        consumer.close()


def partitions_of(consumer: Consumer, topic: str) -> list[int]:
    """The numbers of its partitions.  Raises Fatal where there is no such topic."""
    found = consumer.list_topics(topic, timeout=_CALL_S).topics[topic]
    if found.error is not None:
        if found.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            raise Fatal(f"topic {topic!r} does not exist")
        raise KafkaException(found.error)
    return sorted(found.partitions)


def scan(
    conf: Mapping[str, Any],
    topic: str,
    begin: Mapping[int, int] | None = None,
    *,
    stop: Mapping[int, int] | None = None,
    progress: Progress = lambda done, total: None,
) -> Iterator[Record]:
    """Every committed record of a topic, in order within each partition.  Raises Retry and Fatal.

    From the offsets in `begin` (partition -> offset; None: all partitions from their beginning) to those in `stop`,
    which are excluded, or to what is the end now.
    """
    with reader(conf) as consumer:
        numbers = partitions_of(consumer, topic) if begin is None else sorted(begin)
        ends, total = {}, 0
        for number in numbers:
            low, high = consumer.get_watermark_offsets(ClientPartition(topic, number), timeout=_CALL_S)
            high = ends[number] = min(high, (stop or {}).get(number, high))
            total += max(0, high - max(low, (begin or {}).get(number, low)))
        consumer.assign([ClientPartition(topic, n, (begin or {}).get(n, OFFSET_BEGINNING)) for n in numbers])
        left, passed, heard_s = set(numbers), 0, time.monotonic()
        while left:
            messages = consumer.consume(_MANY, 0.5)
            if not messages and time.monotonic() - heard_s > _SILENCE_S:
                raise Retry(f"reading topic {topic!r}: no answer for {_SILENCE_S:.0f} s")
            if messages:
                heard_s = time.monotonic()
            for message in messages:
                number = message.partition() or 0
                if _is_end(message) or (message.offset() or 0) >= ends[number]:
                    left.discard(number)
                elif number in left:
                    passed += 1
                    yield cast("Record", message)
            progress(min(passed, total), total)
        progress(total, total)


def follow(conf: Mapping[str, Any], topic: str) -> Iterator[Record | None]:
    """Every record that comes from now on, None after a moment without one; for ever.  Raises Retry and Fatal."""
    with reader(conf) as consumer:
        places = []
        for number in partitions_of(consumer, topic):
            _, end = consumer.get_watermark_offsets(ClientPartition(topic, number), timeout=_CALL_S)
            places.append(ClientPartition(topic, number, end))
        consumer.assign(places)
        while True:
            message = consumer.poll(0.2)
            yield None if message is None or _is_end(message) else cast("Record", message)


def record_at(conf: Mapping[str, Any], topic: str, partition: int, offset: int) -> Record | None:
    """The committed record at this offset; None where it is no more, or never was one."""
    with reader(conf) as consumer:
        if partition not in partitions_of(consumer, topic):
            return None
        low, high = consumer.get_watermark_offsets(ClientPartition(topic, partition), timeout=_CALL_S)
        if not low <= offset < high:
            return None
        consumer.assign([ClientPartition(topic, partition, offset)])
        deadline_s = time.monotonic() + _SILENCE_S
        while time.monotonic() < deadline_s:
            message = consumer.poll(0.5)
            if message is None:
                continue
            if _is_end(message) or message.offset() != offset:
                return None
            return cast("Record", message)
    raise Retry(f"reading topic {topic!r}: no answer for {_SILENCE_S:.0f} s")


def _is_end(message: Message) -> bool:
    error = message.error()
    if error is None:
        return False
    if error.code() == KafkaError._PARTITION_EOF:
        return True
    raise KafkaException(error)
