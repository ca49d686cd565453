"""`consumer deadletters`: look at what could not be processed, and send it back once the cause is mended."""

from __future__ import annotations

import heapq
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from consumer.config import Settings
from consumer.errors import Fatal
from consumer.exits import Exit
from consumer.flags import CONNECTION, SCHEMAS, TaskArgument, with_settings
from consumer.ops.letters import Letter, Place, Selection, Tally, as_document
from consumer.ops.moments import moment_ms, shown

__all__ = ["deadletters"]

deadletters = typer.Typer(
    no_args_is_help=True,
    help="Look at what could not be processed, and send it back once the cause is mended.",
)

Reasons = Annotated[
    list[str] | None, typer.Option("--reason", metavar="WORD", help="Only these reasons, such as truncated.")
]
Stages = Annotated[
    list[str] | None, typer.Option("--stage", metavar="WORD", help="Only these stages, such as decode.")
]
Keys = Annotated[list[str] | None, typer.Option("--key", metavar="TEXT", help="Only events with these keys.")]
Places = Annotated[
    list[str] | None,
    typer.Option("--place", metavar="PARTITION:OFFSET", help="Only these letters, as `list` names them."),
]
Since = Annotated[
    str | None, typer.Option(metavar="MOMENT", help="Failed since then: 2h (ago), 2026-11-25T04:00 (UTC).")
]
Until = Annotated[str | None, typer.Option(metavar="MOMENT", help="Failed before then.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, for scripts.")]

_SETTINGS = [*CONNECTION, "dead_letter_topic", *SCHEMAS]
_HEX_BYTES = 512
_TEXT = 200


@deadletters.command("list")
@with_settings(only=_SETTINGS)
def list_letters(
    settings: Settings,
    task: TaskArgument,
    reason: Reasons = None,
    stage: Stages = None,
    key: Keys = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=1, help="The latest so many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """The latest dead letters: what failed where, why, and whether it has been sent back.

    \b
    Examples:
      consumer deadletters list spam
      consumer deadletters list spam --reason prepare_failed --since 2h --limit 100
    """
    settings = _complete(settings)
    meant = _selection(reason, stage, key, None, since, until)
    latest = heapq.nlargest(
        limit,
        ((letter.failed_at_ms, letter.place, letter) for letter in _letters(settings) if meant.takes(letter)),
        key=lambda each: each[:2],
    )
    done = _replayed(settings)
    letters = [letter for _, _, letter in reversed(latest)]
    if as_json:
        _print_json([as_document(each, done.get(each.place)) for each in letters])
        return
    table = Table(
        Column("place", no_wrap=True),
        Column("failed at (UTC)", no_wrap=True),
        Column("reason", no_wrap=True),
        Column("key", max_width=24, no_wrap=True),
        Column("origin", overflow="fold"),
        Column("what was wrong", overflow="fold"),
        Column("sent back", no_wrap=True),
        box=None,
        pad_edge=False,
    )
    for each in letters:
        table.add_row(
            *map(
                Text,
                (
                    _name(each.place),
                    shown(each.failed_at_ms),
                    each.said("reason"),
                    each.key_text,
                    _origin(each),
                    each.said("error")[:_TEXT],
                    shown(done.get(each.place, 0)),
                ),
            )
        )
    Console().print(table if letters else f"no such dead letters in {settings.dead_letter_topic}")


@deadletters.command("stats")
@with_settings(only=_SETTINGS)
def stats(
    settings: Settings,
    task: TaskArgument,
    since: Since = None,
    until: Until = None,
    as_json: AsJson = False,
) -> None:
    """How many for which reason, since when, and how many of them were sent back.

    \b
    Example:
      consumer deadletters stats spam --since 1d
    """
    settings = _complete(settings)
    meant = _selection(None, None, None, None, since, until)
    done = _replayed(settings)
    tallies: dict[tuple[str, str, str], Tally] = {}
    for letter in _letters(settings):
        if meant.takes(letter):
            kind = (letter.said("task"), letter.said("stage"), letter.said("reason"))
            tallies.setdefault(kind, Tally()).add(letter, replayed=letter.place in done)
    rows = sorted(tallies.items(), key=lambda each: -each[1].count)
    if as_json:
        names = ("task", "stage", "reason")
        _print_json(
            [
                dict(zip(names, kind, strict=True))
                | {
                    "count": tally.count,
                    "replayed": tally.replayed,
                    "first_ms": tally.first_ms,
                    "last_ms": tally.last_ms,
                    "example": _name(tally.example),
                }
                for kind, tally in rows
            ]
        )
        return
    right: dict[str, Any] = {"justify": "right", "no_wrap": True}
    table = Table(
        *("task", "stage", "reason", Column("letters", **right), Column("sent back", **right)),
        *("first (UTC)", "last (UTC)", "example"),
        box=None,
        pad_edge=False,
    )
    for kind, tally in rows:
        counts = (f"{tally.count:,}", f"{tally.replayed:,}")
        table.add_row(
            *map(Text, (*kind, *counts, shown(tally.first_ms), shown(tally.last_ms), _name(tally.example)))
        )
    Console().print(table if rows else f"no dead letters in {settings.dead_letter_topic}")


@deadletters.command("show")
@with_settings(only=_SETTINGS)
def show(
    settings: Settings,
    task: TaskArgument,
    place: Annotated[
        str, typer.Argument(metavar="PARTITION:OFFSET", help="As `list` names it.", show_default=False)
    ],
) -> None:
    """One dead letter whole: why it failed, its headers, the event as far as it can be read, the bytes.

    \b
    Example:
      consumer deadletters show spam 3:128
    """
    from consumer.ops.anatomy import hex_lines, readable_part
    from consumer.ops.scan import record_at

    settings = _complete(settings)
    partition, offset = _place(place)
    record = record_at(settings.admin_conf(), settings.dead_letter_topic, partition, offset)
    if record is None:
        raise Fatal(
            f"there is no dead letter {place} in {settings.dead_letter_topic} (any more)",
            exit_code=Exit.USAGE,
        )
    letter = Letter.of(record)
    console = Console()
    _print_pairs(console, "why", letter.ours.items())
    _print_pairs(console, "headers of the event", [(n, _text(v)) for n, v in letter.headers])
    _print_pairs(
        console,
        "event",
        [
            ("sent at (UTC)", shown(letter.timestamp_ms)),
            ("key", "(none)" if letter.key is None else letter.key_text),
            ("value", "(none)" if letter.value is None else f"{len(letter.value):,} bytes"),
        ],
    )
    if not letter.value:
        return
    event, end = readable_part(settings, letter)
    _print_pairs(
        console,
        f"fields that can be read ({end} of {len(letter.value)} bytes)",
        [(name, _short(value)) for name, value in event.items()],
    )
    if rest := letter.value[end:]:
        console.print(f"[bold]bytes from {end} on[/]")
        for line in hex_lines(rest[:_HEX_BYTES], end):
            console.print(Text("  " + line))
        if len(rest) > _HEX_BYTES:
            console.print(f"  ... {len(rest) - _HEX_BYTES:,} more; `export` has them all")


@deadletters.command("replay")
@with_settings(only=[*_SETTINGS, "transaction_timeout_ms"])
def replay_letters(
    settings: Settings,
    task: TaskArgument,
    reason: Reasons = None,
    stage: Stages = None,
    key: Keys = None,
    place: Places = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Send so many at most.", show_default="all")
    ] = None,
    max_replays: Annotated[
        int, typer.Option(min=1, help="Leave what has come back so many times: it would go round for ever.")
    ] = 3,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be sent.")] = False,
    as_json: AsJson = False,
) -> None:
    """Send events back to the topics they came from: the same bytes, key, headers, time and partition.

    Each letter is sent back once, whatever happens meanwhile: what was sent is noted in the same transaction, in the
    topic <dead letters>_replayed. Killed or not, begin again and it goes on. What fails again becomes a new letter.

    \b
    Examples:
      consumer deadletters replay spam --reason prepare_failed --dry-run
      consumer deadletters replay spam --reason prepare_failed --since 2h
      consumer deadletters replay spam --place 3:128
    """
    from consumer.ops import redrive

    settings = _complete(settings)
    meant = _selection(reason, stage, key, place, since, until)
    with _progress(settings.dead_letter_topic) as progress:
        report = redrive.replay(
            settings, meant, max_replays=max_replays, limit=limit, dry_run=dry_run, progress=progress
        )
    if as_json:
        _print_json({"dry_run": dry_run, **redrive.totals(report)})
    else:
        _say(report, dry_run=dry_run, max_replays=max_replays)
    raise typer.Exit(int(Exit.FATAL if report.left else Exit.OK))


@deadletters.command("export")
@with_settings(only=_SETTINGS)
def export(
    settings: Settings,
    task: TaskArgument,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Where to; - is standard output.", show_default=False)
    ],
    reason: Reasons = None,
    stage: Stages = None,
    key: Keys = None,
    since: Since = None,
    until: Until = None,
) -> None:
    """Write letters to a file, one JSON object a line, with keys, values and headers in base64.

    \b
    Example:
      consumer deadletters export spam broken.jsonl --reason truncated
    """
    settings = _complete(settings)
    meant = _selection(reason, stage, key, None, since, until)
    done = _replayed(settings)
    lines = (
        json.dumps(as_document(letter, done.get(letter.place)), ensure_ascii=False)
        for letter in _letters(settings)
        if meant.takes(letter)
    )
    if file == "-":
        for line in lines:
            typer.echo(line)
        return
    count = 0
    try:
        with Path(file).open("w", encoding="utf-8") as out:
            for line in lines:
                out.write(line + "\n")
                count += 1
    except OSError as error:
        raise Fatal(f"cannot write {file}: {error.strerror}", exit_code=Exit.USAGE) from error
    Console(stderr=True).print(f"[green]{count:,} letters[/] are in {file}")


def _complete(settings: Settings) -> Settings:
    from consumer.tasks import find_task

    return settings.for_task(find_task(settings.task))


def _letters(settings: Settings) -> Iterator[Letter]:
    from consumer.ops.scan import scan

    with _progress(settings.dead_letter_topic) as progress:
        for record in scan(settings.admin_conf(), settings.dead_letter_topic, progress=progress):
            yield Letter.of(record)


def _replayed(settings: Settings) -> dict[Place, int]:
    from consumer.ops.redrive import replayed

    return replayed(settings)


def _selection(
    reason: list[str] | None,
    stage: list[str] | None,
    key: list[str] | None,
    place: list[str] | None,
    since: str | None,
    until: str | None,
) -> Selection:
    return Selection(
        reasons=frozenset(reason or ()),
        stages=frozenset(stage or ()),
        keys=frozenset(key or ()),
        places=frozenset(map(_place, place or ())),
        since_ms=None if since is None else moment_ms(since),
        until_ms=None if until is None else moment_ms(until),
    )


def _place(text: str) -> Place:
    partition, colon, offset = text.partition(":")
    if not (colon and partition.isdigit() and offset.isdigit()):
        raise Fatal(f"{text!r} is no place: give PARTITION:OFFSET such as 3:128", exit_code=Exit.USAGE)
    return int(partition), int(offset)


def _name(place: Place) -> str:
    return "{}:{}".format(*place)


def _origin(letter: Letter) -> str:
    if letter.origin is None:
        return "?"
    (topic, partition), offset = letter.origin
    return f"{topic}[{partition}]@{offset}"


def _say(report: Any, *, dry_run: bool, max_replays: int) -> None:
    console = Console(stderr=True, highlight=False)
    verb = "would be sent back" if dry_run else "sent back"
    console.print(f"[green]{report.sent:,} {verb}[/], {report.already:,} had been before")
    for places, why in (
        (report.looping, f"came back {max_replays} times or more (--max-replays)"),
        (report.incomplete, "lack a part that their topic did not take, and the origin has them no more"),
        (report.homeless, "name no topic and partition that exist"),
        (list(report.refused), f"are refused by their topic ({next(iter(report.refused.values()), '')})"),
    ):
        if places:
            some = ", ".join(map(_name, places[:5])) + (", ..." if len(places) > 5 else "")
            console.print(f"[yellow]{len(places):,} stay[/]: they {why}: {some}")


def _print_pairs(console: Console, title: str, pairs: Any) -> None:
    console.print(f"[bold]{title}[/]")
    table = Table(Column(no_wrap=True), Column(overflow="fold"), box=None, show_header=False, pad_edge=True)
    for name, value in pairs:
        table.add_row(Text(str(name), "cyan"), Text(str(value)))
    console.print(table)


def _text(value: bytes | None) -> str:
    return "(none)" if value is None else value.decode("utf-8", "backslashreplace")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 4 * _TEXT else f"{text[: 4 * _TEXT]}... ({len(text):,} characters)"


@contextmanager
def _progress(title: str) -> Iterator[Any]:
    console = Console(stderr=True)
    columns = [TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()]
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print_json(document: Any) -> None:
    json.dump(document, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")
