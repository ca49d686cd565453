"""Files that events only name: `file://` in one shared folder, `s3://` in one bucket of any S3-compatible storage.

An event names a place and its SHA-256; what lies there is used only if it is that.  Whose fault is a refusal?  A bucket
that is asked for another key tells: what is wrong for every key (credentials, bucket, region) ends the worker, what is
away is waited for, and only what is wrong with one object costs that event.  The door to obstore.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from consumer.errors import BadRecord, Fatal, Retry, missing_package
from consumer.exits import Exit

__all__ = ["Storage", "s3_options"]

_PAUSES_S = (0.1, 0.4, 1.5)
"""Waits before a missing object is looked for again: an upload may be announced a moment before it is readable."""
_PASSING = ("missing_object", "object_unreadable")

_S3_OPTIONS = ("endpoint", "region", "path_style", "key_id", "secret")

_PATIENCE: Mapping[str, Any] = {
    "retry_config": {"max_retries": 2, "retry_timeout": timedelta(seconds=15)},
    "client_options": {"connect_timeout": "5s", "timeout": "60s"},
}
"""How long a storage that is away is waited for at a time; then `Retry` says so, and it is asked again."""

_ITS_OWN = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EILSEQ)
_PROBE = "no-such-object"
_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_BUSY = (408, 429, 503)
_CODE = re.compile(r"<Code>(\w+)</Code>")
_OURS = frozenset(
    """SignatureDoesNotMatch InvalidAccessKeyId InvalidToken ExpiredToken TokenRefreshRequired RequestTimeTooSkewed
    RequestExpired NoSuchBucket InvalidBucketName AuthorizationHeaderMalformed PermanentRedirect AllAccessDisabled
    AccountProblem NotSignedUp InvalidSecurity""".split()
)
"""What S3 says when it refuses the one who asks, or the bucket: no other object would be given either."""
_INSTANCE = "169.254.169.254"
"""Where a machine in Amazon's cloud has its credentials: asked last, when none were given."""


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
        self._store: Any = None if bucket is None else _opened(bucket, self._s3)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """What a task's options say: `shared_folder`, `bucket` and `s3_...`.  Raises Fatal for what cannot be."""
        bucket = options.get("bucket")
        s3 = {name: options[f"s3_{name}"] for name in _S3_OPTIONS if f"s3_{name}" in options}
        return cls(options.get("shared_folder"), bucket, s3_options(bucket, **s3))

    def open(self) -> None:
        """Ask once whether anything will be given.  Raises Fatal when not, Retry when nobody answers."""
        if self._folder is not None and not os.path.isdir(self._folder):
            raise Fatal(f"option shared_folder: there is no folder {self._folder}", exit_code=Exit.USAGE)
        if self._store is not None:
            self._blame_ourselves()

    def read(self, uri: str, sha256: str) -> bytes:
        """The bytes, verified.  Raises BadRecord for what is refused, missing for good, too large or altered, Retry
        when the storage itself does not answer, Fatal when it gives us nothing at all."""
        if not sha256:
            raise BadRecord("no_digest", "field `sha256` is needed with `uri`")
        for pause_s in (*_PAUSES_S, None):
            try:
                data = self._read(uri)
                break
            except BadRecord as error:
                if pause_s is None or error.reason not in _PASSING:
                    raise
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
        except (ValueError, RuntimeError) as error:  # a null character, links in a circle
            raise BadRecord("uri_refused", f"{uri[:300]!r}: {error}") from error
        except OSError as error:
            if not os.path.isdir(self._folder):
                raise Retry(f"the shared folder {self._folder} is away") from error
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                raise BadRecord("missing_object", f"there is nothing at {uri[:300]}") from error
            if error.errno in _ITS_OWN:
                raise BadRecord("object_refused", f"{uri[:300]}: {error.strerror}") from error
            raise Retry(f"the shared folder cannot be read: {error}") from error

    def _object(self, uri: str, bucket: str, key: str) -> bytes:
        if bucket != self._bucket:
            here = (
                f"the worker reads {self._bucket}" if self._bucket else "the worker has none (option bucket)"
            )
            raise BadRecord("uri_refused", f"{uri[:300]!r} is in another bucket: {here}")
        from obstore import exceptions as s3

        try:
            answer = self._store.get(key)
            self._bounded(uri, answer.meta["size"])
            return bytes(answer.bytes())
        except ValueError as error:
            raise BadRecord("uri_refused", f"{uri[:300]!r}: {_said(error)}") from error
        except (FileNotFoundError, s3.BaseError) as error:
            said = _said(error)
            if _status(error) in _BUSY:
                raise Retry(f"the storage is too busy to give {uri[:300]}: {said}") from error
            if not isinstance(error, FileNotFoundError) or "NoSuchBucket" in said:
                self._blame_ourselves()
            if isinstance(error, FileNotFoundError):
                raise BadRecord("missing_object", f"there is nothing at {uri[:300]}") from error
            reason = "object_refused" if _refusal(error) else "object_unreadable"
            raise BadRecord(reason, f"{uri[:300]}: {said}") from error

    def _blame_ourselves(self) -> None:
        """Ask for what no event named.  Raises Fatal where that is refused for our sake, Retry when nobody answers.

        When it returns, our credentials, bucket and region are good, as far as can be told: then it is the object.
        """
        from obstore import exceptions as s3

        where = f"bucket {self._bucket} at {self._s3.get('endpoint') or 'the endpoint of the AWS_ variables'}"
        try:
            self._store.get(_PROBE)
        except (FileNotFoundError, s3.BaseError) as error:
            text = str(error)
            code = _CODE.search(text)
            if _INSTANCE in text:
                raise Fatal(
                    f"{where}: no credentials were given, and this machine has none of its own. Set AWS_ACCESS_KEY_ID "
                    "and AWS_SECRET_ACCESS_KEY, or the options s3_key_id and s3_secret_file"
                ) from error
            if code and code[1] in _OURS:
                raise Fatal(
                    f"{where} refuses this worker, whatever it asks for: {_said(error)}. Mend the credentials, "
                    "option bucket or s3_region; nothing was lost"
                ) from error
            if not isinstance(error, FileNotFoundError) and not _refusal(error):
                raise Retry(f"{where} does not answer: {_said(error)}") from error

    def _bounded(self, what: str, nbytes: int) -> None:
        if nbytes > self._max_bytes:
            raise BadRecord(
                "media_too_large",
                f"{what[:300]} has {nbytes:,} bytes; {self._max_bytes:,} are the most accepted",
            )


def s3_options(
    bucket: str | None,
    endpoint: str | None = None,
    region: str | None = None,
    path_style: bool | str = True,
    key_id: str | None = None,
    secret: str | None = None,
) -> dict[str, Any]:
    """A user's options as obstore wants them.  Raises Fatal for what cannot be."""
    path_style = str(path_style).lower() not in ("no", "false", "0", "off")
    if endpoint is not None and urlsplit(endpoint).scheme not in ("http", "https"):
        raise Fatal(
            f"option s3_endpoint is {endpoint!r}: it must begin with https:// or http://",
            exit_code=Exit.USAGE,
        )
    if (key_id is None) != (secret is None):
        raise Fatal(
            "options s3_key_id and s3_secret (or s3_secret_file) belong together", exit_code=Exit.USAGE
        )
    if endpoint and not path_style and bucket:
        endpoint = endpoint.replace("://", f"://{bucket}.", 1)
    given = {
        "endpoint": endpoint,
        "region": region,
        "virtual_hosted_style_request": None if path_style else True,
        "access_key_id": key_id,
        "secret_access_key": secret,
    }
    return {name: value for name, value in given.items() if value is not None}


def _opened(bucket: str, options: Mapping[str, Any]) -> Any:
    try:
        from obstore.store import S3Store
    except ImportError as error:
        raise Fatal(missing_package("obstore", "s3")) from error
    endpoint = (
        options.get("endpoint") or os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT", "")
    )
    client = {**_PATIENCE["client_options"], "allow_http": endpoint.startswith("http://")}
    given = {**_PATIENCE, **options, "client_options": {**client, **options.get("client_options", {})}}
    try:
        return S3Store(bucket, **given)
    except Exception as error:
        raise Fatal(f"option bucket or s3_...: {_said(error)}", exit_code=Exit.USAGE) from error


def _refusal(error: Exception) -> bool:
    """Whether the storage answered, and said no: another time it would say the same."""
    return 400 <= _status(error) < 500 or "configured region" in str(error)


def _status(error: Exception) -> int:
    """HTTP's, as far as the error tells; 0 when there was no answer.  Texts that quote the key are not looked at."""
    kind = type(error).__name__
    if kind != "GenericError":
        return {"FileNotFoundError": 404, "PermissionDeniedError": 403, "UnauthenticatedError": 401}.get(
            kind, 400
        )
    found = _STATUS.search(str(error))
    return int(found[1]) if found else 0


def _said(error: Exception) -> str:
    """Its text without the library's own debugging."""
    return " ".join(str(error).partition("Debug source:")[0].split())[:400]
