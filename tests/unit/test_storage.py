"""What events may name and what not: the shared folder, and a bucket behind a server that speaks S3's GET."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from consumer import storage as storage_module
from consumer.errors import BadRecord, Retry
from consumer.storage import Storage


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "shared"
    made.mkdir()
    (made / "photo.jpg").write_bytes(b"pixels")
    (tmp_path / "secret").write_bytes(b"secret")
    (made / "link").symlink_to(tmp_path / "secret")
    (made / "inside").symlink_to(made / "photo.jpg")
    os.mkfifo(made / "pipe")
    return made


def refused(storage: Storage, uri: str, sha256: str = digest(b"secret")) -> str:
    with pytest.raises(BadRecord) as caught:
        storage.read(uri, sha256)
    return caught.value.reason


def test_a_file_in_the_folder_is_read(folder: Path) -> None:
    storage = Storage(folder)
    assert storage.read((folder / "photo.jpg").as_uri(), digest(b"pixels")) == b"pixels"
    assert storage.read((folder / "inside").as_uri(), digest(b"pixels").upper()) == b"pixels"


@pytest.mark.parametrize(
    "uri",
    ["{0}/../secret", "{0}/link", "{0}/%2e%2e/secret", "{0}", "{0}/pipe", "{0}/photo.jpg%00", "{0}secret"],
)
def test_nothing_but_files_in_the_folder_is_read(folder: Path, uri: str) -> None:
    assert refused(Storage(folder), uri.format(folder.as_uri())) == "uri_refused"


@pytest.mark.parametrize(
    "uri", ["http://localhost/x", "s3://", "s3://bucket", "s3://other/key", "photo.jpg", "", "//[x"]
)
def test_other_places_are_refused(folder: Path, uri: str) -> None:
    assert refused(Storage(folder, bucket="bucket"), uri) == "uri_refused"
    assert refused(Storage(), (folder / "photo.jpg").as_uri()) == "uri_refused"


def test_the_digest_decides(folder: Path) -> None:
    uri = (folder / "photo.jpg").as_uri()
    assert refused(Storage(folder), uri, digest(b"other")) == "digest_mismatch"
    assert refused(Storage(folder), uri, "") == "no_digest"
    assert refused(Storage(folder, max_bytes=5), uri, digest(b"pixels")) == "media_too_large"


def test_a_missing_file_is_looked_for_again_before_it_is_given_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_module, "_PAUSES_S", (0.01, 0.01))
    assert refused(Storage(folder), (folder / "late").as_uri()) == "missing_object"
    monkeypatch.setattr(storage_module, "_PAUSES_S", (0.01,) * 2_000)
    writer = threading.Timer(0.05, lambda: (folder / "new").rename(folder / "late"))
    (folder / "new").write_bytes(b"late")
    writer.start()
    assert Storage(folder).read((folder / "late").as_uri(), digest(b"late")) == b"late"
    writer.join()


class Bucket(BaseHTTPRequestHandler):
    """GET /bucket/key of path-style S3; what a key is called decides the answer."""

    late = 0

    def do_GET(self) -> None:
        key = self.path.removeprefix("/photos/")
        status = {"forbidden": 403, "broken": 500}.get(key, 200 if key in ("a%20photo.jpg", "late") else 404)
        if key == "late" and Bucket.late > 0:
            Bucket.late -= 1
            status = 404
        body = b"pixels" if status == 200 else b"<Error><Code>NoSuchKey</Code></Error>"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Tue, 21 Oct 2025 07:28:00 GMT")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def bucket() -> Iterator[Storage]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield Storage(
        bucket="photos",
        s3={
            "endpoint": f"http://127.0.0.1:{server.server_port}",
            "region": "us-east-1",
            "access_key_id": "me",
            "secret_access_key": "secret",
            "client_options": {"allow_http": True},
            "retry_config": {"max_retries": 0},
        },
        max_bytes=100,
    )
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_object_is_read(bucket: Storage) -> None:
    assert bucket.read("s3://photos/a%20photo.jpg", digest(b"pixels")) == b"pixels"
    assert refused(bucket, "s3://photos/a%20photo.jpg", digest(b"other")) == "digest_mismatch"


def test_a_missing_object_is_looked_for_again_before_it_is_given_up(
    bucket: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_module, "_PAUSES_S", (0.01, 0.01))
    assert refused(bucket, "s3://photos/none") == "missing_object"
    monkeypatch.setattr(Bucket, "late", 2)
    assert bucket.read("s3://photos/late", digest(b"pixels")) == b"pixels"
    monkeypatch.setattr(Bucket, "late", 3)
    assert refused(bucket, "s3://photos/late", digest(b"pixels")) == "missing_object"


def test_a_refused_object_does_not_hold_the_others_up(bucket: Storage) -> None:
    assert refused(bucket, "s3://photos/forbidden") == "object_refused"
    assert refused(bucket, "s3://photos/../other/key") == "uri_refused"


def test_a_storage_that_is_ill_is_tried_again_later_by_the_worker(bucket: Storage) -> None:
    with pytest.raises(Retry, match="s3://photos/broken"):
        bucket.read("s3://photos/broken", digest(b"pixels"))


def test_too_large_an_object_is_not_downloaded(bucket: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "_max_bytes", 5)
    assert refused(bucket, "s3://photos/a%20photo.jpg", digest(b"pixels")) == "media_too_large"
