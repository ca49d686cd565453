"""One command-line flag for every setting, made from the settings themselves: name, help and grouping stand there."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any, get_args

import typer
from pydantic import ByteSize, SecretStr
from pydantic.fields import FieldInfo
from rich.markup import escape

from consumer.config import Settings
from consumer.layers import load

__all__ = ["CONNECTION", "SCHEMAS", "OptionalTask", "TaskArgument", "with_settings"]

CONNECTION = ("bootstrap_servers", "kafka")
SCHEMAS = tuple(name for name in Settings.model_fields if name.startswith("schema_"))
_TASK = typer.Argument(
    metavar="TASK",
    help="A shipped task such as spam, or your own as package.module:Class",
    show_default=False,
)
TaskArgument = Annotated[str, _TASK]
OptionalTask = Annotated[str | None, _TASK]
_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def with_settings(only: Sequence[str] | None = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command whose first parameter is `settings` the flags of all settings, or of `only` these.

    A parameter `task` of the command is an argument for the setting of that name.
    """
    fields = {n: f for n, f in Settings.model_fields.items() if n != "task" and (only is None or n in only)}

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(command, eval_str=True)
        own = list(signature.parameters.values())[1:]
        flags = [_flag(name, info) for name, info in fields.items()]

        @functools.wraps(command)
        def called(**given: Any) -> Any:
            values = {f.name: given.pop(f.name) for f in flags}
            for table in ("kafka", "task_options"):
                if table in values:
                    values[table] = _pairs(values[table], "-X" if table == "kafka" else "--option")
            if "task" in given:
                values["task"] = given["task"]
            settings = load(values, given.pop("config"))
            if settings.kafka:
                from consumer.local.known import require_known

                require_known(settings.kafka)
            return command(settings, **given)

        called.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*own, _CONFIG, *flags]
        )
        del (
            called.__wrapped__,
            called.__annotations__,
        )  # typer would read the command's own parameters through them
        return called

    return decorate


def _flag(name: str, info: FieldInfo) -> inspect.Parameter:
    extra = info.json_schema_extra
    panel = extra["panel"] if isinstance(extra, dict) else "Settings"
    names = {"kafka": ["-X", "--kafka"], "task_options": ["--option"]}.get(
        name, [f"--{name.replace('_', '-')}"]
    )
    many = name in ("kafka", "task_options")
    if _is(info, SecretStr):  # never the secret itself: command lines can be read by everyone on the machine
        name, names = f"{name}_file", [f"{names[0]}-file"]
    option = typer.Option(
        *names,
        help=escape(_help(info)),
        metavar="KEY=VALUE" if many else "FILE" if name.endswith("_file") else _metavar(info),
        rich_help_panel=str(panel),
        show_default=False,
    )
    kind: Any = list[str] | None if many else str | None
    return inspect.Parameter(name, _KEYWORD, default=None, annotation=Annotated[kind, option])


_CONFIG = inspect.Parameter(
    "config",
    _KEYWORD,
    default=None,
    annotation=Annotated[
        str | None,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE",
            help="TOML file with settings; flags and CONSUMER_... variables outrank it.",
        ),
    ],
)


def _help(info: FieldInfo) -> str:
    default = info.get_default()
    shown = default.human_readable() if isinstance(default, ByteSize) else default
    return f"{info.description}" + ("" if default in (None, "", (), {}) else f" [default: {shown}]")


def _is(info: FieldInfo, kind: type) -> bool:
    return info.annotation is kind or kind in get_args(info.annotation)


def _metavar(info: FieldInfo) -> str:
    choices = [c for c in get_args(info.annotation) if isinstance(c, str)]
    if choices:
        return "|".join(choices)
    if _is(info, ByteSize):
        return "BYTES"
    return (
        "NUMBER"
        if any(_is(info, kind) for kind in (int, float)) or "Annotated[int" in str(info.annotation)
        else "TEXT"
    )


def _pairs(given: Sequence[str] | None, flag: str) -> dict[str, Any] | None:
    """`key=value` words as a table; values of --option are numbers, true and false where they look like it."""
    if not given:
        return None
    table: dict[str, Any] = {}
    for word in given:
        key, equals, value = word.partition("=")
        if not (key and equals):
            raise typer.BadParameter(f"give it as key=value, such as {_SHOWN[flag]}", param_hint=flag)
        table[key.strip()] = value if flag == "-X" else _literal(value)
    return table


_SHOWN = {"-X": "-X security.protocol=ssl", "--option": "--option threshold=0.9"}


def _literal(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value
