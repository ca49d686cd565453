"""Files that events only name: `file://` in one shared folder, `s3://` in one bucket of any S3-compatible storage.

An event names a place and its SHA-256; what lies there is used only if it is that.  The door to obstore.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from consumer.errors import BadRecord, Retry

__all__ = ["Storage"]

_PAUSES_S = (0.1, 0.4, 1.5)
"""Waits before a missing object is looked for again: an upload may be announced a moment before it is readable."""

_PATIENCE: Mapping[str, Any] = {
    "retry_config": {"max_retries": 4, "retry_timeout": timedelta(seconds=15)},
    "client_options": {"connect_timeout": "5s", "timeout": "60s"},
}
"""How long a storage that is away is waited for; then the worker ends and its supervisor starts it again."""


class Storage:
    """Reads what `uri`s name.  Safe on several threads.

    `folder` is the only place for `file://`, `bucket` the only one for `s3://`: an event must not choose what the
    worker reads with its rights.  `s3` is what obstore's S3Store takes (endpoint, region, ...); what it lacks comes
    from the AWS_... variables.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        bucket: str | None = None,
        s3: Mapping[str, Any] | None = None,
        max_bytes: int = 32 << 20,
    ) -> None:
        self._folder = None if folder is None else Path(folder).resolve()
        self._bucket = bucket
        self._s3 = dict(s3 or {})
        self._max_bytes = max_bytes
        self._store: Any = None

    def read(self, uri: str, sha256: str) -> bytes:
        """The bytes, verified.  Raises BadRecord for what is refused, missing for good, too large or altered; Retry
        when the storage itself does not answer."""
        if not sha256:
            raise BadRecord("no_digest", "field `sha256` is needed with `uri`")
        for pause_s in (*_PAUSES_S, None):
            try:
                data = self._read(uri)
                break
            except FileNotFoundError as error:
                if pause_s is None:
                    raise BadRecord("missing_object", f"there is nothing at {uri[:300]}") from error
                time.sleep(pause_s)
        self.check(data, sha256)
        return data

    def check(self, data: bytes, sha256: str | None) -> None:
        """Raises BadRecord for bytes that are too many, or not those of the digest where there is one."""
        self._bounded("the upload", len(data))
        found = hashlib.sha256(data).hexdigest() if sha256 else None
        if sha256 and found != sha256.strip().lower():
            raise BadRecord(
                "digest_mismatch", f"the bytes have SHA-256 {found}, the event says {sha256[:80]}"
            )

    def _read(self, uri: str) -> bytes:
        try:
            parts = urlsplit(uri)
        except ValueError as error:
            raise BadRecord("uri_refused", f"{uri[:300]!r} is no URI: {error}") from error
        if parts.scheme == "file":
            return self._file(uri, unquote(parts.path))
        if parts.scheme == "s3" and parts.netloc and parts.path.strip("/"):
            return self._object(uri, parts.netloc, unquote(parts.path.lstrip("/")))
        raise BadRecord("uri_refused", f"{uri[:300]!r}: only s3://bucket/key and file:///path are read")

    def _file(self, uri: str, path: str) -> bytes:
        if self._folder is None:
            raise BadRecord(
                "uri_refused", f"{uri[:300]!r}: the worker has no shared folder (option shared_folder)"
            )
        try:
            place = Path(path).resolve()
            if not place.is_relative_to(self._folder):
                raise BadRecord("uri_refused", f"{uri[:300]!r} lies outside the shared folder {self._folder}")
            if place.is_dir() or not (place.is_file() or not place.exists()):
                raise BadRecord("uri_refused", f"{uri[:300]!r} is no file")
            with place.open("rb") as file:
                self._bounded(uri, os.fstat(file.fileno()).st_size)
                return file.read(self._max_bytes)
        except ValueError as error:  # a null character
            raise BadRecord("uri_refused", f"{uri[:300]!r}: {error}") from error
        except FileNotFoundError:
            raise
        except OSError as error:
            raise Retry(f"the shared folder cannot be read: {error}") from error

    def _object(self, uri: str, bucket: str, key: str) -> bytes:
        if bucket != self._bucket:
            here = (
                f"the worker reads {self._bucket}" if self._bucket else "the worker has none (option bucket)"
            )
            raise BadRecord("uri_refused", f"{uri[:300]!r} is in another bucket: {here}")
        from obstore import exceptions as s3

        try:
            answer = self._opened().get(key)
            self._bounded(uri, answer.meta["size"])
            return bytes(answer.bytes())
        except FileNotFoundError:
            raise
        except (s3.PermissionDeniedError, s3.UnauthenticatedError, s3.InvalidPathError) as error:
            # One refused object must not hold the partition up; when all are, the cap on dead letters stops the worker.
            raise BadRecord("object_refused", f"{uri[:300]}: {str(error)[:300]}") from error
        except ValueError as error:
            raise BadRecord("uri_refused", f"{uri[:300]!r}: {str(error)[:300]}") from error
        except s3.BaseError as error:
            raise Retry(f"the storage does not give {uri[:300]}: {str(error)[:300]}") from error

    def _opened(self) -> Any:
        if self._store is None:
            from obstore.store import S3Store

            self._store = S3Store(self._bucket, **{**_PATIENCE, **self._s3})
        return self._store

    def _bounded(self, what: str, nbytes: int) -> None:
        if nbytes > self._max_bytes:
            raise BadRecord(
                "media_too_large",
                f"{what[:300]} has {nbytes:,} bytes; {self._max_bytes:,} are the most accepted",
            )
