"""Finished runs as one ensemble: what each member and each way to combine them is worth, and the bundle of them all.

Every figure is cross-fitted: the decisions of members and of their mean are fitted without the fold that they are
judged on.

    OUT/evaluation/metrics.json       the figures
    OUT/evaluation/predictions.npz    the mean of the members' probabilities, as logits
    OUT/bundle/                       the members' weights, and how they decide together

Suffixes: M members, N samples, C labels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from planet_dist.bundle_description import Description
from planet_dist.bundle_files import read_description, write_bundle
from planet_dist.combination import COMBINATION_RULES, CombinationRule, mean_probabilities
from planet_dist.ensemble_scores import EnsembleEvaluation, evaluate_ensemble
from planet_dist.metrics import Array, Bools, Floats
from planet_dist.predictions import Predictions, read_predictions, write_predictions
from planet_dist.runfolder import RunFolder
from shards.errors import ConfigError, RunError
from shards.schema import write_whole

RARE_SHARE = 0.01


def combine_runs(
    runs: Sequence[Path],
    rule: CombinationRule,
    out: Path,
    *,
    rare: Sequence[str] = (),
    rare_share: float = RARE_SHARE,
    seed: int = 0,
) -> EnsembleEvaluation:
    """Evaluates runs together, and writes OUT/evaluation and OUT/bundle; what stands there is replaced.

    Args:
        runs: folders of finished runs of one dataset, split and vocabulary.
        rare: labels that "any-rare" calls rare; none leaves it to the share.
        rare_share: labels borne by less than this share of the training chips are rare.
        seed: of folds and resamples.

    Raises:
        RunError: a run that isn't finished or is an ensemble itself, runs that don't belong together, labels that no
            member speaks for, or a folder that cannot be written.
        ConfigError: a rare label that the vocabulary lacks.
    """
    bundles, found = _read_runs(runs)
    bundle, probabilities_MNC, true_NC, ids_N = _merged(runs, bundles, found, rule)
    bundle = bundle.model_copy(update={"rare": _rare_labels(bundle, rare, rare_share)})
    evaluation = evaluate_ensemble(bundle, probabilities_MNC, true_NC, ids_N, seed=seed)
    bundle = bundle.model_copy(update={"thresholds": evaluation.thresholds, "scores": evaluation.to_json()})
    folder = RunFolder(out)
    weights = [RunFolder(run).bundle / single.members[0].weights for run, single in zip(runs, bundles, strict=True)]
    try:
        folder.evaluation.mkdir(parents=True, exist_ok=True)
        logits_NC = _as_logits(mean_probabilities(probabilities_MNC, evaluation.speaks_MC))
        write_predictions(folder.evaluation / "predictions.npz", bundle.labels, ids_N, logits_NC, true_NC)
        text = json.dumps(evaluation.to_json(), indent=1, ensure_ascii=False)
        write_whole(folder.evaluation / "metrics.json", f"{text}\n".encode())
    except OSError as error:
        raise RunError(f"{out}: cannot be written ({error}); give another --out") from error
    write_bundle(folder.bundle, bundle, weights)
    return evaluation


def _read_runs(runs: Sequence[Path]) -> tuple[list[Description], list[Predictions]]:
    if len(runs) < 2:
        raise RunError(f"{len(runs)} run(s): an ensemble has two members or more; give more runs")
    places = [run.resolve() for run in runs]
    repeated = sorted({str(place) for place in places if places.count(place) > 1})
    if repeated:
        raise RunError(f"{', '.join(repeated)}: given more than once; a member votes once")
    bundles = [read_description(RunFolder(run).bundle) for run in runs]
    for run, bundle in zip(runs, bundles, strict=True):
        if len(bundle.members) != 1:
            raise RunError(f"{run}: is an ensemble of {len(bundle.members)} itself; give its members' runs")
    return bundles, [read_predictions(RunFolder(run).evaluation / "predictions.npz") for run in runs]


def _merged(
    runs: Sequence[Path], bundles: Sequence[Description], found: Sequence[Predictions], rule: CombinationRule
) -> tuple[Description, Floats, Bools, Array]:
    """One bundle of all, and the members' predictions in one order; an error where they don't belong together."""
    first, ids_N = bundles[0], np.sort(found[0].ids_N)
    aligned: list[Floats] = []
    true_NC = found[0].targets_NC[np.argsort(found[0].ids_N)]
    for run, bundle, predictions in zip(runs, bundles, found, strict=True):
        if bundle.labels != first.labels or list(predictions.labels) != first.labels:
            raise RunError(f"{run}: its labels are {bundle.labels}, and those of {runs[0]} {first.labels}; {_TOGETHER}")
        if bundle.dataset_digest != first.dataset_digest:
            raise RunError(
                f"{run}: trained on the dataset {bundle.dataset_digest[:12]}, and {runs[0]} on "
                f"{first.dataset_digest[:12]}; {_TOGETHER}"
            )
        order_N = np.argsort(predictions.ids_N)
        if not np.array_equal(predictions.ids_N[order_N], ids_N):
            shared = len(np.intersect1d(predictions.ids_N, ids_N))
            raise RunError(
                f"{run}: has {len(order_N)} validation chips, {shared} of them among the {len(ids_N)} of {runs[0]}; "
                f"{_TOGETHER} (random and kfold splits are drawn from the run's seed)"
            )
        if not np.array_equal(predictions.targets_NC[order_N], true_NC):
            raise RunError(f"{run}: its validation chips bear other labels than those of {runs[0]}; {_TOGETHER}")
        aligned.append(predictions.probabilities_NC[order_N])
    members = [
        bundle.members[0].model_copy(update={"name": name, "weights": f"model-{i}.safetensors"})
        for i, (name, bundle) in enumerate(zip(_names(bundles), bundles, strict=True))
    ]
    spoken = {label for member in members for label in member.speaks_for}
    silent = [label for label in first.labels if label not in spoken]
    if silent:
        raise RunError(
            f"no member was trained on {', '.join(silent)}: each has loss.label_weights of 0 for it; "
            "add a member that was trained on all labels"
        )
    return first.model_copy(update={"members": members, "rule": rule}), np.stack(aligned), true_NC, ids_N


_TOGETHER = "members of an ensemble are trained on one dataset with one split"


def _names(bundles: Sequence[Description]) -> list[str]:
    """The members' names, told apart by their place where two bear one name or that of a rule."""
    names = [bundle.members[0].name for bundle in bundles]
    unique = len(set(names)) == len(names) and not set(names) & set(COMBINATION_RULES)
    return names if unique else [f"{i}-{name}" for i, name in enumerate(names)]


def _rare_labels(bundle: Description, rare: Sequence[str], share: float) -> list[str]:
    unknown = sorted(set(rare) - set(bundle.labels))
    if unknown:
        raise ConfigError(f"rare labels {', '.join(unknown)}: the vocabulary lacks them; it has {bundle.labels}")
    if rare:
        return [label for label in bundle.labels if label in rare]
    if not 0 <= share <= 1:
        raise ConfigError(f"rare share {share}: a share of the training chips lies between 0 and 1")
    counts = zip(bundle.labels, bundle.training_label_counts, strict=True)
    return [label for label, count in counts if count < share * bundle.training_chips]


def _as_logits(probabilities_NC: Floats) -> Floats:
    inside_NC = np.clip(probabilities_NC, np.finfo(np.float64).tiny, 1 - np.finfo(np.float64).epsneg)
    logits_NC: Floats = np.log(inside_NC) - np.log1p(-inside_NC)
    return logits_NC
