"""The topics that a task needs, as they should be made."""

from __future__ import annotations

from consumer.config import Settings
from consumer.local.topics import TopicSpec, describe_topics
from consumer.task import Task

__all__ = ["HEADERS_BYTES", "PARTITIONS", "spans_topic", "wanted"]

PARTITIONS = 6
"""So many workers can share a topic's work where nobody says otherwise."""
HEADERS_BYTES = 64 << 10
"""What the headers of a dead letter may take beside the original record."""
_KAFKA_MAX_MESSAGE_BYTES = 1_048_588
_DAY_MS = 86_400_000
_CALM = {"segment.bytes": str(64 << 20), "min.cleanable.dirty.ratio": "0.2"}
"""Smaller segments than usual: only closed ones are compacted, and what is not compacted is read at every restore."""


def wanted(settings: Settings, task: type[Task], partitions: int, replication: int | None) -> list[TopicSpec]:
    """Inputs, results, dead letters, state, tables and spans.  Raises Retry and Fatal.

    `settings` are complete (`Settings.for_task`).

    A dead letter carries its record whole, so its topic takes a little more than the inputs do.
    """
    there = describe_topics(settings.admin_conf(), settings.input_topics)
    largest = max(
        (state.max_message_bytes for state in there.values() if state), default=_KAFKA_MAX_MESSAGE_BYTES
    )
    copies = -1 if replication is None else replication
    inputs = {name: state.partitions if state else partitions for name, state in there.items()}
    memory = [
        TopicSpec(changes, inputs[topic], copies, "compact", settings=_CALM)
        for topic, changes in settings.changelogs.items()
    ]
    return [
        *memory,
        *(TopicSpec(name, 1, copies, "compact") for name in settings.tables(task).values()),
        *(TopicSpec(name, partitions, copies) for name in settings.input_topics),
        TopicSpec(settings.output_topic, partitions, copies),
        TopicSpec(settings.dead_letter_topic, partitions, copies, max_message_bytes=largest + HEADERS_BYTES),
        *([spans_topic(settings.trace_topic, copies)] if settings.trace_topic else []),
    ]


def spans_topic(name: str, copies: int = -1) -> TopicSpec:
    """The topic of spans: a day of them."""
    return TopicSpec(name, 1, copies, retention_ms=_DAY_MS)
