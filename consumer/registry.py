"""Look-ups in a schema registry that speaks Confluent's REST API.

The client library is imported only by a worker that has a registry: it costs 0.2 s and 20 MB.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from consumer.errors import BadRecord, ConsumerError, Fatal, Retry, missing_package

__all__ = ["Registry"]

_NO_SUCH_SCHEMA = 40403
_MAX_REFERENCES = 64


class Registry:
    """Schemas by id and ids by schema.  Thread-safe; answers of the past are kept by the client library.

    `ca_file` is a PEM file; None trusts the usual authorities.  Raises Fatal for settings that cannot work.
    """

    def __init__(
        self,
        url: str,
        *,
        user: str | None = None,
        password: str | None = None,
        token: str | None = None,
        ca_file: str | None = None,
        timeout_ms: float = 5_000,
    ) -> None:
        try:
            from confluent_kafka.schema_registry import SchemaRegistryClient
        except ImportError as error:
            raise Fatal(missing_package(error.name or "", "registry")) from error
        self._url = url
        conf: dict[str, object] = {"url": url, "timeout": timeout_ms / 1000, "max.retries": 0}
        if ca_file is not None:
            conf["ssl.ca.location"] = ca_file
        if user is not None:
            conf["basic.auth.user.info"] = f"{user}:{password or ''}"
        if token is not None:
            conf |= {
                "bearer.auth.credentials.source": "STATIC_TOKEN",
                "bearer.auth.token": token,
                "bearer.auth.logical.cluster": "",
            }
        try:
            self._client = SchemaRegistryClient(conf)
        except (ValueError, TypeError, OSError) as error:
            raise Fatal(f"the settings for the schema registry at {url} cannot work: {error}") from error

    def definitions(self, schema_id: int) -> list[str]:
        """JSON text of the schema with this id, after the texts of those that it refers to.

        Raises BadRecord `unknown_schema_id` or `incompatible_schema`, Retry when the registry cannot answer now, Fatal
        when it refuses us.
        """
        with self._door(f"schema id {schema_id}"):
            schema = self._client.get_schema(schema_id)
            texts: dict[tuple[str, int], str] = {}
            self._collect(schema.references, texts)
            if schema.schema_type not in (None, "AVRO"):
                raise BadRecord(
                    "incompatible_schema", f"schema id {schema_id} is {schema.schema_type}, not Avro"
                )
            return [*texts.values(), schema.schema_str or ""]

    def _collect(self, references: object, texts: dict[tuple[str, int], str], depth: int = 0) -> None:
        """Texts of all that is referred to, what others need first."""
        for reference in references or ():  # type: ignore[attr-defined]
            key = (reference.subject, reference.version)
            if key in texts:
                continue
            if depth >= _MAX_REFERENCES or len(texts) >= _MAX_REFERENCES:
                raise BadRecord("bad_schema", f"the schema refers to more than {_MAX_REFERENCES} others")
            schema = self._client.get_version(*key).schema
            self._collect(schema.references, texts, depth + 1)
            texts[key] = schema.schema_str or ""

    def register(self, subject: str, text: str) -> int:
        """Id of the schema under `subject` (`<topic>-value`); registered if it is new.

        Raises Retry when the registry cannot answer now, Fatal when it refuses us or the schema.
        """
        from confluent_kafka.schema_registry import Schema

        with self._door(f"subject {subject}"):
            return self._client.register_schema(subject, Schema(text, "AVRO"))

    def close(self) -> None:
        self._client.close()

    @contextmanager
    def _door(self, what: str) -> Iterator[None]:
        """Translate what the client library raises."""
        from confluent_kafka.schema_registry.error import SchemaRegistryError

        try:
            yield
        except ConsumerError:
            raise
        except SchemaRegistryError as error:
            raise self._sorted(
                what, error.http_status_code, error.error_code, str(error.error_message)
            ) from error
        except Exception as error:
            raise Retry(
                f"the schema registry at {self._url} did not answer for {what} ({type(error).__name__}: {error})"
            ) from error

    def _sorted(self, what: str, status: int, code: int, message: str) -> ConsumerError:
        said = f"{what}: the schema registry at {self._url} answered {status} ({code}: {message[:200]})"
        if status == 404 and code == _NO_SUCH_SCHEMA:
            return BadRecord("unknown_schema_id", said)
        if status in (408, 425, 429) or status >= 500:
            return Retry(said)
        remedy = {
            401: "check its user and password, or token",
            403: "give this user read access to the subjects, and write access to that of the output topic",
            404: "check that the URL is that of a registry with Confluent's API",
            409: "the schema is not compatible with the versions before it: change it so that it is, or give the "
            "subject another compatibility level",
            422: "the registry finds the schema invalid",
        }.get(status, "check its URL and version")
        return Fatal(f"{said}; {remedy}")
