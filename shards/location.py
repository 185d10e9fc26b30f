"""Where a dataset lies: a folder, or a URL of any kind that fsspec knows; and how to name it without its secrets."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)([^\s'\"<>]*)")
_SECRET_NAME = re.compile(r"KEY|SECRET|TOKEN|PASSW|CREDENTIAL|SIGNATURE", re.IGNORECASE)
_SHORTEST_SECRET = 6  # what is shorter stands in ordinary words too
HIDDEN = "***"


def is_url(location: str | Path) -> bool:
    """Whether a location is a URL: s3://bucket/chips, https://host/chips, file:///data/chips."""
    return isinstance(location, str) and _SCHEME.match(location) is not None


def local_folder(location: str | Path) -> Path | None:
    """The folder that a location names, file:// URLs included; None for one that lies elsewhere."""
    if not is_url(location):
        return Path(location)
    if str(location).lower().startswith("file://"):
        return Path(unquote(urlsplit(str(location)).path))
    return None


def join_url(location: str, name: str) -> str:
    """The URL of a file in a folder; an http query, such as a signature, goes along to every file."""
    head, mark, query = location.partition("?") if location.lower().startswith("http") else (location, "", "")
    return f"{head.rstrip('/')}/{name}{mark}{query}"


def redact(text: object, location: str | Path = "") -> str:
    """Text as it may be shown, logged and kept: without credentials.

    Hidden are the user's part and the query of every URL in it, the same parts of `location` wherever they stand, and
    the values of environment variables that are named like secrets.
    """
    shown = _URL.sub(_without_secrets, str(text))
    for secret in sorted(_secrets(str(location)) | _environment_secrets(), key=len, reverse=True):
        shown = shown.replace(secret, HIDDEN)
    return shown


def _without_secrets(match: re.Match[str]) -> str:
    scheme, rest = match.groups()
    rest, cut, _ = _cut(rest, "?#")
    # A password may hold a slash that nobody escaped: everything before the last @ is the user's part.
    user, at, place = rest.rpartition("@")
    return f"{scheme}{HIDDEN if user else ''}{at}{place}{cut}{HIDDEN if cut else ''}"


def _cut(text: str, marks: str) -> tuple[str, str, str]:
    at = min((place for mark in marks if (place := text.find(mark)) >= 0), default=len(text))
    return text[:at], text[at : at + 1], text[at + 1 :]


def _secrets(location: str) -> set[str]:
    if not is_url(location):
        return set()
    rest, _, query = _cut(location.partition("://")[2], "?#")
    user, at, _ = rest.rpartition("@")
    parts = [user, *user.split(":", 1)] if at else []
    parts += [query, *(pair.partition("=")[2] for pair in re.split(r"[&#]", query))]
    found = {form for part in parts for form in (part, unquote(part))}
    return {part for part in found if len(part) >= _SHORTEST_SECRET}


def _environment_secrets() -> set[str]:
    return {
        value
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name) and len(value) >= _SHORTEST_SECRET and not value.startswith("/")
    }
