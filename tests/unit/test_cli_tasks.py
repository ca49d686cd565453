"""Finding a task by its name: what can be missing, and that the message says so."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from consumer.errors import Fatal
from consumer.exits import Exit
from consumer.task import Task
from consumer.tasks import SHIPPED, find_task, load_task

GOOD = """
from consumer.task import Task

class Shout(Task):
    name = "shout"
    events = ("email",)
    result = "shouted"
    example = {"id": "1"}

    def __init__(self, volume=1):
        if volume > 10:
            raise ValueError("too loud")
        self.volume = volume

    def run(self, items):
        return items

class Nameless(Task):
    events, result, example = ("email",), "shouted", {}
    def run(self, items):
        return items

class NoRun(Task):
    name, events, result, example = "x", ("email",), "shouted", {}

class TextEvents(Shout):
    events = "email"

class NoEvents(Shout):
    events = ()

class TextExample(Shout):
    example = "{}"

class BadName(Shout):
    name = "bad name!"

class NoTask:
    pass

def shout():
    pass
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Writes a module into the current folder; returns its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    names: list[str] = []

    def write(text: str) -> str:
        names.append(f"tasks_{uuid.uuid4().hex}")
        (tmp_path / f"{names[-1]}.py").write_text(text, encoding="utf-8")
        return names[-1]

    yield write
    for name in names:
        sys.modules.pop(name, None)


def refusal(spec: str, options: dict[str, Any] | None = None) -> str:
    with pytest.raises(Fatal) as refused:
        load_task(spec, options)
    assert refused.value.exit_code == Exit.USAGE
    assert repr(spec) in str(refused.value)
    return str(refused.value)


def test_a_task_in_the_current_folder_is_found_and_gets_its_options(module: Callable[[str], str]) -> None:
    task = load_task(f"{module(GOOD)}:Shout", {"volume": 3})
    assert isinstance(task, Task)
    assert (task.name, vars(task)["volume"]) == ("shout", 3)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("Whisper", "has no Whisper; there are: BadName, Nameless, NoEvents, NoRun, Shout"),
        ("NoTask", "not a class that inherits from consumer.task.Task"),
        ("shout", "not a class that inherits from consumer.task.Task"),
        ("Nameless", "does not say name"),
        ("NoRun", "has no run(self, items)"),
        ("TextEvents", "events must be a tuple"),
        ("NoEvents", "events is empty"),
        ("BadName", "it may only have letters, digits"),
        ("TextExample", "example must be one event as a dict; it is a str"),
    ],
)
def test_what_is_wrong_with_the_class_is_said(
    module: Callable[[str], str], name: str, complaint: str
) -> None:
    assert complaint in refusal(f"{module(GOOD)}:{name}")


def test_everything_that_is_missing_is_said_at_once(module: Callable[[str], str]) -> None:
    text = refusal(
        f"{module('from consumer.task import Task as T' + chr(10) + 'class Empty(T): pass')}:Empty"
    )
    for name in ("name", "events", "result", "example"):
        assert f"{name} (" in text


def test_options_that_the_constructor_does_not_know_are_refused(module: Callable[[str], str]) -> None:
    spec = f"{module(GOOD)}:Shout"
    assert "refused the options (given: pitch)" in refusal(spec, {"pitch": 1})
    assert "ValueError: too loud" in refusal(spec, {"volume": 11})


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("nothing", f"there is none of that name. Shipped: {', '.join(SHIPPED)}"),
        (":Class", "there is none of that name"),
        ("no_such_module_here:Class", "there is no module 'no_such_module_here'"),
        ("consumer.no_such_part:Class", "there is no module 'consumer.no_such_part'"),
    ],
)
def test_a_name_without_a_task_is_refused(spec: str, complaint: str) -> None:
    assert complaint in refusal(spec)


def test_a_module_that_fails_is_told_from_one_that_is_not_there(module: Callable[[str], str]) -> None:
    assert "needs the package 'no_such_package_here'" in refusal(
        f"{module('import no_such_package_here')}:Class"
    )
    assert "failed: ZeroDivisionError" in refusal(f"{module('1 / 0')}:Class")
    assert "failed: SyntaxError" in refusal(f"{module('def')}:Class")


def test_finding_a_task_does_not_make_it(module: Callable[[str], str]) -> None:
    assert find_task(f"{module(GOOD)}:Shout").name == "shout"
