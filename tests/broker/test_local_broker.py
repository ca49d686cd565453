"""The embedded broker: starts, answers, survives, and never outlives the process that started it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest
from confluent_kafka import (
    OFFSET_INVALID,
    Consumer,
    KafkaException,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from consumer.errors import Fatal
from consumer.local import broker as broker_module
from consumer.local import jars as jars_module
from consumer.local.broker import EmbeddedBroker
from consumer.local.jars import Jar, kafka_dir, known_jars
from tests.waiting import wait_until


def test_starts_and_answers(admin: AdminClient, topic_factory: Callable[..., str]) -> None:
    topic = topic_factory("answers", partitions=3)
    assert len(admin.list_topics(topic, timeout=10).topics[topic].partitions) == 3


def test_restart_and_crash_keep_data_and_port(private_broker: EmbeddedBroker) -> None:
    servers, first_pid = private_broker.bootstrap_servers, private_broker.pid
    create(servers, "kept")
    write(servers, "kept", [b"before"])

    private_broker.restart()
    write(servers, "kept", [b"between"])
    killed_pid = private_broker.pid
    private_broker.kill()
    assert killed_pid is not None
    assert not psutil.pid_exists(killed_pid)
    private_broker.start()

    assert private_broker.bootstrap_servers == servers
    assert private_broker.pid not in (None, first_pid, killed_pid)
    write(servers, "kept", [b"after"])
    assert read(servers, "kept", 3) == [b"before", b"between", b"after"]


def test_a_crash_leaves_no_transaction_without_an_end(private_broker: EmbeddedBroker) -> None:
    """One that timed out while the broker was away is aborted where it wrote: topic and offsets."""
    servers = private_broker.bootstrap_servers
    create(servers, "cut-short")
    group = {"bootstrap.servers": servers, "group.id": "cut-short", "auto.offset.reset": "earliest"}
    with closing(Consumer({**group, "isolation.level": "read_committed"})) as member:
        member.subscribe(["cut-short"])
        wait_until(lambda: member.poll(0.1) is None and bool(member.assignment()), 20, "no member")
        producer = Producer(
            {
                "bootstrap.servers": servers,
                "transactional.id": "cut-short",
                "transaction.timeout.ms": 1000,
                "log_level": 0,
            }
        )
        producer.init_transactions(20)
        producer.begin_transaction()
        producer.produce("cut-short", b"aborted")
        producer.send_offsets_to_transaction(
            [TopicPartition("cut-short", 0, 1)], member.consumer_group_metadata(), 20
        )
        assert producer.flush(20) == 0
        private_broker.kill()
        private_broker.start()
        write(servers, "cut-short", [b"after"])
        places = [TopicPartition("cut-short", 0)]
        wait_until(lambda: offsets_are_stable(servers, "cut-short", places), 20, "offsets stay pending")
        (place,) = member.committed(places, timeout=20)
        assert place.offset == OFFSET_INVALID
    assert read(servers, "cut-short", 1) == [b"after"]


def test_pause_and_resume(private_broker: EmbeddedBroker) -> None:
    admin = AdminClient({"bootstrap.servers": private_broker.bootstrap_servers})
    assert admin.list_topics(timeout=10).brokers
    private_broker.pause()
    assert private_broker.is_running
    with pytest.raises(KafkaException):
        admin.list_topics(timeout=0.5)
    private_broker.resume()
    assert admin.list_topics(timeout=10).brokers


def test_a_named_data_folder_stays_and_a_temporary_one_goes(tmp_path: Path) -> None:
    with EmbeddedBroker(data_dir=tmp_path / "data") as first:
        create(first.bootstrap_servers, "stays")
        temporary = first._folder
        assert temporary is not None
    assert not temporary.exists()
    with EmbeddedBroker(data_dir=tmp_path / "data") as second:
        assert (
            "stays"
            in AdminClient({"bootstrap.servers": second.bootstrap_servers}).list_topics(timeout=10).topics
        )


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_ends_with_its_parent(how: signal.Signals, tmp_path: Path) -> None:
    script = (
        "from consumer.local.broker import EmbeddedBroker\n"
        "broker = EmbeddedBroker()\n"
        "broker.start()\n"
        "print(broker.pid, broker._folder, flush=True)\n"
        "import threading; threading.Event().wait()\n"
    )
    with running(script) as parent:
        pid, folder = told(parent).split()
        jvm = psutil.Process(int(pid))
        supervisor = jvm.parent()
        assert supervisor is not None
        os.kill(parent.pid, how)
        parent.wait(10)
        wait_until(lambda: not jvm.is_running(), 20, "the JVM was gone")
        wait_until(lambda: not supervisor.is_running(), 5, "its supervisor was gone")
        assert not Path(folder).exists()


def test_a_paused_broker_ends_too(private_broker: EmbeddedBroker) -> None:
    assert private_broker.pid is not None
    jvm = psutil.Process(private_broker.pid)
    private_broker.pause()
    private_broker.stop()
    assert not jvm.is_running()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_serve_runs_until_it_is_told_to_end(how: signal.Signals) -> None:
    script = (
        "from consumer.local.broker import EmbeddedBroker, serve\n"
        "serve(EmbeddedBroker(), lambda broker: print(broker.bootstrap_servers, broker.pid, flush=True))\n"
    )
    with running(script) as server:
        servers, pid = told(server).split()
        assert AdminClient({"bootstrap.servers": servers}).list_topics(timeout=10).brokers
        server.send_signal(how)
        assert server.wait(90) == 0
        assert not psutil.pid_exists(int(pid))


def test_serve_says_when_the_broker_dies() -> None:
    script = (
        "from consumer.local.broker import EmbeddedBroker, serve\n"
        "serve(EmbeddedBroker(), lambda broker: print(broker.pid, flush=True))\n"
    )
    with running(script) as server:
        psutil.Process(int(told(server))).kill()
        _, complaint = server.communicate(timeout=30)
        assert server.returncode == 1
        assert b"The broker is not running" in complaint


def test_the_ahead_of_time_cache_is_written_once_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_cache(tmp_path, monkeypatch)

    def start_and_stop() -> tuple[float, str]:
        begun = time.monotonic()
        with EmbeddedBroker() as broker:
            assert broker.pid is not None
            return time.monotonic() - begun, " ".join(psutil.Process(broker.pid).cmdline())

    first_s, first = start_and_stop()
    assert "-XX:AOTCacheOutput=" in first
    caches = list(kafka_dir().glob("*.aot"))
    assert len(caches) == 1
    second_s, second = start_and_stop()
    assert f"-XX:AOTCache={caches[0]} " in second
    assert not list(kafka_dir().glob("*.tmp*"))
    print(f"start without the cache {first_s:.2f} s, with it {second_s:.2f} s")


def test_a_tampered_jar_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = own_cache(tmp_path, monkeypatch)
    victim = next(jar for jar in known_jars() if jar.artifact == "kafka-clients")
    tampered = (cache / victim.filename).read_bytes() + b"\0"
    (cache / victim.filename).write_bytes(tampered)

    def mirror_of_an_attacker(jars: list[Jar], into: Path, advance: Callable[[int], None]) -> None:
        assert jars == [victim]
        (into / victim.filename).write_bytes(tampered)

    monkeypatch.setattr(jars_module, "fetch_from_maven_central", mirror_of_an_attacker)
    broker = EmbeddedBroker()
    with pytest.raises(Fatal, match=r"kafka-clients-4\.3\.1\.jar .* arrived with SHA-256 .* not used"):
        broker.start()
    assert not broker.is_running


def test_a_wrong_java_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match=r"There is no Java at .*nowhere"):
        EmbeddedBroker(java=tmp_path / "nowhere").start()


def test_a_failed_start_shows_the_log_and_keeps_it() -> None:
    broker = EmbeddedBroker(properties={"num.io.threads": "many"})
    with pytest.raises(Fatal, match=r"ended while starting(.|\n)*Invalid value many") as caught:
        broker.start()
    assert broker.log_file is not None
    assert str(broker.log_file) in str(caught.value)
    assert "Invalid value many" in broker.log_file.read_text()
    assert not broker.is_running


def test_a_port_that_is_taken_is_named_or_avoided(monkeypatch: pytest.MonkeyPatch) -> None:
    free_port = broker_module._free_port
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", free_port()))
        squatter.listen()
        taken = squatter.getsockname()[1]
        with pytest.raises(Fatal, match=f"Port {taken} is taken"):
            EmbeddedBroker(port=taken).start()

        offers = iter([taken])
        monkeypatch.setattr(
            broker_module, "_free_port", lambda *besides: next(offers, None) or free_port(*besides)
        )
        with EmbeddedBroker() as broker:
            assert broker.port != taken


def own_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of one's own that has the jars already; returns the folder of the jars."""
    jars = jars_module.ensure_jars()
    monkeypatch.setenv("CONSUMER_CACHE", str(folder / "cache"))
    (kafka_dir() / "jars").mkdir()
    for jar in jars:
        shutil.copy(jar, kafka_dir() / "jars")
    return kafka_dir() / "jars"


def create(servers: str, topic: str) -> None:
    admin = AdminClient({"bootstrap.servers": servers})
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(timeout=30)


def write(servers: str, topic: str, values: list[bytes]) -> None:
    producer = Producer({"bootstrap.servers": servers, "acks": "all"})
    for value in values:
        producer.produce(topic, value)
    assert producer.flush(30) == 0


def read(servers: str, topic: str, count: int) -> list[bytes]:
    conf = {"bootstrap.servers": servers, "group.id": "reader", "auto.offset.reset": "earliest"}
    reader = Consumer(conf)
    try:
        reader.subscribe([topic])
        values: list[bytes] = []

        def all_there() -> bool:
            for message in reader.consume(count, 0.2):
                value = message.value()
                if message.error() is None and isinstance(value, bytes):
                    values.append(value)
            return len(values) >= count

        wait_until(all_there, 30, lambda: f"{count} records in {topic}; got {values}")
        return values
    finally:
        reader.close()


def offsets_are_stable(servers: str, group: str, places: list[TopicPartition]) -> bool:
    """Whether no transaction is open on the group's committed offsets."""
    outsider = Consumer({"bootstrap.servers": servers, "group.id": group})  # read_committed
    try:
        return all(place.error is None for place in outsider.committed(places, timeout=1))
    except KafkaException:
        return False
    finally:
        outsider.close()


@contextmanager
def running(script: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python program beside this one, killed in the end if it still runs."""
    program = [sys.executable, "-c", script]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def told(process: subprocess.Popen[bytes]) -> str:
    """The next line that the program prints."""
    assert process.stdout is not None
    line = process.stdout.readline().decode()
    if not line:
        assert process.stderr is not None
        pytest.fail(f"the program ended: {process.stderr.read().decode()}")
    return line
