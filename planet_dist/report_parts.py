"""The parts of a run's page as HTML, from what the run wrote down: pure functions. All text is escaped here or in page.

Suffixes: N chips, C labels.
"""

from __future__ import annotations

import base64
import html
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from planet_dist.charts import Interval, LineChart, Series, intervals, lines, shares
from planet_dist.page import Grid, figure, table
from planet_dist.runlogs import Record, RunLogs

_MOST_LINES = 6
_SHARES = {
    "wait": "waiting for chips",
    "copy": "copying to the device",
    "compute": "computing",
    "exchange": "exchanging gradients",
    "decode": "decoding",
}


@dataclass(frozen=True)
class Chip:
    """A chip of the gallery.

    Attributes:
        name: its key.
        image: a WebP file's bytes.
        right, missed, added: labels that the prediction and the truth share, that the truth alone has, and that the
            prediction alone has.
        f2: of its labels.
    """

    name: str
    image: bytes
    right: Sequence[str]
    missed: Sequence[str]
    added: Sequence[str]
    f2: float


def part(name: str, title: str, *pieces: str) -> str:
    """A section with an address of its own; empty where no piece has anything to show."""
    inside = "\n".join(piece for piece in pieces if piece)
    return f'<section id="{name}"><h2>{html.escape(title)}</h2>\n{inside}</section>' if inside else ""


def contents(parts: Mapping[str, str]) -> str:
    """Links to the parts of the page: titles by the names of part()."""
    links = "".join(f'<a href="#{name}">{html.escape(title)}</a>' for name, title in parts.items())
    return f'<nav aria-label="Parts of this page">{links}</nav>'


def paragraph(text: str, kind: str = "") -> str:
    """Text as a paragraph; `kind` is a class of page_style."""
    return f'<p class="{kind}">{html.escape(text)}</p>' if kind else f"<p>{html.escape(text)}</p>"


def facts(rows: Sequence[tuple[str, str, str]]) -> str:
    """Figures that stand out: name, value, and a few words below it."""
    cells = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd><b>{html.escape(value)}</b><span>{html.escape(words)}</span></dd></div>"
        for name, value, words in rows
    )
    return f'<dl class="facts">{cells}</dl>'


def heading(logs: RunLogs, finished: bool) -> str:
    """The run's name, what it is, and how far it has come."""
    done = len(logs.epochs)
    place = "finished" if finished else f"after epoch {done} of {logs.total_epochs}; this page follows every epoch"
    recipe = f"recipe {logs.start['recipe']}, " if "recipe" in logs.start else ""
    line = f"{recipe}{logs.config.model.name}, {place}. Written {moment(time.time())}."
    return title(logs.name, line)


def title(name: str, line: str) -> str:
    """What a page is about: a name, and a line about it."""
    return f"<header><h1>{html.escape(name)}</h1>{paragraph(line, 'soft')}</header>"


def summary(logs: RunLogs, scores: Record, chips: tuple[int, int]) -> str:
    """The run in six figures.

    Args:
        scores: Evaluation.to_json() of the kept checkpoint, or of the last epoch's model.
        chips: that train and that validate.
    """
    rule = next(one for one in scores["rules"] if one["rule"] == scores["chosen"])
    best = logs.best_epoch()
    rate = logs.images_per_second()
    waits = logs.time_shares().get("wait")
    seconds = sum(record.get("seconds", 0.0) for record in logs.timings)
    rows = [
        ("F2, cross-fitted", f"{rule['cross_fitted_f2']:.4f}", f"95%: {rule['low']:.4f} to {rule['high']:.4f}"),
        ("Rule", scores["chosen"], f"accuracy {scores['accuracy']:.4f}, loss {scores['loss']:.4f}"),
        ("Chips", f"{chips[0]:,}", f"train; {chips[1]:,} validate"),
    ]
    if best is not None:
        number = logs.epochs.index(best) + 1
        rows.append(("Best epoch", f"{number} of {logs.total_epochs}", f"by {logs.config.evaluate.best_by}"))
    if rate is not None:
        words = "" if waits is None else f"; {waits:.0%} waiting for chips"
        rows.append(("Speed", f"{rate:,.0f}/s", f"images, median{words}"))
        processes = logs.start.get("processes")
        on = f"{processes} process(es), " if processes else ""
        rows.append(
            ("Time", clock(seconds), f"{on}{logs.start.get('precision', '')}".rstrip(", ") or "in logged steps")
        )
    return facts(rows)


def curves(logs: RunLogs) -> str:
    """Losses, F2, speed and gradients over the run."""
    numbers = [float(number) for number in range(1, len(logs.epochs) + 1)]
    ends, before = [], 0
    for phase in logs.config.phases[:-1]:
        before += phase.epochs
        ends.append(before + 0.5)
    marks = [end for end in ends if end < len(numbers)]
    names = [name for name in _numeric(logs.epochs) if name == "f2" or name.startswith("f2_at_")]
    names += [name for name in _numeric(logs.epochs) if name.startswith("f2_") and name not in names]
    f2 = [Series(_f2_name(name), numbers, _column(logs.epochs, name)) for name in names[:_MOST_LINES]]
    losses = [
        Series("training", numbers, epoch_means(logs, "loss")),
        Series("validation", numbers, _column(logs.epochs, "loss")),
    ]
    timed = [float(record.get("step", number)) for number, record in enumerate(logs.timings)]
    rates = Series("images/s", timed, _column(logs.timings, "images_per_second"))
    large = [
        LineChart("F2 on the validation chips", "epoch", f2, marks),
        LineChart("Loss", "epoch", losses, marks, logarithmic=True),
    ]
    small = [
        LineChart("Learning rate", "step", [_of_steps(logs, "learning_rate")], from_zero=True, narrow=True),
        LineChart("Gradient norm", "step", [_of_steps(logs, "grad_norm")], logarithmic=True, narrow=True),
        LineChart("Images a second", "step", [rates], from_zero=True, narrow=True),
    ]
    drawn = f'<div class="charts">{"".join(map(lines, large))}</div>'
    drawn += f'<div class="charts three">{"".join(map(lines, small))}</div>'
    note = "Dashed lines stand where another phase begins." if marks else ""
    return f"{drawn}{paragraph(note, 'soft') if note else ''}{_epoch_table(logs)}"


def _of_steps(logs: RunLogs, name: str) -> Series:
    return Series(name, [float(record["step"]) for record in logs.steps], _column(logs.steps, name))


def epoch_means(logs: RunLogs, name: str) -> list[float]:
    """The mean of a logged figure over each epoch's steps, as many as epochs; NaN where none was logged."""
    found: dict[tuple[int, int], list[float]] = {}
    for step in logs.steps:
        if name in step:
            found.setdefault((step["phase"], step["epoch"]), []).append(step[name])
    places = [(epoch["phase"], epoch["epoch"]) for epoch in logs.epochs]
    return [sum(found[place]) / len(found[place]) if place in found else float("nan") for place in places]


def _epoch_table(logs: RunLogs) -> str:
    names = [name for name in _numeric(logs.epochs) if name not in ("phase", "epoch", "step")]
    flat = [name for name in names if "/" not in name]  # figures of single labels have a table of their own
    rows = [
        [str(number), *(_figure(record.get(name)) for name in flat), "best" if record.get("best") else ""]
        for number, record in enumerate(logs.epochs, start=1)
    ]
    best = logs.best_epoch()
    chosen = None if best is None else logs.epochs.index(best)
    grid = table(Grid(["epoch", *flat, "kept"], rows, sortable=True, chosen=chosen))
    return f"<details><summary>Every epoch's figures</summary>{grid}</details>"


def labels(scores: Record) -> str:
    """Every label's scores, to be sorted."""
    shown = {"f2": "F2", "precision": "precision", "recall": "recall"}
    if all("threshold" in one for one in scores["labels"]):  # a rule may decide without
        shown["threshold"] = "threshold"
    headings = ["label", *shown.values(), "chips"]
    rows = [[one["label"], *(f"{one[name]:.3f}" for name in shown), f"{one['support']:,}"] for one in scores["labels"]]
    words = (
        f"Each chip is decided by {scores['chosen']} fitted without the chip's own fold ({scores['folds']} folds, "
        f"{scores['rows']:,} chips). Chips: those that bear the label. Press a heading to sort."
    )
    grid = table(Grid(headings, rows, sortable=True, bars=[1, 2, 3]))
    return f'{paragraph(words)}<div class="panel">{grid}</div>'


def rules(scores: Record) -> str:
    """The decision rules compared: F2 cross-fitted with intervals, and fitted on the same chips."""
    words = (
        "Same chips: fitted and scored on all of them, as papers do. Cross-fitted: every chip decided by a fit without "
        "its fold. Chosen is the simplest rule whose distance from the best may be noise: its interval reaches 0."
    )
    return compared("rule", scores["rules"], scores["chosen"], words)


def compared(what: str, scores: Sequence[Record], chosen: str, words: str) -> str:
    """Things compared by their F2, cross-fitted with intervals, and fitted on the same chips.

    Args:
        what: they are.
        scores: crossfit.RuleScore as plain values.
        chosen: the name of the one that stands out.
        words: about them, above.
    """
    place = next(place for place, one in enumerate(scores) if one["rule"] == chosen)
    shown = [
        Interval(one["rule"], one["low"], one["cross_fitted_f2"], one["high"], one["rule"] == chosen) for one in scores
    ]
    rows = [
        [
            one["rule"],
            str(one["fitted"]),
            f"{one['same_rows_f2']:.4f}",
            f"{one['cross_fitted_f2']:.4f}",
            f"{one['low']:.4f} to {one['high']:.4f}",
            f"{one['behind_low']:.4f} to {one['behind_high']:.4f}",
        ]
        for one in scores
    ]
    headings = [what, "fitted values", "same chips", "cross-fitted", "95% interval", "behind the best by"]
    chart = intervals("Cross-fitted F2 with 95% intervals", shown)
    grid = table(Grid(headings, rows, chosen=place))
    return f'{paragraph(words)}<div class="charts one">{chart}</div><div class="panel">{grid}</div>'


def gallery(chips: Sequence[Chip]) -> str:
    """The worst chips, each with what was right, missed and added."""
    if not chips:
        return paragraph("Every validation chip is decided rightly.")
    tiles = []
    for chip in chips:
        name = html.escape(chip.name)
        image = f'<img alt="chip {name}" src="{_address(chip.image)}">'
        words = [f'<p class="name">{name} <span class="soft">F2 {chip.f2:.2f}</span></p>']
        groups = (("missed", chip.missed, "missed"), ("added", chip.added, "added"), ("right", chip.right, "soft"))
        words += [
            f'<p class="{kind}">{word}: {html.escape(", ".join(found))}</p>' for word, found, kind in groups if found
        ]
        tiles.append(f"<li>{image}<div>{''.join(words)}</div></li>")
    words_above = (
        "The validation chips of lowest F2. Missed: in the truth alone. Added: in the prediction alone. Some of the "
        "worst are labelled wrongly rather than predicted wrongly."
    )
    return f'{paragraph(words_above)}<ul class="gallery">{"".join(tiles)}</ul>'


def pictures(drawn: Sequence[tuple[str, bytes]], left_out: Mapping[str, str]) -> str:
    """The papers' figures (captions with WebP files' bytes), and why others aren't there."""
    shown = "".join(figure(_address(data), caption) for caption, data in drawn)
    missing = "".join(f"<li>{html.escape(name)}: {html.escape(reason)}</li>" for name, reason in left_out.items())
    fold = f"<details><summary>Left out</summary><ul>{missing}</ul></details>" if missing else ""
    return f'<div class="pictures">{shown}</div>{fold}' if shown else fold


def speed(logs: RunLogs) -> str:
    """Where the time went."""
    found = logs.time_shares()
    if not found:
        return ""
    named = [(_SHARES.get(name, name.replace("_", " ")), share) for name, share in found.items()]
    named.sort(key=lambda one: -one[1])
    # work that overlaps adds up to more than the whole
    bar = shares("Shares of the time of logged steps", named) if sum(share for _, share in named) <= 1.001 else ""
    memory = [record["gpu_memory_gib"] for record in logs.timings if record.get("gpu_memory_gib")]
    rows = [[name, f"{share:.1%}"] for name, share in named]
    rate = logs.images_per_second()
    rows += [["images a second, median", f"{rate:,.0f}"]] if rate is not None else []
    rows += [["most GPU memory", f"{max(memory):.1f} GiB"]] if memory else []
    words = (
        "Of rank 0, weighted by time. Waiting for chips above a few hundredths asks for more decoding threads or cores."
    )
    panel = f'<div class="panel">{table(Grid(["part of the work", "share or figure"], rows))}</div>'
    return paragraph(words) + (f'<div class="panel">{bar}</div>' if bar else "") + panel


def configuration(logs: RunLogs) -> str:
    """The resolved configuration, key by key."""
    groups: dict[str, list[tuple[str, Any]]] = {}
    for key, value in _flat(logs.config.model_dump(mode="json", exclude={"description"})):
        group, _, rest = key.rpartition(".")
        groups.setdefault(group, []).append((rest, value))
    parts = []
    for group, rows in groups.items():
        parts.append(f"<h3>{html.escape(group or 'run')}</h3>")
        parts += [f"<div><dt>{html.escape(key)}</dt><dd>{html.escape(str(value))}</dd></div>" for key, value in rows]
    words = f"{logs.config.description}. RUN/config.toml has all of this as a recipe that gives the run again."
    return f'{paragraph(words)}<div class="panel"><dl class="keys">{"".join(parts)}</dl></div>'


def environment(logs: RunLogs, dataset_rows: Sequence[tuple[str, str]]) -> str:
    """Code, libraries, device and data, as far as the run's start has written them down."""
    start = logs.start
    git = start.get("git")
    known = [
        ("recipe", start.get("recipe")),
        ("started", moment(start["time"]) if "time" in start else None),
        ("start", f"number {start['start']} of this run" if start.get("start", 1) > 1 else None),
        ("device", start.get("device")),
        ("processes", start.get("processes")),
        ("precision", start.get("precision")),
        ("cores", start.get("cores")),
        ("commit", f"{git['commit']}{', with changes' if git['dirty'] else ''}" if git else None),
        ("Python", start.get("python")),
        ("CUDA", start.get("cuda")),
        *sorted(start.get("versions", {}).items()),
        ("dataset", start.get("data")),
        *dataset_rows,
    ]
    rows = [[name, str(value)] for name, value in known if value is not None]
    return f'<div class="panel">{table(Grid(["", ""], rows, prose=[1]))}</div>'


def clock(seconds: float) -> str:
    """Seconds as a person says them: 45 s, 12 min, 3 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"


def moment(seconds: float) -> str:
    """A time of day as a person reads it, from seconds since 1970."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def _address(image: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(image).decode()}"


def _numeric(records: Sequence[Record]) -> list[str]:
    """Names of figures, in the order of the first record; of truth values and nested figures there are none."""
    names = dict.fromkeys(name for record in records for name in record)
    return [name for name in names if any(_is_number(record.get(name)) for record in records)]


def _column(records: Sequence[Record], name: str) -> list[float]:
    return [float(record[name]) if _is_number(record.get(name)) else float("nan") for record in records]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _figure(value: Any) -> str:
    return f"{value:.4f}" if _is_number(value) else ""


def _f2_name(name: str) -> str:
    return "best single threshold" if name == "f2" else name.removeprefix("f2_").replace("_", " ")


def _flat(value: Any, at: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        return [found for key, one in value.items() for found in _flat(one, f"{at}.{key}" if at else key)]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [found for place, one in enumerate(value) for found in _flat(one, f"{at}.{place}")]
    return [(at, value)]
