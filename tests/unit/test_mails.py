"""E-mails become events whatever they look like; labels stay beside them; broken values are broken."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import mailbox
import tarfile
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer.codec import Decoder, Encoder, Schema, load_schema, write_container
from consumer.errors import BadRecord, Fatal
from consumer.local import mails
from consumer.local.broken import KINDS, broken_records
from consumer.local.mails import from_avro, from_maildir, from_mbox, spam_assassin
from consumer.local.mime import event_of

PLAIN = b"""\
Received: from b.example by c.example; Mon, 12 Jan 2026 10:00:05 +0100
Received: from a.example by b.example; Mon, 12 Jan 2026 10:00:01 +0100
From: =?utf-8?q?Zo=C3=AB?= <zoe@example.org>
To: Ann <ann@example.com>,
 "Bo, the second" <bo@example.com>
Subject: =?iso-8859-1?q?caf=E9?= at
 noon
Date: Mon, 12 Jan 2026 08:00:00 +0000
X-Mailer: quill

See you there.
"""


def test_a_plain_mail() -> None:
    event = event_of(PLAIN)
    assert event == {
        "id": hashlib.sha256(PLAIN).hexdigest()[:32],
        "received_at": 1_768_208_405_000,
        "from": "Zoë <zoe@example.org>",
        "to": ["ann@example.com", "bo@example.com"],
        "subject": "café at noon",
        "body": "See you there.\n",
        "html": None,
        "headers": {
            "received": "from a.example by b.example; Mon, 12 Jan 2026 10:00:01 +0100",
            "date": "Mon, 12 Jan 2026 08:00:00 +0000",
            "x-mailer": "quill",
        },
        "attachments": [],
    }


def test_text_and_html_parts_are_kept_apart_and_attachments_left_out() -> None:
    raw = (
        b'Content-Type: multipart/mixed; boundary="b"\n\n'
        b"--b\nContent-Type: text/plain; charset=iso-8859-15\nContent-Transfer-Encoding: quoted-printable\n\n10 =A4\n"
        b"--b\nContent-Type: text/html; charset=utf-8\nContent-Transfer-Encoding: base64\n\n"
        + base64.b64encode("<b>10 €</b>".encode())
        + b"\n--b\nContent-Type: text/plain\nContent-Disposition: attachment; filename=x.txt\n\nsecret\n"
        b"--b\nContent-Type: image/png\n\nPNG\n--b--\n"
    )
    event = event_of(raw)
    assert event["body"] == "10 €"
    assert event["html"] == "<b>10 €</b>"
    assert event["attachments"] == [
        {"name": "x.txt", "media_type": "text/plain", "size": 6},
        {"name": None, "media_type": "image/png", "size": 3},
    ]


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"Content-Disposition: attachment; filename=plain.pdf", "plain.pdf"),
        (b'Content-Disposition: attachment; filename="two words; and more.pdf"', "two words; and more.pdf"),
        (b"Content-Disposition: attachment; filename*=utf-8''%E2%82%AC%20rates.pdf", "€ rates.pdf"),
        (b"Content-Disposition: attachment; filename*0*=utf-8''na%C3%AF;\n filename*1=ve.pdf", "naïve.pdf"),
        (b'Content-Disposition: attachment; filename="=?utf-8?B?4oKsIHJhdGVzLnBkZg==?="', "€ rates.pdf"),
        (b'Content-Disposition: attachment; filename="=?iso-8859-1?Q?caf=E9.pdf?="', "café.pdf"),
        (b'Content-Type: application/pdf; name="old.pdf"', "old.pdf"),
        (b'Content-Type: text/plain; name="notes.txt"\nContent-Disposition: inline', "notes.txt"),
        (b"Content-Disposition: attachment; filename*=utf-8''a%E2%80%AEfdp.exe", "a\u202efdp.exe"),
        (b"Content-Disposition: attachment; filename*=klingon''%FF.pdf", "\ufffd.pdf"),
        (b"Content-Disposition: attachment", None),
        (b'Content-Disposition: attachment; filename=""', None),
        (b"Content-Disposition: attachment; filename*0*=", None),
    ],
)
def test_names_of_attachments_are_decoded(head: bytes, name: str | None) -> None:
    raw = b"Content-Type: multipart/mixed; boundary=b\n\n--b\n\nhello\n--b\n" + head
    event = event_of(raw + b"\nContent-Transfer-Encoding: base64\n\nYWJj\n--b--\n")
    (found,) = event["attachments"]
    assert (found["name"], found["size"]) == (name, 3)
    assert event["body"].startswith("hello")
    assert encoded(event)


def test_a_letter_in_a_letter_is_an_attachment_too() -> None:
    inner = b"Subject: inner\n\ninner text"
    raw = b"Content-Type: multipart/mixed; boundary=b\n\n--b\n\nouter\n--b\nContent-Type: message/rfc822\n\n"
    event = event_of(raw + inner + b"\n--b--\n")
    assert [one["media_type"] for one in event["attachments"]] == ["message/rfc822"]
    assert event["attachments"][0]["size"] >= len(inner)


def test_attachments_have_bounds() -> None:
    part = b"--b\nContent-Disposition: attachment; filename=" + b"n" * 5_000 + b"\n\nx\n"
    event = event_of(b"Content-Type: multipart/mixed; boundary=b\n\n" + part * 400 + b"--b--\n")
    assert len(event["attachments"]) == 99
    assert max(len(one["name"]) for one in event["attachments"]) == 300


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (b"Content-Type: text/plain; charset=klingon\n\nna\xc3\xafve", "naïve"),
        (b"Content-Type: text/plain; charset=utf-8\n\ncaf\xe9", "café"),
        (b"Content-Type: text/plain; charset=iso-8859-1\n\nna\xc3\xafve", "naïve"),
        (b"Content-Type: text/plain; charset=iso-8859-1\n\ncaf\xe9", "café"),
        (b"Content-Transfer-Encoding: base64\n\n!!!not base64", "!!!not base64"),
        (b"Content-Type: multipart/mixed\n\nno boundary at all", "no boundary at all"),
        (b"Content-Type: multipart/mixed; boundary=b\n\n--b\n\nnever closed", "never closed"),
        (b"no header, no blank line", ""),
        (b"", ""),
        (b"Subject: only a head\n\n", ""),
    ],
)
def test_broken_mails_give_what_can_be_read(raw: bytes, body: str) -> None:
    assert body in event_of(raw)["body"]


def test_a_mail_too_deep_for_the_parser_keeps_its_head_and_text() -> None:
    deep = b"".join(b'Content-Type: multipart/mixed; boundary="b%d"\n\n--b%d\n' % (n, n) for n in range(3000))
    event = event_of(b"Subject: deep\n" + deep + b"\nbottom")
    assert event["subject"] == "deep"


def test_texts_and_headers_have_bounds() -> None:
    many = b"".join(b"X-%d: %s\n" % (n, b"v" * 5000) for n in range(500))
    event = event_of(many + b"Subject: " + b"s" * 9000 + b"\n\n" + b"b" * 90_000, max_text_chars=1000)
    assert event["body"] == "b" * 1000
    assert len(event["headers"]) <= 200
    assert max(map(len, event["headers"].values())) == 2000


DATES = st.sampled_from(
    [b"Date: yesterday\n", b"Date: Mon, 99 Foo 99999 99:99:99 +9999\n", b"Received: ;\n", b""]
)
HEADS = st.sampled_from(
    [
        b"Content-Type: text/plain; charset=",
        b"Content-Type: multipart/alternative; boundary=",
        b"Content-Type: message/rfc822\n",
        b"Content-Transfer-Encoding: ",
        b"Content-Disposition: ",
        b"From: ",
        b"To: ",
        b"Subject: =?utf-8?b?",
        b"Subject: =?x-unknown?q?",
    ]
)
JUNK = st.binary(max_size=60)
LINE = st.builds(lambda head, junk: head + junk + b"\n", HEADS, JUNK)
MAIL = st.builds(
    lambda date, lines, body: date + b"".join(lines) + b"\n" + b"\n".join(body),
    DATES,
    st.lists(LINE),
    st.lists(JUNK),
)
EMAIL = load_schema("email")


def encoded(event: dict[str, Any]) -> bytes:
    """The event on a topic; fails where it does not fit the schema or does not come back as it was."""
    [value] = Encoder(EMAIL).encode_many([event])
    assert isinstance(value, bytes), value
    assert Decoder(EMAIL).decode_many([value]) == [event]
    return value


@settings(max_examples=400, deadline=None)
@given(
    st.one_of(MAIL, st.binary(max_size=2000), st.builds(lambda a, b: PLAIN[: len(a)] + b + PLAIN, JUNK, JUNK))
)
def test_no_bytes_raise_and_every_event_fits_the_schema(raw: bytes) -> None:
    event = event_of(raw)
    assert encoded(event)
    assert event == event_of(raw)


def test_mbox_and_maildir_hold_the_same_mails(tmp_path: Path) -> None:
    letters = [PLAIN, PLAIN.replace(b"noon", b"night"), b"\xff\xfe\x00 hardly a mail"]
    box = mailbox.mbox(tmp_path / "box")
    folder = mailbox.Maildir(tmp_path / "folder")
    for letter in letters:
        box.add(letter)
        folder.add(letter)
    box.close()
    of_mbox = [event for event, label in from_mbox(tmp_path / "box") if label is None]
    of_maildir = [event for event, label in from_maildir(tmp_path / "folder") if label is None]
    assert [event["subject"] for event in of_mbox] == ["café at noon", "café at night", ""]
    assert sorted(e["subject"] for e in of_maildir) == sorted(e["subject"] for e in of_mbox)


def test_an_avro_file_of_labelled_letters(tmp_path: Path) -> None:
    schema = {
        "type": "record",
        "name": "Letter",
        "fields": [
            {"name": "id", "type": "string"},
            {"name": "label", "type": "boolean"},
            {"name": "subject", "type": "string"},
            {"name": "body", "type": "string"},
            {"name": "from", "type": ["null", "string"]},
            {"name": "date", "type": ["null", "string"]},
        ],
    }
    rows = [
        {
            "id": "1",
            "label": True,
            "subject": "s",
            "body": "b",
            "from": "f",
            "date": "Mon, 12 Jan 2026 09:00:05 +0000",
        },
        {"id": "2", "label": False, "subject": "", "body": "", "from": None, "date": "2026-01-12"},
        {"id": "3", "label": False, "subject": "", "body": "", "from": None, "date": None},
    ]
    write_container(tmp_path / "letters.avro", Schema.parse(json.dumps(schema)), rows)
    found = list(from_avro(tmp_path / "letters.avro"))
    assert [label for _, label in found] == [True, False, False]
    assert [event["received_at"] for event, _ in found] == [1_768_208_405_000, 1_768_176_000_000, 0]
    assert all(encoded(event) for event, _ in found)


def test_an_avro_file_of_our_own_events(tmp_path: Path) -> None:
    event = event_of(PLAIN)
    write_container(tmp_path / "events.avro", EMAIL, [event])
    assert list(from_avro(tmp_path / "events.avro")) == [(event, None)]


@pytest.mark.parametrize("reader", [from_mbox, from_maildir, from_avro])
def test_what_is_not_there_is_named(reader: Any, tmp_path: Path) -> None:
    with pytest.raises(Fatal, match="nowhere"):
        list(reader(tmp_path / "nowhere"))


def test_the_corpus_comes_mixed_labelled_and_each_mail_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tarball = tmp_path / "corpus.tgz"
    letters = {f"spam-1/{n}": f"Subject: buy {n}\n\n" for n in range(20)}
    letters |= {f"easy-ham-1/{n}": f"Subject: hi {n}\n\n" for n in range(20)} | {
        "hard-ham-1/0": "Subject: hi 0\n\n"
    }
    with tarfile.open(tarball, "w:gz") as archive:
        for name, text in letters.items():
            content = json.dumps({"id": "x", "text": text}).encode()
            for suffix in ("json", "txt"):
                member = tarfile.TarInfo(f"package/data/{name}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(mails, "corpus_tarball", lambda console=None: tarball)
    found = [(event["subject"], label) for event, label in spam_assassin(seed=1)]
    assert sorted(found) == sorted(
        [(f"buy {n}", True) for n in range(20)] + [(f"hi {n}", False) for n in range(20)]
    )
    assert found == [(event["subject"], label) for event, label in spam_assassin(seed=1)]
    assert found != [(event["subject"], label) for event, label in spam_assassin(seed=2)]
    assert len({label for _, label in found[:20]}) == 2


def test_broken_records_are_of_every_kind_and_repeatable() -> None:
    good = b"\xc3\x01" + bytes(range(8)) + b"fields of a record"
    first = list(islice(broken_records(good, seed=7), 60))
    assert first == list(islice(broken_records(good, seed=7), 60))
    assert [kind for kind, _ in first[:6]] == list(KINDS)
    assert all(value != good for _, value in first)


def test_no_broken_record_can_be_decoded() -> None:
    good = encoded(event_of(PLAIN))
    confluent = b"\0\0\0\0\x01" + good[10:]
    for value in (good, confluent):
        broken = list(islice(broken_records(value, seed=3), 300))
        outcomes = Decoder(EMAIL).decode_many([each for _, each in broken])
        assert all(isinstance(outcome, BadRecord) for outcome in outcomes)
