"""Three pages over HTTP for whoever watches the worker: /metrics, /healthz (alive?), /readyz (working?)."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn

from consumer.errors import Fatal

__all__ = ["Health", "HealthServer"]

log = logging.getLogger(__name__)
CLOSE_CHECK_S = 0.1


@dataclass(frozen=True, slots=True)
class Health:
    """How the worker is doing.  `stepped_ns` is `time.monotonic_ns()` of the loop's last step."""

    stepped_ns: int
    model_loaded: bool = False
    group_joined: bool = False
    stopping: bool = False

    def alive(self, now_ns: int, stale_after_s: float) -> tuple[bool, str]:
        """Whether the loop still steps, and one line that says so."""
        age_s = (now_ns - self.stepped_ns) / 1e9
        if age_s <= stale_after_s:
            return True, "alive"
        return False, f"the loop has not stepped for {age_s:.0f} s (limit {stale_after_s:g} s)"

    def ready(self) -> tuple[bool, str]:
        """Whether records are being worked on, and if not, what is missing."""
        if self.stopping:
            return False, "stopping"
        if not self.model_loaded:
            return False, "the model is not loaded yet"
        if not self.group_joined:
            return False, "the group is not joined yet"
        return True, "ready"


class HealthServer:
    """Serves on `port` (0: a free one, see `port`) in daemon threads until `close`."""

    def __init__(
        self,
        port: int,
        health: Callable[[], Health],
        metrics: Callable[[str], tuple[bytes, str]],
        *,
        host: str = "",
        stale_after_s: float = 60.0,
    ) -> None:
        """`metrics` gets the Accept header and gives body and content type.  Raises Fatal if the port is taken."""

        class Pages(_Pages):
            def answer(self, path: str) -> tuple[int, bytes, str] | None:
                if path == "/metrics":
                    return (200, *metrics(self.headers.get("Accept", "")))
                if path == "/healthz":
                    return _line(*health().alive(time.monotonic_ns(), stale_after_s))
                if path == "/readyz":
                    return _line(*health().ready())
                return None

        try:
            self._server = _Server((host, port), Pages)
        except OSError as error:
            raise Fatal(
                f"port {port} for /metrics and /healthz cannot be opened ({error.strerror}): stop what"
                " uses it, or choose another with --metrics-port (0 takes a free one)"
            ) from error
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(CLOSE_CHECK_S,), name="health", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingMixIn, TCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True


class _Pages(BaseHTTPRequestHandler):
    timeout = 5  # a client that opens a connection and says nothing must not keep a thread
    server_version = "consumer"
    sys_version = ""

    def answer(self, path: str) -> tuple[int, bytes, str] | None:
        """Status, body and content type of `path`; None: there is no such page."""
        raise NotImplementedError

    def do_GET(self) -> None:
        try:
            found = self.answer(self.path.partition("?")[0])
        except Exception:
            log.exception("page %s failed", self.path[:100])
            found = _line(False, "this page failed; the log says why", status=500)
        status, body, content_type = found or _line(False, "try /metrics, /healthz or /readyz", status=404)
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        log.debug(format, *args)


def _line(good: bool, text: str, *, status: int = 503) -> tuple[int, bytes, str]:
    return (200 if good else status), f"{text}\n".encode(), "text/plain; charset=utf-8"
