"""What an examination found: findings with what to do, for people and for scripts."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

import click

Level = Literal["ok", "warning", "error"]

_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}
_LEVEL_WIDTH, _ABOUT_WIDTH = 9, 14
_WIDEST = 120


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: "error" where the run could not work.
        about: what was looked at, in a word or two.
        text: what was found.
        remedy: what to do; empty where nothing has to be done.
    """

    level: Level
    about: str
    text: str
    remedy: str = ""


@dataclass(frozen=True)
class Report:
    """All findings, and the figures that they speak of.

    Attributes:
        figures: by names that hold their units, such as loader_images_per_second.
    """

    findings: list[Finding]
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def works(self) -> bool:
        """Whether nothing was found that would keep the run from working."""
        return all(finding.level != "error" for finding in self.findings)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(
            {"works": self.works, "findings": [asdict(f) for f in self.findings], "figures": self.figures}
        )

    @classmethod
    def from_json(cls, text: str) -> Report:
        """What to_json gave."""
        given = json.loads(text)
        return cls([Finding(**finding) for finding in given["findings"]], given["figures"])

    def show(self) -> None:
        """Prints a line or two a finding."""
        for finding in self.findings:
            _show(finding)
        counts = {level: sum(f.level == level for f in self.findings) for level in ("error", "warning")}
        if not self.works:
            end = f"This run would not work: {counts['error']} error(s), {counts['warning']} warning(s)."
        elif counts["warning"]:
            end = f"This run would work; see the {counts['warning']} warning(s)."
        else:
            end = "This run would work."
        click.echo(f"\n{end}")


def _show(finding: Finding) -> None:
    width = min(shutil.get_terminal_size((_WIDEST, 24)).columns, _WIDEST)
    indent = " " * (_LEVEL_WIDTH + _ABOUT_WIDTH)
    lines = textwrap.wrap(
        finding.text,
        width,
        initial_indent=f"{finding.about:<{_ABOUT_WIDTH}}",
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    level = click.style(f"{finding.level:<{_LEVEL_WIDTH}}", fg=_COLOURS[finding.level], bold=finding.level != "ok")
    click.echo(level + "\n".join(lines))
    if finding.remedy:
        click.echo(
            textwrap.fill(
                finding.remedy,
                width,
                initial_indent=f"{indent}-> ",
                subsequent_indent=f"{indent}   ",
                break_long_words=False,
                break_on_hyphens=False,
            )
        )


def merge_hosts(found: Sequence[tuple[str, list[Finding]]]) -> list[Finding]:
    """What hosts found, each of themselves: what all of them found once, the rest with the hosts' names.

    Args:
        found: a host's name and its findings.
    """
    hosts = list(dict.fromkeys(host for host, _ in found))
    holders: defaultdict[Finding, list[str]] = defaultdict(list)
    for host, findings in found:
        for finding in dict.fromkeys(findings):
            if host not in holders[finding]:
                holders[finding].append(host)
    merged = [
        finding
        if len(holding) == len(hosts)
        else Finding(finding.level, finding.about, f"{_names(holding)}: {finding.text}", finding.remedy)
        for finding, holding in holders.items()
    ]
    order = {about: place for place, about in enumerate(dict.fromkeys(finding.about for finding in merged))}
    return sorted(merged, key=lambda finding: order[finding.about])


def _names(hosts: Iterable[str]) -> str:
    names = sorted(hosts)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
