"""The registry door against a small HTTP server that speaks Confluent's REST API."""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from consumer.codec import Decoder, Encoder, Schema
from consumer.errors import BadRecord, Fatal, Retry
from consumer.registry import Registry

CLICK = Schema.parse((Path(__file__).parent / "released_schemas" / "click.1.avsc").read_text())
ROW = {"id": "c-1", "user": "u", "product": "p", "kind": "view", "time": 1}


@dataclass
class Shelf:
    """What the server knows, and how it behaves."""

    url: str = ""
    schemas: dict[int, dict[str, Any]] = field(default_factory=dict)
    versions: dict[tuple[str, int], int] = field(default_factory=dict)
    status: int = 200
    code: int = 0
    body: bytes = b""
    authorization: str | None = None
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    silent: threading.Event | None = None


def _answer(shelf: Shelf, path: list[str], body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    match path:
        case ["schemas", "ids", number] if int(number) in shelf.schemas:
            return 200, shelf.schemas[int(number)]
        case ["subjects", subject, "versions", number] if (subject, int(number)) in shelf.versions:
            known = shelf.versions[subject, int(number)]
            return 200, {"subject": subject, "version": int(number), "id": known, **shelf.schemas[known]}
        case ["subjects", subject, "versions"]:
            new = max(shelf.schemas, default=0) + 1
            shelf.schemas[new] = body
            shelf.versions[subject, 1] = new
            return 200, {"id": new}
    return 404, {"error_code": 40403, "message": "Schema not found"}


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    known = Shelf()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply({})

        def do_POST(self) -> None:
            self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def reply(self, body: dict[str, Any]) -> None:
            path = self.path.split("?")[0]
            known.requests.append((f"{self.command} {path}", self.headers.get("Authorization")))
            if known.silent:
                known.silent.wait(30)
            if known.authorization not in (None, self.headers.get("Authorization")):
                status, answer = 401, {"error_code": 40101, "message": "Unauthorized"}
            elif known.status != 200:
                status, answer = known.status, {"error_code": known.code, "message": "no"}
            else:
                status, answer = _answer(known, path.strip("/").split("/"), body)
            data = known.body or json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    known.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield known
    finally:
        if known.silent:
            known.silent.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def registry(shelf: Shelf) -> Iterator[Registry]:
    known = Registry(shelf.url, timeout_ms=5_000)
    yield known
    known.close()


def test_register_encode_look_up_decode(shelf: Shelf, registry: Registry) -> None:
    schema_id = registry.register("clicks-value", CLICK.text)
    values = Encoder(CLICK, schema_id=schema_id).encode_many([ROW] * 3)
    assert values[0][:5] == b"\0" + schema_id.to_bytes(4, "big")  # type: ignore[index]
    reader = Registry(shelf.url)
    assert Decoder(CLICK, registry=reader).decode_many(values) == [ROW] * 3  # type: ignore[arg-type]
    reader.close()
    assert [r for r, _ in shelf.requests] == ["POST /subjects/clicks-value/versions", "GET /schemas/ids/1"]
    assert json.loads(shelf.schemas[1]["schema"]) == json.loads(CLICK.text)


def test_an_unknown_id_is_a_bad_record_an_absent_registry_is_not(shelf: Shelf, registry: Registry) -> None:
    decoder = Decoder(CLICK, registry=registry)
    value = b"\0\0\0\0\x09"
    shelf.status, shelf.code = 503, 50301
    with pytest.raises(Retry, match="503"):
        decoder.decode_many([value])
    shelf.status = 200
    (event,) = decoder.decode_many([value])
    assert isinstance(event, BadRecord)
    assert event.reason == "unknown_schema_id"
    assert "schema id 9" in event.detail and shelf.url in event.detail


def test_references_come_before_what_refers_to_them(shelf: Shelf, registry: Registry) -> None:
    shelf.schemas = {
        1: {"schema": '{"type": "enum", "name": "n.Kind", "symbols": ["a"]}'},
        2: {
            "schema": '{"type": "record", "name": "n.Inner", "fields": [{"name": "k", "type": "n.Kind"}]}',
            "references": [{"name": "n.Kind", "subject": "kind", "version": 1}],
        },
        3: {
            "schema": '{"type": "record", "name": "Click", "fields": [{"name": "i", "type": "n.Inner"},'
            '{"name": "k", "type": "n.Kind"}]}',
            "references": [
                {"name": "n.Inner", "subject": "inner", "version": 4},
                {"name": "n.Kind", "subject": "kind", "version": 1},
            ],
        },
    }
    shelf.versions = {("kind", 1): 1, ("inner", 4): 2}
    texts = registry.definitions(3)
    assert texts == [shelf.schemas[number]["schema"] for number in (1, 2, 3)]


def test_endless_references_end(shelf: Shelf, registry: Registry) -> None:
    for number in range(1, 200):
        following = [{"name": f"n.R{number}", "subject": f"s{number + 1}", "version": 1}]
        shelf.schemas[number] = {"schema": "{}", "references": following}
        shelf.versions[f"s{number}", 1] = number
    with pytest.raises(BadRecord, match="refers to more than 64 others") as caught:
        registry.definitions(1)
    assert caught.value.reason == "bad_schema"
    assert len(shelf.requests) < 100


def test_a_schema_that_is_not_avro(shelf: Shelf, registry: Registry) -> None:
    shelf.schemas[1] = {"schema": "syntax = 'proto3';", "schemaType": "PROTOBUF"}
    with pytest.raises(BadRecord, match="PROTOBUF") as caught:
        registry.definitions(1)
    assert caught.value.reason == "incompatible_schema"


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_answers_that_pass(shelf: Shelf, registry: Registry, status: int) -> None:
    shelf.status = status
    with pytest.raises(Retry, match=str(status)):
        registry.definitions(1)
    assert len(shelf.requests) == 1, "the worker decides when to ask again"


@pytest.mark.parametrize(
    ("status", "code", "remedy"),
    [
        (401, 40101, "user and password"),
        (403, 40301, "read access"),
        (404, 404, "URL"),
        (409, 409, "not compatible"),
        (422, 42201, "invalid"),
        (400, 400, "URL and version"),
    ],
)
def test_answers_that_need_a_person(
    shelf: Shelf, registry: Registry, status: int, code: int, remedy: str
) -> None:
    shelf.status, shelf.code = status, code
    with pytest.raises(Fatal, match=remedy) as caught:
        registry.register("clicks-value", CLICK.text)
    assert str(status) in str(caught.value) and shelf.url in str(caught.value)


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        registry = Registry(f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(Retry, match="did not answer for schema id 1"):
            registry.definitions(1)
        registry.close()


def test_no_answer_in_time(shelf: Shelf) -> None:
    shelf.silent = threading.Event()
    registry = Registry(shelf.url, timeout_ms=200)
    with pytest.raises(Retry, match="did not answer"):
        registry.definitions(1)
    registry.close()


def test_an_answer_that_is_no_json(shelf: Shelf, registry: Registry) -> None:
    shelf.schemas[1] = {"schema": CLICK.text}
    shelf.body = b"<html>please log in</html>"
    with pytest.raises(Retry, match="did not answer"):
        registry.definitions(1)


@pytest.mark.parametrize(
    ("options", "header"),
    [
        (
            {"user": "reader", "password": "geh:eim"},
            "Basic " + base64.b64encode(b"reader:geh:eim").decode(),
        ),
        ({"token": "t0ken"}, "Bearer t0ken"),
    ],
)
def test_credentials(shelf: Shelf, options: dict[str, str], header: str) -> None:
    shelf.schemas[1] = {"schema": CLICK.text}
    shelf.authorization = header
    registry = Registry(shelf.url, **options)  # type: ignore[arg-type]
    assert registry.definitions(1) == [CLICK.text]
    registry.close()
    stranger = Registry(shelf.url)
    with pytest.raises(Fatal, match="401"):
        stranger.definitions(1)
    stranger.close()


@pytest.mark.parametrize("url", ["registry:8081", "ftp://registry"])
def test_settings_that_cannot_work(url: str) -> None:
    with pytest.raises(Fatal, match="cannot work"):
        Registry(url)


def test_a_missing_ca_file_is_fatal() -> None:
    with pytest.raises(Fatal, match="cannot work"):
        Registry("https://registry", ca_file="/nowhere/ca.pem")
