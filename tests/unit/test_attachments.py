"""Names of attachments: what runs is told from what only looks odd."""

from __future__ import annotations

import pytest

from consumer.attachments import dangerous


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("setup.exe", "program"),
        ("SETUP.EXE", "program"),
        ("setup.exe. . ", "program"),
        ("setup.e\u200bxe", "program"),
        ("setup\uff0eexe", "program"),
        ("C:\\temp\\run.ps1", "program"),
        ("disc.iso", "program"),
        ("table.xlsm", "program"),
        (".exe", "program"),
        ("invoice.pdf.exe", "double_extension"),
        ("invoice.pdf          .scr", "double_extension"),
        ("photo.jpg.v2.js", "double_extension"),
        ("invoice\u202efdp.exe", "reversed_name"),
        ("invoice\u202eexe.pdf", "reversed_name"),
        ("\u2067abc.scr", "reversed_name"),
    ],
)
def test_what_runs_is_named_with_the_reason(name: str, reason: str) -> None:
    found = dangerous([{"name": "a.pdf"}, {"name": name, "media_type": "application/pdf", "size": 1}])
    assert found == [{"name": name, "reason": reason}]


@pytest.mark.parametrize(
    "name",
    [
        "report.pdf",
        "archive.tar.gz",
        "exe",
        "my exe.txt",
        "v1.2.zip",
        "",
        None,
        "...",
        "\u05d3\u05d5\u05d7.pdf",
        "a.exe.zip",
    ],
)
def test_what_does_not_run_is_left_alone(name: str | None) -> None:
    assert dangerous([{"name": name}]) == []
