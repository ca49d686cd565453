"""What the demo shows: pure functions from the books to rich renderables."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from consumer.local.feeds import Part
from consumer.local.ledger import Ledger, Line, quantile

__all__ = ["Row", "board", "summary"]

_RECENT = 500
_MOST_LINES = 3
"""Results shown of each task, at most."""
_FRAME_LINES = 6
"""Lines of the board besides those of the tasks."""
_UNKNOWN = "–"
_NUMBERS = ("events", "results", "silent", "dead", "/s", "lag", "p50", "p99")
_TOTALS = ("events", "results", "silent", "dead", "duplicates", "missing", "p50", "p99")


@dataclass(frozen=True, slots=True)
class Row:
    """A task as the board shows it."""

    name: str
    part: Part
    ledger: Ledger
    rate: float | None = None
    """Events settled a second now; None while unknown."""


def board(rows: Sequence[Row], *, goal: int | None, where: str, height: int = 40) -> RenderableType:
    """The live picture, at most `height` lines, if that is enough for one of each task; latencies are recent ones."""
    numbers = _table("task", _NUMBERS)
    for row in rows:
        book = row.ledger
        numbers.add_row(
            Text(row.name, style="bold"),
            *(f"{n:,}" for n in (book.total, book.results, book.silent, book.dead_letters)),
            _number(row.rate, 1),
            f"{book.open:,}",
            *_latencies(list(book.latencies_s)[-_RECENT:]),
        )
    parts: list[RenderableType] = [numbers]
    if goal is not None:
        done = sum(row.ledger.settled for row in rows)
        parts += [ProgressBar(total=goal, completed=min(goal, done)), Text()]  # the text ends the bar's line
    room = (height - _FRAME_LINES - len(rows)) // max(1, len(rows))
    parts.append(_said(rows, max(1, min(_MOST_LINES, room))))
    parts.append(Text(f"dead letters: {_dead(rows)}", style="yellow", no_wrap=True, overflow="ellipsis"))
    return _panel(parts, where)


def summary(rows: Sequence[Row]) -> RenderableType:
    """The books at the end."""
    totals = _table("task", _TOTALS)
    for row in rows:
        book = row.ledger
        good = "green" if book.clean else "red"
        totals.add_row(
            Text(row.name, style="bold"),
            *(f"{n:,}" for n in (book.total, book.results, book.silent, book.dead_letters)),
            *(Text(f"{n:,}", style=good) for n in (book.duplicates, book.open)),
            *_latencies(list(book.latencies_s)),
        )
    notes = Table.grid(padding=(0, 1))
    notes.add_column(style="dim", no_wrap=True)
    notes.add_column()
    for name, text in _notes(rows):
        notes.add_row(name, text)
    return Group(Text("what went in and what came out", style="bold"), totals, Text(), notes)


def _notes(rows: Sequence[Row]) -> list[tuple[str, RenderableType]]:
    broken = sum(row.ledger.broken for row in rows)
    found: list[tuple[str, RenderableType]] = []
    if any(row.ledger.silent for row in rows):
        silent = "events to which the task has nothing to say: the group's committed offsets are past them"
        found.append(("silent", silent))
    found.append(("dead", f"{_dead(rows)}; {broken:,} records were broken on purpose"))
    for row in rows:
        book = row.ledger
        if book.strangers or book.wrongly_dead or book.wrongly_alive:
            text = (
                f"{book.wrongly_dead} good ones dead, {book.wrongly_alive} results where none should be, "
                f"{book.strangers} of unknown events"
            )
            found.append((row.name, Text(text, style="red")))
        found += [(row.name, text) for text in _quality(row.part, book.judged)]
    return found


def _quality(part: Part, judged: Mapping[tuple[bool, bool], int]) -> list[str]:
    count = sum(judged.values())
    if not count:
        return []
    right = judged.get((True, True), 0) + judged.get((False, True), 0)
    lines = [f"accuracy {100 * right / count:.1f} % {part.quality}"]
    negative, wrong = judged.get((False, True), 0), judged.get((False, False), 0)
    if part.false_alarms and negative + wrong:
        lines.append(
            f"{part.false_alarms}: {100 * wrong / (negative + wrong):.1f} %, {wrong:,} of {negative + wrong:,}"
        )
    return lines


def _said(rows: Sequence[Row], lines: int) -> Table:
    """Always `lines` of each task, or the board would jump."""
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(style="bold cyan", no_wrap=True)
    table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    for row in rows:
        latest = _latest(row.ledger, lines)
        for number in range(lines):
            text = Text("waiting for the first result", style="dim italic") if number == 0 else Text(" ")
            if number < len(latest):
                style = "yellow" if latest[number].right is False else ""
                text = Text(latest[number].text, style=style)
            table.add_row(row.name if number == 0 else "", text)
    return table


def _latest(book: Ledger, lines: int) -> list[Line]:
    """The last ones, one of them telling where one was lately: most say that there is nothing to say."""
    every = list(book.latest)
    shown, telling = every[:lines], [line for line in every if line.telling]
    return shown if not telling or any(line.telling for line in shown) else [*shown[:-1], telling[0]]


def _dead(rows: Sequence[Row]) -> str:
    reasons: Counter[str] = Counter()
    for row in rows:
        reasons.update(row.ledger.reasons)
    return ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common()) or "none"


def _panel(parts: Sequence[RenderableType], where: str) -> Panel:
    return Panel(
        Group(*parts),
        title=f"[bold]every event, one outcome[/]  [dim]{where}[/]",
        title_align="left",
        box=box.ROUNDED,
        padding=(0, 1),
    )


def _table(title: str, names: Sequence[str]) -> Table:
    table: Any = Table(box=None, expand=True, pad_edge=False, header_style="dim", padding=(0, 0, 0, 1))
    table.add_column(title, no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    return table  # type: ignore[no-any-return]


def _latencies(latencies_s: list[float]) -> tuple[str, str]:
    return _millis(latencies_s, 0.5), _millis(latencies_s, 0.99)


def _number(value: float | None, digits: int = 0) -> str:
    return _UNKNOWN if value is None or math.isnan(value) else f"{value:,.{digits}f}"


def _millis(latencies_s: list[float], share: float) -> str:
    if not latencies_s:
        return _UNKNOWN
    value_s = quantile(latencies_s, share)
    return f"{value_s:.1f} s" if value_s >= 10 else f"{1e3 * value_s:,.0f} ms"
