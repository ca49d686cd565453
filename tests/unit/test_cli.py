"""The command line: what it teaches, what it refuses, and with which exit code it ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import SecretStr

from consumer import cli
from consumer.config import Settings
from consumer.errors import Fatal, Retry
from consumer.exits import Exit
from consumer.local.known import COMMON, require_known
from consumer.tasks import SHIPPED

COMMANDS = [
    ["run"], ["check"], ["config"], ["demo"], ["broker"], ["produce", "emails"], ["topics", "create"],
    ["train"], ["evaluate"], ["bench"],
]  # fmt: skip

Consumer = Callable[..., tuple[int, str, str]]


@pytest.fixture
def consumer(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Consumer:
    """Runs `consumer ARGUMENTS...`: (exit code, standard output, standard error)."""
    for name in list(os.environ):
        if name.upper().startswith("CONSUMER_"):
            monkeypatch.delenv(name)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(list(arguments))
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings with which a worker would have been run."""
    seen: list[Settings] = []
    stand_in: Any = ModuleType("consumer.serve")

    def run(settings: Settings) -> int:
        seen.append(settings)
        return Exit.UNFINISHED

    stand_in.run = run
    import consumer as package

    monkeypatch.setitem(sys.modules, "consumer.serve", stand_in)
    monkeypatch.setattr(package, "serve", stand_in, raising=False)
    return seen


def plain(text: str) -> str:
    """Without frames and line breaks."""
    return re.sub(r"[\s│╭╮╰╯─]+", " ", re.sub(r"\x1b\[[0-9;]*m", "", text))


def test_help_names_every_command_and_the_exit_codes(consumer: Consumer) -> None:
    code, out, _ = consumer("--help")
    assert code == Exit.OK
    for command in COMMANDS:
        assert command[0] in out
    assert all(f"{number} " in plain(out).split("Exit codes:")[1] for number in Exit)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_help_of_every_command_shows_an_example(consumer: Consumer, command: list[str]) -> None:
    code, out, _ = consumer(*command, "--help")
    assert code == Exit.OK
    assert re.search(rf"Examples?: .*consumer {' '.join(command)}", plain(out))


def test_every_setting_has_a_flag_and_secrets_only_as_files(consumer: Consumer) -> None:
    _, out, _ = consumer("run", "--help")
    text = plain(out)
    for name, info in Settings.model_fields.items():
        flag = {"task": "TASK", "task_options": "--option"}.get(name, f"--{name.replace('_', '-')}")
        if "SecretStr" in str(info.annotation):
            assert f"{flag}-fi" in text  # the frame may cut the word
            assert f"{flag} " not in text
        else:
            assert flag[:28] in text, flag
    assert SecretStr.__name__ not in text


def test_help_comes_at_once_because_nothing_heavy_is_imported() -> None:
    heavy = ("torch", "numpy", "confluent_kafka", "fastavro", "opentelemetry")
    code = (
        "import sys; sys.argv = ['consumer', '--help']\n"
        "from consumer.cli import main\n"
        "try: main()\n"
        f"finally: print([m for m in {heavy} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr.strip() == "[]"
    assert "Usage" in done.stdout


def test_run_hands_over_the_settings_and_its_exit_code(consumer: Consumer, served: list[Settings]) -> None:
    code, _, _ = consumer(
        "run", "spam", "--bootstrap-servers", "k:1", "--gather-ms", "5", "-X", "client.rack=a=b",
        "--kafka", "linger.ms=1", "--option", "threshold=0.9", "--option", "name=x", "--option", "deep=true",
    )  # fmt: skip
    assert code == Exit.UNFINISHED
    (settings,) = served
    assert (settings.task, settings.bootstrap_servers, settings.gather_ms) == ("spam", "k:1", 5)
    assert settings.kafka == {"client.rack": "a=b", "linger.ms": "1"}
    assert settings.task_options == {"threshold": 0.9, "name": "x", "deep": True}


def test_the_settings_file_is_read(consumer: Consumer, served: list[Settings], tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('bootstrap_servers = "file:1"\n', encoding="utf-8")
    consumer("run", "spam", "--config", str(tmp_path / "c.toml"))
    assert served[0].bootstrap_servers == "file:1"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["run"], "Missing argument"),
        (["run", "spam"], "no Kafka given"),
        (["run", "spam", "--gather-ms", "soon"], "gather_ms 'soon' (from flag)"),
        (["run", "spam", "-X", "acks=1"], "acks=1 is refused"),
        (["run", "spam", "-X", "acks"], "key=value"),
        (["run", "spma"], "there is none of that name"),
        (["run", "spam", "-X", "sasl.pasword=x"], "did you mean sasl.password?"),
        (["config", "-X", "foo.bar=1"], "unknown Kafka property foo.bar"),
        (["config", "-X", "linger.ms=x"], "Kafka property linger.ms: Invalid value"),
        (["run", "spam", "--no-such-flag"], "No such option"),
        (["config", "no_such_task"], f"Shipped: {', '.join(SHIPPED)}"),
        (["train", "no_such_task"], "only shipped tasks can be trained"),
        (["no-such-command"], "No such command"),
    ],
)
def test_a_wrong_call_ends_with_2_and_says_what_is_wrong(
    consumer: Consumer, arguments: list[str], complaint: str
) -> None:
    code, out, err = consumer(*arguments)
    assert code == Exit.USAGE
    assert complaint in plain(err)
    assert "Traceback" not in out + err


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Fatal("topic [red]emails[/] is gone"), 1),
        (Fatal("bad", exit_code=7), 7),
        (Retry("no broker answers"), 4),
    ],
    ids=["fatal", "own code", "retry"],
)
def test_our_errors_become_a_message_and_their_exit_code(
    consumer: Consumer, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: int
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "effective", fail)
    code, out, err = consumer("config")
    assert code == expected
    assert out == ""
    assert err.strip() == f"error: {error}"


def test_a_missing_package_is_named_with_the_extra_that_brings_it(
    consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'psutil.x'", name="psutil.x")

    monkeypatch.setattr(cli, "effective", fail)
    code, _, err = consumer("config")
    assert code == Exit.FATAL
    assert "this needs the package psutil" in err
    assert "pip install '.[local]'" in err


def test_the_names_that_are_suggested_are_known_to_the_library() -> None:
    with pytest.raises(Fatal) as refused:
        require_known({"no.such.name": "", **dict.fromkeys(COMMON, "x")})
    assert str(refused.value).count("unknown Kafka property") == 1


def test_config_shows_where_values_come_from_and_no_secret(
    consumer: Consumer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("correct-horse\n", encoding="utf-8")
    monkeypatch.setenv("CONSUMER_GATHER_MS", "9")
    given = [
        "-X",
        f"sasl.password.file={tmp_path / 'secret'}",
        "-X",
        "ssl.key.password=battery",
        "--log-level",
        "debug",
    ]
    for extra in ([], ["--explain"], ["--json"]):
        code, out, err = consumer("config", *given, *extra)
        assert code == Exit.OK
        assert "correct-horse" not in out + err
        assert "battery" not in out + err
    lines = {line["field"]: line for line in json.loads(out)}
    assert (lines["gather_ms"]["value"], lines["gather_ms"]["source"]) == ("9", "environment")
    assert (lines["log_level"]["value"], lines["log_level"]["source"]) == ("debug", "flag")
    assert lines["kafka.sasl.password"]["value"] == "********"
    assert lines["prepare_slice"]["source"] == "default"
    assert "hand-over" in lines["prepare_slice"]["description"]


def test_config_with_a_task_fills_in_what_the_task_decides(consumer: Consumer) -> None:
    _, out, _ = consumer("config", "consumer.tasks.click_scores:ClickScores", "--json")
    lines = {line["field"]: line for line in json.loads(out)}
    assert lines["input_topics"]["value"] == "clicks"
    assert lines["input_topics"]["source"] == "task click_scores"


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "consumer", "config", "--no-such-flag"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == Exit.USAGE
