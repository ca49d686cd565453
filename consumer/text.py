"""Canonical text of an e-mail: what it says, without the form that its mailbox, list or archive gave it.

Pure functions, no torch. Two copies of one letter (raw HTML with capitals here, lower-cased tokens with a space
around every sign there) come out nearly the same, so a model cannot learn where a letter was kept.
"""

from __future__ import annotations

import hashlib
import html as entities
import quopri
import re
import unicodedata

from selectolax.lexbor import LexborHTMLParser

MAX_CHARS = 20_000
"""Characters of subject, body and html that are looked at; the rest of a longer letter is ignored."""
KEEP_CHARS = 5_000
"""Characters of visible text that are kept: more than the model's window of token ids."""

_HTML = re.compile(
    r"<\s*/?\s*(?:html|body|table|tr|td|br|p|div|font|a|img|span|center|b|h[1-6]|strong|li)\b[^>]*>", re.I
)
_BLOCK = re.compile(
    r"(?=<\s*/?\s*(?:br|p|div|tr|td|th|li|h[1-6]|table|center|hr|ul|ol|blockquote|option)\b)", re.I
)
_ZERO = r"0*(?:\.0*)?(?![\d.])"
_HIDING = re.compile(
    rf"\bdisplay:none|\bvisibility:(?:hidden|collapse)|\bmso-hide:all|\bfont-size:(?:{_ZERO}|[01](?:\.\d*)?p[xt])"
    rf"|(?<![\w-])opacity:{_ZERO}|\b(?:text-indent|left|top):-\d{{3,}}"
    rf"|(?=.*\boverflow:hidden).*\b(?:max-)?(?:height|width):{_ZERO}",
    re.I,
)
"""In a style attribute without its spaces and comments.  Style sheets are not applied, and colours not compared."""
_STYLE_NOISE = re.compile(r"\s+|/\*.*?\*/", re.S)
_NOT_TEXT = ["script", "style", "title", "head", "noscript", "template"]
_QUOTED_PRINTABLE = re.compile(r"=(?:3D|20|0A|09)|=\r?\n", re.I)
_BASE64_LINE = re.compile(r"^[>\t ]{0,8}[A-Za-z0-9+/]{50,}={0,2}[ \t]*$", re.M)
_PGP = re.compile(
    r"-----BEGIN PGP SIGNATURE-----.*?(?:-----END PGP SIGNATURE-----|\Z)|-----BEGIN PGP SIGNED MESSAGE-----",
    re.S,
)
_RULE = re.compile(r"^[> \t]{0,8}(?:_{20,}|-{40,}|={40,})[ \t]*$", re.M)
_FOOTER_WORDS = re.compile(
    r"mailing list|mailman|listinfo|unsubscribe|list-?info|yahoo! groups|sourceforge|sponsored by", re.I
)
_ATTRIBUTION = re.compile(r"^.{0,120}\b(?:wrote|writes|schrieb|said)\s?:\s*$", re.M | re.I)
_QUOTE_MARK = re.compile(r"^[ \t]*(?:[>|][ \t]?)+", re.M)
_MIME = re.compile(
    r"^[>\t ]{0,8}(?:content-(?:type|transfer-encoding|disposition|id)|mime-version|x-[\w-]+|message-id|"
    r"return-path|received|references|in-reply-to|charset)\s?[:=].*$|^--[-=_]{0,40}(?:next|part|boundary)\S*$",
    re.M | re.I,
)

_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]"
)
"""Characters that show nothing: between letters, they only keep a word from being read."""
_SIGN = re.compile(r"([^\w\s]|_)")
_SPACE = re.compile(r"\s+")
_URL = re.compile(
    r"\b(?:https?|ftp) : / /(?: ?[\w%~-]+)?(?: [.:@-] ?[\w%~-]+)*(?: [/?=&#+%;] ?[\w%~-]*(?: [.=&+%-] [\w%~-]+)*)*"
    r"|\bwww(?: \. [\w-]+)+(?: [/?=&#] ?[\w%~-]*(?: [.=&+%-] [\w%~-]+)*)*"
)
_ADDRESS = re.compile(
    r"(?<![\w+-])[\w+-]{1,64}(?: [._+-] [\w+-]{1,64}){0,4} @ [\w-]{1,64}(?: [.-] [\w-]{1,64}){0,5}"
)
_HOST = re.compile(
    r"\b[\w-]{1,64}(?: \. [\w-]{1,64}){0,4} \. (?:com|net|org|biz|info|edu|gov|de|uk|ca|us|ie|ru|cn|tk)\b"
)
_HEX = re.compile(r"\b(?=\w*\d)(?=\w*[a-z])[a-z0-9]{14,}\b|\b[a-z]{30,}\b")
_DIGITS = re.compile(r"\d+")
_NUMBER = re.compile(r"\b0+(?: [.,] 0+)+\b")
_RUN = re.compile(r"([^\w\s])(?: \1)+")
_DECORATION = re.compile(r"[^\w\s.,!?$%:&@-]|_")
_QUOTED_HEADER = re.compile(
    r"(?:- )?(?:original message|forwarded by|forwarded message|begin forwarded message)\b(?: -)?"
    r"|\b(?:from|to|cc|bcc|sent|date|sent by|reply - to) :(?=.{0,80}?\b(?:subject|cc|to|sent|date) :)"
    r"|\bsubject :|\bimage : [\w -]+ \. (?:gif|jpg)\b"
)
_REPLY = r"(?:(?:re|fw|fwd|aw|wg|sv|antwort)\s?(?:\[\s?\d+\s?\])?\s?:\s?)"
_LIST_TAG = r"(?:[\[(]\s?[\w .:/#@+-]{2,40}\s?[\])]\s?)"
_SUBJECT_PREFIX = re.compile(rf"^\s*(?:{_REPLY}|{_LIST_TAG})+", re.I)

_PLACES = re.compile(
    # Archives that labelled mail is known from, and their owners: these words say which mailbox, not what kind.
    r"\b(?:enron\w*|ect|hou|ees|enronxgate|hpl\w*|na|corp|uwaterloo|waterloo|plg|speedy|spamassassin\w*|sa ?- ?talk|"
    r"ilug|linux ?\. ?ie|iiu|taint|jmason|zzzzteana|zzzz|fork|xent|exmh|razor ?- ?users|rpm ?- ?list|freshrpms|"
    r"sourceforge|example|netnoteinc|yyyy|vince|kaminski|daren|farmer|louise|kitchen|lokay|williams iii|"
    r"trec\w*|ling ?- ?spam|linguist|csmining|gutenberg|samba|perl6|mailman|ietf|"
    r"escapenumber|escapelong|nutch)\b"
)


def visible(markup: str) -> str:
    """The text that a reader of this HTML sees: no tags, comments, scripts or hidden parts."""
    tree = LexborHTMLParser(_BLOCK.sub(" ", markup))
    tree.strip_tags(_NOT_TEXT, recursive=True)
    for node in tree.css("[style],[hidden]"):
        style = _STYLE_NOISE.sub("", node.attributes.get("style") or "")
        if node.tag not in ("html", "body") and ("hidden" in node.attributes or _HIDING.search(style)):
            node.decompose()
    return tree.body.text(deep=True, separator="") if tree.body else ""


def _plain(part: str) -> str:
    if len(_QUOTED_PRINTABLE.findall(part, 0, 4_000)) > 3:
        part = quopri.decodestring(part.encode("utf-8", "replace")).decode("utf-8", "replace")
    if _HTML.search(part):
        part = visible(part)
    return entities.unescape(part)


def _without_furniture(text: str) -> str:
    """Drop what programs added: signatures, list footers, attribution lines, MIME leftovers, quote marks."""
    text = _BASE64_LINE.sub(" ", _PGP.sub(" ", text))
    rules = [match.start() for match in _RULE.finditer(text)]
    for start in rules[-3:]:
        if len(text) - start < 1_200 and _FOOTER_WORDS.search(text, start):
            text = text[:start]
            break
    return _QUOTE_MARK.sub("", _ATTRIBUTION.sub(" ", _MIME.sub(" ", text)))


def _tokens(text: str) -> str:
    """Lower-cased, every sign apart, digits as shape, addresses and links as words, runs of signs as one."""
    text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)).lower()
    text = _SPACE.sub(" ", _SIGN.sub(r" \1 ", text))
    text = _ADDRESS.sub("address", _URL.sub("link", text))
    text = _HEX.sub("code", _HOST.sub("link", text))
    text = _NUMBER.sub(
        lambda m: "0" * min(6, m.group().count("0")),
        _DIGITS.sub(lambda m: "0" * min(5, len(m.group())), text),
    )
    text = _DECORATION.sub(" ", _RUN.sub(r"\1", text))
    text = _PLACES.sub(" ", _QUOTED_HEADER.sub(" ", text))
    return _SPACE.sub(" ", _RUN.sub(r"\1", text)).strip()


def subject_text(subject: str) -> str:
    """Canonical subject without reply marks and list tags; may be empty."""
    return _tokens(_SUBJECT_PREFIX.sub("", entities.unescape(subject[:1_000])))


def body_text(body: str, html: str | None = None) -> str:
    """Canonical body: what `html` shows, where there is one, then the text part unless it says the same."""
    plain = _tokens(_without_furniture(_plain(body[:MAX_CHARS]))[:KEEP_CHARS])
    if not html:
        return plain
    shown = _tokens(_without_furniture(entities.unescape(visible(html[:MAX_CHARS])))[:KEEP_CHARS])
    seen = set(shown.split())
    new = [word for word in set(plain.split()) if word not in seen]
    return shown if 4 * len(new) <= len(set(plain.split())) else f"{shown} {plain}".strip()


def held_out(subject: str, body: str) -> bool:
    """True for the fixed third of letters that shipped weights never train on.

    Decided by the bare subject (a thread stays on one side), or by the first words where that is empty; the same for a
    letter read from its raw form and from an archive.
    """
    key = re.sub(r"[\W_]+", "", subject_text(subject)) or re.sub(r"[\W_]+", "", body_text(body))[:60]
    return hashlib.sha256(key.encode()).digest()[0] % 3 == 0
