"""Secrets among free-form properties and options: known by name, wrapped at once, unwrapped at the last moment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr

__all__ = ["is_secret", "read_secret", "reveal", "seal"]

_SECRET_NAME = re.compile(
    r"(^|[._-])(password|passwd|passphrase|secret|token|api[._-]?key|credentials?)$|key\.pem$|(oauthbearer|jaas)\.config$"
)


def is_secret(name: str) -> bool:
    """Whether the value of a property or option of this name must never be shown."""
    return _SECRET_NAME.search(name.lower()) is not None


def seal(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same with secrets wrapped, and `NAME.file` or `NAME_file` of a secret NAME replaced by the file's text.

    Raises ValueError for a file that cannot be read and for a secret that is given twice.
    """
    sealed: dict[str, Any] = {}
    for name, value in values.items():
        stem = name.removesuffix(".file").removesuffix("_file")
        if stem != name and is_secret(stem):
            if stem in values:
                raise ValueError(f"{stem} is given twice, itself and as {name}: leave one out")
            sealed[stem] = read_secret(str(value), name)
        elif is_secret(name) and isinstance(value, str):
            sealed[name] = SecretStr(value)
        else:
            sealed[name] = value
    return sealed


def read_secret(path: str, name: str) -> SecretStr:
    """The text of a secret file without its last line break.  Raises ValueError."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{name}: cannot read {path!r}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{name}: {path!r} is not UTF-8 text") from None
    return SecretStr(text.rstrip("\r\n"))


def reveal(values: Mapping[str, Any]) -> dict[str, Any]:
    """The opposite of `seal`: only for the hands of the library that needs the secrets."""
    return {k: v.get_secret_value() if isinstance(v, SecretStr) else v for k, v in values.items()}
