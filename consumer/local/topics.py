"""Topics: make them when they are missing, say how they are set."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its stubs do not export these
    AdminClient,
    ConfigResource,
    ResourceType,
)
from confluent_kafka.cimpl import NewTopic

from consumer.errors import ConsumerError, Fatal, Retry

__all__ = ["TopicSpec", "TopicState", "describe_topics", "ensure_topics"]

Conf = Mapping[str, str]

DENIED: Final = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.SECURITY_DISABLED,
}
UNPROVEN: Final = {
    KafkaError._AUTHENTICATION,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.UNSUPPORTED_SASL_MECHANISM,
    KafkaError._SSL,
}
AWAY: Final = {
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._RESOLVE,
    KafkaError._TIMED_OUT,
    KafkaError._TIMED_OUT_QUEUE,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.NOT_CONTROLLER,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.BROKER_NOT_AVAILABLE,
    KafkaError.NETWORK_EXCEPTION,
}


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic as we want it when it is not there yet; None and -1 leave the choice to the broker."""

    name: str
    partitions: int = -1
    replication: int = -1
    cleanup_policy: str | None = None
    max_message_bytes: int | None = None
    retention_ms: int | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    """Any other topic setting of Kafka, by its own name."""

    def config(self) -> dict[str, str]:
        """All settings by Kafka's names."""
        named = {
            "cleanup.policy": self.cleanup_policy,
            "max.message.bytes": self.max_message_bytes,
            "retention.ms": self.retention_ms,
        }
        return {name: str(value) for name, value in named.items() if value is not None} | dict(self.settings)


@dataclass(frozen=True, slots=True)
class TopicState:
    """A topic as it is."""

    name: str
    partitions: int
    replication: int
    settings: Mapping[str, str]
    """Every setting in force, by Kafka's names."""

    @property
    def cleanup_policy(self) -> str:
        return self.settings.get("cleanup.policy", "")

    @property
    def max_message_bytes(self) -> int:
        return int(self.settings.get("max.message.bytes", 0))

    @property
    def min_insync_replicas(self) -> int:
        return int(self.settings.get("min.insync.replicas", 0))


def ensure_topics(conf: Conf, specs: Sequence[TopicSpec], *, timeout_s: float = 30.0) -> list[str]:
    """Creates those topics that are missing and returns their names; existing ones stay as they are.

    When it returns, every topic has a leader for every partition. `conf` holds librdkafka properties. Raises Retry
    when the broker is away, Fatal when it refuses us or the settings.
    """
    deadline = time.monotonic() + timeout_s
    with _admin(conf, timeout_s) as admin:
        there = admin.list_topics(timeout=timeout_s).topics
        missing = [spec for spec in specs if spec.name not in there]
        created = [spec.name for spec in missing if _create(admin, spec, timeout_s)]
        while not _all_led(admin, [spec.name for spec in specs], timeout_s):
            if time.monotonic() > deadline:
                raise Retry(
                    f"Not every partition of {', '.join(s.name for s in specs)} has a leader: try again"
                )
            time.sleep(0.05)
    return created


def describe_topics(
    conf: Conf, names: Sequence[str], *, timeout_s: float = 30.0
) -> dict[str, TopicState | None]:
    """How each topic is set; None for one that does not exist (or that we may not see). Errors as `ensure_topics`."""
    states: dict[str, TopicState | None] = dict.fromkeys(names)
    with _admin(conf, timeout_s) as admin:
        topics = admin.list_topics(timeout=timeout_s).topics
        asked = [ConfigResource(ResourceType.TOPIC, name) for name in names if name in topics]
        replies = admin.describe_configs(asked, request_timeout=timeout_s) if asked else {}
        for resource, reply in replies.items():
            partitions = topics[resource.name].partitions
            states[resource.name] = TopicState(
                name=resource.name,
                partitions=len(partitions),
                replication=min((len(each.replicas) for each in partitions.values()), default=0),
                settings={name: entry.value or "" for name, entry in reply.result().items()},
            )
    return states


def _create(admin: AdminClient, spec: TopicSpec, timeout_s: float) -> bool:
    """False when somebody else created it meanwhile."""
    topic = NewTopic(spec.name, spec.partitions, spec.replication, config=spec.config())
    try:
        admin.create_topics([topic], operation_timeout=timeout_s, request_timeout=timeout_s)[
            spec.name
        ].result()
    except KafkaException as error:
        if error.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS:
            return False
        if error.args[0].code() in DENIED:
            raise Fatal(
                f"Kafka neither shows us the topic {spec.name} nor lets us create it: {error.args[0].str()} "
                "Ask for DESCRIBE on it where it exists, else for CREATE."
            ) from error
        if error.args[0].code() in UNPROVEN | AWAY:
            raise
        raise Fatal(f"Kafka refuses the topic {spec.name} {spec.config()}: {error.args[0].str()}") from error
    return True


def _all_led(admin: AdminClient, names: list[str], timeout_s: float) -> bool:
    topics = admin.list_topics(timeout=timeout_s).topics
    return all(
        name in topics
        and topics[name].partitions
        and all(p.leader >= 0 for p in topics[name].partitions.values())
        for name in names
    )


@contextmanager
def _admin(conf: Conf, timeout_s: float) -> Iterator[AdminClient]:
    """An AdminClient whose foreign errors become ours on the way out."""
    last: list[KafkaError] = []
    servers = conf.get("bootstrap.servers", "(no bootstrap.servers)")
    properties: dict[str, Any] = {"log_level": 0, **conf, "error_cb": last.append}
    try:
        admin = AdminClient(properties)
    except (KafkaException, ValueError, TypeError) as error:
        raise Fatal(f"Kafka's client refuses its settings: {error}") from error
    try:
        yield admin
    except KafkaException as error:
        admin.poll(0)  # delivers the reason, which the call itself only knows as a time-out
        raise _translated(servers, [error.args[0], *last], timeout_s) from error


def _translated(servers: str, errors: list[KafkaError], timeout_s: float) -> ConsumerError:
    codes = {error.code() for error in errors}
    first = errors[0].str()
    unproven = [error.str() for error in errors if error.code() in UNPROVEN]
    if unproven:
        return Fatal(
            f"Kafka at {servers} does not accept who we are: {unproven[0]}. Check user, password and TLS."
        )
    if codes & DENIED:
        return Fatal(
            f"Kafka at {servers} does not let us do this: {first}. Ask for the rights (ACLs) it names."
        )
    if codes & AWAY:
        reason = next((error.str() for error in errors[1:]), first)
        return Retry(
            f"Kafka at {servers} does not answer within {timeout_s:g} s: {reason}. Is it running and reachable?"
        )
    return Fatal(f"Kafka at {servers} answers with an error: {first}")
