"""The user's cache folder and the check that what lies in it is what this project expects."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import platformdirs
from filelock import FileLock

from consumer.errors import Fatal

__all__ = ["cache_dir", "keep_newest", "sha256_of", "verified"]


def cache_dir() -> Path:
    """The folder for downloads and derived files; `CONSUMER_CACHE` names another one. Made when missing."""
    named = os.environ.get("CONSUMER_CACHE")
    folder = Path(named).expanduser() if named else platformdirs.user_cache_path("consumer", appauthor=False)
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def sha256_of(path: Path) -> str | None:
    """Hex SHA-256 of a file, or None when there is no such file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def verified(path: Path, sha256: str, fetch: Callable[[Path], Path]) -> Path:
    """`path`, whose bytes are what they should be: fetched when it is missing or altered, once.

    `fetch` puts the file into the folder it is given and returns where. Safe when several processes do it at the
    same time. Raises Fatal when the fetched file has another SHA-256; then nothing is kept.
    """
    if sha256_of(path) == sha256:
        return path
    with FileLock(path.with_name(path.name + ".lock")), tempfile.TemporaryDirectory(dir=path.parent) as aside:
        if sha256_of(path) != sha256:  # else another process fetched it while this one waited
            fetched = fetch(Path(aside))
            found = sha256_of(fetched)
            if found != sha256:
                raise Fatal(
                    f"{path.name} arrived with SHA-256 {found}, expected {sha256}. It was not used. Look for a proxy "
                    f"or mirror that alters downloads, then try again; or put the right file at {path}."
                )
            os.replace(fetched, path)
    return path


def keep_newest(folder: Path, pattern: str, count: int) -> None:
    """Removes all but the `count` files changed last among those that match."""
    newest_first = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in newest_first[count:]:
        path.unlink(missing_ok=True)
