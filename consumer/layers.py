"""Settings gathered in layers, flags > environment > TOML file > defaults, remembering where each value came from."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ByteSize, SecretStr, ValidationError
from pydantic_settings import EnvSettingsSource, SettingsError

from consumer.config import Settings
from consumer.errors import Fatal
from consumer.exits import Exit
from consumer.secret import is_secret, seal

__all__ = ["Shown", "effective", "load"]

_PREFIX = "CONSUMER_"
_TABLES = ("kafka", "task_options")
_SECRETS = ("schema_registry_password", "schema_registry_token")
_BESIDE = re.compile(r"CONFIG|CACHE|JAVA|TEST_.+")
"""Variables with our prefix that are no settings of the worker: this file, `local` and the test suite read them."""
_SERVICE_LINK = re.compile(r"(.+_)?(SERVICE_(HOST|PORT)(_.+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_SERVICE_URL = re.compile(r"(.+_)?PORT(_\d+_(TCP|UDP|SCTP))?")
"""What Kubernetes puts into every pod's environment for a Service that happens to be called `consumer`."""
_USERINFO = re.compile(r"://[^/@\s]+@")


@dataclass(frozen=True, slots=True)
class Shown:
    """One line of `consumer config`: safe to show to anyone."""

    field: str
    value: str
    source: str
    description: str


@dataclass(frozen=True, slots=True)
class _Layer:
    name: str
    values: Mapping[str, Any]


def load(flags: Mapping[str, Any] | None = None, file: str | None = None) -> Settings:
    """Settings from all layers; flags that are None were not given.  Raises Fatal with every problem in its text."""
    path = file or os.environ.get(f"{_PREFIX}CONFIG")
    try:
        layers = [_from_file(path)] if path else []
        layers += [
            _from_environment(),
            _Layer("flag", {k: v for k, v in (flags or {}).items() if v is not None}),
        ]
        values, origins = _merge([_Layer(each.name, _open_secrets(each.values)) for each in layers])
        settings = Settings(**values)
    except ValidationError as error:
        raise _refused("\n".join(_readable(error, values, origins))) from None
    except ValueError as error:
        raise _refused(str(error)) from None
    settings._origins = origins
    return settings


def effective(settings: Settings) -> list[Shown]:
    """What is in force, line by line, secrets covered."""
    lines = []
    for name, info in Settings.model_fields.items():
        value = getattr(settings, name)
        if name in _TABLES and value:
            for key, one in value.items():
                source = settings._origins.get(f"{name}.{key}", "given")
                lines.append(Shown(f"{name}.{key}", show(one), source, info.description or ""))
        else:
            source = settings._origins.get(name, "default" if value == info.get_default() else "given")
            lines.append(Shown(name, show(value), source, info.description or ""))
    return lines


def show(value: Any) -> str:
    """A value as it may be shown to anyone."""
    if isinstance(value, SecretStr):
        return "********"
    if isinstance(value, ByteSize):
        return value.human_readable()
    if isinstance(value, tuple):
        return ", ".join(value)
    return "" if value is None or value == {} else _USERINFO.sub("://********@", str(value))


def _refused(text: str) -> Fatal:
    lines = "\n".join(f"  {line}" for line in text.splitlines())
    return Fatal(f"these settings cannot be used:\n{lines}", exit_code=Exit.USAGE)


def _from_file(path: str) -> _Layer:
    try:
        values = tomllib.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read the settings file {path!r}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a TOML file: {error}") from None
    if isinstance(values.get("kafka"), dict):
        values["kafka"] = dict(_flat(values["kafka"]))
    return _Layer(f"file {path}", values)


def _flat(table: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """TOML reads `sasl.password = "x"` as tables within tables; librdkafka's names have the dots in them."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _from_environment() -> _Layer:
    try:
        values = EnvSettingsSource(Settings)()
    except SettingsError as error:
        field = re.search(r'field "(\w+)"', str(error))
        name = _PREFIX + (field[1].upper() if field else "...")
        raise ValueError(f'{name} must be a JSON object such as {{"key": "value"}}') from None
    for variable, text in os.environ.items():
        name = variable.upper().removeprefix(_PREFIX)
        if name == variable.upper() or _BESIDE.fullmatch(name):
            continue
        if "://" in text and _SERVICE_URL.fullmatch(name):
            values.pop(name.lower(), None)
        elif name.lower().removesuffix("_file") in _SECRETS:
            values |= {name.lower(): text} if text else {}
        elif name.lower() not in Settings.model_fields and not _SERVICE_LINK.fullmatch(name):
            raise ValueError(f"unknown variable {variable}{_suggestion(name.lower(), _PREFIX)}")
    return _Layer("environment", values)


def _open_secrets(values: Mapping[str, Any]) -> dict[str, Any]:
    """Secrets wrapped and their files read, layer by layer, so that a file in one outranks a value in a lower one."""
    plain = {k: v for k, v in values.items() if k.removesuffix("_file") not in _SECRETS}
    secret = seal({k: v for k, v in values.items() if k not in plain})
    return plain | secret | {t: seal(plain[t]) for t in _TABLES if isinstance(plain.get(t), dict)}


def _merge(layers: list[_Layer]) -> tuple[dict[str, Any], dict[str, str]]:
    """Values and their origins; later layers win, tables key by key."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        for name, value in layer.values.items():
            if name in _TABLES and isinstance(value, dict):
                values[name] = values.get(name, {}) | value
                origins |= {f"{name}.{key}": layer.name for key in value}
            else:
                values[name] = value
                origins[name] = layer.name
    return values, origins


def _readable(error: ValidationError, values: Mapping[str, Any], origins: Mapping[str, str]) -> Iterator[str]:
    for one in error.errors(include_input=False, include_url=False):
        name = str(one["loc"][0]) if one["loc"] else ""
        message = one["msg"].removeprefix("Value error, ").removeprefix("Input ")
        if not name:
            yield message
        elif one["type"] == "extra_forbidden":
            yield f"unknown setting {name} (from {origins.get(name)}){_suggestion(name)}"
        else:
            covered = name in _TABLES or is_secret(name)
            given = "" if covered or name not in values else f" {show(values[name])!r}"
            yield f"{name}{given} (from {origins.get(name, 'several')}): {message}"


def _suggestion(name: str, prefix: str = "") -> str:
    near = difflib.get_close_matches(name.replace("-", "_"), Settings.model_fields, n=1)
    if not near:
        return "; `consumer config` lists all settings"
    return f": did you mean {prefix}{near[0].upper() if prefix else near[0]}?"
