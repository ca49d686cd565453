"""`consumer show`: the picture of a result from what stands in Kafka, and clear words where it cannot be had."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from PIL import Image

from consumer.codec import Encoder, load_schema
from consumer.config import Settings
from consumer.errors import Fatal
from consumer.local.show import depict
from consumer.local.uploads import photo, video
from consumer.tasks.image import ImageTask
from tests.s3 import S3Server

OBJECT = {"label": "person", "score": 0.8, "left": 0.1, "top": 0.1, "width": 0.5, "height": 0.8}


@pytest.fixture
def kafka(bootstrap_servers: str, topic_factory: Callable[..., str]) -> Desk:
    return Desk(bootstrap_servers, topic_factory("uploads", 2), topic_factory("detections", 2))


class Desk:
    """Two topics, and what is written there."""

    def __init__(self, servers: str, uploads: str, detections: str) -> None:
        self.servers, self.uploads, self.detections = servers, uploads, detections
        self.settings = Settings(bootstrap_servers=servers, task="image", output_topic=detections).for_task(
            ImageTask
        )

    def put(self, topic: str, schema: str, event: dict[str, Any]) -> int:
        (value,) = Encoder(load_schema(schema)).encode_many([event])
        assert isinstance(value, bytes), value
        offsets: list[int] = []
        producer = Producer({"bootstrap.servers": self.servers})
        producer.produce(
            topic, value, partition=1, on_delivery=lambda _, message: offsets.append(message.offset() or 0)
        )
        assert producer.flush(30) == 0
        return offsets[0]

    def upload(self, name: str, **more: Any) -> int:
        event = {
            "id": name,
            "user": "u1",
            "media_type": "image/png",
            "data": None,
            "uri": None,
            "sha256": None,
        }
        return self.put(self.uploads, "upload", {**event, "time": 0, **more})

    def detection(self, name: str, offset: int, **more: Any) -> None:
        origin = {"source_topic": self.uploads, "source_partition": 1, "source_offset": offset}
        said = {"kind": "image", "width": 512, "height": 512, "duration_ms": None, "objects": [OBJECT]}
        own: dict[str, Any] = {
            "timeline": [],
            "seen": [],
            "unsafe": None,
            "model": "image",
            "model_version": "1",
        }
        row = {"event_id": name, "user": "u1", "time": 0, "produced_at": 0}
        self.put(self.detections, "detection", {**row, **origin, **said, **own, **more})


def png(name: str = "astronaut.png") -> bytes:
    file = BytesIO()
    photo(name).save(file, "PNG")
    return file.getvalue()


def test_a_photo_as_its_user_asks_for_it(kafka: Desk, tmp_path: Path) -> None:
    for name in ("other", "wanted"):
        kafka.detection(name, kafka.upload(name, data=png()))
    out = tmp_path / "out.png"
    flags = [f"--bootstrap-servers={kafka.servers}", f"--output-topic={kafka.detections}", "-o", str(out)]
    command = [sys.executable, "-m", "consumer", "show", "image", "wanted", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert str(out) in done.stderr
    with Image.open(out) as made:
        assert made.format == "PNG" and made.size == (512, 512)


def test_a_video_as_a_sheet_of_the_frames_that_were_looked_at(kafka: Desk, tmp_path: Path) -> None:
    offset = kafka.upload("film", media_type="video/mp4", data=video(photo("coffee.png"), seconds=3))
    timeline = [{"time_ms": 1_000 * n, "objects": [OBJECT] if n else []} for n in range(3)]
    kafka.detection("film", offset, kind="video", width=320, height=320, objects=[], timeline=timeline)
    out = tmp_path / "film.jpg"
    depict(kafka.settings, "film", out)
    with Image.open(out) as made:
        assert made.format == "JPEG" and made.width > 3 * 320


def test_a_file_in_a_shared_folder(kafka: Desk, tmp_path: Path) -> None:
    file = tmp_path / "photo.png"
    file.write_bytes(png())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    kafka.detection("far", kafka.upload("far", uri=file.as_uri(), sha256=digest))
    with pytest.raises(Fatal, match="option shared_folder"):
        depict(kafka.settings, "far", tmp_path / "out.png")
    settings = kafka.settings.model_copy(update={"task_options": {"shared_folder": str(tmp_path)}})
    depict(settings, "far", tmp_path / "out.png")
    file.unlink()
    with pytest.raises(Fatal, match=r"upload far cannot be shown: .*there is nothing at"):
        depict(settings, "far", tmp_path / "out.png")


def test_a_file_on_s3(kafka: Desk, tmp_path: Path) -> None:
    """By the options that the task itself takes."""
    data = png()
    with S3Server(tmp_path / "s3") as server:
        server.put("photos", "a.png", data)
        digest = hashlib.sha256(data).hexdigest()
        kafka.detection("there", kafka.upload("there", uri="s3://photos/a.png", sha256=digest))
        told = server.options()
        options = {
            "bucket": "photos",
            "s3_endpoint": told["endpoint"],
            "s3_region": told["region"],
            "s3_key_id": server.key_id,
            "s3_secret": server.secret,
        }
        depict(kafka.settings.model_copy(update={"task_options": options}), "there", tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as made:
        assert made.size == (512, 512)


def test_what_cannot_be_shown_is_said(kafka: Desk, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    offset = kafka.upload("there", data=png())
    kafka.detection("gone", offset)
    kafka.detection("old", offset - 1 if offset else 99)
    kafka.detection("broken", kafka.upload("broken", data=png()[:5_000]))
    for name, words in {
        "nobody": f"topic {kafka.detections} has no result of an event 'nobody' .3 looked at.*image_dead_letters",
        "gone": "the upload is gone .*there is 'there' now",
        "old": "the upload is gone .*retention has deleted it",
        "broken": "upload broken cannot be shown: .*truncated",
    }.items():
        with pytest.raises(Fatal, match=words):
            depict(kafka.settings, name, out)
    with pytest.raises(Fatal, match=r"must end in \.png, \.jpg"):
        depict(kafka.settings, "there", tmp_path / "out.bmp")
    with pytest.raises(Fatal, match="there is no folder"):
        depict(kafka.settings, "there", tmp_path / "no" / "out.png")
    with pytest.raises(Fatal, match="topic 'nowhere' does not exist"):
        depict(kafka.settings.model_copy(update={"output_topic": "nowhere"}), "there", out)
    assert not out.exists()


def test_what_retention_deleted(kafka: Desk, admin: AdminClient, tmp_path: Path) -> None:
    offset = kafka.upload("first", data=png())
    kafka.detection("first", offset)
    kafka.upload("second", data=png())
    place = TopicPartition(kafka.uploads, 1, offset + 1)
    admin.delete_records([place])[TopicPartition(kafka.uploads, 1)].result(30)
    with pytest.raises(
        Fatal, match=f"retention has deleted it, the oldest record there has offset {offset + 1}"
    ):
        depict(kafka.settings, "first", tmp_path / "out.png")


def test_only_pictures_are_shown(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "consumer", "show", "spam", "x", "-o", str(tmp_path / "out.png")]
    done = subprocess.run(
        [*command, "--bootstrap-servers=localhost:1"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "results of task spam are no pictures" in " ".join(done.stderr.split())
