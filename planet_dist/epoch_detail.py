"""What an epoch's validation says beyond its few figures: per label, per rule, and where it goes wrong.

One JSON object a validation, a function of data and seed alone, so that it may stand in metrics.jsonl. Fitted and
scored on the same chips, as cheaply as an epoch allows; evaluation/metrics.json has the cross-fitted figures.

Suffixes: N chips, C labels, G labels of a group, B bins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planet_dist.chip_choice import worst_mistakes
from planet_dist.combination import others_right
from planet_dist.metrics import Bools, Floats, label_scores, mean_f2, probabilities, sample_f2
from planet_dist.thresholds import RULES, decide
from shards.labels import Vocabulary

LABELS_RULE = "grid-independent"
BINS = 15
SHOWN_MISTAKES = 12


def epoch_detail(
    logits_NC: NDArray[np.float32],
    targets_NC: NDArray[np.uint8],
    ids_N: NDArray[np.int64],
    keys_of: Callable[[NDArray[np.int64]], Sequence[str]],
    vocabulary: Vocabulary,
    speaks_C: Bools,
) -> dict[str, Any]:
    """Rules, labels, calibration, confusion, co-occurrence and the worst mistakes of one validation.

    Labels' figures, co-occurrence and mistakes are those of each label's own threshold (LABELS_RULE). A specialist's
    other labels count as answered rightly (combination.others_right), and have no figures of their own.

    Args:
        logits_NC, targets_NC: one row a chip.
        ids_N: the chips' ids; keys_of gives the keys of some.
        speaks_C: labels that the model was trained on.

    Returns:
        rules: F2 by thresholds.RULES' names. labels: f2, precision, recall, threshold by label. calibration: error,
        and bins as [decisions, mean probability, share true]. confusion: by group, its labels and chips as
        [true][most probable]. cooccurrence: labels, and chips as [label][label], true and decided. mistakes: id, key,
        f2, truth, missed, added.
    """
    labels = vocabulary.labels
    true_NC = targets_NC.astype(bool)
    given_NC = others_right(probabilities(logits_NC), targets_NC, speaks_C)
    values = {rule.name: rule.fit(given_NC, true_NC) for rule in RULES}
    decided_NC = decide(given_NC, values[LABELS_RULE])
    scores = label_scores(decided_NC, true_NC)
    columns = zip(scores.f2_C, scores.precision_C, scores.recall_C, values[LABELS_RULE], strict=True)
    figures = [dict(zip(("f2", "precision", "recall", "threshold"), map(float, one), strict=True)) for one in columns]
    return {
        "rules": {name: mean_f2(decide(given_NC, values_C), true_NC) for name, values_C in values.items()},
        "labels": {label: figures[c] for c, label in enumerate(labels) if speaks_C[c]},
        "calibration": calibration(given_NC[:, speaks_C].ravel(), true_NC[:, speaks_C].ravel()),
        "confusion": _confusions(given_NC, true_NC, vocabulary, speaks_C),
        "cooccurrence": {
            "labels": list(labels),
            "true": _together(true_NC).tolist(),
            "decided": _together(decided_NC).tolist(),
        },
        "mistakes": _mistakes(decided_NC, true_NC, ids_N, keys_of, labels),
    }


def calibration(given_M: Floats, true_M: Bools) -> dict[str, Any]:
    """The expected calibration error over BINS bins of equal width, and the bins.

    Args:
        given_M: probabilities float64 (M,).
        true_M: bool (M,).

    Returns:
        error in [0, 1]; bins as [decisions, mean probability, share true], zeros where a bin is empty.
    """
    bin_M = np.minimum((given_M * BINS).astype(np.int64), BINS - 1)
    count_B = np.bincount(bin_M, minlength=BINS)
    many_B = np.maximum(count_B, 1)
    given_B = np.bincount(bin_M, weights=given_M, minlength=BINS) / many_B
    true_B = np.bincount(bin_M, weights=true_M.astype(np.float64), minlength=BINS) / many_B
    error = float(np.sum(count_B * np.abs(given_B - true_B)) / len(given_M))
    bins = zip(count_B.tolist(), given_B.tolist(), true_B.tolist(), strict=True)
    return {"error": error, "bins": [list(one) for one in bins]}


def confusion(given_NG: Floats, true_NG: Bools) -> NDArray[np.int64]:
    """Chips by the label of a group that they bear (rows) and the most probable one (columns), int64 (G, G).

    Chips that bear none or several of the group are left out.
    """
    one_N = true_NG.sum(axis=1) == 1
    size = true_NG.shape[1]
    places = true_NG[one_N].argmax(axis=1) * size + given_NG[one_N].argmax(axis=1)
    return np.bincount(places, minlength=size * size).reshape(size, size)


def _confusions(given_NC: Floats, true_NC: Bools, vocabulary: Vocabulary, speaks_C: Bools) -> dict[str, Any]:
    found = {}
    for group in vocabulary.exclusive:
        columns_G = [vocabulary.labels.index(label) for label in group.labels]
        if speaks_C[columns_G].all():
            chips = confusion(given_NC[:, columns_G], true_NC[:, columns_G])
            found[group.name] = {"labels": list(group.labels), "chips": chips.tolist()}
    return found


def _together(bits_NC: Bools) -> NDArray[np.int64]:
    whole_NC = bits_NC.astype(np.int64)  # integers: their products don't go through BLAS and its threads
    counts: NDArray[np.int64] = whole_NC.T @ whole_NC
    return counts


def _mistakes(
    decided_NC: Bools,
    true_NC: Bools,
    ids_N: NDArray[np.int64],
    keys_of: Callable[[NDArray[np.int64]], Sequence[str]],
    labels: Sequence[str],
) -> list[dict[str, Any]]:
    def named(bits_C: Bools) -> list[str]:
        return [label for label, bit in zip(labels, bits_C, strict=True) if bit]

    places = worst_mistakes(decided_NC, true_NC, SHOWN_MISTAKES)
    return [
        {
            "id": int(ids_N[n]),
            "key": key,
            "f2": float(sample_f2(decided_NC[n : n + 1], true_NC[n : n + 1])[0]),
            "truth": named(true_NC[n]),
            "missed": named(true_NC[n] & ~decided_NC[n]),
            "added": named(decided_NC[n] & ~true_NC[n]),
        }
        for n, key in zip(places, keys_of(ids_N[places]), strict=True)
    ]
