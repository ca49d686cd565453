"""Fixtures that every test may use: a real broker, topics and names of one's own, no processes left behind.

CONSUMER_TEST_BOOTSTRAP=host:port uses a broker that runs already, which saves its start while developing.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psutil
import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from consumer.local.broker import EmbeddedBroker

MARK = "CONSUMER_TEST_SESSION"
os.environ[MARK] = (
    uuid.uuid4().hex
)  # every process that a test starts inherits it: that is how they are found


@dataclass(frozen=True, slots=True)
class RunningBroker:
    """A broker that somebody else started."""

    bootstrap_servers: str


@pytest.fixture(scope="session")
def broker() -> Iterator[EmbeddedBroker | RunningBroker]:
    """One broker for all tests: never pause, kill or restart it; `private_broker` is for that."""
    running = os.environ.get("CONSUMER_TEST_BOOTSTRAP")
    if running:
        yield RunningBroker(running)
    else:
        with EmbeddedBroker() as own:
            yield own


@pytest.fixture
def private_broker() -> Iterator[EmbeddedBroker]:
    """A broker for this test alone."""
    with EmbeddedBroker() as own:
        yield own


@pytest.fixture(scope="session")
def bootstrap_servers(broker: EmbeddedBroker | RunningBroker) -> str:
    return broker.bootstrap_servers


@pytest.fixture(scope="session")
def admin(bootstrap_servers: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": bootstrap_servers})


@pytest.fixture
def unique_name(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Names that no other test has, for topics, groups and transactional ids: `unique_name("group")`."""
    test = re.sub(r"[^A-Za-z0-9_.-]+", "-", request.node.name)[:60]

    def name(prefix: str = "name") -> str:
        return f"{prefix}-{test}-{uuid.uuid4().hex[:8]}"

    return name


@pytest.fixture
def topic_factory(admin: AdminClient, unique_name: Callable[[str], str]) -> Callable[..., str]:
    """Makes topics: `topic_factory("emails", 3, **{"max.message.bytes": "20000000"})` returns the name.

    On the shared broker, or on the one that `on=` names by its bootstrap servers.
    """

    def make(prefix: str = "topic", partitions: int = 1, *, on: str | None = None, **config: str) -> str:
        name = unique_name(prefix)
        client = admin if on is None else AdminClient({"bootstrap.servers": on})
        client.create_topics([NewTopic(name, partitions, 1, config=config)])[name].result(timeout=30)
        return name

    return make


def _left_behind() -> list[str]:
    """Living processes, other than this one, that carry this test session's mark in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid() or process.environ().get(MARK) != os.environ[MARK]:
                continue
            command = " ".join(process.cmdline())
            if process.status() != psutil.STATUS_ZOMBIE and "multiprocessing.resource_tracker" not in command:
                found.append(f"{process.pid}: {command[:200]}")
        except psutil.Error:
            continue  # not ours to look at, or gone meanwhile
    return found


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    yield  # the fixtures end in here
    left = _left_behind()
    if left:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        print("\nFAILED: the tests left processes behind:", *left, sep="\n  ")
