"""What events may name and what not: the shared folder, a bucket of a real S3 server, and one that fails on demand."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from consumer import storage as storage_module
from consumer.errors import BadRecord, Fatal, Retry
from consumer.storage import Storage, s3_options
from consumer.tasks.image import ImageTask
from tests.s3 import S3Server, free_ports


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


def test_a_folder_that_is_away_is_waited_for(folder: Path) -> None:
    storage = Storage(folder)
    uri = (folder / "photo.jpg").as_uri()
    folder.rename(folder.with_name("unplugged"))
    with pytest.raises(Retry, match="is away"):
        storage.read(uri, digest(b"pixels"))
    with pytest.raises(Fatal, match="shared_folder"):
        storage.open()


def test_a_name_that_no_system_takes_costs_only_its_event(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_module, "_PAUSES_S", ())
    (folder / "round").symlink_to(folder / "round")
    assert refused(Storage(folder), f"{folder.as_uri()}/{'x' * 5_000}") == "object_refused"
    assert refused(Storage(folder), f"{folder.as_uri()}/photo.jpg/below") == "missing_object"
    assert refused(Storage(folder), f"{folder.as_uri()}/round") in ("uri_refused", "object_refused")


class Bucket(BaseHTTPRequestHandler):
    """GET /bucket/key of path-style S3, with faults that no real server has on demand; the key decides which."""

    late = 0
    meeting = threading.Barrier(4)

    def do_GET(self) -> None:
        key = self.path.removeprefix("/photos/")
        answers = {"broken": 500, "busy": 503, "no-such-object": 404, "late": 200}
        status = answers.get(key, 404)
        if key == "late" and Bucket.late > 0:
            Bucket.late -= 1
            status = 404
        if key.startswith("together"):
            Bucket.meeting.wait(10)  # nobody is served alone
            status = 200
        body = b"pixels" if status == 200 else b"<Error><Code>Whatever</Code></Error>"
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
    endpoint = f"http://127.0.0.1:{server.server_port}"
    yield Storage(bucket="photos", s3=known(endpoint), max_bytes=100)
    server.shutdown()
    thread.join()
    server.server_close()


def known(endpoint: str, **other: Any) -> dict[str, Any]:
    options = s3_options("photos", endpoint, "us-east-1", True, "me", "secret")
    return {**options, "retry_config": {"max_retries": 0}, **other}


def test_an_object_that_comes_late_is_waited_for(bucket: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "_PAUSES_S", (0.01, 0.01))
    monkeypatch.setattr(Bucket, "late", 2)
    assert bucket.read("s3://photos/late", digest(b"pixels")) == b"pixels"
    monkeypatch.setattr(Bucket, "late", 3)
    assert refused(bucket, "s3://photos/late", digest(b"pixels")) == "missing_object"


def test_one_unreadable_object_does_not_hold_the_others_up(
    bucket: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The storage gives others: so it is not away."""
    monkeypatch.setattr(storage_module, "_PAUSES_S", (0.01,))
    assert refused(bucket, "s3://photos/broken") == "object_unreadable"
    assert refused(bucket, "s3://photos/../other/key") == "uri_refused"


def test_a_storage_that_is_busy_or_away_is_waited_for(bucket: Storage) -> None:
    with pytest.raises(Retry, match="busy"):
        bucket.read("s3://photos/busy", digest(b"pixels"))
    (port,) = free_ports(1)
    away = Storage(bucket="photos", s3=known(f"http://127.0.0.1:{port}"))
    with pytest.raises(Retry, match="does not answer"):
        away.read("s3://photos/any", digest(b"pixels"))
    with pytest.raises(Retry, match=f"bucket photos at http://127.0.0.1:{port}"):
        away.open()


def test_uploads_are_fetched_side_by_side_before_they_are_decoded(bucket: Storage) -> None:
    """A bucket that serves four at a time or none."""
    task = ImageTask()
    task._storage = bucket
    event = {**ImageTask.example, "data": None, "sha256": digest(b"pixels")}
    events = [{**event, "uri": f"s3://photos/together-{number}"} for number in range(8)]
    made = task.prepare(events, [None] * len(events))
    assert [getattr(one, "reason", None) for one in made] == ["media_type_mismatch"] * 8  # they came, all


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3Server(tmp_path_factory.mktemp("s3")) as running:
        running.put("photos", "a photo.jpg", b"pixels")
        yield running


def test_a_real_server_gives_what_the_digest_says(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "_PAUSES_S", (0.01,))
    storage = Storage(bucket="photos", s3=server.options())
    storage.open()
    assert storage.read("s3://photos/a%20photo.jpg", digest(b"pixels")) == b"pixels"
    assert refused(storage, "s3://photos/a%20photo.jpg", digest(b"other")) == "digest_mismatch"
    assert refused(storage, "s3://photos/none") == "missing_object"
    assert refused(storage, "s3://warm-up/x") == "uri_refused"
    # keys that look like what a server says, or that signatures stumble over
    for key in (
        "<Code>NoSuchBucket</Code>",
        "non-2xx status code: 503",
        "%3CCode%3EExpiredToken",
        "a//b",
        "%01",
        "+ +",
    ):
        assert refused(storage, f"s3://photos/{key}") in (
            "missing_object",
            "uri_refused",
            "object_refused",
        ), key
    large = Storage(bucket="photos", s3=server.options(), max_bytes=5)
    assert refused(large, "s3://photos/a%20photo.jpg", digest(b"pixels")) == "media_too_large"


@pytest.mark.parametrize(
    ("bucket_name", "wrong", "code"),
    [
        ("photos", {"secret_access_key": "guess"}, "SignatureDoesNotMatch"),
        ("photos", {"access_key_id": "nobody"}, "InvalidAccessKeyId"),
        ("nowhere", {}, "NoSuchBucket"),
    ],
)
def test_a_worker_that_is_refused_says_so_and_spends_no_event(
    server: S3Server, bucket_name: str, wrong: dict[str, str], code: str
) -> None:
    storage = Storage(bucket=bucket_name, s3=server.options(**wrong))
    with pytest.raises(Fatal, match=f"bucket {bucket_name} at {server.endpoint} refuses this worker.*{code}"):
        storage.open()
    with pytest.raises(Fatal, match=code):
        storage.read(f"s3://{bucket_name}/a%20photo.jpg", digest(b"pixels"))


def test_the_endpoint_may_come_from_the_environment(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    storage = Storage(bucket="photos")
    assert storage.read("s3://photos/a%20photo.jpg", digest(b"pixels")) == b"pixels"


def test_options_say_where_the_bucket_is() -> None:
    with_host = s3_options("photos", "https://s3.example.org", None, False, None, None)
    assert with_host == {"endpoint": "https://photos.s3.example.org", "virtual_hosted_style_request": True}
    with pytest.raises(Fatal, match="s3_endpoint"):
        ImageTask(bucket="photos", s3_endpoint="example.org")
    with pytest.raises(Fatal, match="belong together"):
        ImageTask(bucket="photos", s3_key_id="me")
