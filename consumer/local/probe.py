"""What can be found out about a Kafka cluster without joining a group or leaving a record behind."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer, TopicCollection, libversion
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._acl import AclOperation
from confluent_kafka.admin._config import ConfigResource
from confluent_kafka.admin._resource import ResourceType

from consumer.config import Settings
from consumer.errors import ConsumerError, Fatal, Retry

__all__ = ["Cluster", "TopicFacts", "cluster", "group_refusal", "topics", "try_transaction", "versions"]

_TIMEOUT_S = 10.0
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
    max_transaction_timeout_ms: int | None
    min_session_timeout_ms: int | None


@dataclass(frozen=True, slots=True)
class TopicFacts:
    """What decides whether a topic is fit for its use; `may` is empty where the brokers do not say."""

    name: str
    partitions: int
    replicas: int
    min_in_sync_replicas: int
    max_message_bytes: int
    cleanup_policy: str
    may: frozenset[str] = frozenset()


def versions() -> dict[str, str]:
    """Of the client library and of librdkafka in it."""
    return {"confluent-kafka": version("confluent-kafka"), "librdkafka": libversion()[0]}


def cluster(settings: Settings) -> Cluster:
    """Raises Fatal where access is refused or a property unknown, Retry where nobody answers; the text says why."""
    seen: list[KafkaError] = []
    admin = _admin(settings, seen)
    try:
        metadata = admin.list_topics(timeout=_TIMEOUT_S)
    except KafkaException as error:
        raise _translated(error, seen, f"no broker at {settings.bootstrap_servers} answers") from error
    broker_id = str(next(iter(metadata.brokers), 0))
    limits = _configs(admin, ResourceType.BROKER, [broker_id]).get(broker_id, {})
    return Cluster(
        id=metadata.cluster_id or "",
        brokers=len(metadata.brokers),
        max_transaction_timeout_ms=_number(limits.get("transaction.max.timeout.ms")),
        min_session_timeout_ms=_number(limits.get("group.min.session.timeout.ms")),
    )


def topics(settings: Settings, names: Sequence[str] | None = None) -> list[TopicFacts]:
    """Facts of the topics that exist, of `names` or of all that are not internal, by name.  Raises Fatal and Retry."""
    seen: list[KafkaError] = []
    admin = _admin(settings, seen)
    try:
        there = admin.list_topics(timeout=_TIMEOUT_S).topics
    except KafkaException as error:
        raise _translated(error, seen, f"no broker at {settings.bootstrap_servers} answers") from error
    chosen = sorted(n for n in there if (n in names if names is not None else not n.startswith("__")))
    configs = _configs(admin, ResourceType.TOPIC, chosen)
    may = _permissions(admin, chosen)
    return [
        TopicFacts(
            name=name,
            partitions=len(there[name].partitions),
            replicas=min((len(p.replicas) for p in there[name].partitions.values()), default=0),
            min_in_sync_replicas=_number(configs.get(name, {}).get("min.insync.replicas")) or 1,
            max_message_bytes=_number(configs.get(name, {}).get("max.message.bytes")) or 1_048_588,
            cleanup_policy=configs.get(name, {}).get("cleanup.policy") or "delete",
            may=may.get(name, frozenset()),
        )
        for name in chosen
    ]


def group_refusal(settings: Settings) -> str | None:
    """Why this user may not read in the group; None where nothing speaks against it."""
    future = _admin(settings, []).describe_consumer_groups(
        [settings.group_id], include_authorized_operations=True, request_timeout=_TIMEOUT_S
    )[settings.group_id]
    try:
        operations = future.result().authorized_operations or []
    except KafkaException as error:
        return (
            str(error.args[0].str())
            if error.args[0].code() == KafkaError.GROUP_AUTHORIZATION_FAILED
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


def _translated(error: KafkaException, seen: Sequence[KafkaError], what: str) -> ConsumerError:
    """The most telling of all errors: a call that merely timed out often hides a refused password behind it."""
    last: KafkaError = error.args[0]
    for one in (last, *reversed(seen)):
        if one.code() in _REMEDIES:
            return Fatal(f"{what}: {_REMEDIES[one.code()]} ({one.str()})")
    text = next((one.str() for one in reversed(seen) if one.code() == KafkaError._TRANSPORT), last.str())
    return Retry(f"{what}: {text}") if last.code() in _LATER else Fatal(f"{what}: {text}")


def _configs(
    admin: AdminClient, kind: ResourceType, names: Sequence[str]
) -> dict[str, dict[str, str | None]]:
    """Properties by name of the resource; those that this user may not read are left out."""
    found: dict[str, dict[str, str | None]] = {}
    if names:
        asked = admin.describe_configs([ConfigResource(kind, n) for n in names], request_timeout=_TIMEOUT_S)
        for resource, future in asked.items():
            with suppress(KafkaException):
                found[resource.name] = {key: entry.value for key, entry in future.result().items()}
    return found


def _permissions(admin: AdminClient, names: Sequence[str]) -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    if names:
        asked = admin.describe_topics(
            TopicCollection(list(names)), include_authorized_operations=True, request_timeout=_TIMEOUT_S
        )
        for name, future in asked.items():
            with suppress(KafkaException):
                operations: Any = future.result().authorized_operations or []
                found[name] = frozenset(operation.name for operation in operations)
    return found


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.lstrip("-").isdigit() else None
