"""The shipped tasks by name, and any other by `package.module:Class`."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from consumer.errors import ConsumerError, Fatal
from consumer.exits import Exit
from consumer.isolation import described
from consumer.task import Task

__all__ = ["SHIPPED", "find_task", "load_task"]

SHIPPED: Mapping[str, str] = {
    "spam": "consumer.tasks.spam:SpamTask",
    "discount": "consumer.tasks.discount:DiscountTask",
    "recommend": "consumer.tasks.recommend:RecommendTask",
    "image": "consumer.tasks.image:ImageTask",
    "answer": "consumer.tasks.answer:AnswerTask",
    "insight": "consumer.tasks.insight:InsightTask",
}
"""Name -> where it is; a task's module, and with it torch, is imported only when that task is asked for."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")
_WANTED = {
    "name": "a short word such as 'shout'",
    "events": "a tuple of the names of event schemas such as ('email',)",
    "result": "the name of the result schema such as 'shouted'",
    "example": "one event as a dict",
}


def load_task(spec: str, options: Mapping[str, Any] | None = None) -> Task:
    """The task that `spec` names, made with `options` as its constructor's arguments.

    Raises Fatal that says what is missing where.
    """
    task_class = find_task(spec)
    try:
        return task_class(**(options or {}))
    except ConsumerError:
        raise
    except TypeError as error:
        given = ", ".join(options or {}) or "none"
        raise _unusable(spec, f"its constructor refused the options (given: {given}): {error}") from error
    except Exception as error:
        raise _unusable(spec, f"its constructor failed: {described(error)}") from error


def find_task(spec: str) -> type[Task]:
    """The class behind `spam` or `package.module:Class`; modules in the current folder are found too."""
    place = SHIPPED.get(spec, spec)
    module_name, colon, class_name = place.partition(":")
    if not (colon and module_name and class_name):
        raise _unusable(
            spec, f"there is none of that name. Shipped: {', '.join(SHIPPED)}; your own: package.module:Class"
        )
    module = _import(spec, module_name)
    found: Any = module
    for part in class_name.split("."):
        found = getattr(found, part, None)
    if found is None:
        ours = sorted(n for n, c in vars(module).items() if _is_task(c) and c.__module__ == module.__name__)
        there = f"; there are: {', '.join(ours)}" if ours else ""
        raise _unusable(spec, f"{module.__file__ or module_name} has no {class_name}{there}")
    if not _is_task(found):
        raise _unusable(spec, f"{class_name} is not a class that inherits from consumer.task.Task")
    _check(spec, found)
    return found  # type: ignore[no-any-return]


def _import(spec: str, module_name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name == missing or module_name.startswith(f"{missing}."):
            raise _unusable(
                spec, f"there is no module {missing!r}, neither installed nor in {here}"
            ) from error
        raise _unusable(
            spec,
            f"it needs the package {missing!r}, which is not installed (shipped tasks: pip install '.[models]' in the "
            "folder of stream-consumer)",
        ) from error
    except Exception as error:
        raise _unusable(spec, f"importing {module_name} failed: {described(error)}") from error


def _is_task(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, Task)


def _check(spec: str, task_class: type[Task]) -> None:
    missing = [f"{name} ({what})" for name, what in _WANTED.items() if not hasattr(task_class, name)]
    if missing:
        raise _unusable(spec, f"{task_class.__name__} does not say {'; '.join(missing)}")
    name: Any = task_class.name
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise _unusable(
            spec,
            f"name is {name!r}; topics and the group are named after it, so it may only have letters, digits, dots, "
            "underscores and dashes, 200 at most",
        )
    events: Any = task_class.events
    if not isinstance(events, tuple) or not all(isinstance(each, str) for each in events):
        raise _unusable(spec, f"events must be {_WANTED['events']}; it is {events!r}")
    if not events:
        raise _unusable(spec, "events is empty: name at least one event schema")
    if not isinstance(task_class.example, dict):
        raise _unusable(
            spec, f"example must be {_WANTED['example']}; it is a {type(task_class.example).__name__}"
        )
    if task_class.run is Task.run and task_class.compute is Task.compute:
        raise _unusable(spec, f"{task_class.__name__} has no run(self, items)")


def _unusable(spec: str, why: str) -> Fatal:
    return Fatal(f"task {spec!r} cannot be used: {why}", exit_code=Exit.USAGE)
