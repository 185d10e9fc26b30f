"""The model card: what a bundle is, in words, for whoever is handed the folder. Made of its description alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from planet_dist.bundle_description import Description, Member, Stacking
from planet_dist.decision import Decision
from planet_dist.page import Grid, Section, to_markdown
from planet_dist.thresholds import Thresholds

_FEW_CHIPS = 50  # below it, one chip more or less moves a label's recall by two points or more

_USE = """## How to use

    planet-dist predict BUNDLE --images DIR --out submission.csv
    planet-dist export BUNDLE --onnx model.onnx

From Python:

    from planet_dist.bundle import Bundle

    bundle = Bundle.load("BUNDLE")
    answers = bundle.predict(images_NHWC)  # pixels as they come from disk
    print(answers.tags, answers.probabilities_NC)

Opening it checks every file against its digest, and runs nothing out of it.
"""


def model_card(description: Description) -> str:
    """The card as Markdown; whatever comes from data is escaped."""
    stacking = description.stacking
    names = ", ".join(stacking.recipes if stacking else [member.name for member in description.members])
    sections = [
        Section("What it is", *_summary(description)),
        Section("Data", *_data(description)),
        *_protocols(description),
        *_scores(description.scores),
        *_labels(description),
        Section("Limits", (), _limits(description)),
    ]
    return to_markdown(f"Model card: {names}", sections, Path()) + "\n" + _USE


def _summary(description: Description) -> tuple[list[str], list[str]]:
    form = description.image
    many = len(description.members)
    said = f"A classifier of satellite chips: {len(description.labels)} labels, any number of them a chip. " + (
        f"{many} networks answer together." if many > 1 else "One network answers."
    )
    together = {
        "mean": f"on the mean of the members' probabilities: {_decides(description.thresholds)}",
        "vote": "a label stands where half of the members or more say so, each by its own rule",
        "any-rare": "as the mean; for rare labels any member's word suffices",
        "stacked": _stacked(description.stacking, description.thresholds),
    }[description.rule]
    items = [
        f"Input: {form.kind} chips, {form.bands} bands of {form.dtype} in the order {', '.join(form.band_order)}; "
        f"training chips had {form.height}x{form.width} pixels",
        f"Decision: {_decides(description.thresholds) if many == 1 else together}",
        *([f"Rare labels: {', '.join(description.rare)}"] if description.rule == "any-rare" else []),
        "Output: a probability for each label, and the labels that are decided",
        f"Made by planet-dist {description.made_by}",
    ]
    return [said], items


def _decides(decision: Decision) -> str:
    if isinstance(decision, Thresholds):
        return f"thresholds of the rule {decision.rule}"
    together = "true together by the label rules" if decision.exclusive or decision.alone else "independent"
    return (
        f"the label set of greatest expected F2 (the rule {decision.rule}), labels taken as {together}, probabilities "
        f"calibrated for it: {decision.calibration.method}"
    )


def _stacked(stacking: Stacking | None, decision: Decision) -> str:
    if stacking is None:
        return ""
    recipes = ", ".join(
        f"{name} ({len(members)})" for name, members in zip(stacking.recipes, stacking.members, strict=True)
    )
    return (
        f"each recipe's networks ({recipes}) are averaged, the recipes combined by "
        f"{stacking.combiner}; on what comes of it: {_decides(decision)}"
    )


def _data(description: Description) -> tuple[list[str], list[str]]:
    return [], [
        f"{description.training_chips:,} training chips of the dataset whose manifest has the sha256 "
        f"{description.dataset_digest}",
        f"Statistics of each band: mean {_numbers(description.members[0].mean)}, deviation "
        f"{_numbers(description.members[0].std)}",
        *(
            f"{group.name}: {'exactly' if group.required else 'at most'} one of {', '.join(group.labels)}"
            for group in description.exclusive
        ),
    ]


def _protocols(description: Description) -> list[Section]:
    """One for each member; of a recipe's folds, which are trained alike, the first stands for all."""
    if description.stacking is None:
        return [_protocol(member) for member in description.members]
    recipes = [[description.members[place] for place in places] for places in description.stacking.members]
    return [_protocol(_of_folds(folds)) for folds in recipes]


def _of_folds(members: list[Member]) -> Member:
    """The first one, with a word where the others' protocols differ."""
    first = members[0]
    protocol = {
        what: value
        if all(one.protocol.get(what) == value for one in members)
        else f"{value}; the others have their own"
        for what, value in first.protocol.items()
    }
    standing: Member = first.model_copy(update={"name": f"{first.name} and its others", "protocol": protocol})
    return standing


def _protocol(member: Member) -> Section:
    views = "the mean of 8 views: quarter turns and mirror images" if member.turns == 8 else "the chip as it is"
    rows = [
        ["network", member.model.name],
        ["input side", f"{member.size} px" if member.size else "the chips' own"],
        ["normalised by", member.normalise],
        ["at test time", views],
        *[[what, value] for what, value in member.protocol.items()],
    ]
    return Section(f"Protocol: {member.name}", grid=Grid(("", "value"), rows))


def _scores(scores: dict[str, Any]) -> list[Section]:
    """The rules, or members and combinations, with their intervals; empty where evaluation said nothing."""
    if "steps" in scores:
        return [_steps(scores)]
    compared = scores.get("rules") or scores.get("contenders") or []
    if not compared:
        return []
    chosen = scores.get("chosen") or scores.get("rule")
    rows = []
    for one in compared:
        name = str(one.get("rule") or one.get("name"))
        rows.append(
            [
                f"{name} (this bundle)" if name == chosen else name,
                f"{one['cross_fitted_f2']:.4f}",
                f"{one['low']:.4f} to {one['high']:.4f}",
                f"{one['same_rows_f2']:.4f}",
            ]
        )
    said = (
        f"Sample-averaged F2 on {scores['rows']:,} validation chips that no weight was trained on. Cross-fitted: each "
        f"chip is decided by a fit without its fold, of {scores['folds']}. The interval is a 95% bootstrap "
        "over the chips. Fitted on the same chips, as papers report it, flatters."
    )
    return [Section("Scores", [said], grid=Grid(("decided by", "F2", "95% interval", "F2, same chips"), rows))]


def _steps(scores: dict[str, Any]) -> Section:
    """What each step towards a stacked bundle came to."""
    rows = [[one["name"], f"{one['f2']:.4f}", f"{one['low']:.4f} to {one['high']:.4f}"] for one in scores["steps"]]
    said = (
        f"Sample-averaged F2 on {scores['rows']:,} chips, each answered by networks that were not trained on it, and "
        f"combined and decided by what was fitted and chosen without its fold, of {scores['folds']}. The last line is "
        "this bundle's way. The interval is a 95% bootstrap over the chips. On new chips each recipe answers by all "
        "its networks, and not by one of them, as here."
    )
    return Section("Scores", [said], grid=Grid(("step", "F2", "95% interval"), rows))


def _labels(description: Description) -> list[Section]:
    scored = {one["label"]: one for one in description.scores.get("labels", [])}
    rows = []
    for label, trained in zip(description.labels, description.training_label_counts, strict=True):
        one = scored.get(label, {})
        figures = [f"{one[name]:.3f}" if name in one else "-" for name in ("f2", "precision", "recall")]
        ends = f"{one['f2_low']:.3f} to {one['f2_high']:.3f}" if "f2_low" in one else "-"
        rows.append([label, f"{trained:,}", figures[0], ends, *figures[1:], f"{one['support']:,}" if one else "-"])
    columns = ["label", "training chips", "F2", "95% interval", "precision", "recall", "validation chips"]
    if all(row[3] == "-" for row in rows):
        columns.pop(3)
        rows = [row[:3] + row[4:] for row in rows]
    return [Section("Labels", grid=Grid(columns, rows))]


def _limits(description: Description) -> list[str]:
    counts = zip(description.labels, description.training_label_counts, strict=True)
    few = [label for label, count in counts if count < _FEW_CHIPS]
    kept = {member.protocol.get("best checkpoint by", "") for member in description.members} - {"", "last"}
    return [
        "Nothing was measured on chips of another sensor, region, season or processing than those of the dataset.",
        "The scores are those of the split above: its validation chips come from the same collection as the training "
        "chips, and neighbouring scenes may stand on both sides.",
        *([f"The checkpoint was chosen on the validation chips (best {', '.join(sorted(kept))})."] if kept else []),
        *([f"Learned from fewer than {_FEW_CHIPS} chips each: {', '.join(few)}."] if few else []),
        "Probabilities order chips well before they are calibrated: take them for frequencies only after a check.",
        "Networks answer in float32; in training's precision, chips on the edge may be decided otherwise.",
    ]


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.5g}" for value in values)
