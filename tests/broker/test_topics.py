"""Topics are made once and as asked; a broker that is away or refuses us is told apart, with what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from consumer.errors import Fatal, Retry
from consumer.local.broker import EmbeddedBroker
from consumer.local.topics import TopicSpec, describe_topics, ensure_topics

Name = Callable[[str], str]


@pytest.fixture(scope="module")
def guarded() -> Iterator[EmbeddedBroker]:
    """A broker whose second listener wants a password and grants nothing."""
    with EmbeddedBroker(users={"alice": "secret"}) as broker:
        yield broker


def as_alice(broker: EmbeddedBroker, password: str = "secret") -> dict[str, str]:
    return {
        "bootstrap.servers": broker.sasl_bootstrap_servers,
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "alice",
        "sasl.password": password,
    }


@pytest.fixture
def conf(bootstrap_servers: str) -> dict[str, str]:
    return {"bootstrap.servers": bootstrap_servers}


def test_topics_are_made_once_and_as_asked(conf: dict[str, str], unique_name: Name) -> None:
    emails, table = unique_name("emails"), unique_name("table")
    specs = [
        TopicSpec(emails, partitions=3, max_message_bytes=12_000_000, retention_ms=60_000),
        TopicSpec(table, partitions=1, cleanup_policy="compact", settings={"segment.ms": "1000"}),
    ]
    assert ensure_topics(conf, specs) == [emails, table]
    assert ensure_topics(conf, specs) == []

    states = describe_topics(conf, [emails, table, unique_name("nowhere")])
    first, second, nowhere = states.values()
    assert nowhere is None
    assert first is not None and second is not None
    assert (first.partitions, first.replication, first.min_insync_replicas) == (3, 1, 1)
    assert (first.cleanup_policy, first.max_message_bytes) == ("delete", 12_000_000)
    assert first.settings["retention.ms"] == "60000"
    assert (second.cleanup_policy, second.settings["segment.ms"]) == ("compact", "1000")


def test_an_existing_topic_stays_as_it_is(conf: dict[str, str], unique_name: Name) -> None:
    name = unique_name("emails")
    ensure_topics(conf, [TopicSpec(name, partitions=2)])
    assert ensure_topics(conf, [TopicSpec(name, partitions=5, cleanup_policy="compact")]) == []
    state = describe_topics(conf, [name])[name]
    assert state is not None
    assert (state.partitions, state.cleanup_policy) == (2, "delete")


def test_several_at_once_do_not_mind_each_other(conf: dict[str, str], unique_name: Name) -> None:
    name = unique_name("race")
    with ThreadPoolExecutor(4) as pool:
        created = list(pool.map(lambda _: ensure_topics(conf, [TopicSpec(name)]), range(4)))
    assert sorted(created) == [[], [], [], [name]]


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ({"replication": 3}, "replication factor of 3"),
        ({"settings": {"no.such.setting": "1"}}, r"no\.such\.setting"),
        ({"cleanup_policy": "burn"}, "burn"),
    ],
)
def test_a_topic_that_kafka_refuses(
    spec: dict[str, object], complaint: str, conf: dict[str, str], unique_name: Name
) -> None:
    with pytest.raises(Fatal, match=f"refuses the topic refused.*{complaint}"):
        ensure_topics(conf, [TopicSpec(unique_name("refused"), **spec)])  # type: ignore[arg-type]


def test_a_broker_that_is_away_is_worth_another_try() -> None:
    conf = {"bootstrap.servers": "127.0.0.1:9"}
    with pytest.raises(Retry, match=r"127\.0\.0\.1:9 does not answer within 1 s.*refused"):
        ensure_topics(conf, [TopicSpec("any")], timeout_s=1)
    with pytest.raises(Retry, match="does not answer"):
        describe_topics(conf, ["any"], timeout_s=1)


def test_wrong_credentials_are_not(guarded: EmbeddedBroker) -> None:
    with pytest.raises(Fatal, match=r"does not accept who we are.*Check user, password"):
        ensure_topics(as_alice(guarded, "wrong"), [TopicSpec("any")], timeout_s=3)


def test_missing_rights_are_named(guarded: EmbeddedBroker, unique_name: Name) -> None:
    name = unique_name("hidden")
    ensure_topics({"bootstrap.servers": guarded.bootstrap_servers}, [TopicSpec(name)])
    with pytest.raises(Fatal, match=rf"neither shows us the topic {name} nor lets us create it"):
        ensure_topics(as_alice(guarded), [TopicSpec(name)])
    assert describe_topics(as_alice(guarded), [name]) == {name: None}


def test_a_wrong_client_setting_is_refused() -> None:
    with pytest.raises(Fatal, match=r"refuses its settings.*nope"):
        ensure_topics({"bootstrap.servers": "127.0.0.1:9", "nope": "1"}, [TopicSpec("any")])
