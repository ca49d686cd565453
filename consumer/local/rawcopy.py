"""The limit that the client library sets: copies bytes from topic to topic in transactions, and does nothing else.

    python -m consumer.local.rawcopy BOOTSTRAP_SERVERS GROUP TOPIC_IN TOPIC_OUT RECORDS_A_TRANSACTION

The benchmark runs it beside the product.  Same client, same settings, no decoding, no model, no dead letters, no state,
no telemetry; it ends when it is terminated.
"""

from __future__ import annotations

import sys

from confluent_kafka import Consumer, Producer, TopicPartition

from consumer.config import Settings

__all__ = ["copy"]


def copy(servers: str, group: str, topic_in: str, topic_out: str, size: int) -> None:
    """Copy for ever."""
    settings = Settings(bootstrap_servers=servers, group_id=group)
    consumer = Consumer(settings.consumer_conf())
    producer = Producer(settings.producer_conf(group))
    producer.init_transactions()
    consumer.subscribe([topic_in])
    while True:
        records = consumer.consume(size, 0.05)
        if not records:
            continue
        producer.begin_transaction()
        producer.produce_batch(topic_out, [{"value": r.value(), "key": r.key()} for r in records])
        ends = {r.partition() or 0: r.offset() or 0 for r in records}
        offsets = [TopicPartition(topic_in, partition, end + 1) for partition, end in ends.items()]
        producer.send_offsets_to_transaction(offsets, consumer.consumer_group_metadata())
        producer.commit_transaction()


if __name__ == "__main__":
    _, *names, size = sys.argv
    servers, group, topic_in, topic_out = names
    copy(servers, group, topic_in, topic_out, int(size))
