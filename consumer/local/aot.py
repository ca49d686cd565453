"""The JVM's ahead-of-time cache: written on the first clean stop, used by every later start of the same Java."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from consumer.fetch import keep_newest
from consumer.local.java import Java

__all__ = ["AotCache", "cache_key"]

KEPT = 2
QUIET = (
    "-Xlog:disable",
    "-Xlog:all=error:stderr",
)  # a cache that does not fit is passed over; no need to say so


class AotCache:
    """One JVM's use of the cache in `folder`: `options()` before it starts, `settle()` when it has ended."""

    def __init__(self, folder: Path, java: Java, key: str) -> None:
        self._java = java
        self._cache = folder / f"{key}.aot"
        self._recorded = folder / f"{key}.{os.getpid()}.tmp"
        self._lock = FileLock(folder / f"{key}.lock")

    @property
    def is_recording(self) -> bool:
        """Whether the JVM will write the cache when it ends, which takes it a few seconds."""
        return self._lock.is_locked

    def options(self, *, record: bool = True) -> list[str]:
        """Use the cache where there is one; else record it, unless another process does or `record` is false."""
        if not self._java.has_aot_cache:
            return []
        if self._cache.exists():
            os.utime(self._cache)  # the least recently used ones are removed
            return [f"-XX:AOTCache={self._cache}", *QUIET]
        if not record:
            return []
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return []
        return [f"-XX:AOTCacheOutput={self._recorded}", *QUIET]

    def settle(self) -> None:
        """Puts a cache that was written into place. A JVM that was killed wrote none: the next one will."""
        if self.is_recording:
            if self._recorded.exists():
                os.replace(self._recorded, self._cache)
                keep_newest(self._cache.parent, "*.aot", KEPT)
            Path(f"{self._recorded}.config").unlink(missing_ok=True)
            self._lock.release()


def cache_key(java: Java, jars: Sequence[Path], options: Sequence[str]) -> str:
    """Names exactly this Java, these jar files and these JVM options; a cache of others would be passed over."""
    files = (
        f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in (java.path.resolve(), *jars)
    )
    return hashlib.sha256("|".join([java.version, *options, *files]).encode()).hexdigest()[:16]
