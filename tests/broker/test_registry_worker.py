"""A worker beside a schema registry: Confluent frames in and out, and what happens while the registry is away."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fastavro
import pytest

from tests.broker.rig import CLICK, SCORE, SCORING, Rig, avro, header, origin
from tests.waiting import wait_until


class RegistryServer:
    """The part of the registry's REST API that a client needs, over real HTTP."""

    def __init__(self) -> None:
        self.schemas: list[str] = []
        self.subjects: dict[str, int] = {}
        self.away = False
        self.asked: list[str] = []
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self, status: int, body: Any) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:
                path = self.path.split("?")[0]
                registry.asked.append(path)
                if registry.away:
                    self.answer(503, {"error_code": 50301, "message": "not now"})
                elif path.startswith("/schemas/ids/"):
                    number = int(path.rsplit("/", 1)[1])
                    if 1 <= number <= len(registry.schemas):
                        self.answer(200, {"schema": registry.schemas[number - 1]})
                    else:
                        self.answer(404, {"error_code": 40403, "message": "Schema not found"})
                else:
                    self.answer(404, {"error_code": 404, "message": f"no {path}"})

            def do_POST(self) -> None:
                text = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["schema"]
                registry.asked.append(self.path)
                if registry.away:
                    self.answer(503, {"error_code": 50301, "message": "not now"})
                else:
                    self.answer(200, {"id": registry.add(self.path.split("?")[0].split("/")[2], text)})

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def add(self, subject: str, text: str) -> int:
        if text not in self.schemas:
            self.schemas.append(text)
        self.subjects[subject] = self.schemas.index(text) + 1
        return self.subjects[subject]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def registry() -> Iterator[RegistryServer]:
    server = RegistryServer()
    yield server
    server.close()


@pytest.fixture
def rig(bootstrap_servers: str, unique_name: Callable[[str], str], tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(bootstrap_servers, unique_name("registry"), tmp_path)
    rig.create()
    yield rig
    rig.close()


def framed(schema_id: int, schema: dict[str, Any], event: dict[str, Any]) -> bytes:
    return b"\0" + schema_id.to_bytes(4, "big") + avro(schema, event)


def event(name: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "user": "u", "product": "p", "kind": "view", "time": 0, **more}


NEWER = {
    **CLICK,
    "fields": [*CLICK["fields"], {"name": "shade", "type": ["null", "double"], "default": None}],
}


def result_of(value: bytes | None, schema_id: int) -> dict[str, Any]:
    assert value is not None and value[:5] == b"\0" + schema_id.to_bytes(4, "big")
    found = fastavro.schemaless_reader(io.BytesIO(value[5:]), SCORE, None)
    assert isinstance(found, dict)
    return found


def test_confluent_frames_in_and_out(rig: Rig, registry: RegistryServer) -> None:
    registry.add("filler", '"string"')
    old, new = registry.add("a", json.dumps(CLICK)), registry.add("b", json.dumps(NEWER))
    rig.send(
        [
            framed(old, CLICK, event("old")),
            framed(new, NEWER, event("new", shade=1.5)),
            framed(4711, CLICK, event("x")),
            framed(1, CLICK, event("x")),  # a schema that is no record
            framed(new, NEWER, event("new-2")),
        ]
    )
    tail = rig.tail()
    worker = rig.worker(SCORING, "--schema-registry-url", registry.url)
    tail.count(5, alive=worker)
    assert worker.stop() == 0

    ours = registry.subjects[f"{rig.out}-value"]
    registered = json.loads(registry.schemas[ours - 1])
    assert fastavro.schema.to_parsing_canonical_form(registered) == fastavro.schema.to_parsing_canonical_form(
        SCORE
    )
    found = [result_of(m.value(), ours)["event_id"] for m in tail.of(rig.out)]
    assert found == ["old", "new", "new-2"]
    letters = {origin(m)[1]: m for m in tail.of(rig.dead)}
    assert letters.keys() == {2, 3}
    assert header(letters[2], "reason") == "unknown_schema_id"
    assert "4711" in header(letters[2], "error")
    assert letters[2].value() == framed(4711, CLICK, event("x"))
    assert registry.asked.count(f"/schemas/ids/{new}") == 1, "answers are kept"


def test_records_wait_while_the_registry_is_away(rig: Rig, registry: RegistryServer) -> None:
    """An outage is no fault of the records: they keep their place, and nothing is committed past them."""
    known, later = registry.add("a", json.dumps(CLICK)), registry.add("b", json.dumps(NEWER))
    rig.send([framed(known, CLICK, event("a-0"))])
    tail = rig.tail()
    worker = rig.worker(SCORING, "--schema-registry-url", registry.url)
    tail.count(1, alive=worker)

    registry.away = True
    rig.send(
        [
            framed(known, CLICK, event("a-1")),
            framed(later, NEWER, event("b-0")),
            framed(known, CLICK, event("a-2")),
        ]
    )
    asked = len(registry.asked)
    wait_until(lambda: len(registry.asked) >= asked + 2, 20, worker.said)
    worker.wait_said("the records are kept and tried again")
    assert len(tail.read()) == 1
    assert rig.committed() == 1

    registry.away = False
    tail.count(4, alive=worker)
    assert worker.stop() == 0
    ours = registry.subjects[f"{rig.out}-value"]
    assert [result_of(m.value(), ours)["event_id"] for m in tail.of(rig.out)] == ["a-0", "a-1", "b-0", "a-2"]
    assert tail.of(rig.dead) == []


def test_a_worker_that_is_stopped_while_the_registry_is_away_commits_nothing_of_it(
    rig: Rig, registry: RegistryServer
) -> None:
    known = registry.add("a", json.dumps(CLICK))
    worker = rig.worker(SCORING, "--schema-registry-url", registry.url)
    worker.wait_joined()
    registry.away = True
    rig.send([framed(known, CLICK, event("a-0"))])
    worker.wait_said("the records are kept and tried again")
    assert worker.stop() == 0
    assert rig.committed() == 0


def test_no_registry_at_the_start_is_said_with_exit_code_4(rig: Rig, registry: RegistryServer) -> None:
    registry.away = True
    worker = rig.worker(SCORING, "--schema-registry-url", registry.url, "--startup-timeout-ms", "2000")
    assert worker.ended(20) == 4
    assert f"the schema registry at {registry.url} answered 503" in worker.said()
