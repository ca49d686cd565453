"""A header whose name is not UTF-8, through the real client library and its own mock broker."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from typing import cast

import confluent_kafka
import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, Producer, TopicPartition

from consumer.records import Chunk, Headers, Record
from consumer.telemetry import Telemetry

TOPIC, VALUE, FLAGS, HEADER = 1, 4, 7, 9
COPY = 2
PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
TRACED: Headers = [("traceparent", PARENT)]


class Argument(ctypes.Structure):
    """One argument of the library's C function `rd_kafka_produceva`; Python's producer only takes str names."""

    _fields_ = (
        ("kind", ctypes.c_int),
        ("first", ctypes.c_void_p),
        ("second", ctypes.c_void_p),
        ("third", ctypes.c_ssize_t),
        ("padding", ctypes.c_char * 40),
    )


def address(data: bytes) -> int | None:
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value


def produce_in_c(bootstrap_servers: str, topic: bytes, header_name: bytes) -> None:
    library = ctypes.CDLL(confluent_kafka.cimpl.__file__)
    for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_produceva"):
        getattr(library, name).restype = ctypes.c_void_p
    text = ctypes.create_string_buffer(512)
    conf = ctypes.c_void_p(library.rd_kafka_conf_new())
    library.rd_kafka_conf_set(
        conf, b"bootstrap.servers", bootstrap_servers.encode(), text, ctypes.c_size_t(512)
    )
    producer = ctypes.c_void_p(library.rd_kafka_new(0, conf, text, ctypes.c_size_t(512)))
    assert producer.value, text.value
    arguments = (Argument * 4)(
        Argument(TOPIC, address(topic)),
        Argument(VALUE, address(b"hello"), 5),
        Argument(HEADER, address(header_name), address(b"v"), 1),
        Argument(FLAGS, COPY),
    )
    assert not library.rd_kafka_produceva(producer, arguments, ctypes.c_size_t(4))
    assert library.rd_kafka_flush(producer, 20_000) == 0
    library.rd_kafka_destroy(producer)


@pytest.fixture
def mock_broker() -> Iterator[str]:
    owner = Producer({"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "log_level": 0})
    (broker,) = owner.list_topics("emails", timeout=20).brokers.values()
    yield f"{broker.host}:{broker.port}"
    owner.flush(1)  # the broker lives as long as its owner


def read(bootstrap_servers: str, topic: str, count: int) -> list[Message]:
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "readers",
            "log_level": 0,
        }
    )
    partitions = consumer.list_topics(topic, timeout=20).topics[topic].partitions
    consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in partitions])
    messages: list[Message] = []
    deadline = time.monotonic() + 60
    while len(messages) < count and time.monotonic() < deadline:
        message = consumer.poll(1.0)
        if message is not None and message.error() is None:
            messages.append(message)
    consumer.close()
    return messages


def test_a_header_name_that_is_not_utf8_neither_crashes_nor_costs_its_neighbour_the_trace(
    mock_broker: str,
) -> None:
    produce_in_c(mock_broker, b"emails", b"\xff\xfe")
    neighbour = Producer({"bootstrap.servers": mock_broker, "log_level": 0})
    neighbour.produce("emails", b"hello", headers=[("traceparent", PARENT)])
    assert neighbour.flush(20) == 0
    messages = read(mock_broker, "emails", 2)
    assert len(messages) == 2

    trace = Telemetry.off().open(Chunk(1, cast(list[Record], messages), {}, {}, 10, time.monotonic_ns()))

    assert trace is not None
    assert sorted(map(repr, trace.headers)) == sorted(map(repr, [None, TRACED]))
    assert sorted(len(dict(message.headers() or [])) for message in messages) == [0, 1]
