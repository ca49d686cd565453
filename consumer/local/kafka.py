"""How Apache Kafka is configured and called as one small node: properties, command lines, formatting."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from consumer.errors import Fatal
from consumer.local.jars import kafka_dir
from consumer.local.java import Java

__all__ = [
    "ACTIVE",
    "HOST",
    "RETIRED",
    "STILL_REGISTERED",
    "class_path",
    "format_data",
    "jvm_command",
    "properties_text",
    "retiring_properties",
    "sasl_properties",
    "server_properties",
    "was_used",
]

HOST = "127.0.0.1"
ACTIVE = "Becoming the active controller"
RETIRED = "Fencing broker 1 "
STILL_REGISTERED = "DUPLICATE_BROKER_REGISTRATION"
"""What the log says when the controller begins, when it has given its former broker up, when it has not."""

JVM_OPTIONS = (
    "-XX:+UseParallelGC",  # the serial one stops for 20 to 26 ms every 1.5 s
    "-XX:TieredStopAtLevel=1",  # compiling twice costs more than it gains in so short a life
    "-XX:-UsePerfData",
    "-XX:+ExitOnOutOfMemoryError",
    "-Djava.net.preferIPv4Stack=true",
    "-Djava.awt.headless=true",
)

LOG4J2 = """\
status = error
appender.file.type = File
appender.file.name = file
appender.file.fileName = ${sys:kafka.log.file}
appender.file.append = true
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d{ISO8601} %-5p %m (%c{1})%n%ex
logger.state.name = state.change.logger
logger.state.level = warn
rootLogger.level = info
rootLogger.appenderRef.file.ref = file
"""


def sasl_properties(
    users: Mapping[str, str], port: int, sasl_port: int, controller_port: int
) -> dict[str, str]:
    """A second listener (SASL/PLAIN) for named users, who may do only what an ACL grants; the first one may all."""
    login = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    accounts = " ".join(f'user_{name}="{password}"' for name, password in users.items())
    listeners = f"PLAINTEXT://{HOST}:{port},SASL_PLAINTEXT://{HOST}:{sasl_port}"
    return {
        "listeners": f"{listeners},CONTROLLER://{HOST}:{controller_port}",
        "advertised.listeners": listeners,
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl_plaintext.plain.sasl.jaas.config": f"{login} {accounts};",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
    }


def server_properties(port: int, controller_port: int, data_dir: Path) -> dict[str, str]:
    """Settings of a single node that is broker and controller: frugal, and quick to rebalance."""
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@{HOST}:{controller_port}",
        "listeners": f"PLAINTEXT://{HOST}:{port},CONTROLLER://{HOST}:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{port}",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": str(data_dir),
        "auto.create.topics.enable": "false",
        "default.replication.factor": "1",
        "min.insync.replicas": "1",
        # internal topics: one replica, few partitions, since each costs files and start time
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "8",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "8",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "share.coordinator.state.topic.num.partitions": "2",
        # groups: no waiting for members that will not come, short session time-outs allowed
        "group.initial.rebalance.delay.ms": "0",
        "group.min.session.timeout.ms": "1000",
        "group.consumer.min.session.timeout.ms": "1000",
        "group.consumer.min.heartbeat.interval.ms": "200",
        # a transaction of a dead producer ends a second after its time-out, not ten
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
        # never without leaders while it runs, not even after a pause: see `retiring_properties`
        "broker.session.timeout.ms": "600000",
        "controlled.shutdown.enable": "false",
        # memory and threads of a laptop
        "log.cleaner.dedupe.buffer.size": str(16 << 20),
        "log.segment.bytes": str(128 << 20),
        "log.index.size.max.bytes": str(1 << 20),
        "num.network.threads": "2",
        "num.io.threads": "4",
        "background.threads": "2",
    }


def retiring_properties(properties: Mapping[str, str]) -> dict[str, str]:
    """The same node as a controller alone, which soon gives its former broker up (`RETIRED`).

    A node that ended is still the leader of everything in its own metadata.  Started as it is, it would finish the
    transactions of its former life before it listens, lose the leadership when that life's session runs out, and take
    every partition that has no leader for a deleted one, whose transaction needs no end (KAFKA-20734): offsets would
    stay pending, and results be committed with a later transaction, twice.
    """
    kept = {
        key: value
        for key, value in properties.items()
        if key not in {"advertised.listeners", "controlled.shutdown.enable"}
        and not key.startswith("listener.name.")
    }
    controller = next(each for each in properties["listeners"].split(",") if each.startswith("CONTROLLER:"))
    return kept | {
        "process.roles": "controller",
        "listeners": controller,
        "broker.session.timeout.ms": "200",
        "broker.heartbeat.interval.ms": "50",
        "controller.quorum.append.linger.ms": "0",
    }


def properties_text(properties: Mapping[str, str]) -> str:
    """A Java properties file, pure ASCII: everything unusual in a value becomes a `\\uXXXX` escape."""

    def escaped(value: str) -> str:
        plain = all(" " <= char <= "~" and char != "\\" for char in value)
        if plain:
            return value
        units = value.encode("utf-16-be")
        return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))

    return "".join(f"{key}={escaped(value)}\n" for key, value in properties.items())


def jvm_command(java: Java, folder: Path, log_file: Path, heap_mb: int) -> list[str]:
    """The JVM up to, but without, its ahead-of-time options, class path and main class.

    `folder` is for its temporary files and its log settings, which must lie there as `log4j2.properties`.
    """
    return [
        str(java.path),
        f"-Xmx{heap_mb}m",
        *JVM_OPTIONS,
        *(["--sun-misc-unsafe-memory-access=allow"] if java.major >= 23 else []),  # else it warns of itself
        f"-Djava.io.tmpdir={folder}",
        f"-Dlog4j2.configurationFile={folder / 'log4j2.properties'}",
        f"-Dkafka.log.file={log_file}",
    ]


def class_path(jars: Sequence[Path]) -> list[str]:
    return ["-cp", os.pathsep.join(str(jar) for jar in jars)]


def format_data(java: Java, jars: Sequence[Path], data_dir: Path) -> None:
    """Makes a folder a Kafka data folder, unless it is one: Kafka's own tool does it once, then copies do."""
    if (data_dir / "meta.properties").exists():
        return
    template = kafka_dir() / "formatted"
    if not template.exists():
        with tempfile.TemporaryDirectory(prefix="format-", dir=kafka_dir()) as aside:
            _run_storage_tool(java, jars, Path(aside))
            try:
                os.rename(Path(aside, "data"), template)
            except OSError:
                if not template.exists():  # else another process was first
                    raise
    shutil.copytree(template, data_dir, dirs_exist_ok=True)


def was_used(data_dir: Path) -> bool:
    """Whether a node has lived on this data before."""
    return (data_dir / "__cluster_metadata-0").exists()


def _run_storage_tool(java: Java, jars: Sequence[Path], folder: Path) -> None:
    properties = folder / "server.properties"
    properties.write_text(properties_text(server_properties(9092, 9093, folder / "data")), encoding="ascii")
    cluster_id = (
        base64.urlsafe_b64encode(b"\0" + uuid.uuid4().bytes[1:]).decode().rstrip("=")
    )  # never a leading dash
    (folder / "log4j2.properties").write_text(LOG4J2, encoding="ascii")
    command = jvm_command(java, folder, folder / "format.log", heap_mb=256)
    tool = ["kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", str(properties)]
    command += [*class_path(jars), *tool]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise Fatal(f"Kafka's storage tool failed on {folder}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
