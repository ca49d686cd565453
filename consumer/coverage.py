"""Sees to it that every partition has an owner.  A thread of its own, for workers with an instance name.

A named member that is killed between the two halves of a cooperative rebalance and comes back under its name is given
what the broker had stored for it: a partition that was taken from it, but not yet given to another, then belongs to
nobody, in a group that is stable and stays so.  Whoever is the first of its members joins once more, for a moment and
without a name, which makes the group share everything out again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaException
from confluent_kafka.admin import AdminClient

from consumer.records import TopicPartition

__all__ = ["Coverage"]

log = logging.getLogger(__name__)

_CALL_S = 10.0
_STABLE = "STABLE"


class Coverage:
    """`conf` is for a member of the group; `member` says our id in it, empty while we have none.

    A partition without an owner is one at two looks, `every_s` apart: one look may meet it on its way.
    """

    def __init__(
        self,
        conf: Mapping[str, Any],
        admin_conf: Mapping[str, Any],
        topics: Sequence[str],
        member: Callable[[], str],
        every_s: float,
    ) -> None:
        self._conf = {name: value for name, value in conf.items() if name != "group.instance.id"}
        self._group_id = str(conf["group.id"])
        self._topics = list(topics)
        self._member = member
        self._every_s = every_s
        self._admin = AdminClient(dict(admin_conf), logger=logging.getLogger("consumer.librdkafka"))
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._main, name="coverage", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def _main(self) -> None:
        before: frozenset[TopicPartition] = frozenset()
        while not self._stopping.wait(self._every_s):
            try:
                orphans = self._orphans()
                if orphans & before:
                    self._share_out_again(orphans)
                    orphans = frozenset()
                before = orphans
            except KafkaException as error:
                log.debug("cannot look who owns what: %s", error.args[0].str())

    def _orphans(self) -> frozenset[TopicPartition]:
        """Partitions without an owner in a stable group whose first member we are."""
        asked = self._admin.describe_consumer_groups([self._group_id], request_timeout=_CALL_S)
        group: Any = asked[self._group_id].result()
        members = [str(member.member_id) for member in group.members]
        if group.state.name != _STABLE or not members or min(members) != self._member():
            return frozenset()
        owned = {
            (place.topic, place.partition)
            for member in group.members
            if member.assignment is not None
            for place in member.assignment.topic_partitions
        }
        topics = self._admin.list_topics(timeout=_CALL_S).topics
        wanted = {
            (name, number) for name in self._topics if name in topics for number in topics[name].partitions
        }
        return frozenset(wanted - owned)

    def _share_out_again(self, orphans: frozenset[TopicPartition]) -> None:
        named = ", ".join(f"{topic}[{number}]" for topic, number in sorted(orphans))
        log.warning(
            "%s: no member of the group owns it, though the group is stable; joining for a moment, so that all is "
            "shared out again",
            named,
        )
        guest = Consumer(self._conf, logger=logging.getLogger("consumer.librdkafka"))
        joined = threading.Event()
        guest.subscribe(self._topics, on_assign=lambda *_: joined.set())
        deadline = time.monotonic() + 2 * _CALL_S
        while not (joined.is_set() or self._stopping.is_set() or time.monotonic() > deadline):
            guest.poll(0.1)
        guest.close()
