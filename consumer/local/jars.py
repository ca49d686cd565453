"""Apache Kafka's jars: exact versions from Maven Central, checked against the SHA-256 in `kafka_jars.txt`.

The resolver fetches, this module decides what is trusted: nothing reaches a class path unverified, neither
after a download nor from the cache, where a file may have been changed since.
"""

from __future__ import annotations

import functools
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from consumer.errors import Fatal
from consumer.fetch import cache_dir, sha256_of

__all__ = ["KAFKA_VERSION", "Jar", "ensure_jars", "kafka_dir", "known_jars"]

KAFKA_VERSION = "4.3.1"
DOWNLOAD_THREADS = 8
HTTP_TIMEOUT_S = 60

log = logging.getLogger(__name__)

Fetch = Callable[["list[Jar]", Path, Callable[[int], None]], None]
"""Puts the named jars into a folder, as `Jar.filename`; reports bytes as they come in."""


@dataclass(frozen=True, slots=True)
class Jar:
    """One jar that this project knows: its Maven coordinates and what its bytes must be."""

    group: str
    artifact: str
    version: str
    sha256: str
    size_bytes: int

    @property
    def coordinates(self) -> str:
        return f"{self.group}:{self.artifact}:{self.version}"

    @property
    def filename(self) -> str:
        return f"{self.artifact}-{self.version}.jar"


@functools.cache
def known_jars() -> tuple[Jar, ...]:
    """The jars of the server in class path order, as listed in `kafka_jars.txt`."""
    text = resources.files("consumer.local").joinpath("kafka_jars.txt").read_text(encoding="ascii")
    rows = (line.split() for line in text.splitlines() if line and not line.startswith("#"))
    return tuple(_jar(*row) for row in rows)


def _jar(coordinates: str, sha256: str, size_bytes: str) -> Jar:
    group, artifact, version = coordinates.split(":")
    return Jar(group, artifact, version, sha256, int(size_bytes))


def kafka_dir() -> Path:
    """The folder in the cache that holds everything about this Kafka version."""
    folder = cache_dir() / f"kafka-{KAFKA_VERSION}"
    folder.mkdir(exist_ok=True)
    return folder


def ensure_jars(
    jars: tuple[Jar, ...] | None = None,
    *,
    folder: Path | None = None,
    fetch: Fetch | None = None,
    console: Console | None = None,
) -> list[Path]:
    """Paths of all jars, every one verified just now; downloads what is missing or altered, once.

    Safe when several processes do it at the same time. Raises Fatal, naming the jar and the remedy, when a
    jar cannot be had or is not what it should be even after a fresh download.
    """
    jars = known_jars() if jars is None else jars
    folder = kafka_dir() / "jars" if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    if _wrong(jars, folder):
        with FileLock(folder.with_suffix(".lock")):
            wrong = _wrong(jars, folder)  # another process may have put them right while this one waited
            if wrong:
                _download(wrong, folder, fetch or fetch_from_maven_central, console)
    return [folder / jar.filename for jar in jars]


def _wrong(jars: tuple[Jar, ...], folder: Path) -> list[Jar]:
    return [jar for jar in jars if sha256_of(folder / jar.filename) != jar.sha256]


def _download(jars: list[Jar], folder: Path, fetch: Fetch, console: Console | None) -> None:
    """Fetches into a folder aside, verifies there, and only then moves each jar into place."""
    for jar in jars:
        if (folder / jar.filename).exists():
            log.warning("%s in %s is not the jar it should be: fetching it again", jar.filename, folder)
    with tempfile.TemporaryDirectory(prefix="download-", dir=folder.parent) as aside:
        with _progress(sum(jar.size_bytes for jar in jars), console) as advance:
            fetch(jars, Path(aside), advance)
        for jar in jars:
            found = sha256_of(Path(aside, jar.filename))
            if found != jar.sha256:
                raise Fatal(_not_what_it_should_be(jar, found, folder))
            os.replace(Path(aside, jar.filename), folder / jar.filename)


def _not_what_it_should_be(jar: Jar, found: str | None, folder: Path) -> str:
    fate = "did not arrive" if found is None else f"arrived with SHA-256 {found}, expected {jar.sha256}"
    return (
        f"The jar {jar.filename} ({jar.coordinates}) {fate}. It was not used. "
        f"Look for a proxy or mirror that alters downloads, then try again; or put the right file into "
        f"{folder}."
    )


@contextmanager
def _progress(total_bytes: int, console: Console | None) -> Iterator[Callable[[int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console or Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"Apache Kafka {KAFKA_VERSION}", total=total_bytes)
        yield lambda count: progress.advance(task, count)


def fetch_from_maven_central(jars: list[Jar], into: Path, advance: Callable[[int], None]) -> None:
    """Fetches by jgo; where that fails and Maven is installed (with its own mirrors, proxies), by Maven."""
    try:
        _fetch_by_jgo(jars, into, advance)
    except Exception as by_jgo:
        maven = shutil.which("mvn")
        if maven is None:
            raise Fatal(
                f"Cannot download the jars of Apache Kafka {KAFKA_VERSION} from Maven Central: {by_jgo}. "
                "Check the network and the proxy (HTTPS_PROXY), or install Maven with a mirror that works, and try "
                "again; or use a Kafka of your own with --bootstrap-servers."
            ) from by_jgo
        log.warning("jgo cannot fetch the jars (%s): trying Maven", by_jgo)
        _fetch_by_maven(maven, jars, into)


def _fetch_by_jgo(jars: list[Jar], into: Path, advance: Callable[[int], None]) -> None:
    from jgo.maven import MavenContext, PythonResolver

    @contextmanager
    def each_file(_name: str, _total: int) -> Iterator[Callable[[int], None]]:
        yield advance

    callback: Callable[[str, int], AbstractContextManager[Callable[[int], None]]] = each_file
    with tempfile.TemporaryDirectory(prefix="repository-", dir=into.parent) as repository:
        context: Any = MavenContext(
            resolver=PythonResolver(progress_callback=callback),
            repo_cache=Path(repository),
            timeout=HTTP_TIMEOUT_S,
        )

        def fetch(jar: Jar) -> None:
            os.replace(context.create_dependency(jar.coordinates).artifact.resolve(), into / jar.filename)

        with ThreadPoolExecutor(DOWNLOAD_THREADS) as pool:
            list(pool.map(fetch, jars))


def _fetch_by_maven(maven: str, jars: list[Jar], into: Path) -> None:
    dependencies = "".join(
        f"<dependency><groupId>{escape(jar.group)}</groupId><artifactId>{escape(jar.artifact)}</artifactId>"
        f"<version>{escape(jar.version)}</version></dependency>"
        for jar in jars
    )
    with tempfile.TemporaryDirectory(prefix="maven-") as folder:
        pom = Path(folder, "pom.xml")
        pom.write_text(
            "<project><modelVersion>4.0.0</modelVersion><groupId>consumer</groupId><artifactId>broker</artifactId>"
            f"<version>1</version><dependencies>{dependencies}</dependencies></project>"
        )
        goal = ["dependency:copy-dependencies", "-DexcludeTransitive=true", f"-DoutputDirectory={into}"]
        done = subprocess.run(
            [maven, "-q", "-B", "-f", str(pom), *goal], capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise Fatal(
            f"Maven cannot fetch the jars of Apache Kafka {KAFKA_VERSION}: {done.stdout[-2000:]}{done.stderr}"
        )
