"""What we tell librdkafka, and what nobody may tell it.

Any property passes through; those that would break the guarantees are refused here with the reason and the setting to
use instead, because librdkafka would accept them silently and the damage would show weeks later.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from consumer.secret import reveal

if TYPE_CHECKING:
    from consumer.config import Settings

__all__ = ["admin_conf", "consumer_conf", "problems", "producer_conf"]

_MIB = 1 << 20

_OURS = {
    "bootstrap.servers": "use bootstrap_servers (--bootstrap-servers)",
    "metadata.broker.list": "use bootstrap_servers (--bootstrap-servers)",
    "group.id": "use group_id (--group-id)",
    "group.instance.id": "use instance_name (--instance-name), which also names the transactions",
    "transactional.id": "it is made of group_id and instance_name: two workers with one id throw each other out",
    "transaction.timeout.ms": "use transaction_timeout_ms, so that the other deadlines can be checked against it",
    "message.timeout.ms": "it follows transaction_timeout_ms",
    "delivery.timeout.ms": "it follows transaction_timeout_ms",
    "session.timeout.ms": "use session_timeout_ms, so that the heartbeat follows it",
    "auto.offset.reset": "use auto_offset_reset (--auto-offset-reset)",
    "max.poll.interval.ms": "use max_poll_interval_ms, so that the other deadlines can be checked against it",
    "auto.commit.interval.ms": "offsets are committed with the results, in commit_interval_ms",
    "offset.store.method": "offsets are committed with the results",
    "enable.partition.eof": "the worker takes every error of the consumer for a fault",
    "group.protocol.type": "only consumers can join the group",
}
"""Properties that have a field of their own or none at all: never passed through."""

_MUST_BE = {
    "enable.auto.commit": (
        {"false"},
        "a background commit would skip records without a result; offsets are committed with the results",
    ),
    "auto.commit.enable": ({"false"}, "offsets are committed with the results, in the same transaction"),
    "enable.auto.offset.store": (
        {"false"},
        "it stores what was handed out, not what was finished: a crash would lose records",
    ),
    "isolation.level": (
        {"read_committed"},
        "aborted records would be processed as if they were real; exactly-once would end here",
    ),
    "enable.idempotence": (
        {"true"},
        "transactions need it; without it a retry can double or reorder results",
    ),
    "acks": ({"all", "-1"}, "a result that one broker alone has seen is lost with that broker"),
    "request.required.acks": (
        {"all", "-1"},
        "a result that one broker alone has seen is lost with that broker",
    ),
    "max.in.flight.requests.per.connection": (set("12345"), "more than 5 break the order of the results"),
    "max.in.flight": (set("12345"), "more than 5 break the order of the results"),
    "queuing.strategy": ({"fifo"}, "results would leave in the wrong order"),
    "partition.assignment.strategy": (
        {"cooperative-sticky"},
        "a group that mixes it with range or roundrobin cannot agree and stops, and those take every partition away "
        "at each rebalance. To move an old group over, stop all its members first, or use another group_id",
    ),
}

_CONSUMER_ONLY = re.compile(
    r"^(group\.|partition\.assignment\.|session\.|heartbeat\.|coordinator\.|max\.poll|enable\.auto\.|auto\.|queued\.|"
    r"fetch\.|max\.partition\.fetch|isolation\.|enable\.partition\.eof|check\.crcs|consume\.|offset\.)"
)
_PRODUCER_ONLY = re.compile(
    r"^(transaction|enable\.idempotence|enable\.gapless|queue\.buffering|linger\.|message\.send\.|message\.timeout|"
    r"retries$|compression\.|batch\.|delivery\.|sticky\.partitioning|request\.|acks$|queuing\.|partitioner$|"
    r"max\.in\.flight)"
)


def consumer_conf(settings: Settings) -> dict[str, Any]:
    """For the Consumer of the group."""
    conf: dict[str, Any] = {
        "bootstrap.servers": settings.brokers(),
        "group.id": settings.group_id,
        "auto.offset.reset": settings.auto_offset_reset,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "isolation.level": "read_committed",
        "partition.assignment.strategy": "cooperative-sticky",
        "session.timeout.ms": settings.session_timeout_ms,
        "heartbeat.interval.ms": max(1, settings.session_timeout_ms // 4),  # three may get lost
        "max.poll.interval.ms": settings.max_poll_interval_ms,
        "fetch.queue.backoff.ms": 20,  # at the default of 1000 a full queue stalls reading for a second
        "queued.min.messages": settings.max_in_flight_records,
        "queued.max.messages.kbytes": max(1, settings.max_in_flight_bytes // 2048),
        "fetch.max.bytes": max(settings.max_in_flight_bytes // 2, _MIB),
        "message.max.bytes": _MIB,  # librdkafka lifts fetch.max.bytes to it; larger records are read all the same
    }
    if settings.instance_name:
        conf["group.instance.id"] = settings.instance_name
    conf |= {k: v for k, v in reveal(settings.kafka).items() if not _PRODUCER_ONLY.match(k)}
    if conf.get("group.protocol") == "consumer":  # there these three are the broker's to set
        for name in ("partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms"):
            conf.pop(name, None)
    return conf


def producer_conf(settings: Settings, transactional_id: str | None) -> dict[str, Any]:
    """For a Producer, transactional where an id is given."""
    conf: dict[str, Any] = {
        "bootstrap.servers": settings.brokers(),
        "enable.idempotence": True,
        "acks": "all",
        "retry.backoff.ms": 1,  # a transaction right after another waits for it: 110 ms at the default of 100
        "retry.backoff.max.ms": 200,  # the wait doubles up to here, so a small start spares the brokers all the same
        "linger.ms": 1,
        "message.max.bytes": max(
            16 * _MIB, settings.max_record_bytes + _MIB
        ),  # a dead letter carries the original
        "queue.buffering.max.messages": max(100_000, 2 * settings.max_in_flight_records),
        "queue.buffering.max.kbytes": max(settings.max_in_flight_bytes, 16 * _MIB) // 512,
        "compression.type": "lz4",  # the least CPU for most of the gain; results are small and alike
        "delivery.report.only.error": True,
        "partitioner": "murmur2_random",  # Java's: a key lands in the same partition whoever wrote it
    }
    if transactional_id is not None:
        conf |= {
            "transactional.id": transactional_id,
            "transaction.timeout.ms": settings.transaction_timeout_ms,
        }
    return conf | {k: v for k, v in reveal(settings.kafka).items() if not _CONSUMER_ONLY.match(k)}


def admin_conf(settings: Settings) -> dict[str, Any]:
    """For any client: where the brokers are and how to be let in."""
    shared = {
        k: v
        for k, v in reveal(settings.kafka).items()
        if not _CONSUMER_ONLY.match(k) and not _PRODUCER_ONLY.match(k)
    }
    return {"bootstrap.servers": settings.brokers(), **shared}


def problems(
    values: Mapping[str, Any], transaction_timeout_ms: int, session_timeout_ms: int
) -> Iterator[str]:
    """Why these properties must not reach librdkafka: one sentence each, none when all is well."""
    for name, value in reveal(values).items():
        if name in _OURS:
            yield f"{name} cannot be passed through: {_OURS[name]}"
        elif name in _MUST_BE and str(value).lower() not in _MUST_BE[name][0]:
            allowed, reason = _MUST_BE[name]
            yield f"{name}={value} is refused: {reason} (allowed: {', '.join(sorted(allowed))})"
    if _number(values, "retries", 1) == 0 or _number(values, "message.send.max.retries", 1) == 0:
        yield "retries=0 is refused: a single lost packet would abort every transaction"
    if _number(values, "heartbeat.interval.ms", 0) * 2 > session_timeout_ms:
        yield (
            f"heartbeat.interval.ms={values['heartbeat.interval.ms']} is refused: it must be at most half of "
            f"session_timeout_ms ({session_timeout_ms}), or one late heartbeat costs the membership"
        )
    if _number(values, "socket.timeout.ms", 0) > transaction_timeout_ms - 100:
        yield (
            f"socket.timeout.ms={values['socket.timeout.ms']} is refused: it must be at least 100 ms below "
            f"transaction_timeout_ms ({transaction_timeout_ms}), or a commit cannot be settled in time"
        )


def _number(values: Mapping[str, Any], name: str, absent: float) -> float:
    try:
        return float(values[name])
    except (KeyError, ValueError, TypeError):
        return absent
