"""The pages for probes and Prometheus, over real HTTP."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest

from consumer.errors import Fatal
from consumer.ops.health import Health, HealthServer


class Worker:
    """Something to watch."""

    def __init__(self) -> None:
        self.health = Health(time.monotonic_ns(), model_loaded=True, group_joined=True)
        self.accepted = ""

    def metrics(self, accept: str) -> tuple[bytes, str]:
        self.accepted = accept
        return b"consumer_lag 3.0\n", "text/plain; version=1.0.0; charset=utf-8"


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
def server(worker: Worker) -> Iterator[HealthServer]:
    running = HealthServer(0, lambda: worker.health, worker.metrics, host="127.0.0.1", stale_after_s=30.0)
    yield running
    running.close()


@pytest.fixture
def web(server: HealthServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", trust_env=False) as client:
        yield client


def test_port_zero_takes_a_free_one_and_says_which(server: HealthServer) -> None:
    assert 0 < server.port < 65536


def test_metrics_are_served_as_the_scraper_wants_them(web: httpx.Client, worker: Worker) -> None:
    answer = web.get("/metrics?name=x", headers={"Accept": "application/openmetrics-text"})
    assert answer.status_code == 200 and answer.text == "consumer_lag 3.0\n"
    assert answer.headers["content-type"] == "text/plain; version=1.0.0; charset=utf-8"
    assert worker.accepted == "application/openmetrics-text"


def test_alive_while_the_loop_steps(web: httpx.Client, worker: Worker) -> None:
    assert web.get("/healthz").status_code == 200
    worker.health = replace(worker.health, stepped_ns=time.monotonic_ns() - 45 * 10**9)
    answer = web.get("/healthz")
    assert answer.status_code == 503
    assert answer.text == "the loop has not stepped for 45 s (limit 30 s)\n"


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({}, 200, "ready"),
        ({"model_loaded": False, "group_joined": False}, 503, "the model is not loaded yet"),
        ({"group_joined": False}, 503, "the group is not joined yet"),
        ({"stopping": True}, 503, "stopping"),
    ],
)
def test_ready_says_what_is_missing(
    web: httpx.Client, worker: Worker, change: dict[str, bool], status: int, says: str
) -> None:
    worker.health = replace(worker.health, **change)
    answer = web.get("/readyz")
    assert (answer.status_code, answer.text) == (status, f"{says}\n")


def test_other_pages_and_methods(web: httpx.Client) -> None:
    assert web.get("/").status_code == 404
    assert web.get("/metrics/../secret").status_code == 404
    assert web.post("/metrics").status_code == 501
    head = web.head("/healthz")
    assert (head.status_code, head.text) == (200, "")


def test_a_page_that_fails_is_told_in_the_log_and_the_next_one_works(
    web: httpx.Client, worker: Worker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker, "health", None)
    answer = web.get("/readyz")
    assert answer.status_code == 500 and "AttributeError" not in answer.text
    assert "page /readyz failed" in caplog.text
    assert web.get("/metrics").status_code == 200


def test_a_silent_client_does_not_block_the_probes(server: HealthServer, web: httpx.Client) -> None:
    with socket.create_connection(("127.0.0.1", server.port)):
        assert web.get("/healthz").status_code == 200


def test_a_taken_port_ends_with_a_remedy(server: HealthServer, worker: Worker) -> None:
    with pytest.raises(Fatal, match=rf"port {server.port} .* --metrics-port \(0 takes a free one\)"):
        HealthServer(server.port, lambda: worker.health, worker.metrics, host="127.0.0.1")


def test_close_frees_the_port(worker: Worker) -> None:
    first = HealthServer(0, lambda: worker.health, worker.metrics, host="127.0.0.1")
    first.close()
    again = HealthServer(first.port, lambda: worker.health, worker.metrics, host="127.0.0.1")
    again.close()
    assert again.port == first.port
