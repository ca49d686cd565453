"""What can be found out about a Kafka cluster without joining a group or leaving a record behind."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer, TopicCollection, libversion
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._acl import AclOperation
from confluent_kafka.admin._config import ConfigResource
from confluent_kafka.admin._metadata import ClusterMetadata
from confluent_kafka.admin._resource import ResourceType

from consumer.config import Settings
from consumer.errors import ConsumerError, Fatal, Retry

__all__ = ["Cluster", "cluster", "group_refusal", "permissions", "try_transaction", "versions"]

_TIMEOUT_S = 10.0
_PATIENCE_S = _TIMEOUT_S + 5.0
_REMEDIES = {
    KafkaError._AUTHENTICATION: "the credentials are wrong: check sasl.username, sasl.password and sasl.mechanism",
    KafkaError.SASL_AUTHENTICATION_FAILED: "the credentials are wrong: check sasl.username and sasl.password",
    KafkaError.UNSUPPORTED_SASL_MECHANISM: "the brokers do not offer this sasl.mechanism",
    KafkaError._SSL: "TLS failed: check security.protocol, ssl.ca.location and the client certificate",
    KafkaError._RESOLVE: "the host name is unknown here: check bootstrap_servers",
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "grant WRITE and DESCRIBE on the transactional ids that begin "
    "with the group id",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "grant IDEMPOTENT_WRITE on the cluster",
    KafkaError.INVALID_TRANSACTION_TIMEOUT: "transaction_timeout_ms is above the brokers' transaction.max.timeout.ms",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "grant DESCRIBE on the topics",
}
_LATER = (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT)
_QUIET = {"log_level": 0}
"""The answers say it all; librdkafka's own lines would stand between them."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """What answers at `bootstrap_servers`; limits are None where the user may not read them."""

    id: str
    brokers: int
    topics: tuple[str, ...]
    """Those that are not internal, by name."""
    max_transaction_timeout_ms: int | None
    min_session_timeout_ms: int | None


def versions() -> dict[str, str]:
    """Of the client library and of librdkafka in it."""
    return {"confluent-kafka": version("confluent-kafka"), "librdkafka": str(libversion()[0])}


def cluster(settings: Settings) -> Cluster:
    """Raises Fatal where access is refused or a property unknown, Retry where nobody answers; the text says why."""
    seen: list[KafkaError] = []
    admin = _admin(settings, seen)
    metadata = _metadata(settings, admin, seen)
    broker_id = str(next(iter(metadata.brokers), 0))
    limits: dict[str, Any] = {}
    with suppress(KafkaException):  # users of managed clusters may often not read them
        asked = admin.describe_configs(
            [ConfigResource(ResourceType.BROKER, broker_id)], request_timeout=_TIMEOUT_S
        )
        limits = next(iter(asked.values())).result(_PATIENCE_S)
    return Cluster(
        id=str(metadata.cluster_id),
        brokers=len(metadata.brokers),
        topics=tuple(sorted(name for name in metadata.topics if not name.startswith("__"))),
        max_transaction_timeout_ms=_number(limits, "transaction.max.timeout.ms"),
        min_session_timeout_ms=_number(limits, "group.min.session.timeout.ms"),
    )


def permissions(settings: Settings, names: Sequence[str]) -> dict[str, frozenset[str]]:
    """READ, WRITE and so on, by topic, as far as the brokers say."""
    if not names:
        return {}
    admin = _admin(settings, [])
    asked = admin.describe_topics(
        TopicCollection(list(names)), include_authorized_operations=True, request_timeout=_TIMEOUT_S
    )
    found: dict[str, frozenset[str]] = {}
    for name, future in asked.items():
        with suppress(KafkaException):
            operations: Any = future.result(_PATIENCE_S).authorized_operations or []
            found[name] = frozenset(operation.name for operation in operations)
    return found


def group_refusal(settings: Settings) -> str | None:
    """Why this user may not read in the group; None where nothing speaks against it."""
    admin = _admin(settings, [])  # kept alive until the answer is there: without it none would come
    future = admin.describe_consumer_groups(
        [settings.group_id], include_authorized_operations=True, request_timeout=_TIMEOUT_S
    )[settings.group_id]
    try:
        operations: Any = future.result(_PATIENCE_S).authorized_operations or []
    except KafkaException as error:
        code = error.args[0].code()
        return (
            "READ and DESCRIBE on the group are not granted"
            if code == KafkaError.GROUP_AUTHORIZATION_FAILED
            else None
        )
    return None if not operations or AclOperation.READ in operations else "READ on the group is not granted"


def try_transaction(settings: Settings) -> None:
    """Begin and abort a transaction under a transactional id of its own.  Raises Fatal and Retry."""
    seen: list[KafkaError] = []
    conf = settings.producer_conf(f"{settings.group_id}-check") | _QUIET | {"error_cb": seen.append}
    try:
        producer = Producer(conf)
        producer.init_transactions(_TIMEOUT_S)
        producer.begin_transaction()
        producer.abort_transaction(_TIMEOUT_S)
    except KafkaException as error:
        raise _translated(error, seen, "a transaction could not be begun and aborted") from error


def _admin(settings: Settings, seen: list[KafkaError]) -> AdminClient:
    try:
        return AdminClient(settings.admin_conf() | _QUIET | {"error_cb": seen.append})
    except KafkaException as error:
        raise Fatal(f"the Kafka client refuses its properties: {error.args[0].str()}") from error


def _metadata(settings: Settings, admin: AdminClient, seen: list[KafkaError]) -> ClusterMetadata:
    """Ends at once when a broker refuses us: the call itself would only know of a time-out."""
    deadline = time.monotonic() + _TIMEOUT_S
    while True:
        try:
            return admin.list_topics(timeout=1.0)
        except KafkaException as error:
            admin.poll(0)  # delivers the reasons
            if time.monotonic() > deadline or any(one.code() in _REMEDIES for one in seen):
                refused = any(one.code() in _REMEDIES for one in (error.args[0], *seen))
                what = "lets us in" if refused else "answers"
                raise _translated(error, seen, f"no broker at {settings.bootstrap_servers} {what}") from error


def _translated(error: KafkaException, seen: Sequence[KafkaError], what: str) -> ConsumerError:
    """The most telling of all errors: a call that merely timed out often hides a refused password behind it."""
    last: KafkaError = error.args[0]
    for one in (last, *reversed(seen)):
        if one.code() in _REMEDIES:
            return Fatal(f"{what}: {_REMEDIES[one.code()]} ({one.str()})")
    text = next((one.str() for one in reversed(seen) if one.code() == KafkaError._TRANSPORT), last.str())
    return Retry(f"{what}: {text}") if last.code() in _LATER else Fatal(f"{what}: {text}")


def _number(limits: Mapping[str, Any], name: str) -> int | None:
    return int(limits[name].value) if name in limits and limits[name].value else None
