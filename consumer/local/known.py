"""Which properties the client library knows: asked of itself, for no list of ours would be complete."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from confluent_kafka import KafkaException, Producer

from consumer.errors import Fatal
from consumer.exits import Exit
from consumer.secret import is_secret, reveal

__all__ = ["COMMON", "require_known"]

_NOBODYS = "no.such.property"
_UNKNOWN = "No such configuration property"
COMMON = (
    "client.id client.rack security.protocol "
    "sasl.mechanism sasl.mechanisms sasl.username sasl.password sasl.oauthbearer.config sasl.oauthbearer.method "
    "sasl.oauthbearer.client.id sasl.oauthbearer.client.secret sasl.oauthbearer.scope "
    "sasl.oauthbearer.token.endpoint.url sasl.kerberos.service.name sasl.kerberos.principal sasl.kerberos.keytab "
    "ssl.ca.location ssl.ca.pem ssl.certificate.location ssl.certificate.pem ssl.key.location ssl.key.password "
    "ssl.key.pem ssl.keystore.location ssl.keystore.password ssl.cipher.suites ssl.endpoint.identification.algorithm "
    "enable.ssl.certificate.verification socket.timeout.ms socket.keepalive.enable socket.connection.setup.timeout.ms "
    "connections.max.idle.ms reconnect.backoff.ms reconnect.backoff.max.ms metadata.max.age.ms broker.address.family "
    "client.dns.lookup statistics.interval.ms debug log_level group.protocol group.remote.assignor "
    "heartbeat.interval.ms fetch.min.bytes fetch.wait.max.ms fetch.max.bytes fetch.message.max.bytes "
    "max.partition.fetch.bytes queued.min.messages queued.max.messages.kbytes check.crcs isolation.level "
    "linger.ms batch.size batch.num.messages compression.type compression.codec compression.level message.max.bytes "
    "queue.buffering.max.messages queue.buffering.max.kbytes retries retry.backoff.ms retry.backoff.max.ms acks "
    "partitioner max.in.flight"
).split()
"""What a misspelt name was probably meant to be."""


def require_known(properties: Mapping[str, Any]) -> None:
    """Raises Fatal for names that the library does not know and values that it refuses; shows no secret."""
    wrong = "\n".join(f"  {line}" for line in _problems(properties))
    if wrong:
        raise Fatal(f"these settings cannot be used:\n{wrong}", exit_code=Exit.USAGE)


def _problems(properties: Mapping[str, Any]) -> Iterator[str]:
    for name, value in reveal(properties).items():
        try:
            Producer({name: value, _NOBODYS: ""})  # the second stops it before a client is made
        except (KafkaException, TypeError, ValueError) as error:
            answer = error.args[0].str() if isinstance(error, KafkaException) else str(error)
            if answer.startswith(_UNKNOWN) and name != _NOBODYS and _NOBODYS in answer:
                continue
            if answer.startswith(_UNKNOWN):
                near = difflib.get_close_matches(name, COMMON, n=1)
                hint = f": did you mean {near[0]}?" if near else "; see librdkafka's CONFIGURATION.md"
                yield f"unknown Kafka property {name}{hint}"
            elif is_secret(name) and str(value) in answer:
                yield f"Kafka property {name}: the client library refuses its value"
            else:
                yield f"Kafka property {name}: {answer.strip()}"
