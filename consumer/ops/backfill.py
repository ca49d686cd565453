"""`consumer replay`: a task once more over past input, into topics of its own, beside the live group.

    moments ─► offsets: from .. until ─► a group of its own begins at `from` ─► a worker like any other reads to `until`

It is exactly once as everything is: killed and started again it goes on, and several may share the work.
"""

from __future__ import annotations

import logging
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as ClientPartition

from consumer import serve
from consumer.config import Settings
from consumer.errors import Fatal, Retry
from consumer.exits import Exit
from consumer.local.topics import ensure_topics
from consumer.local.wanted import wanted
from consumer.ops.scan import partitions_of, reader, scan
from consumer.records import TopicPartition
from consumer.tasks import find_task

__all__ = ["backfill", "in_its_own_place"]

log = logging.getLogger(__name__)

_CALL_S = 10.0
_LOOK_S = 0.5
_SAY_S = 5.0
_NARROWEST = 64


def in_its_own_place(settings: Settings, from_ms: int, until_ms: int) -> Settings:
    """`settings` with group and topics that no live worker uses; the same for the same span, so that it can go on.

    An output_topic, dead_letter_topic or group_id that was set counts, but must not be that of the live task.
    """
    task = find_task(settings.task)
    live = settings.model_copy(
        update={"output_topic": "", "dead_letter_topic": "", "group_id": "", "state_topic": ""}
    ).for_task(task)
    span = f"replay-{zlib.crc32(f'{from_ms}-{until_ms}'.encode()):08x}"
    own = {
        name: getattr(settings, name) or f"{getattr(live, name)}{mark}{span}"
        for name, mark in (("group_id", "-"), ("output_topic", "_"), ("dead_letter_topic", "_"))
    }
    for name, value in own.items():
        if value == getattr(live, name):
            raise Fatal(
                f"{name} {value} is that of the live task: a replay needs its own", exit_code=Exit.USAGE
            )
    own["state_topic"] = f"{own['group_id']}-state" if task.stateful else ""
    return settings.model_copy(update=own).for_task(task)


def backfill(settings: Settings, from_ms: int, until_ms: int, say: Callable[[str], object]) -> int:
    """Run the task over the events that were sent in [from_ms, until_ms); returns the exit code.  `say` tells people.

    `settings` are those of `in_its_own_place`.  Raises Fatal and Retry.
    """
    if not from_ms < until_ms <= time.time_ns() // 1_000_000 + 1_000:
        raise Fatal("the span must end after it begins, and not in the future", exit_code=Exit.USAGE)
    conf = settings.admin_conf()
    with reader(conf) as consumer:
        places = [
            (topic, number) for topic in settings.input_topics for number in partitions_of(consumer, topic)
        ]
        begins = _offsets_at(consumer, places, from_ms)
        ends = _offsets_at(consumer, places, until_ms)
    span = {tp: (begins[tp], end) for tp in places if (end := _last(conf, tp, begins[tp], ends[tp]))}
    if not span:
        say(f"no event was sent to {', '.join(settings.input_topics)} in that time")
        return Exit.OK
    until = {tp: end for tp, (_, end) in span.items()}
    specs = wanted(settings, find_task(settings.task), 1, None)
    ensure_topics(conf, [each for each in specs if each.name not in settings.input_topics])
    group = _group(settings)
    try:
        _begin(group, {tp: span[tp][0] if tp in span else begins[tp] for tp in places})
        if not _left(group, until):
            say(f"all of it is in {settings.output_topic} already")
            return Exit.OK
    finally:
        group.close()
    code = serve.run(settings, until=until, ends=lambda stopping: _ending(settings, until, stopping))
    say(f"results are in {settings.output_topic}, dead letters in {settings.dead_letter_topic}")
    return code


def _offsets_at(
    consumer: Consumer, places: Sequence[TopicPartition], moment_ms: int
) -> dict[TopicPartition, int]:
    """Of each partition the offset of the first record at or after the moment, or its end."""
    asked = [ClientPartition(topic, number, moment_ms) for topic, number in places]
    found = {}
    for place in consumer.offsets_for_times(asked, timeout=_CALL_S):
        if place.error is not None:
            raise KafkaException(place.error)
        offset = place.offset
        if offset < 0:
            _, offset = consumer.get_watermark_offsets(place, timeout=_CALL_S)
        found[place.topic, place.partition] = offset
    return found


def _last(conf: Mapping[str, Any], place: TopicPartition, begin: int, end: int) -> int:
    """The offset behind the last committed record in [begin, end), 0 where there is none.

    The end itself may follow markers and aborted records, which no worker ever reads: waiting for it could last.
    """
    topic, number = place
    width, high = _NARROWEST, end
    while high > begin:
        low = max(begin, high - width)
        offsets = [r.offset() for r in scan(conf, topic, {number: low}, stop={number: high})]
        if offsets:
            return max(offsets) + 1
        width, high = 8 * width, low
    return 0


def _group(settings: Settings) -> Consumer:
    """A client that speaks for the group without ever joining it."""
    return Consumer(
        {
            "log_level": 0,
            **settings.admin_conf(),
            "group.id": settings.group_id,
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
        }
    )


def _begin(group: Consumer, begins: Mapping[TopicPartition, int]) -> None:
    """Commit where the group begins, unless it has begun."""
    try:
        known = group.committed([ClientPartition(*tp) for tp in begins], timeout=_CALL_S)
        new = [
            ClientPartition(p.topic, p.partition, begins[p.topic, p.partition]) for p in known if p.offset < 0
        ]
        for place in group.commit(offsets=new, asynchronous=False) or () if new else ():
            if place.error is not None:
                raise KafkaException(place.error)
    except KafkaException as error:
        if error.args[0].code() in (KafkaError.UNKNOWN_MEMBER_ID, KafkaError.ILLEGAL_GENERATION):
            return  # workers of this replay run already: it has begun
        raise Retry(f"the replay cannot begin: {error.args[0].str()}") from error


def _left(group: Consumer, until: Mapping[TopicPartition, int]) -> int:
    """Offsets between what is committed and the end."""
    known = group.committed([ClientPartition(*tp) for tp in until], timeout=_CALL_S)
    return sum(max(0, until[p.topic, p.partition] - max(p.offset, 0)) for p in known)


@contextmanager
def _ending(
    settings: Settings, until: Mapping[TopicPartition, int], stopping: threading.Event
) -> Iterator[None]:
    """Stops the worker when the group has committed everything, by whichever worker."""
    over = threading.Event()

    def watch() -> None:
        group = _group(settings)
        said_s = 0.0
        while not over.wait(_LOOK_S) and not stopping.is_set():
            try:
                left = _left(group, until)
            except KafkaException as error:
                log.warning("committed offsets are not readable yet: %s", error.args[0].str())
                continue
            if not left:
                stopping.set()
            elif time.monotonic() - said_s > _SAY_S:
                said_s = time.monotonic()
                log.info("about %d records are left", left)
        group.close()

    thread = threading.Thread(target=watch, name="backfill", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(2 * _CALL_S)
