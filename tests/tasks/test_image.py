"""Task `image`: real photos and videos, hostile ones, and what stands beside them in a batch."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from consumer.codec import Decoder, Encoder, load_schema
from consumer.errors import BadRecord, Fatal
from consumer.local.uploads import PHOTOS, photo, uploads, video
from consumer.models.nanodet import LABELS, PLACES, SIZE
from consumer.records import Event
from consumer.task import Device, Item, State
from consumer.tasks.image import ImageTask
from consumer.train.image import CHANGES, agreement, detect, judged, mend, overlap, train
from tests.tasks.media_files import BROKEN, encoded, moving, still

KNOWN = {"astronaut.png": "person", "camera.png": "person", "chelsea.png": "cat", "horse.png": "horse"}


@pytest.fixture(scope="module")
def task() -> ImageTask:
    torch.set_num_threads(1)
    made = ImageTask()
    made.load(Device("cpu", "fp32"))
    return made


def upload(data: bytes | None, kind: str = "image/jpeg", **fields: Any) -> Event:
    return {**ImageTask.example, "data": data, "media_type": kind, **fields}


def item_of(task: ImageTask, event: Event) -> Item:
    (item,) = task.prepare([event], [None])
    assert isinstance(item, Item), item
    return item


def detections(task: ImageTask, events: list[Event]) -> list[Event]:
    values = [item_of(task, event).value for event in events]
    outputs = task.run(values)
    return [task.finish(event, output, State()) for event, output in zip(events, outputs, strict=True)]


def top_of(detection: Event) -> str:
    return str(detection["objects"][0]["label"])


def test_the_objects_of_real_photos_are_found_where_they_are(task: ImageTask) -> None:
    found = detections(task, [upload(still("image/png", name), "image/png") for name in KNOWN])
    assert [top_of(one) for one in found] == list(KNOWN.values())
    person = found[0]["objects"][0]
    assert person["score"] > 0.6
    assert (found[0]["width"], found[0]["height"]) == (512, 512)
    # the astronaut stands in the left two thirds
    assert person["left"] < 0.1 and 0.6 < person["width"] < 0.8 and person["height"] > 0.9
    for one in found:
        for each in one["objects"]:
            assert 0 <= each["left"] <= each["left"] + each["width"] <= 1.0001
            assert 0 <= each["top"] <= each["top"] + each["height"] <= 1.0001


def test_the_judgement_of_safety_is_that_of_the_original_network(task: ImageTask) -> None:
    names = ["astronaut.png", "chelsea.png", "coffee.png"]
    found = detections(task, [upload(still("image/png", name), "image/png") for name in names])
    # what onnxruntime says of the package's graph and preparation; ours sees the photo after it was made smaller
    assert [one["unsafe"] for one in found] == pytest.approx([0.032, 0.0001, 0.013], abs=0.015)


def test_results_fit_their_schema(task: ImageTask) -> None:
    schema = load_schema("detection")
    origin = {"event_id": "1", "source_topic": "uploads", "source_partition": 0, "source_offset": 7}
    model = {"model": "image", "model_version": task.version, "produced_at": 1}
    for event in (upload(still("image/jpeg")), upload(moving("video/mp4"), "video/mp4"), ImageTask.example):
        row = {**origin, **model, **detections(task, [event])[0]}
        (packed,) = Encoder(schema).encode_many([row])
        assert isinstance(packed, bytes), packed
        (back,) = Decoder(schema).decode_many([packed])
        assert isinstance(back, dict), back
        assert back["kind"] == row["kind"] and len(back["seen"]) == len(row["seen"])


def test_the_events_fit_their_schema() -> None:
    schema = load_schema("upload")
    stream = uploads(seed=1)
    events = [ImageTask.example, *(next(stream) for _ in range(12))]
    packed = [value for value in Encoder(schema).encode_many(events) if isinstance(value, bytes)]
    assert Decoder(schema).decode_many(packed) == events
    assert len({event["id"] for event in events}) == len(events)


def close(first: Event, second: Event) -> None:
    assert [one["label"] for one in first["objects"]] == [one["label"] for one in second["objects"]]
    for one, other in zip(first["objects"], second["objects"], strict=True):
        numbers = ["score", "left", "top", "width", "height"]
        assert [one[n] for n in numbers] == pytest.approx([other[n] for n in numbers], abs=1e-4)
    assert [frame["time_ms"] for frame in first["timeline"]] == [
        frame["time_ms"] for frame in second["timeline"]
    ]


def test_neighbours_and_their_order_do_not_matter(task: ImageTask) -> None:
    events = [
        upload(still("image/jpeg")),
        upload(moving("video/webm"), "video/webm"),
        upload(still("image/png", "chelsea.png"), "image/png"),
        upload(encoded(photo("rocket.jpg").resize((64, 500)), "image/webp"), "image/webp"),
    ]
    together = detections(task, events)
    alone = [detections(task, [event])[0] for event in events]
    backwards = detections(task, events[::-1])[::-1]
    for one, two, three in zip(together, alone, backwards, strict=True):
        close(one, two)
        close(three, two)


def test_bf16_agrees_with_fp32(task: ImageTask) -> None:
    fast = ImageTask()
    fast.load(Device("cpu", "bf16"))
    assert fast._dtype is torch.bfloat16
    events = [upload(still("image/png", name), "image/png") for name in KNOWN]
    exact = detections(task, events)
    for one, other in zip(detections(fast, events), exact, strict=True):
        assert top_of(one) == top_of(other)
        assert one["objects"][0]["score"] == pytest.approx(other["objects"][0]["score"], abs=0.05)


@pytest.mark.parametrize("kind", ["video/mp4", "video/webm", "video/avi"])
def test_a_video_is_one_event_with_a_timeline(task: ImageTask, kind: str) -> None:
    event = upload(moving(kind, 4.0, 240), kind)
    item = item_of(task, event)
    assert item.tokens == len(item.value.frames) == 4
    (found,) = detections(task, [event])
    assert found["kind"] == "video" and found["objects"] == []
    assert (found["width"], found["height"]) == (240, 240)
    assert found["duration_ms"] == pytest.approx(4_000, abs=300)
    times = [frame["time_ms"] for frame in found["timeline"]]
    assert times == pytest.approx([0, 1_000, 2_000, 3_000], abs=260)
    cat = next(seen for seen in found["seen"] if seen["label"] == "cat")
    with_cat = [f["time_ms"] for f in found["timeline"] if any(o["label"] == "cat" for o in f["objects"])]
    assert (cat["first_ms"], cat["last_ms"], cat["frames"]) == (with_cat[0], with_cat[-1], len(with_cat))
    assert cat["most"] == 1


def test_a_longer_video_costs_no_more_than_the_largest_item(task: ImageTask) -> None:
    long = item_of(task, upload(moving("video/mp4", 60.0, 32), "video/mp4"))
    largest = task.largest()
    assert long.tokens == largest.tokens == 16
    assert long.nbytes <= largest.nbytes
    assert len(task.run([largest.value])) == 1
    steps = np.diff(long.value.times_ms)
    assert steps.min() > 3_000 and steps.max() < 4_600


def test_a_video_so_long_that_its_samples_are_sought(task: ImageTask) -> None:
    patient = ImageTask(max_video_s="600", max_frames="4")
    item = item_of(patient, upload(moving("video/mp4", 120.0, 32), "video/mp4"))
    assert item.value.times_ms == pytest.approx([0, 30_000, 60_000, 90_000], abs=300)
    sequential = item_of(task, upload(moving("video/mp4", 120.0, 32), "video/mp4")).value
    later = sequential.times_ms.index(item.value.times_ms[2])
    assert np.array_equal(sequential.frames[later], item.value.frames[2])


FORMS: dict[str, Callable[[Image.Image], tuple[bytes, str]]] = {
    "RGB": lambda image: (encoded(image, "image/png"), "image/png"),
    "grey": lambda image: (encoded(image.convert("L"), "image/jpeg"), "image/jpeg"),
    "palette": lambda image: (encoded(image.quantize(128), "image/png"), "image/png"),
    "CMYK": lambda image: (encoded(image.convert("CMYK"), "image/jpeg"), "image/jpeg"),
    "alpha": lambda image: (encoded(image.convert("RGBA"), "image/webp"), "image/webp"),
    "grey, alpha": lambda image: (encoded(image.convert("LA"), "image/png"), "image/png"),
    "16 bits": lambda image: (
        encoded(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257), "image/png"),
        "image/png",
    ),
    "progressive": lambda image: (encoded(image, "image/jpeg", progressive=True), "image/jpeg"),
    "GIF": lambda image: (encoded(image, "image/gif"), "image/gif"),
    "with its camera's other name": lambda image: (encoded(image, "image/jpeg"), "IMAGE/JPG; q=1"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_photo_shows_the_same(task: ImageTask, form: str) -> None:
    picture = photo("astronaut.png")
    made = item_of(task, upload(*FORMS[form](picture))).value.frames[0].astype(int)
    plain = item_of(task, upload(*FORMS["RGB"](picture))).value.frames[0].astype(int)
    assert made.shape == plain.shape
    if form in ("grey", "grey, alpha", "16 bits"):
        plain = plain @ np.array([0.299, 0.587, 0.114])
        made = made.mean(2)
    assert np.abs(made - plain).mean() < 8


def test_transparent_parts_lie_on_white(task: ImageTask) -> None:
    event = upload(encoded(Image.new("RGBA", (40, 40), (0, 0, 0, 0)), "image/png"), "image/png")
    assert item_of(task, event).value.frames.min() == 255


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_held_upright(task: ImageTask, orientation: int) -> None:
    upright = photo("coffee.png")  # 600 x 400
    operation = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }.get(orientation)  # fmt: skip
    stored = upright if operation is None else upright.transpose(operation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    item = item_of(task, upload(encoded(stored, "image/jpeg", exif=exif, quality=95)))
    expected = item_of(task, upload(encoded(upright, "image/jpeg", quality=95)))
    assert (item.value.width, item.value.height) == (600, 400)
    assert np.abs(item.value.frames.astype(int) - expected.value.frames).mean() < 3


def test_a_large_photo_shows_what_the_small_one_shows(task: ImageTask) -> None:
    """Large JPEGs are decoded at a lower scale; size and orientation are still those of the whole."""
    small = photo("coffee.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = small.resize((3_600, 2_400)).transpose(Image.Transpose.ROTATE_90)
    item = item_of(task, upload(encoded(stored, "image/jpeg", exif=exif, quality=95)))
    expected = item_of(task, upload(encoded(small, "image/jpeg", quality=95)))
    assert (item.value.width, item.value.height) == (3_600, 2_400)
    assert np.abs(item.value.frames.astype(int) - expected.value.frames).mean() < 4


@pytest.mark.parametrize("size", [(1, 1), (3, 4_000), (4_000, 3), (417, 416)])
def test_odd_sizes_are_no_fault(task: ImageTask, size: tuple[int, int]) -> None:
    (found,) = detections(task, [upload(encoded(Image.new("RGB", size, "red"), "image/png"), "image/png")])
    assert (found["width"], found["height"]) == size


def test_broken_uploads_are_rejected_and_their_neighbours_are_not(task: ImageTask) -> None:
    assert len(BROKEN) > 30
    good = upload(still("image/jpeg"))
    bad = [upload(make(), kind) for kind, make, _ in BROKEN.values()]
    events = [event for broken in bad for event in (good, broken)]
    before = psutil.Process().memory_info().rss
    made = task.prepare(events, [None] * len(events))
    grown = psutil.Process().memory_info().rss - before
    assert len(made) == len(events)
    assert all(isinstance(item, Item) for item in made[::2])
    reasons = {name: getattr(one, "reason", "accepted") for name, one in zip(BROKEN, made[1::2], strict=True)}
    assert reasons == {name: reason for name, (_, _, reason) in BROKEN.items()}
    assert all(len(one.detail) > 10 for one in made[1::2] if isinstance(one, BadRecord))
    assert grown < 200 << 20
    (output,) = task.run([made[-2].value])  # type: ignore[union-attr]
    assert top_of(output) == "person"


def test_memory_of_decoding_is_bounded() -> None:
    data = encoded(Image.new("RGBA", (7_000, 7_000)), "image/png", compress_level=1)
    narrow = ImageTask(decode_memory_bytes=128 << 20)
    (item,) = narrow.prepare([upload(data, "image/png")], [None])
    assert isinstance(item, BadRecord) and item.reason == "decoder_out_of_memory"
    assert isinstance(narrow.prepare([upload(still("image/jpeg"))], [None])[0], Item)
    assert isinstance(ImageTask().prepare([upload(data, "image/png")], [None])[0], Item)


def test_time_of_decoding_is_bounded() -> None:
    hurried = ImageTask(decode_s=0.1)
    data = video(photo("rocket.jpg"), seconds=60, side=640)
    good = upload(still("image/jpeg"))
    item, other = hurried.prepare([upload(data, "video/mp4"), good], [None, None])
    assert isinstance(item, BadRecord) and item.reason == "decoder_timed_out"
    assert isinstance(other, Item)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"data": None}, "no_media"),
        ({"data": b"x", "uri": "s3://b/k"}, "no_media"),
        ({"data": b"x", "sha256": "00"}, "digest_mismatch"),
        ({"data": None, "uri": "file:///etc/passwd", "sha256": "0" * 64}, "uri_refused"),
        ({"data": None, "uri": "s3://foreign/key", "sha256": "0" * 64}, "uri_refused"),
        ({"data": bytes(2_000)}, "media_too_large"),
    ],
)
def test_what_an_event_must_say(fields: Event, reason: str) -> None:
    small = ImageTask(max_bytes="1000")
    (item,) = small.prepare([{**ImageTask.example, **fields}], [None])
    assert isinstance(item, BadRecord) and item.reason == reason


def test_a_file_in_the_shared_folder_is_as_good_as_bytes(task: ImageTask, tmp_path: Path) -> None:
    data = still("image/jpeg")
    (tmp_path / "a photo.jpg").write_bytes(data)
    sharing = ImageTask(shared_folder=str(tmp_path))
    uri = (tmp_path / "a photo.jpg").as_uri()
    event = upload(None, uri=uri, sha256=hashlib.sha256(data).hexdigest().upper())
    assert np.array_equal(item_of(sharing, event).value.frames, item_of(task, upload(data)).value.frames)


def script(module: torch.nn.Module, pictures: torch.Tensor, file: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is on its way out, and still what people have
        torch.jit.trace(module, pictures).save(str(file))


@pytest.mark.parametrize("saved", ["script", "export"])
def test_another_detector_can_be_plugged_in(tmp_path: Path, saved: str) -> None:
    class Corner(torch.nn.Module):
        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            light = pictures[:, :208, :208].float().mean((1, 2, 3)) / 255
            box = torch.tensor([0.0, 0.0, 0.5, 0.5]).expand(pictures.shape[0], 4)
            return torch.cat([box, light[:, None], 1 - light[:, None]], 1)[:, None]

    labels = tmp_path / "labels.txt"
    labels.write_text("light\ndark\n")
    pictures = torch.zeros(2, SIZE, SIZE, 3, dtype=torch.uint8)
    file = tmp_path / ("corner.pt2" if saved == "export" else "corner.pt")
    if saved == "export":
        shape = {"pictures": {0: torch.export.Dim("batch")}}
        torch.export.save(torch.export.export(Corner(), (pictures,), dynamic_shapes=shape), file)
    else:
        script(Corner(), pictures, file)
    own = ImageTask(detector=str(file), labels=str(labels), unsafe="no")
    own.load(Device())
    assert own.version.startswith("corner-")
    white = upload(encoded(Image.new("RGB", (50, 50), "white"), "image/png"), "image/png")
    black = upload(encoded(Image.new("RGB", (50, 50)), "image/png"), "image/png")
    found = detections(own, [white, black, white])
    assert [top_of(one) for one in found] == ["light", "dark", "light"]
    assert [one["unsafe"] for one in found] == [None] * 3


def test_a_detector_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    class Wrong(torch.nn.Module):
        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            return pictures.float().mean((1, 2))

    script(Wrong(), torch.zeros(2, 8, 8, 3), tmp_path / "wrong.pt")
    with pytest.raises(Fatal, match=r"wrong\.pt gives \(2, 3\)"):
        ImageTask(detector=tmp_path / "wrong.pt").load(Device())
    with pytest.raises(Fatal, match="cannot be used"):
        ImageTask(detector=tmp_path / "none.pt").load(Device())


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"threshold": "much"}, "threshold"),
        ({"max_pixels": "-1"}, "max_pixels"),
        ({"colour": "red"}, "no option colour"),
        ({"decode_s": "nan"}, "decode_s"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(Fatal, match=complaint):
        ImageTask(**options)


def test_every_photo_of_the_demo_has_a_label_of_the_detector() -> None:
    assert {label for label in PHOTOS.values() if label} <= set(LABELS)
    assert PLACES == 52 * 52 + 26 * 26 + 13 * 13


def test_the_figures_of_the_evaluation_match_a_count_by_hand() -> None:
    one = {"label": "cat", "score": 0.4, "left": 0.0, "top": 0.0, "width": 0.5, "height": 0.5}
    moved = {**one, "left": 0.25}
    other = {**one, "label": "dog", "score": 0.6}
    assert overlap(one, one) == pytest.approx(1.0)
    assert overlap(one, moved) == pytest.approx(1 / 3)
    found = agreement({"a": [one, other]}, {"a": [one, moved, moved]})
    assert found == {"found_again": 0.5, "not_new": 0.333, "sure_again": 0.0}
    found = agreement({"a": [one, one, other]}, {"a": [other, one]})
    assert found == {"found_again": 0.667, "not_new": 1.0, "sure_again": 1.0}
    assert mend("mirrored", [moved])[0]["left"] == pytest.approx(0.25)
    nothing: dict[str, list[Event]] = {name: [] for name in PHOTOS}
    seen = {**nothing, "chelsea.png": [{**one, "label": "dog"}, one], "moon.png": [one]}
    assert judged(seen) == {"known": 8, "first": 0, "at_all": 1, "invented": 1, "objects": 3}


def test_a_photo_changed_shows_what_it_showed(task: ImageTask) -> None:
    image = photo("astronaut.png")
    plain = {"it": detect(task, "image/png", still("image/png"))}
    for name, change in CHANGES.items():
        changed = {"it": mend(name, detect(task, *change(image)))}
        assert agreement(plain, changed)["found_again"] == 1.0, name


def test_there_is_nothing_to_train() -> None:
    with pytest.raises(Fatal, match="detector=FILE"):
        train()
