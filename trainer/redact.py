"""Credentials do not get into what is tracked."""

import re
from typing import Any

HIDDEN = "[redacted]"

_WORDS = (
    r"[\w.-]{0,40}(?:token|password|passwd|pwd|secret|credentials?|signature|authorization|"
    r"(?:api|access|secret|private|account)[_-]?key)"
)
_NAME = re.compile(rf"{_WORDS}|key", re.IGNORECASE)
_RULES = [
    (re.compile(rule, re.IGNORECASE), instead)
    for rule, instead in (
        (r"(\b[a-z][a-z0-9+.-]*://)[^/?#\s'\"]*@", r"\1"),  # user and password of a URL
        (r"(\b[a-z][a-z0-9+.-]*://[^?\s'\"<>]*)\?[^\s'\"<>)]*", r"\1"),  # its query, which may be a signature
        (
            rf"({_WORDS}['\"]?\s*[:=]\s*|(?<!\w)key=(?!['\"]))"
            r"(?:(?:bearer|basic)\s+)?(?:\"[^\"]*\"|'[^']*'|[^\s,;&'\"]+)",
            rf"\1{HIDDEN}",
        ),
    )
]


def redact(value: Any, key: str = "") -> Any:
    """A copy without credentials: those in URLs, after names such as token=, and values of keys with such names."""
    if isinstance(value, dict):
        return {name: redact(inner, str(name)) for name, inner in value.items()}
    if value is not None and value != "" and _NAME.fullmatch(key):
        return HIDDEN
    if isinstance(value, list | tuple):
        return [redact(inner) for inner in value]
    if isinstance(value, str):
        for pattern, instead in _RULES:
            value = pattern.sub(instead, value)
    return value


def in_one_line(error: Exception) -> str:
    """What went wrong; of a failed request, its cause."""
    return " ".join(str(redact(str(error).rpartition("Caused by ")[2])).split())[:300] or type(error).__name__
