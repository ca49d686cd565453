"""What the demo shows: pure functions from the books to rich renderables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from consumer.local.ledger import Ledger, quantile

__all__ = ["Pulse", "board", "summary"]


@dataclass(frozen=True, slots=True)
class Pulse:
    """What the last second brought; rates per second, `batch_size` the mean of the worker's device batches."""

    events: float = 0.0
    results: float = 0.0
    batch_size: float = 0.0
    transaction_size: float = 0.0
    lag: int = 0


def board(ledger: Ledger, pulse: Pulse, *, goal: int | None, where: str) -> RenderableType:
    """The live picture."""
    numbers = Table.grid(padding=(0, 1), expand=True)
    for _ in range(4):
        numbers.add_column(justify="right", no_wrap=True)
        numbers.add_column(style="dim", no_wrap=True)
    recent = list(ledger.latencies_s)[-500:]
    numbers.add_row(
        *_pair(f"{pulse.events:,.0f}", "in/s"),
        *_pair(f"{pulse.results:,.0f}", "out/s"),
        *_pair(f"{pulse.lag:,}", "lag"),
        *_pair(f"{ledger.settled:,}", "done"),
    )
    numbers.add_row(
        *_pair(f"{pulse.batch_size:,.1f}", "mails/batch"),
        *_pair(f"{pulse.transaction_size:,.1f}", "results/transaction"),
        *_pair(f"{1e3 * quantile(recent, 0.5):,.0f} ms", "p50"),
        *_pair(f"{1e3 * quantile(recent, 0.99):,.0f} ms", "p99"),
    )
    parts: list[RenderableType] = [numbers]
    if goal is not None:
        parts.append(ProgressBar(total=goal, completed=min(goal, ledger.settled), width=None))
    parts.append(_verdicts(ledger))
    dead = "  ".join(f"{reason} {count}" for reason, count in ledger.reasons.most_common())
    parts.append(
        Text(f"dead letters: {sum(ledger.reasons.values())}  {dead}", style="yellow", overflow="ellipsis")
    )
    title = f"[bold]spam verdicts, exactly once[/]  [dim]{where}[/]"
    return Panel(Group(*parts), title=title, title_align="left", box=box.ROUNDED, padding=(1, 2))


def _pair(value: str, name: str) -> tuple[Text, Text]:
    return Text(value, style="bold cyan"), Text(name)


def _verdicts(ledger: Ledger) -> Table:
    table = Table(box=None, expand=True, pad_edge=False, header_style="dim", padding=(0, 1))
    table.add_column("subject", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column("spam", justify="right", width=6)
    table.add_column("verdict", width=7)
    table.add_column("model", style="dim", no_wrap=True)
    for verdict in list(ledger.latest):
        style = ("red" if verdict.spam else "green") if verdict.right else "black on yellow"
        table.add_row(
            Text(verdict.subject or "(no subject)"),
            f"{100 * verdict.probability:.1f}%",
            Text("spam" if verdict.spam else "ham", style=style),
            verdict.model,
        )
    return table


def summary(ledger: Ledger) -> RenderableType:
    """The books at the end."""
    table = Table(
        box=box.SIMPLE_HEAD, show_header=False, title="what went in and what came out", title_style="bold"
    )
    table.add_column()
    table.add_column(justify="right", style="bold")
    table.add_column(style="dim")
    good = "green" if ledger.clean else "red"
    latencies = list(ledger.latencies_s)
    rows: list[tuple[str, Any, str]] = [
        ("events", f"{ledger.total:,}", f"{ledger.broken:,} of them broken on purpose"),
        ("results", f"{ledger.judged:,}", ""),
        ("dead letters", f"{sum(ledger.reasons.values()):,}", _reasons(ledger)),
        ("duplicates", Text(f"{ledger.duplicates}", style=good), "outcomes beyond the first of an event"),
        ("missing", Text(f"{ledger.open}", style=good), "events without an outcome"),
    ]
    if ledger.wrongly_dead or ledger.wrongly_alive or ledger.strangers:
        text = f"{ledger.wrongly_dead} good ones dead, {ledger.wrongly_alive} broken alive, {ledger.strangers} unknown"
        rows.append(("wrong outcomes", Text("yes", style="red"), text))
    if ledger.judged:
        rows.append(
            (
                "accuracy",
                f"{100 * ledger.right / ledger.judged:.2f} %",
                "on mails that the model was not trained on",
            )
        )
    if ledger.good_mails:
        rate = 100 * ledger.false_alarms / ledger.good_mails
        rows.append(
            ("good mail called spam", f"{rate:.2f} %", f"{ledger.false_alarms} of {ledger.good_mails:,}")
        )
    rows += [
        ("throughput", f"{ledger.rate:,.0f} / s", "outcomes, from the first to the last"),
        (
            "latency p50",
            f"{1e3 * quantile(latencies, 0.5):,.0f} ms",
            "from the event to its committed result",
        ),
        ("latency p99", f"{1e3 * quantile(latencies, 0.99):,.0f} ms", ""),
    ]
    for row in rows:
        table.add_row(*row)
    return table


def _reasons(ledger: Ledger) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in ledger.reasons.most_common())
