"""The README is executed: its commands, its task and its subscriber, on a Kafka of their own."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer

from consumer.codec import Decoder, Encoder, Schema, load_schema
from consumer.errors import BadRecord
from consumer.local.broker import EmbeddedBroker
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EMAIL = {
    "id": "readme-1",
    "received_at": 1_700_000_000_000,
    "from": "a@example.org",
    "to": ["b@example.org"],
    "subject": "hello reader",
    "body": "See you tomorrow at nine.",
    "html": None,
    "headers": {},
}


def blocks(language: str, mark: str = "") -> list[str]:
    """Fenced blocks of a language, those right behind `<!-- test: MARK -->` where one is given."""
    before = rf"<!-- test: {mark} -->\n" if mark else ""
    return re.findall(rf"{before}```{language}\n(.*?)```", README, re.S)


def commands() -> Iterator[str]:
    for block in blocks("sh"):
        yield from (line for line in block.splitlines() if line.strip())


class Shell:
    """Runs `consumer ...` lines in a folder, workers in the background."""

    def __init__(self, folder: Path, bootstrap_servers: str) -> None:
        self.folder = folder
        self.environ = os.environ | {
            "CONSUMER_BOOTSTRAP_SERVERS": bootstrap_servers,
            "PYTHONPATH": str(ROOT),
            "NO_COLOR": "1",
        }
        self.workers: list[tuple[subprocess.Popen[bytes], Path]] = []

    def run(self, line: str) -> None:
        words = [sys.executable, "-m", *shlex.split(line)]
        if line.startswith("consumer run"):
            log_file = self.folder / f"worker-{len(self.workers)}.log"
            with log_file.open("wb") as log:
                worker = subprocess.Popen(
                    words, cwd=self.folder, env=self.environ, stdout=log, stderr=log, start_new_session=True
                )
            self.workers.append((worker, log_file))
            wait_until(lambda: "assigned" in self.log_of(worker, log_file), 60, lambda: log_file.read_text())
        else:
            done = subprocess.run(words, cwd=self.folder, env=self.environ, capture_output=True, timeout=120)
            assert done.returncode == 0, f"{line}\n{done.stdout.decode()}\n{done.stderr.decode()}"

    @staticmethod
    def log_of(worker: subprocess.Popen[bytes], log_file: Path) -> str:
        text = log_file.read_text(errors="replace")
        assert worker.poll() is None, f"the worker ended with {worker.returncode}:\n{text}"
        return text

    def end(self) -> list[int]:
        for worker, _ in self.workers:
            worker.send_signal(signal.SIGTERM)
        return [worker.wait(40) for worker, _ in self.workers]

    def kill(self) -> None:
        for worker, _ in self.workers:
            if worker.poll() is None:
                worker.kill()
                worker.wait(10)


@pytest.fixture
def shell(tmp_path: Path, private_broker: EmbeddedBroker) -> Iterator[Shell]:
    made = Shell(tmp_path, private_broker.bootstrap_servers)
    yield made
    made.kill()


def send_email(bootstrap_servers: str) -> None:
    (value,) = Encoder(load_schema("email")).encode_many([EMAIL])
    assert isinstance(value, bytes)
    producer = Producer({"bootstrap.servers": bootstrap_servers})
    producer.produce("emails", key=b"k", value=value)
    assert producer.flush(10) == 0


def test_the_commands_on_ones_own_kafka_work_in_their_order(
    shell: Shell, capsys: pytest.CaptureFixture[str], private_broker: EmbeddedBroker
) -> None:
    (block,) = [b for b in blocks("sh") if "consumer run spam" in b]
    for line in block.splitlines():
        if line.startswith("consumer "):
            shell.run(line)
    (producer,) = blocks("python", "producer")
    exec(producer.replace("localhost:9092", private_broker.bootstrap_servers), {})
    (subscriber,) = [b for b in blocks("python") if "spam_verdicts" in b]
    assert "localhost:9092" in subscriber

    def first_only(*found: object) -> None:
        print(*found)
        raise StopIteration

    with pytest.raises(StopIteration):
        exec(subscriber.replace("localhost:9092", private_broker.bootstrap_servers), {"print": first_only})
    assert "'event_id': 'readme-1'" in capsys.readouterr().out
    assert shell.end() == [0]


def test_the_task_of_the_readme_works_as_it_stands(
    shell: Shell, tmp_path: Path, private_broker: EmbeddedBroker, unique_name: Callable[[str], str]
) -> None:
    (task,) = blocks("python", "task")
    (schema,) = blocks("json", "schema")
    (tmp_path / "shout.py").write_text(task)
    (tmp_path / "shouted.avsc").write_text(schema)
    (block,) = [b for b in blocks("sh") if "shout:Shout" in b]
    for line in block.splitlines():
        shell.run(line)
    send_email(private_broker.bootstrap_servers)
    reader = Consumer(
        {
            "bootstrap.servers": private_broker.bootstrap_servers,
            "group.id": unique_name("group"),
            "auto.offset.reset": "earliest",
        }
    )
    reader.subscribe(["shouteds"])
    deadline = time.monotonic() + 30
    record = None
    while record is None and time.monotonic() < deadline:
        record = reader.poll(1.0)
    assert record is not None
    assert record.error() is None
    (result,) = Decoder(Schema.parse(schema)).decode_many([record.value()])
    assert not isinstance(result, BadRecord)
    assert (result["event_id"], result["text"]) == ("readme-1", "HELLO READER")
    reader.close()
    assert shell.end() == [0]


def test_every_command_shown_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for line in commands():
        match shlex.split(line):
            case ["make", target, *_]:
                assert re.search(rf"^{target}:", makefile, re.M), line
            case ["pip", "install", what]:
                (named,) = re.findall(r"\[(.*)\]", what)
                assert set(named.split(",")) <= set(extras), line
            case ["export", _] | ["consumer", *_]:
                pass
            case _:
                pytest.fail(f"nobody has tried this line of the README: {line}")
    shown = set(re.findall(r"`consumer ([a-z]+)", README)) | {
        shlex.split(line)[1] for line in commands() if line.startswith("consumer ")
    }
    assert shown
    for command in sorted(shown):
        done = subprocess.run(
            [sys.executable, "-m", "consumer", command, "--help"], capture_output=True, timeout=60
        )
        assert done.returncode == 0, command


def test_every_file_named_in_the_readme_is_there() -> None:
    linked = {target for target in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in target}
    assert {target for target in linked if not (ROOT / target).exists()} == set()
