"""Which attachments are dangerous, as far as their names tell: no content is looked at."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["dangerous"]

_PROGRAMS = frozenset(
    """ade adp app appinstaller appx appxbundle apk bat chm cmd com cpl dll dmg exe gadget hta img inf iso jar jnlp js
    jse lnk mde msc msi msix msp mst one pif ps1 ps1xml ps2 psc1 reg scf scr sct settingcontent-ms sh shb shs sys url
    vb vbe vbs vhd vhdx ws wsc wsf wsh xbap xll docm dotm potm ppam ppsm pptm sldm xlam xlsm xltm xla""".split()
)
"""Endings whose opening runs code, on one system or another; documents with macros among them."""
_DOCUMENTS = frozenset(
    """avi bmp csv doc docx eml gif htm html jpeg jpg mov mp3 mp4 odt pdf png ppt pptx rtf tif tiff txt wav xls xlsx
    zip""".split()
)
_TURNS = re.compile("[\u202a-\u202e\u2066-\u2069]")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\\x00-\\x1f]")


def dangerous(attachments: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """(name, reason) of each dangerous one, in their order; see the schema `spam_verdict` for the reasons."""
    judged = [(one["name"], _reason(one["name"])) for one in attachments if one["name"]]
    return [{"name": name, "reason": reason} for name, reason in judged if reason]


def _reason(name: str) -> str | None:
    # Windows leaves trailing dots and spaces away, so they hide nothing from us either.
    _, *endings = re.split(r"[.\uff0e\u2024]", _INVISIBLE.sub("", name).rstrip(". ").lower())
    endings = [ending.strip() for ending in endings]
    is_program = bool(endings) and endings[-1] in _PROGRAMS
    if _TURNS.search(name) and (is_program or "\u202e" in name):
        return "reversed_name"
    if not is_program:
        return None
    return "double_extension" if _DOCUMENTS.intersection(endings[:-1]) else "program"
