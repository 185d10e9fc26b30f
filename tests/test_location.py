"""What counts as a URL, and that no secret survives where one is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from shards.location import is_url, join_url, local_folder, redact


@pytest.mark.parametrize(
    ("location", "folder"),
    [
        ("data/set", Path("data/set")),
        (Path("data/set"), Path("data/set")),
        ("file:///data/my%20set", Path("/data/my set")),
        ("C:\\chips", Path("C:\\chips")),
        ("s3://bucket/set", None),
        ("https://host/set?x=1", None),
        ("memory://set", None),
    ],
)
def test_folders_are_told_from_urls(location: str | Path, folder: Path | None) -> None:
    assert local_folder(location) == folder
    assert is_url(location) == ("://" in str(location))


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("s3://bucket/set/", "s3://bucket/set/a.tar"),
        ("https://host/set?sig=x/y", "https://host/set/a.tar?sig=x/y"),
        ("s3://bucket/odd?name", "s3://bucket/odd?name/a.tar"),
    ],
)
def test_a_query_stays_behind_the_name_of_a_file(location: str, url: str) -> None:
    assert join_url(location, "a.tar") == url


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at https://host/set: gone", "at https://host/set: gone"),
        ("https://anna:open+sesame@host/set", "https://***@host/set"),
        ("s3://KEY:sla/sh@bucket/set", "s3://***@bucket/set"),
        ("url='https://host/a.tar?X-Amz-Signature=abc&b=c', 403", "url='https://host/a.tar?***', 403"),
        ("https://host/a#token=abc", "https://host/a#***"),
        ("two: http://a:b@c/d and http://e?f=g", "two: http://***@c/d and http://e?***"),
    ],
)
def test_users_and_queries_of_urls_are_hidden_in_any_text(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_a_locations_secrets_are_hidden_where_they_stand_alone_or_unescaped() -> None:
    location = "https://anna:open%20sesame@host/set?sig=se%2Fcret&v=1"
    shown = redact("login anna:open sesame; open%20sesame; sig se/cret se%2Fcret sig=se%2Fcret&v=1; v=1", location)
    assert "sesame" not in shown and "cret" not in shown
    assert shown.endswith("; v=1"), "what is too short to be a secret stays readable"


def test_secrets_of_the_environment_are_hidden_and_its_paths_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtn")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "sv=2024&sig=abc")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/home/anna/key.json")
    shown = redact("with wJalrXUtn and sv=2024&sig=abc from /home/anna/key.json")
    assert shown == "with *** and *** from /home/anna/key.json"
