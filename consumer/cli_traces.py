"""`consumer traces`: follow what the workers do, and look one event up.  Reads the topic of spans."""

from __future__ import annotations

import json
import re
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from consumer.config import Settings
from consumer.errors import Fatal
from consumer.exits import Exit
from consumer.flags import CONNECTION, with_settings

__all__ = ["traces"]

traces = typer.Typer(
    no_args_is_help=True,
    help="Follow events through the workers, live or one looked up. Reads the topic of spans, which the workers fill "
    "where no collector is configured (OTEL_EXPORTER_OTLP_ENDPOINT).",
)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document a line, for scripts.")]
_SETTINGS = [*CONNECTION, "trace_topic"]
_UNITS_MS = {"ms": 1.0, "s": 1_000.0, "m": 60_000.0}


@traces.command("tail")
@with_settings(only=_SETTINGS)
def tail(
    settings: Settings,
    task: Annotated[str, typer.Option(metavar="NAME", help="Only this task.")] = "",
    slow: Annotated[str, typer.Option(metavar="TIME", help="Only what took so long: 200ms, 1.5s.")] = "",
    errors: Annotated[bool, typer.Option("--errors", help="Only what ended as a dead letter.")] = False,
    event: Annotated[str, typer.Option(metavar="ID", help="Only this event.")] = "",
    trace: Annotated[str, typer.Option(metavar="ID", help="Only this trace.")] = "",
    tree: Annotated[bool, typer.Option("--tree", help="The spans of each, with its device calls.")] = False,
    count: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many.", show_default="never")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """One line for each event as it ends: when, what became of it, how long in all, waiting, on the device, committing.

    Which events: those whose producer traces them, one in a hundred of the others (OTEL_TRACES_SAMPLER_ARG), every
    dead letter as far as the span budget allows, and the slowest of every ten seconds.

    \b
    Examples:
      consumer traces tail --task spam --slow 200ms
      consumer traces tail --errors --json
    """
    from consumer.ops import story
    from consumer.ops.scan import follow
    from consumer.ops.spans import Batches, Wanted, spans_in

    wanted = Wanted(task, _milliseconds(slow), errors, event, trace)
    batches, told = Batches(), 0
    if not (as_json or tree):
        typer.echo(story.HEADING)
    for record in follow(settings.admin_conf(), _topic(settings)):
        spans = list(spans_in(record.value() if record else None))
        for span in spans:
            if span.is_batch:
                batches.add(span)
        for span in spans:
            if not span.is_event or not wanted.takes(span):
                continue
            if as_json:
                typer.echo(json.dumps(story.as_document(span, batches.of(span)), ensure_ascii=False))
            elif tree:
                typer.echo("\n".join(story.tree(span, batches.of(span), spans)))
            else:
                typer.echo(story.line(span))
            told += 1
            if told == count:
                return
        sys.stdout.flush()


@traces.command("show")
@with_settings(only=_SETTINGS)
def show(
    settings: Settings,
    name: Annotated[
        str,
        typer.Argument(
            metavar="ID", help="Event id, trace id, or topic[partition]@offset.", show_default=False
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """One event's life: produced when, read when, batched with whom, which model said what, committed when, or why not.

    \b
    Examples:
      consumer traces show mail-4711
      consumer traces show 'emails[3]@128'
    """
    from consumer.ops import story
    from consumer.ops.scan import scan
    from consumer.ops.spans import Batches, Span, of_event, spans_in

    spans: list[Span] = []
    for record in scan(settings.admin_conf(), _topic(settings)):
        spans += spans_in(record.value())
    found = of_event(spans, name)
    if not found:
        raise Fatal(
            f"no span of {name!r} is in topic {settings.trace_topic}: it was not traced (workers trace one in a "
            "hundred unless its producer says so; OTEL_TRACES_SAMPLER_ARG), has not ended, or is older than the topic "
            "keeps",
            exit_code=Exit.USAGE,
        )
    batches = Batches(len(spans) + 1)
    for span in spans:
        if span.is_batch:
            batches.add(span)
    console = Console()
    for number, span in enumerate(found):
        if as_json:
            typer.echo(json.dumps(story.as_document(span, batches.of(span)), ensure_ascii=False))
            continue
        table = Table(
            Column(no_wrap=True), Column(overflow="fold"), box=None, show_header=False, pad_edge=False
        )
        for what, text in story.life(span, batches.of(span), spans):
            table.add_row(Text(what, "cyan"), Text(text))
        if number:
            console.print()
        console.print(table)


def _topic(settings: Settings) -> str:
    if not settings.trace_topic:
        raise Fatal("trace_topic is empty: there is no topic of spans to read", exit_code=Exit.USAGE)
    return settings.trace_topic


def _milliseconds(text: str) -> float:
    if not text:
        return 0.0
    if not (found := re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m)", text)):
        raise Fatal(f"{text!r} is no time: say 200ms, 1.5s or 2m", exit_code=Exit.USAGE)
    return float(found[1]) * _UNITS_MS[found[2]]
