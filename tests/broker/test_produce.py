"""`consumer produce`: what is sent can be read as any producer's events can."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from consumer.codec import Decoder, load_schema, write_container
from consumer.config import Settings
from consumer.errors import Fatal
from consumer.exits import Exit
from consumer.local.produce import emails, produce
from consumer.local.topics import describe_topics
from tests.waiting import wait_until


def mail(number: int, **fields: Any) -> dict[str, Any]:
    event = {
        "id": f"m{number}",
        "received_at": number,
        "from": "a@example.org",
        "to": [],
        "subject": "s",
        "body": "b",
    }
    return {**event, "html": None, "headers": {}, "attachments": [], **fields}


def read_all(settings: Settings, topic: str, count: int) -> list[tuple[bytes | None, Any]]:
    """(key, event) of the topic's first `count` records; in order where they have one key or one partition."""
    reader = Consumer(
        {"bootstrap.servers": settings.brokers(), "group.id": topic, "enable.auto.commit": False}
    )
    partitions = reader.list_topics(topic, timeout=30).topics[topic].partitions
    reader.assign([TopicPartition(topic, number, 0) for number in partitions])
    found: list[Any] = []

    def complete() -> bool:
        found.extend(reader.consume(count, 0.2))
        return len(found) >= count

    try:
        wait_until(complete, 30, f"{count} records in {topic}")
    finally:
        reader.close()
    events = Decoder(load_schema("email")).decode_many([record.value() for record in found])
    return [(record.key(), event) for record, event in zip(found, events, strict=True)]


@pytest.fixture
def settings(bootstrap_servers: str) -> Settings:
    return Settings(bootstrap_servers=bootstrap_servers)


def test_events_arrive_in_order_with_the_sender_as_key(
    settings: Settings, topic_factory: Callable[..., str]
) -> None:
    topic = topic_factory("emails")
    sent = [mail(0), mail(1, **{"from": None}), mail(2)]
    assert produce(settings, topic, "email", sent) == 3
    keys, events = zip(*read_all(settings, topic, 3), strict=True)
    assert keys == (b"a@example.org", b"m1", b"a@example.org")
    assert list(events) == sent


def test_only_so_many_are_taken_and_no_faster_than_asked(
    settings: Settings, topic_factory: Callable[..., str]
) -> None:
    topic = topic_factory("emails")
    endless = map(mail, iter(int, 1))
    begun_s = time.monotonic()
    assert produce(settings, topic, "email", endless, count=11, rate_per_s=20.0) == 11
    assert time.monotonic() - begun_s >= 0.5
    assert len(read_all(settings, topic, 11)) == 11


def test_an_event_that_does_not_fit_stops_with_its_id(
    settings: Settings, topic_factory: Callable[..., str]
) -> None:
    with pytest.raises(Fatal, match=r"'m7' cannot be sent: .*subject"):
        produce(settings, topic_factory("emails"), "email", [mail(7, subject=None)])


def test_one_place_of_mails_at_a_time(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match="name one of --mbox") as refused:
        emails(mbox=tmp_path, maildir=tmp_path)
    assert refused.value.exit_code == Exit.USAGE


def test_a_place_without_mail_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.mbox").touch()
    with pytest.raises(Fatal, match=r"no mail found in .*empty\.mbox") as refused:
        emails(mbox=tmp_path / "empty.mbox")
    assert refused.value.exit_code == Exit.USAGE


def test_a_topic_that_is_not_there_is_not_made(settings: Settings, unique_name: Callable[[str], str]) -> None:
    topic = unique_name("typo")
    with pytest.raises(Fatal, match="does not exist: make the topics"):
        produce(settings, topic, "email", [mail(0)])
    assert describe_topics(settings.admin_conf(), [topic]) == {topic: None}


def test_the_command_sends_an_avro_file(
    settings: Settings, topic_factory: Callable[..., str], tmp_path: Path
) -> None:
    topic, file = topic_factory("emails"), tmp_path / "mails.avro"
    write_container(file, load_schema("email"), islice(map(mail, range(100)), 5))
    command = [sys.executable, "-m", "consumer", "produce", "emails", "--avro", str(file), "--topic", topic]
    command += ["--bootstrap-servers", settings.brokers()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == Exit.OK, done.stderr
    assert f"5 events are in topic {topic}" in " ".join(done.stderr.split())
    assert [event["id"] for _, event in read_all(settings, topic, 5)] == [f"m{n}" for n in range(5)]
