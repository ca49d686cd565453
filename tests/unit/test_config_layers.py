"""Settings from flags, environment and file: who wins, what is said about mistakes, and that no secret is shown."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from consumer.config import Settings
from consumer.errors import Fatal
from consumer.exits import Exit
from consumer.layers import effective, load

SECRET = "correct-horse-battery"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("CONSUMER_"):
            monkeypatch.delenv(name)


@pytest.fixture
def toml(tmp_path: Path) -> Any:
    def write(text: str) -> str:
        path = tmp_path / "consumer.toml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def sources(settings: Settings) -> dict[str, str]:
    return {line.field: line.source for line in effective(settings)}


def refusal(flags: dict[str, Any] | None = None, file: str | None = None) -> str:
    with pytest.raises(Fatal) as refused:
        load(flags, file)
    assert refused.value.exit_code == Exit.USAGE
    return str(refused.value)


def test_flags_outrank_environment_outranks_file_outranks_default(
    monkeypatch: pytest.MonkeyPatch, toml: Any
) -> None:
    file = toml("gather_ms = 4\ncommit_interval_ms = 40\nmax_chunk_records = 400\n")
    monkeypatch.setenv("CONSUMER_GATHER_MS", "3")
    monkeypatch.setenv("CONSUMER_COMMIT_INTERVAL_MS", "30")
    settings = load({"gather_ms": "2", "prepare_slice": None}, file)
    assert (settings.gather_ms, settings.commit_interval_ms, settings.max_chunk_records) == (2, 30, 400)
    assert settings.prepare_slice == Settings().prepare_slice
    came = sources(settings)
    assert came["gather_ms"] == "flag"
    assert came["commit_interval_ms"] == "environment"
    assert came["max_chunk_records"] == f"file {file}"
    assert came["prepare_slice"] == "default"


def test_the_environment_may_name_the_file(monkeypatch: pytest.MonkeyPatch, toml: Any) -> None:
    monkeypatch.setenv("CONSUMER_CONFIG", toml('input_topics = ["a", "b"]'))
    assert load().input_topics == ("a", "b")


def test_lists_in_the_environment_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSUMER_INPUT_TOPICS", "a, b,c")
    assert load().input_topics == ("a", "b", "c")


def test_kafka_properties_of_all_layers_are_joined(monkeypatch: pytest.MonkeyPatch, toml: Any) -> None:
    file = toml('[kafka]\nsecurity.protocol = "ssl"\nlinger.ms = 7\n"client.rack" = "file"\n')
    monkeypatch.setenv("CONSUMER_KAFKA", '{"linger.ms": 8, "client.rack": "environment"}')
    settings = load({"kafka": {"client.rack": "flag"}}, file)
    assert settings.kafka == {"security.protocol": "ssl", "linger.ms": 8, "client.rack": "flag"}
    came = sources(settings)
    assert came["kafka.security.protocol"] == f"file {file}"
    assert came["kafka.linger.ms"] == "environment"
    assert came["kafka.client.rack"] == "flag"


def test_task_options_keep_their_types(toml: Any) -> None:
    settings = load({"task_options": {"limit": 3}}, toml('[task_options]\nthreshold = 0.9\nname = "x"\n'))
    assert settings.task_arguments() == {"threshold": 0.9, "name": "x", "limit": 3}


def test_unknown_settings_are_refused_with_a_suggestion(monkeypatch: pytest.MonkeyPatch, toml: Any) -> None:
    file = toml("max-chunk-record = 1\nnonsense = 1\n")
    text = refusal(file=file)
    assert f"unknown setting max-chunk-record (from file {file}): did you mean max_chunk_records?" in text
    assert "unknown setting nonsense" in text
    assert "`consumer config` lists all settings" in text
    monkeypatch.setenv("CONSUMER_GATHERMS", "1")
    assert "unknown variable CONSUMER_GATHERMS: did you mean CONSUMER_GATHER_MS?" in refusal()
    monkeypatch.delenv("CONSUMER_GATHERMS")
    monkeypatch.setenv("CONSUMER_METRIC_PORT", "3")  # looks like what Kubernetes adds, but has no address
    assert "unknown variable CONSUMER_METRIC_PORT: did you mean CONSUMER_METRICS_PORT?" in refusal()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CONSUMER_SERVICE_HOST", "10.0.0.7"),
        ("CONSUMER_SERVICE_PORT_HTTP", "80"),
        ("CONSUMER_PORT", "tcp://10.0.0.7:80"),
        ("CONSUMER_PORT_80_TCP_ADDR", "10.0.0.7"),
        ("CONSUMER_METRICS_PORT", "tcp://10.0.0.7:9464"),
    ],
)
def test_what_kubernetes_adds_for_a_service_called_consumer_is_ignored(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert load() == Settings()


def test_all_mistakes_are_said_at_once_with_where_they_stand(
    monkeypatch: pytest.MonkeyPatch, toml: Any
) -> None:
    file = toml('dead_letter_window = "many"\n')
    monkeypatch.setenv("CONSUMER_LOG_FORMAT", "xml")
    text = refusal({"gather_ms": "abc"}, file)
    assert "gather_ms 'abc' (from flag): should be a valid integer" in text
    assert "log_format 'xml' (from environment): should be 'auto', 'pretty' or 'json'" in text
    assert f"dead_letter_window 'many' (from file {file})" in text


@pytest.mark.parametrize(
    ("content", "complaint"), [("a = = b", "is not a TOML file"), (None, "cannot read the settings file")]
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: str | None, complaint: str) -> None:
    path = tmp_path / "settings.toml"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    assert complaint in refusal(file=str(path))


def test_broken_json_in_the_environment_is_refused_without_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSUMER_KAFKA", f'{{"sasl.password": "{SECRET}"')
    text = refusal()
    assert "CONSUMER_KAFKA must be a JSON object" in text
    assert SECRET not in text


# Secrets.


def test_secrets_come_from_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, toml: Any) -> None:
    path = tmp_path / "secret"
    path.write_text(f"{SECRET}\n", encoding="utf-8")
    monkeypatch.setenv("CONSUMER_SCHEMA_REGISTRY_PASSWORD_FILE", str(path))
    file = toml(f'[kafka]\nsasl.password.file = "{path}"\n[task_options]\napi_key_file = "{path}"\n')
    settings = load({"bootstrap_servers": "k:1"}, file)
    assert settings.schema_registry_password is not None
    assert settings.schema_registry_password.get_secret_value() == SECRET
    assert settings.task_arguments() == {"api_key": SECRET}
    for conf in (settings.consumer_conf(), settings.producer_conf("t"), settings.admin_conf()):
        assert conf["sasl.password"] == SECRET


def test_a_secret_of_a_higher_layer_outranks_the_file_of_a_lower(tmp_path: Path, toml: Any) -> None:
    path = tmp_path / "secret"
    path.write_text("low", encoding="utf-8")
    settings = load({"kafka": {"sasl.password": "high"}}, toml(f'[kafka]\nsasl.password.file = "{path}"\n'))
    assert settings.kafka["sasl.password"].get_secret_value() == "high"


def test_files_that_are_no_secrets_stay_paths() -> None:
    name = "sasl.oauthbearer.assertion.private.key.file"
    assert load({"kafka": {name: "/key"}}).kafka == {name: "/key"}
    assert load({"task_options": {"tokenizer_file": "/t.json"}}).task_arguments() == {
        "tokenizer_file": "/t.json"
    }


def test_mistakes_with_secret_files_are_said(tmp_path: Path) -> None:
    assert "cannot read" in refusal({"kafka": {"sasl.password.file": str(tmp_path / "none")}})
    both = {"sasl.password.file": "/x", "sasl.password": SECRET}
    text = refusal({"kafka": both})
    assert "given twice" in text
    assert SECRET not in text


SECRET_PROPERTIES = (
    "sasl.password",
    "ssl.key.password",
    "ssl.key.pem",
    "ssl.keystore.password",
    "sasl.oauthbearer.client.secret",
    "sasl.oauthbearer.client.credentials.client.secret",
    "sasl.oauthbearer.config",
    "sasl.oauthbearer.assertion.private.key.passphrase",
    "sasl.oauthbearer.assertion.private.key.pem",
)
ALL_SECRETS: dict[str, Any] = {
    "schema_registry_url": "https://registry",
    "schema_registry_password": SECRET,
    "kafka": dict.fromkeys(SECRET_PROPERTIES, SECRET),
    "task_options": {"api_key": SECRET, "hub-token": SECRET, "password": SECRET},
}


def test_no_secret_is_ever_shown() -> None:
    settings = load({"bootstrap_servers": "k:1", **ALL_SECRETS})
    shown = [repr(settings), str(settings), f"{settings.model_dump()}", settings.model_dump_json()]
    shown += [json.dumps([line.value for line in effective(settings)])]
    for text in shown:
        assert SECRET not in text
    assert SECRET in str(settings.consumer_conf())  # so the test sees what it looks for
    assert pickle.loads(pickle.dumps(settings)) == settings


@pytest.mark.parametrize(
    "mistake",
    [
        {"gather_ms": "x"},
        {"commit_interval_ms": 99_999},
        {"schema_registry_token": SECRET},
        {"schema_registry_url": f"https://me:{SECRET}@registry"},
        {"unknown": SECRET[:0]},
        {"kafka": {**ALL_SECRETS["kafka"], "acks": "1"}},
        {"kafka": SECRET},
        {"task_options": [SECRET]},
        {"schema_registry_password": [SECRET]},
    ],
)
def test_no_secret_stands_in_an_error(mistake: dict[str, Any]) -> None:
    with pytest.raises(Fatal) as refused:
        load({**ALL_SECRETS, **mistake})
    error: BaseException | None = refused.value
    while error is not None:
        assert SECRET not in str(error)
        assert SECRET not in repr(error)
        error = error.__cause__
