"""Where a worker's settings say that schemas are: the registry, and the folders of *.avsc files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from consumer.codec import Schema, load_schema
from consumer.config import Settings
from consumer.errors import Fatal
from consumer.exits import Exit
from consumer.finish import PROVENANCE
from consumer.registry import Registry
from consumer.task import Task

__all__ = ["event_schema", "registry_of", "result_schema", "schema_folders", "table_schema"]


def registry_of(settings: Settings) -> Registry | None:
    """The registry, where one is configured.  Raises Fatal for settings that cannot work."""
    if settings.schema_registry_url is None:
        return None
    password, token = settings.schema_registry_password, settings.schema_registry_token
    return Registry(
        settings.schema_registry_url,
        user=settings.schema_registry_user,
        password=None if password is None else password.get_secret_value(),
        token=None if token is None else token.get_secret_value(),
        ca_file=settings.schema_registry_ca_file,
        timeout_ms=settings.schema_registry_timeout_ms,
    )


def schema_folders(settings: Settings, task: type[Task] | None = None) -> list[Path]:
    """Folders to search before the shipped one; a task brings its schemas with it, beside its module."""
    file = getattr(sys.modules.get(task.__module__), "__file__", None) if task else None
    return [*map(Path, settings.schema_paths), *([Path(file).parent] if file else [])]


def event_schema(name: str, folders: Sequence[Path]) -> Schema:
    """The schema of an event.  Raises Fatal where there is none or no worker could use it."""
    schema = load_schema(name, folders)
    is_result = any(field["name"] == "event_id" for field in schema.definition["fields"])
    return schema if is_result else _require(schema, ("id",), "results name their event by it")


def result_schema(name: str, folders: Sequence[Path]) -> Schema:
    """The schema of a result.  Raises Fatal where there is none or no worker could use it."""
    reason = "every result says which event it is about and which model made it"
    return _require(load_schema(name, folders), PROVENANCE, reason)


def table_schema(name: str, folders: Sequence[Path]) -> Schema:
    """The schema of the rows of a table.  Raises Fatal where there is none."""
    return load_schema(name, folders)


def _require(schema: Schema, fields: Sequence[str], reason: str) -> Schema:
    """`schema`, if it has these fields: without them every single record would become a dead letter."""
    missing = sorted(set(fields) - {field["name"] for field in schema.definition["fields"]})
    if missing:
        raise Fatal(f"schema {schema.name} has no field {', '.join(missing)}: {reason}", exit_code=Exit.USAGE)
    return schema
