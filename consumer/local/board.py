"""What the demo shows: pure functions from the books to rich renderables."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from consumer.local.ledger import Ledger, quantile

__all__ = ["Pulse", "board", "readable", "summary"]

_RECENT = 500
_MOST_ROWS, _FEWEST_ROWS = 8, 3
_FRAME_LINES = 7
"""Lines of the board besides its verdicts."""
_UNKNOWN = "–"


@dataclass(frozen=True, slots=True)
class Pulse:
    """Rates per second and mean sizes of the worker's device batches and transactions; None while unknown."""

    events: float | None = None
    results: float | None = None
    batch_size: float | None = None
    transaction_size: float | None = None


def board(
    ledger: Ledger,
    pulse: Pulse,
    *,
    goal: int | None,
    where: str,
    under_way: int,
    whole: bool = False,
    height: int = _MOST_ROWS + _FRAME_LINES,
) -> RenderableType:
    """The live picture, at most `height` lines; latencies are the recent ones, those of all events if `whole`."""
    numbers = Table.grid(padding=(0, 1), expand=True)
    for _ in range(4):
        numbers.add_column(justify="right", no_wrap=True)
        numbers.add_column(style="dim", no_wrap=True)
    latencies = list(ledger.latencies_s)[0 if whole else -_RECENT :]
    numbers.add_row(
        *_pair(_number(pulse.events), "in/s"),
        *_pair(_number(pulse.results), "out/s"),
        *_pair(f"{ledger.open:,}", "lag"),
        *_pair(f"{ledger.settled:,}", "done"),
    )
    numbers.add_row(
        *_pair(_number(pulse.batch_size, 1), "mails/batch"),
        *_pair(_number(pulse.transaction_size, 1), "results/transaction"),
        *_pair(_millis(latencies, 0.5), "p50"),
        *_pair(_millis(latencies, 0.99), "p99"),
    )
    parts: list[RenderableType] = [numbers]
    if goal is not None:
        parts.append(ProgressBar(total=goal, completed=min(goal, ledger.settled)))
        parts.append(Text())  # ends the bar's line, which would swallow the next one
    parts.append(_verdicts(ledger, max(_FEWEST_ROWS, min(_MOST_ROWS, height - _FRAME_LINES))))
    dead = f"dead letters: {sum(ledger.reasons.values()):,}  {_reasons(ledger)}"
    parts.append(Text(dead, style="yellow", no_wrap=True, overflow="ellipsis"))
    model = [f"model {ledger.latest[0].model}"] if ledger.latest else []
    return Panel(
        Group(*parts),
        title=f"[bold]spam verdicts, exactly once[/]  [dim]{where}[/]",
        title_align="left",
        subtitle=f"[dim]{' · '.join([*model, f'{under_way} mails kept on their way'])}[/]",
        subtitle_align="left",
        box=box.ROUNDED,
        padding=(0, 2),
    )


def summary(ledger: Ledger, *, under_way: int) -> RenderableType:
    """The books at the end."""
    table = Table(
        box=None,
        show_header=False,
        pad_edge=True,
        title="what went in and what came out",
        title_style="bold",
        title_justify="left",
    )
    table.add_column(no_wrap=True)
    table.add_column(justify="right", style="bold", no_wrap=True)
    table.add_column(style="dim")
    good = "green" if ledger.clean else "red"
    latencies = list(ledger.latencies_s)
    rows: list[tuple[str, Any, str]] = [
        ("events", f"{ledger.total:,}", f"{ledger.broken:,} of them broken on purpose"),
        ("results", f"{ledger.judged:,}", ""),
        ("dead letters", f"{sum(ledger.reasons.values()):,}", _reasons(ledger)),
        ("duplicates", Text(f"{ledger.duplicates}", style=good), "outcomes beyond the first of an event"),
        ("missing", Text(f"{ledger.open}", style=good), "events without an outcome"),
        *_wrong_outcomes(ledger),
        *_quality(ledger),
        ("throughput", f"{_number(ledger.rate)} / s", "first event sent to last outcome"),
        ("latency p50", _millis(latencies, 0.5), "from an event to its committed result"),
        ("latency p99", _millis(latencies, 0.99), f"with {under_way} mails kept on their way"),
    ]
    for row in rows:
        table.add_row(*row)
    return table


def readable(subject: str) -> str | None:
    """`subject` as it can be shown; None for one that is largely unreadable (a raw text in an unknown encoding)."""
    shown = "".join(
        char if char.isprintable() and char != "\N{REPLACEMENT CHARACTER}" else " " for char in subject
    )
    lost = sum(char == " " for char in shown) - sum(char.isspace() for char in subject)
    if lost > 0.2 * len(subject):
        return None
    return " ".join(shown.split()) or "(no subject)"


def _verdicts(ledger: Ledger, rows: int) -> Table:
    """Always `rows` lines under the header, or the board would jump."""
    threshold = f" ≥ {100 * ledger.latest[0].threshold:.1f}%" if ledger.latest else ""
    table = Table(box=None, expand=True, pad_edge=False, header_style="dim", padding=(0, 1))
    table.add_column("subject", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column(f"spam{threshold}", justify="right", no_wrap=True, min_width=12)
    table.add_column("verdict", no_wrap=True)
    table.add_column("truth", no_wrap=True, min_width=7)
    shown = [(subject, each) for each in list(ledger.latest) if (subject := readable(each.subject))][:rows]
    for subject, verdict in shown:
        style = ("red" if verdict.spam else "green") if verdict.right else "black on yellow"
        truth = _word(verdict.truth) if verdict.right else f"{_word(verdict.truth)} ✗"
        table.add_row(
            Text(subject),
            f"{100 * verdict.probability:.1f}%",
            Text(_word(verdict.spam), style=style),
            Text(truth, style="dim" if verdict.right else "bold yellow"),
        )
    if not shown:
        table.add_row(Text("waiting for the first result", style="dim italic"))
    for _ in range(rows - max(1, len(shown))):
        table.add_row(" ")
    return table


def _wrong_outcomes(ledger: Ledger) -> list[tuple[str, Any, str]]:
    if not (ledger.wrongly_dead or ledger.wrongly_alive or ledger.strangers):
        return []
    text = f"{ledger.wrongly_dead} good ones dead, {ledger.wrongly_alive} broken alive, {ledger.strangers} unknown"
    return [("wrong outcomes", Text("yes", style="red"), text)]


def _quality(ledger: Ledger) -> list[tuple[str, Any, str]]:
    rows: list[tuple[str, Any, str]] = []
    if ledger.judged:
        accuracy = f"{100 * ledger.right / ledger.judged:.2f} %"
        rows.append(("accuracy", accuracy, "on mails the model was not trained on"))
    if ledger.good_mails:
        rate = f"{100 * ledger.false_alarms / ledger.good_mails:.2f} %"
        rows.append(("good mail called spam", rate, f"{ledger.false_alarms:,} of {ledger.good_mails:,}"))
    return rows


def _reasons(ledger: Ledger) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in ledger.reasons.most_common())


def _word(spam: bool) -> str:
    return "spam" if spam else "ham"


def _pair(value: str, name: str) -> tuple[Text, Text]:
    return Text(value, style="bold cyan"), Text(name)


def _number(value: float | None, digits: int = 0) -> str:
    return _UNKNOWN if value is None or math.isnan(value) else f"{value:,.{digits}f}"


def _millis(latencies_s: list[float], share: float) -> str:
    return f"{_number(1e3 * quantile(latencies_s, share))} ms" if latencies_s else _UNKNOWN
