"""The doctor on a real broker: a healthy set-up passes, and each illness is named with its remedy."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from consumer.check import Finding, examine
from consumer.config import Settings
from consumer.exits import Exit
from consumer.local import probe
from consumer.local.topics import TopicSpec, describe_topics, ensure_topics
from consumer.local.wanted import HEADERS_BYTES, wanted
from consumer.tasks import find_task

TASK = "consumer.tasks.click_scores:ClickScores"


@pytest.fixture
def healthy(bootstrap_servers: str, unique_name: Callable[[str], str]) -> Settings:
    """Settings whose topics are there as `consumer topics create` makes them."""
    settings = Settings(
        bootstrap_servers=bootstrap_servers,
        task=TASK,
        group_id=unique_name("group"),
        input_topics=(unique_name("in"),),
        output_topic=unique_name("out"),
        dead_letter_topic=unique_name("dead"),
    )
    ensure_topics(settings.admin_conf(), wanted(settings, find_task(TASK), 3, None))
    return settings


def changed(settings: Settings, **values: Any) -> Settings:
    return Settings(**{**{name: getattr(settings, name) for name in settings.model_fields_set}, **values})


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {one.what: one for one in findings}


def test_a_healthy_set_up_passes_every_check(healthy: Settings) -> None:
    findings = by_name(examine(healthy))
    assert [one for one in findings.values() if one.state != "ok"] == []
    topics = {
        f"topic {name}" for name in (*healthy.input_topics, healthy.output_topic, healthy.dead_letter_topic)
    }
    assert (
        findings.keys()
        >= {"versions", "task", "broker", "group", "transactions", "schemas", "model"} | topics
    )
    assert "3 partitions" in findings[f"topic {healthy.output_topic}"].detail


def test_checking_leaves_no_member_and_no_record_behind(healthy: Settings, admin: AdminClient) -> None:
    examine(healthy)
    group = admin.describe_consumer_groups([healthy.group_id])[healthy.group_id].result(30)
    assert not group.members
    reader = Consumer({"bootstrap.servers": healthy.brokers(), "group.id": healthy.group_id})
    try:
        for topic in (healthy.output_topic, healthy.dead_letter_topic, *healthy.input_topics):
            for partition in range(3):
                assert reader.get_watermark_offsets(TopicPartition(topic, partition), timeout=30) == (0, 0)
    finally:
        reader.close()


def test_missing_topics_are_named_with_the_command_that_makes_them(healthy: Settings) -> None:
    findings = by_name(examine(changed(healthy, output_topic="nobody-made-this")))
    missing = findings["topic nobody-made-this"]
    assert missing.state == "fail"
    assert missing.remedy == f"consumer topics create {TASK}"
    assert findings[f"topic {healthy.input_topics[0]}"].state == "ok"


@pytest.mark.parametrize(
    ("role", "partitions", "config", "state", "detail"),
    [
        ("input_topics", 1, {}, "warn", "one partition"),
        ("output_topic", 3, {"cleanup.policy": "compact"}, "warn", "compacted"),
        ("output_topic", 3, {"min.insync.replicas": "2"}, "fail", "nothing can be written"),
        ("dead_letter_topic", 3, {"max.message.bytes": "1000"}, "warn", "are shortened"),
    ],
)
def test_unfit_topic_settings_are_named(
    healthy: Settings,
    topic_factory: Callable[..., str],
    role: str,
    partitions: int,
    config: dict[str, str],
    state: str,
    detail: str,
) -> None:
    topic = topic_factory(role.replace("_", "-"), partitions, **config)
    findings = by_name(examine(changed(healthy, **{role: (topic,) if role == "input_topics" else topic})))
    finding = findings[f"topic {topic}"]
    assert finding.state == state
    assert detail in finding.detail
    assert finding.remedy


@pytest.mark.parametrize(
    ("values", "what", "detail"),
    [
        ({"transaction_timeout_ms": 2_000_000}, "transaction_timeout_ms", "refused by the brokers"),
        ({"task_options": {"volume": 1}}, "task", "refused the options"),
        ({"task": "no.such.module:Class"}, "task", "no module"),
        ({"kafka": {"no.such.property": "1"}}, "broker", "no.such.property"),
        ({"schema_registry_url": "http://127.0.0.1:1"}, "registry", "did not answer"),
    ],
)
def test_settings_that_cannot_work_are_named(
    healthy: Settings, values: dict[str, Any], what: str, detail: str
) -> None:
    finding = by_name(examine(changed(healthy, **values)))[what]
    assert finding.state == "fail"
    assert detail in finding.detail


def test_a_used_port_is_named(healthy: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        finding = by_name(examine(changed(healthy, metrics_port=taken.getsockname()[1])))["ports"]
    assert finding.state == "fail"
    assert "in use" in finding.detail


def test_wrong_credentials_are_told_from_an_absent_broker(healthy: Settings) -> None:
    """The broker of the tests knows no SASL; to the client that is a refused authentication."""
    sasl = {
        "security.protocol": "sasl_plaintext",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "me",
        "sasl.password": "correct-horse",
    }
    begun_s = time.monotonic()
    findings = by_name(examine(changed(healthy, kafka=sasl)))
    assert time.monotonic() - begun_s < 8  # at once, not at the end of a time-out
    assert findings["broker"].state == "fail"
    assert "credentials are wrong" in findings["broker"].detail
    assert "correct-horse" not in str(findings)
    assert findings["security"].state == "warn"
    assert "transactions" not in findings


def test_an_absent_broker_is_named(healthy: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_TIMEOUT_S", 1.0)
    finding = by_name(examine(changed(healthy, bootstrap_servers="127.0.0.1:1")))["broker"]
    assert finding.state == "fail"
    assert "127.0.0.1:1" in finding.detail
    assert "refused" in finding.detail


def test_an_example_that_is_no_event_is_named(
    healthy: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "from consumer.tasks.click_scores import ClickScores\nclass Bad(ClickScores):\n    example = {'id': 1}\n"
    (tmp_path / "bad_example_task.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    findings = by_name(examine(changed(healthy, task="bad_example_task:Bad")))
    assert findings["schemas"].state == "fail"
    assert "example is not an event of click" in findings["schemas"].detail


def test_a_result_that_does_not_fit_its_schema_is_named(
    healthy: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "from consumer.tasks.click_scores import ClickScores\nclass Misfit(ClickScores):\n"
    text += "    def run(self, items):\n        return [{'nonsense': 1} for _ in items]\n"
    (tmp_path / "misfit_task.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    finding = by_name(examine(changed(healthy, task="misfit_task:Misfit")))["example"]
    assert finding.state == "fail"
    assert "fails in encode" in finding.detail and "nonsense" in finding.detail


def test_the_command_prints_json_and_ends_with_0_or_1(healthy: Settings) -> None:
    flags = [
        "--bootstrap-servers",
        healthy.brokers(),
        "--input-topics",
        ",".join(healthy.input_topics),
        "--json",
    ]
    flags += ["--dead-letter-topic", healthy.dead_letter_topic, "--group-id", healthy.group_id]
    for output_topic, expected in ((healthy.output_topic, Exit.OK), ("nobody-made-this", Exit.FATAL)):
        command = [sys.executable, "-m", "consumer", "check", TASK, "--output-topic", output_topic, *flags]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == expected, done.stderr
        states = {one["state"] for one in json.loads(done.stdout)}
        assert ("fail" in states) == (expected == Exit.FATAL)


def test_the_dead_letter_topic_takes_more_than_the_largest_input(
    healthy: Settings, unique_name: Callable[[str], str]
) -> None:
    (big,) = ensure_topics(
        healthy.admin_conf(), [TopicSpec(unique_name("big"), 1, max_message_bytes=5_000_000)]
    )
    settings = changed(
        healthy, input_topics=(*healthy.input_topics, big), dead_letter_topic=unique_name("dead")
    )
    made = ensure_topics(settings.admin_conf(), wanted(settings, find_task(TASK), 2, 1))
    assert made == [settings.dead_letter_topic]
    state = describe_topics(settings.admin_conf(), made)[settings.dead_letter_topic]
    assert state is not None
    assert (state.max_message_bytes, state.partitions) == (5_000_000 + HEADERS_BYTES, 2)


def test_both_clients_accept_the_properties_that_settings_build(healthy: Settings) -> None:
    named = changed(healthy, instance_name="w-0", max_in_flight_bytes="1MiB", max_record_bytes="1MiB")
    for settings in (healthy, named, changed(healthy, kafka={"group.protocol": "consumer"})):
        Consumer(settings.consumer_conf()).close()
        producer = Producer(settings.producer_conf(settings.transactional_id))
        producer.init_transactions(30)


def test_topics_of_a_spec_are_listed(bootstrap_servers: str, unique_name: Callable[[str], str]) -> None:
    name = unique_name("listed")
    ensure_topics({"bootstrap.servers": bootstrap_servers}, [TopicSpec(name, 2)])
    command = [
        sys.executable,
        "-m",
        "consumer",
        "topics",
        "list",
        "--json",
        "--bootstrap-servers",
        bootstrap_servers,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    (found,) = [one for one in json.loads(done.stdout) if one["topic"] == name]
    assert (found["partitions"], found["replicas"]) == (2, 1)
