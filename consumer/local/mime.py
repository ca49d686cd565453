"""One raw e-mail (RFC 5322, MIME) to one event of the schema `email`; takes anything, raises nothing."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from datetime import UTC
from email import message_from_bytes, policy
from email.header import decode_header, make_header
from email.message import EmailMessage, Message
from email.utils import getaddresses, parsedate_to_datetime
from itertools import islice
from typing import Any

from consumer.records import Event

__all__ = ["MAX_TEXT_CHARS", "event_of"]

MAX_TEXT_CHARS = 20_000
MAX_HEADER_CHARS = 2_000
MAX_HEADERS = 200
MAX_PARTS = 100
MAX_NAME_CHARS = 300
_TEXTUAL = ("text/", "multipart/", "message/")


def event_of(raw: bytes, *, max_text_chars: int = MAX_TEXT_CHARS) -> Event:
    """What can be read of the mail; what cannot is empty.

    id: the first 32 hex digits of the SHA-256 of the raw bytes. received_at: milliseconds since 1970 of the newest
    Received header, else of Date, else 0. body: the text parts as sent; html: the HTML parts; each at most
    `max_text_chars` characters. headers: the others, names in lower case, of repeated ones the last. attachments: name,
    media type and size of every part that has a name or is no text.
    """
    try:
        message: Message = message_from_bytes(raw, policy=policy.default)
        headers, received = _headers(message.raw_items())
        body, html = _texts(message, max_text_chars)
        attachments = list(_attachments(message))
    except Exception:  # a mail too broken (or too deeply nested) for the parser: head and body as they stand
        head, _, rest = raw.replace(b"\r\n", b"\n").partition(b"\n\n")
        lines = re.sub(rb"\n[ \t]+", b" ", head).split(b"\n")
        pairs = (_decoded(line, None).partition(":") for line in lines)
        headers, received = _headers((name, value) for name, colon, value in pairs if colon)
        body, html, attachments = _decoded(rest, None)[:max_text_chars], None, []
    return {
        "id": hashlib.sha256(raw).hexdigest()[:32],
        "received_at": _received_at(received, headers.get("date", "")),
        "from": headers.pop("from", None),
        "to": [address for _, address in getaddresses([headers.pop("to", "")]) if address],
        "subject": headers.pop("subject", ""),
        "body": body,
        "html": html,
        "headers": headers,
        "attachments": attachments,
    }


def _headers(pairs: Iterator[tuple[str, str]]) -> tuple[dict[str, str], str]:
    """All headers, and the newest Received, which is the first."""
    headers: dict[str, str] = {}
    received = ""
    for name, value in pairs:
        name = _clean(name).strip().lower()
        value = _header_text(str(value))[:MAX_HEADER_CHARS]
        if name == "received":
            received = received or value
        if name in headers or (name and len(headers) < MAX_HEADERS):
            headers[name] = value
    return headers, received


def _header_text(value: str) -> str:
    """Unfolded, with encoded words decoded; as it stands where that fails."""
    value = re.sub(r"[\r\n]+[ \t]*", " ", value).strip()
    if not value.isascii():
        value = _decoded(value.encode("utf-8", "surrogateescape"), None)
    if "=?" in value:
        try:
            value = str(make_header(decode_header(value)))
        except Exception:
            return _clean(value)
    return _clean(value)


def _received_at(received: str, sent: str) -> int:
    for date in (received.rpartition(";")[2], sent):
        try:
            when = parsedate_to_datetime(date.strip())
            return round((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)
        except (ValueError, TypeError, OverflowError, IndexError):
            continue
    return 0


def _texts(message: Message, max_chars: int) -> tuple[str, str | None]:
    """(text parts, HTML parts or None), attachments left out."""
    plain: list[str] = []
    html: list[str] = []
    for count, part in enumerate(message.walk()):
        if count == MAX_PARTS:
            break
        if part.is_multipart() or _is_attachment(part):
            continue
        kind = part.get_content_type()
        if kind == "text/html":
            html.append(_part_text(part))
        elif kind.startswith(("text/", "multipart/")):  # a multipart that is none is text by another name
            plain.append(_part_text(part))
    return "\n".join(plain)[:max_chars], "\n".join(html)[:max_chars] or None


def _attachments(message: Message) -> Iterator[Event]:
    for part in islice(message.walk(), MAX_PARTS):
        kind = part.get_content_type()
        name = _file_name(part)
        is_letter = kind.startswith("message/") and part.is_multipart()
        if part.is_multipart() and not is_letter:
            continue
        if name is None and not is_letter and not _is_attachment(part) and kind.startswith(_TEXTUAL):
            continue
        yield {"name": name, "media_type": _clean(kind)[:MAX_NAME_CHARS], "size": _size(part)}


def _file_name(part: Message) -> str | None:
    """As the sender wrote it; RFC 2231 is read by the library, encoded words in a name by us."""
    try:
        name = part.get_filename()
    except Exception:
        return None  # the library has no answer to some broken headers
    return _header_text(name)[:MAX_NAME_CHARS] or None if name else None


def _size(part: Message) -> int:
    """Bytes of the content, decoded where that can be done."""
    try:
        if part.is_multipart():
            inner: Any = part.get_payload()
            return sum(len(bytes(letter)) for letter in inner)
        data = part.get_payload(decode=True)
        return len(data) if isinstance(data, bytes) else 0
    except Exception:
        return 0


def _is_attachment(part: Message) -> bool:
    return isinstance(part, EmailMessage) and str(part.get("content-disposition", "")).lower().startswith(
        "attachment"
    )


def _part_text(part: Message) -> str:
    try:
        data = part.get_payload(decode=True)
        charset = part.get_content_charset()
    except Exception:
        return _clean(str(part.get_payload()))
    return _decoded(data if isinstance(data, bytes) else b"", charset)


def _decoded(data: bytes, charset: str | None) -> str:
    """By the named character set, else UTF-8, else Windows-1252 with what it lacks replaced.

    Bytes that are UTF-8 are no sensible text in a one-byte character set, whatever the label says.
    """
    charset = charset or "ascii"
    one_byte = charset.startswith(("ascii", "us-ascii", "iso-8859", "windows-125"))
    for name in ("utf-8", charset) if one_byte else (charset, "utf-8"):
        try:
            return _clean(data.decode(name))
        except (UnicodeError, LookupError, ValueError):
            continue
    return _clean(data.decode("cp1252", "replace"))


def _clean(text: str) -> str:
    """Without what no UTF-8 can hold (lone surrogates) and without CR before LF."""
    return text.encode("utf-8", "replace").decode().replace("\r\n", "\n")
