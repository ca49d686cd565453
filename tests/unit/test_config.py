"""Settings in themselves: what is refused, what the task fills in, what reaches librdkafka."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

from consumer.config import Settings
from consumer.errors import Fatal
from consumer.exits import Exit
from consumer.task import Budget, Task


class Shout(Task):
    name = "shout"
    events: ClassVar[tuple[str, ...]] = ("email", "click")
    result = "shouted"
    example = {"id": "1"}
    budget = Budget(max_batch_items=7, max_batch_tokens=99, max_batch_age_ms=3.0)


def settings(**values: Any) -> Settings:
    return Settings(bootstrap_servers="kafka:9092", **values)


def test_every_setting_says_what_it_is_and_has_a_default() -> None:
    for name, info in Settings.model_fields.items():
        assert info.description, name
        assert not info.is_required(), name
    Settings()


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().gather_ms = 3  # type: ignore[misc]


def test_the_task_fills_in_what_was_left_open() -> None:
    filled = settings(task="m:Shout").for_task(Shout)
    assert filled.group_id == "consumer-shout"
    assert filled.input_topics == ("emails", "clicks")
    assert filled.output_topic == "shouteds"
    assert filled.dead_letter_topic == "shout_dead_letters"
    assert filled.budget == Shout.budget


def test_what_was_given_outranks_the_task() -> None:
    filled = settings(group_id="g", input_topics="a, b", output_topic="o", max_batch_items=3).for_task(Shout)
    assert (filled.group_id, filled.input_topics, filled.output_topic) == ("g", ("a", "b"), "o")
    assert filled.budget.max_batch_items == 3
    assert filled.budget.max_batch_tokens == 99


@pytest.mark.parametrize("given", [{"output_topic": "emails"}, {"dead_letter_topic": "clicks"}])
def test_a_topic_that_is_read_and_written_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(Fatal, match="both read and written") as refused:
        settings(**given).for_task(Shout)
    assert refused.value.exit_code == Exit.USAGE


def test_without_brokers_the_message_says_how_to_get_one() -> None:
    for conf in (Settings().consumer_conf, Settings().producer_conf, Settings().admin_conf):
        with pytest.raises(Fatal, match=r"--bootstrap-servers .*`consumer broker`") as refused:
            conf()
        assert refused.value.exit_code == Exit.USAGE


def test_consumer_properties_keep_exactly_once() -> None:
    conf = settings(group_id="g", instance_name="w-0", session_timeout_ms=6_000).consumer_conf()
    assert conf["enable.auto.commit"] is False
    assert conf["enable.auto.offset.store"] is False
    assert conf["isolation.level"] == "read_committed"
    assert conf["partition.assignment.strategy"] == "cooperative-sticky"
    assert conf["group.instance.id"] == "w-0"
    assert conf["heartbeat.interval.ms"] * 3 <= conf["session.timeout.ms"] == 6_000
    assert conf["fetch.queue.backoff.ms"] <= 50


def test_producer_properties_keep_exactly_once() -> None:
    conf = settings(transaction_timeout_ms=15_000, max_in_flight_records=200_000).producer_conf("tx")
    assert conf["enable.idempotence"] is True
    assert conf["acks"] == "all"
    assert (conf["transactional.id"], conf["transaction.timeout.ms"]) == ("tx", 15_000)
    assert conf["retry.backoff.ms"] <= 5
    assert conf["queue.buffering.max.messages"] > 200_000
    assert conf["partitioner"] == "murmur2_random"
    assert "transactional.id" not in settings().producer_conf()


def test_a_dead_letter_of_the_largest_record_fits_into_the_producer() -> None:
    given = settings(max_record_bytes="40MiB")
    assert given.producer_conf("tx")["message.max.bytes"] > given.max_record_bytes


def test_each_property_goes_to_the_client_that_knows_it() -> None:
    given = settings(
        kafka={
            "fetch.min.bytes": 5,
            "linger.ms": 1,
            "security.protocol": "ssl",
            "socket.keepalive.enable": True,
        }
    )
    consumer, producer, admin = given.consumer_conf(), given.producer_conf("t"), given.admin_conf()
    assert (consumer["fetch.min.bytes"], "fetch.min.bytes" in producer, "fetch.min.bytes" in admin) == (
        5,
        False,
        False,
    )
    assert (producer["linger.ms"], "linger.ms" in consumer, "linger.ms" in admin) == (1, False, False)
    for conf in (consumer, producer, admin):
        assert conf["security.protocol"] == "ssl"
        assert conf["socket.keepalive.enable"] == "true"


def test_the_new_group_protocol_goes_without_what_it_does_not_know() -> None:
    conf = settings(kafka={"group.protocol": "consumer"}).consumer_conf()
    assert not conf.keys() & {"partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms"}


def test_the_transactional_id_is_stable_with_a_name_and_unique_without() -> None:
    named = settings(group_id="g", instance_name="w-0")
    assert named.transactional_id == "g:w-0"
    assert settings(group_id="g").transactional_id.startswith("g:")
    assert settings(group_id="g").transactional_id != settings(group_id="h").transactional_id


@pytest.mark.parametrize(
    ("properties", "reason"),
    [
        ({"enable.auto.commit": "true"}, "would skip records without a result"),
        ({"enable.auto.offset.store": True}, "a crash would lose records"),
        ({"isolation.level": "read_uncommitted"}, "aborted records"),
        ({"enable.idempotence": "false"}, "transactions need it"),
        ({"acks": "1"}, "lost with that broker"),
        ({"request.required.acks": 0}, "lost with that broker"),
        ({"max.in.flight": "6"}, "order of the results"),
        ({"partition.assignment.strategy": "range,cooperative-sticky"}, "another group_id"),
        ({"transactional.id": "x"}, "instance_name"),
        ({"group.id": "x"}, "use group_id"),
        ({"group.instance.id": "x"}, "use instance_name"),
        ({"transaction.timeout.ms": 1}, "use transaction_timeout_ms"),
        ({"session.timeout.ms": 1}, "use session_timeout_ms"),
        ({"max.poll.interval.ms": 1}, "use max_poll_interval_ms"),
        ({"bootstrap.servers": "x"}, "use bootstrap_servers"),
        ({"retries": "0"}, "abort every transaction"),
        ({"heartbeat.interval.ms": 6_000}, "one late heartbeat"),
        ({"socket.timeout.ms": "60000"}, "below transaction_timeout_ms"),
    ],
)
def test_a_property_that_breaks_the_guarantees_is_refused(properties: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        settings(kafka=properties)


@pytest.mark.parametrize(
    "properties",
    [
        {"enable.auto.commit": False},
        {"acks": -1},
        {"isolation.level": "read_committed"},
        {"partition.assignment.strategy": "cooperative-sticky"},
        {"max.in.flight": 5},
        {"socket.timeout.ms": 9_000},
    ],
)
def test_a_property_that_says_the_same_is_let_through(properties: dict[str, Any]) -> None:
    settings(kafka=properties)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"commit_interval_ms": 20_000}, "must not exceed transaction_timeout_ms"),
        ({"max_chunk_records": 30_000}, "must not exceed max_in_flight_records"),
        ({"max_record_bytes": "1GiB"}, "must not exceed max_in_flight_bytes"),
        ({"max_poll_interval_ms": 5_000}, "must not exceed max_poll_interval_ms"),
        ({"revoke_deadline_ms": 400_000}, "must not exceed max_poll_interval_ms"),
        ({"schema_registry_token": "t", "schema_registry_password": "p"}, "exclude each other"),
        ({"schema_registry_url": "registry:8081"}, "must begin with http"),
        ({"schema_registry_url": "https://me:pw@registry"}, "must not carry a user or a password"),
        ({"instance_name": "a b"}, "may only have letters"),
        ({"device": "gpu"}, "must be auto, cpu, cuda, cuda:N"),
        ({"dead_letter_max_share": 0}, "greater than 0"),
        ({"gather_ms": -1}, "greater than or equal to 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        settings(**values)


def test_sizes_may_have_units() -> None:
    assert settings(max_in_flight_bytes="128MiB").max_in_flight_bytes == 128 << 20


class Many(Task):
    name = "many"
    events: ClassVar[tuple[str, ...]] = ("email", "click")
    result = "seen"
    stateful = True


@pytest.mark.parametrize(
    ("given", "topics"),
    [
        ((), {"emails": "email", "clicks": "click"}),
        (("a", "b"), {"a": "email", "b": "click"}),
        (("clicks",), {"clicks": "click"}),
        (("click=a", "click=b", "emails"), {"a": "click", "b": "click", "emails": "email"}),
    ],
)
def test_a_topic_says_what_kind_of_events_it_has(given: tuple[str, ...], topics: dict[str, str]) -> None:
    filled = settings(input_topics=given).for_task(Many)
    assert filled.events_by_topic == topics
    assert filled.input_topics == tuple(topics)
    assert filled.changelogs == {topic: f"consumer-many-state-{topic}" for topic in topics}
    assert filled.for_task(Many).events_by_topic == topics


@pytest.mark.parametrize("given", [("somewhere",), ("upload=a", "click=b"), ("emails", "clicks", "x")])
def test_a_topic_of_no_kind_that_the_task_reads_is_refused(given: tuple[str, ...]) -> None:
    with pytest.raises(Fatal, match="task many reads email, click"):
        settings(input_topics=given).for_task(Many)


def test_one_topic_keeps_the_name_of_its_state() -> None:
    class One(Many):
        events: ClassVar[tuple[str, ...]] = ("click",)

    assert settings().for_task(One).changelogs == {"clicks": "consumer-many-state"}
    assert settings(input_topics=("a", "b")).for_task(One).events_by_topic == {"a": "click", "b": "click"}
    with pytest.raises(Fatal, match="consumer-many-state"):
        settings(output_topic="consumer-many-state").for_task(One)
