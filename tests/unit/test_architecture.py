"""The house's two rules: nobody imports upwards, and each foreign library has one door."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "consumer"

FLOORS: dict[str, int] = {
    # words
    "errors": 0, "exits": 0, "records": 0, "task": 0, "secret": 0, "properties": 0, "config": 0, "layers": 0,
    "logs": 0, "metrics": 0, "sampling": 0, "traceparent": 0, "traces": 0, "telemetry": 0, "text": 0, "windows": 0,
    "attachments": 0, "purchases": 0, "catalogue": 0, "fetch": 0,
    # parts
    "source": 1, "sink": 1, "codec": 1, "registry": 1, "batcher": 1, "deadletter": 1,
    "span_topic": 1, "state": 1, "changelog": 1, "tables": 1, "coverage": 1, "isolation": 1, "models": 1,
    "media": 1, "sandbox": 1, "storage": 1,
    # parts put to work
    "engine": 2, "pool": 2, "torch_task": 2, "tasks": 2, "finish": 2, "flight": 2, "intake": 2, "lookup": 2,
    "memory": 2,
    # the loop
    "worker": 3,
    # doors
    "serve": 4, "cli": 4, "cli_letters": 4, "cli_traces": 4, "flags": 4, "check": 4, "bench": 4, "ops": 4, "local": 4,
    "train": 4, "__main__": 4,
}  # fmt: skip
PRIVATE = {
    # module -> the only part that knows it; it counts as that part
    "schema": "codec", "wire": "codec", "columns": "codec", "producer": "sink", "outcome": "sink", "video": "media",
}  # fmt: skip
DOORS = {
    "confluent_kafka": {
        "source",
        "sink",
        "changelog",
        "tables",
        "coverage",
        "registry",
        "span_topic",
        "local",
        "ops",
    },
    "fastavro": {"codec"},
    "torch": {"engine", "torch_task", "models", "tasks", "train"},
    "opentelemetry": {"telemetry", "traces", "metrics", "traceparent", "span_topic", "ops"},
    "pydantic_settings": {"config", "layers"},
    "typer": {"cli", "cli_letters", "cli_traces", "flags"},
    "PIL": {"media", "local", "train"},
    "av": {"media", "local"},
    "obstore": {"storage"},
}
"""Library -> who may import it.  Telemetry has one module for each of its three kinds of signals."""


def part_of(module: str) -> str:
    """`consumer.tasks.spam` -> `tasks`."""
    name = module.split(".")[1] if "." in module else "__init__"
    return PRIVATE.get(name, name)


def imports(source: str) -> Iterator[tuple[str, int]]:
    """(absolute module, line) of everything that is imported anywhere, but for type checkers only."""
    tree = ast.parse(source)
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            if node.module == "consumer":
                yield from ((f"consumer.{alias.name}", node.lineno) for alias in node.names)
            elif node.module:
                yield node.module, node.lineno


def violations(sources: Mapping[str, str]) -> list[str]:
    """What breaks a rule in `sources` (module name -> text)."""
    found = []
    for module, text in sources.items():
        part = part_of(module)
        if part not in FLOORS:
            found.append(f"{module}: stands on no floor; give it one in FLOORS")
            continue
        for target, line in imports(text):
            where = f"{module}:{line}"
            library = target.split(".")[0]
            if library == "consumer":
                other = part_of(target)
                if other == part or other == "__init__":
                    continue
                if FLOORS.get(other, 0) > FLOORS[part]:
                    found.append(f"{where}: floor {FLOORS[part]} imports {target} of floor {FLOORS[other]}")
                elif FLOORS.get(other) == 1 == FLOORS[part]:
                    found.append(f"{where}: parts never import each other, but {part} imports {target}")
            elif part not in DOORS.get(library, {part}):
                found.append(
                    f"{where}: {library} may only be imported in {', '.join(sorted(DOORS[library]))}"
                )
    return found


def sources_of_the_product() -> dict[str, str]:
    sources = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        if name != "consumer":
            sources[name] = path.read_text(encoding="utf-8")
    return sources


def test_nobody_imports_upwards_and_each_library_has_one_door() -> None:
    sources = sources_of_the_product()
    assert len(sources) > 20
    assert violations(sources) == []


@pytest.mark.parametrize(
    ("module", "text", "complaint"),
    [
        (
            "consumer.batcher",
            "from consumer.worker import Worker",
            "floor 1 imports consumer.worker of floor 3",
        ),
        ("consumer.records", "import consumer.source", "floor 0 imports consumer.source of floor 1"),
        ("consumer.engine", "from consumer import cli", "floor 2 imports consumer.cli of floor 4"),
        ("consumer.sink", "from consumer.source import Source", "parts never import each other"),
        ("consumer.deadletter", "from consumer.wire import explain", "parts never import each other"),
        (
            "consumer.worker",
            "def f():\n    import confluent_kafka.admin",
            "confluent_kafka may only be imported in",
        ),
        ("consumer.local.demo", "from torch import nn", "torch may only be imported in"),
        ("consumer.worker", "from opentelemetry.trace import Span", "opentelemetry may only be imported in"),
        ("consumer.novelty", "", "stands on no floor"),
    ],
)
def test_a_violation_is_noticed(module: str, text: str, complaint: str) -> None:
    (found,) = violations({module: text})
    assert complaint in found


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("consumer.codec", "import fastavro\nfrom consumer.wire import explain"),
        (
            "consumer.worker",
            "from consumer.sink import Sink\nimport torchlike\nfrom consumer.config import Settings",
        ),
        ("consumer.properties", "if TYPE_CHECKING:\n    from consumer.worker import Worker"),
        ("consumer.tasks.spam", "from consumer.tasks import find_task\nimport torch"),
    ],
)
def test_what_is_allowed_is_not_complained_about(module: str, text: str) -> None:
    assert violations({module: text}) == []
