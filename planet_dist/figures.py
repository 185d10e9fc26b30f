"""All figures of a finished run, and the files they go to.

The figures themselves are pure functions (figures_scores, figures_chips); here their arrays come together. A figure
that a run has nothing for (no confusions, no such label) is left out by name, with the reason.

Suffixes: N chips, C labels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from planet_dist import chip_choice
from planet_dist.augment import Preprocess
from planet_dist.config import AugmentConfig, DataConfig
from planet_dist.decision_rules import FOLDS, best_method, cross_calibrated
from planet_dist.display import displayed
from planet_dist.figures_chips import Line, Tile, augmentation, compared, gallery
from planet_dist.figures_reliability import reliability_panels
from planet_dist.figures_scores import (
    LossCurve,
    cooccurrence,
    f2_contour,
    label_dots,
    losses,
    mean_products,
    rule_label_scores,
)
from planet_dist.figures_style import BLACK, BLUE, GREY, VERMILLION, write_png
from planet_dist.finished import FinishedRun, Scorer
from planet_dist.label_noise import Suspicion, suspicion_of_predictions, suspicions_of_labels
from planet_dist.metrics import Bools
from planet_dist.saliency import activation_maps
from shards.errors import ConfigError, RunError
from shards.labels import Vocabulary
from shards.reader import Dataset

# First paper, section 4.4: flipped, rotated and shifted; drawn for a run that augments nothing.
PAPER_AUGMENTATION = AugmentConfig(flip=True, rotate_degrees=180.0, shift=0.1)
ILLEGAL = "artisinal_mine"  # first paper, Figure 7
CONFUSED = ("water", "road")  # second paper, section 6
_EXAMPLES, _MISTAKES, _CERTAIN, _NOISY, _MAPPED, _DRAWS = 4, 12, 8, 8, 4, 5

_CAPTIONS = {
    "f2-contour": "F2 over precision and recall (first paper, Figure 4).",
    "labelled-examples": "Chips with their labels (first paper, Figure 1).",
    "augmentation": "Chips before and after augmentation (first paper, Figure 5).",
    "losses": "Training and validation loss by epoch.",
    "labels-by-rule": "Each label under three kinds of thresholds (first paper, Figure 6).",
    "reliability": "How often each label is true, by the probability that it is given, before and after calibration.",
    "labels-beside-other": "Each label, baseline and best model (first paper, Figure 6 and section 5).",
    "certain-": "The chips of which the model is surest (first paper, Figure 7).",
    "cooccurrence": "Co-occurrence of labels: in the data, and predicted (second paper, Figures 1 and 6).",
    "mistakes": "Validation chips decided worst; orange is missed, blue is added.",
    "mistakes-exclusive": "Chips given labels that exclude each other (second paper, Figure 5).",
    "noise-": "Labels that look wrong (second paper, section 4.2).",
    "activation-maps": "Where the network sees a river and where a road, in chips in which it confuses them "
    "(second paper, section 6).",
}


@dataclass
class Drawn:
    """What was drawn.

    Attributes:
        files: PNG files by figure, in order.
        left_out: reasons by figure.
    """

    files: dict[str, Path] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def caption(name: str) -> str:
    """What a figure shows, and where the papers have it.

    Args:
        name: of RunFigures.makers().
    """
    start = max((start for start in _CAPTIONS if name.startswith(start)), key=len)
    return _CAPTIONS[start]


class Nothing(Exception):
    """A figure would have nothing to show; the text says what is missing."""


class RunFigures:
    """The figures of one run over its dataset.

    Args:
        run: finished.
        dataset: that it was trained on.
        other: another run on the same validation chips, drawn beside it: a baseline, or one without the co-occurrence
            term.
    """

    def __init__(self, run: FinishedRun, dataset: Dataset, other: FinishedRun | None = None) -> None:
        self.run, self.dataset, self.other = run, dataset, other
        self.vocabulary = dataset.manifest.vocabulary
        self.labels = list(self.vocabulary.labels)
        found = run.predictions
        self.ids_N, self.p_NC, self.true_NC = found.ids_N, found.probabilities_NC, found.targets_NC
        self.decided_NC: Bools = run.thresholds.decide(self.p_NC)
        self.all_NC = self.vocabulary.matrix(dataset.index()["labels"]).astype(bool)
        self.group = list(self.vocabulary.exclusive[0].labels) if self.vocabulary.exclusive else []

    def makers(self, certain: Sequence[str]) -> dict[str, Callable[[], Figure]]:
        """What draws each figure, by name.

        Args:
            certain: labels whose surest chips are shown.
        """
        return {
            "f2-contour": f2_contour,
            "labelled-examples": self.labelled_examples,
            "augmentation": self.augmentation,
            "losses": self.losses,
            "labels-by-rule": self.labels_by_rule,
            "labels-beside-other": self.labels_beside_other,
            "reliability": self.reliability,
            "cooccurrence": self.cooccurrence,
            "mistakes": self.mistakes,
            "mistakes-exclusive": self.mistakes_exclusive,
            **{f"certain-{label}": partial(self.certain, label) for label in certain},
            **{f"noise-{s.kind}": partial(self.noise, s) for s in self.suspicions()},
            "activation-maps": self.activation_maps,
        }

    def labelled_examples(self) -> Figure:
        """Chips with their labels (first paper, Figure 1)."""
        columns = [self.labels.index(label) for label in self.group]
        chosen = chip_choice.labelled_examples(self.all_NC, columns, _EXAMPLES)
        tiles = [Tile(self._shown(i), [Line(", ".join(self._names(self.all_NC[i])))]) for i in chosen.tolist()]
        return gallery("Chips and their labels", tiles, columns=2)

    def augmentation(self) -> Figure:
        """Chips before and after augmentation (first paper, Figure 5)."""
        own = self.run.config.augment
        augment = own if own != AugmentConfig() else PAPER_AUGMENTATION
        form = self.dataset.manifest.image
        # statistics that leave the pixels' own values
        plain = DataConfig(size=self.run.config.data.size)
        zeros, ones = [0.0] * form.bands, [1.0] * form.bands
        preprocess = Preprocess(plain, form.pixels, zeros, ones, augment=augment, seed=self.run.config.seed)
        columns = [self.labels.index(label) for label in self.group]
        ids = chip_choice.labelled_examples(self.all_NC, columns, 2).astype(np.int64)
        images_BHWC = torch.from_numpy(np.stack([self.dataset.pixels(int(i)) for i in ids]))
        drawn = [
            preprocess.train(images_BHWC, ids, epoch).permute(0, 2, 3, 1).numpy().round().astype(form.dtype)
            for epoch in range(_DRAWS)
        ]
        changed = [[displayed(epoch[chip], form) for epoch in drawn] for chip in range(len(ids))]
        return augmentation([self._shown(int(i)) for i in ids], changed)

    def losses(self) -> Figure:
        """Training and validation losses of the run, and of the other one."""
        return losses([loss_curve(run) for run in (self.run, self.other) if run is not None])

    def labels_by_rule(self) -> Figure:
        """Each label under three kinds of thresholds (first paper, Figure 6)."""
        scores = rule_label_scores(self.p_NC, self.true_NC, self.labels, self.run.config.seed)
        return label_dots(self.labels, scores, "Thresholds, cross-fitted on the validation chips")

    def labels_beside_other(self) -> Figure:
        """Each label of the run beside the other one's, thresholds per label."""
        if self.other is None:
            raise Nothing("needs a second run")
        per_label = "threshold per label"
        pair = {
            (run.folder.root.name or "run"): rule_label_scores(
                run.predictions.probabilities_NC, run.predictions.targets_NC, self.labels, run.config.seed
            )[per_label]
            for run in (self.other, self.run)
        }
        if len(pair) < 2:
            raise Nothing("both runs have one name; rename a folder")
        return label_dots(self.labels, pair, "Two runs, a threshold for each label, cross-fitted")

    def reliability(self) -> Figure:
        """How far each label's probabilities are from frequencies, as they are and calibrated, cross-fitted."""
        # Of other labels a specialist says nothing.
        spoken = self.run.scores.get("specialist_of", self.labels)
        columns = [self.labels.index(label) for label in spoken]
        p_NC, true_NC = self.p_NC[:, columns], self.true_NC[:, columns]
        given = {"as they are": p_NC}
        method = best_method(p_NC, true_NC)
        if method != "none":
            given[f"calibrated, {method}, cross-fitted"] = cross_calibrated(method, p_NC, true_NC, FOLDS)
        return reliability_panels(spoken, true_NC, given)

    def cooccurrence(self) -> Figure:
        """Co-occurrence of labels in the data and in predictions (second paper, Figures 1 and 6)."""
        panels = {"data": mean_products(self.true_NC)}
        for run in (self.other, self.run):
            if run is not None:
                term = "with" if run.config.loss.cooccurrence != "none" else "without"
                panels[f"{run.folder.root.name}: {term} the term"] = mean_products(run.predictions.probabilities_NC)
        return cooccurrence(self.labels, panels, self.group)

    def mistakes(self) -> Figure:
        """The worst chips: truth and prediction."""
        chosen = chip_choice.worst_mistakes(self.decided_NC, self.true_NC, _MISTAKES)
        if not chosen.size:
            raise Nothing("every validation chip is decided rightly")
        return self._compared("Mistakes: the validation chips of lowest F2", chosen)

    def mistakes_exclusive(self) -> Figure:
        """Chips given two labels that exclude each other (second paper, Figure 5)."""
        columns = [self.labels.index(label) for label in self.group]
        if len(columns) < 2:
            raise Nothing("the vocabulary has no labels that exclude each other")
        chosen = chip_choice.several_of(self.decided_NC, columns, self.p_NC, _CERTAIN)
        name = self.vocabulary.exclusive[0].name
        if not chosen.size:
            raise Nothing(f"no validation chip is given two {name} labels")
        return self._compared(f"Chips given two or more {name} labels, which exclude each other", chosen)

    def certain(self, label: str) -> Figure:
        """The chips of which the model is surest that they bear a label (first paper, Figure 7)."""
        column = self.labels.index(label)
        tiles = []
        for place in chip_choice.most_certain(self.p_NC, column, _CERTAIN).tolist():
            truly = bool(self.true_NC[place, column])
            verdict = Line("labelled so" if truly else "not labelled so", BLACK if truly else VERMILLION)
            tiles.append(self._tile(place, [Line(f"p = {self.p_NC[place, column]:.3f}"), verdict]))
        return gallery(f"Validation chips most surely of {label}", tiles)

    def suspicions(self) -> list[Suspicion]:
        """Labels that look wrong (second paper, section 4.2)."""
        found = suspicions_of_labels(self.all_NC, self.vocabulary)
        seen = suspicion_of_predictions(self.ids_N.astype(np.int64), self.p_NC, self.true_NC, self.vocabulary)
        return found if seen is None else [*found, seen]

    def noise(self, suspicion: Suspicion) -> Figure:
        """Some chips whose labels look wrong for one reason."""
        if not suspicion.ids.size:
            raise Nothing(f"no chip: {suspicion.meaning}")
        probabilities = dict(zip(self.ids_N.tolist(), self.p_NC, strict=True))
        # chips that the model has not trained on say more
        seen = sorted(suspicion.ids.tolist(), key=lambda i: i not in probabilities)[:_NOISY]
        tiles = []
        for chip_id in seen:
            lines = [Line(", ".join(self._names(self.all_NC[chip_id])))]
            if chip_id in probabilities:
                p_C = probabilities[chip_id]
                surest = [f"{self.labels[c]} {p_C[c]:.2f}" for c in np.argsort(-p_C, kind="stable")[:3]]
                lines.append(Line("model: " + ", ".join(surest), BLUE))
            tiles.append(Tile(self._shown(chip_id), lines))
        return gallery(f"{len(suspicion.ids):,} chip(s): {suspicion.meaning}", tiles)

    def activation_maps(self) -> Figure:
        """Where the network sees a river and where a road, in chips in which it confuses them (second paper, 6)."""
        if not set(CONFUSED) <= set(self.labels):
            raise Nothing(f"the vocabulary has no {' and '.join(CONFUSED)}")
        first, second = (self.labels.index(label) for label in CONFUSED)
        chosen = chip_choice.confusions(self.decided_NC, self.true_NC, first, second, self.p_NC)[:_MAPPED]
        if not chosen.size:
            raise Nothing(f"no validation chip is confused between {' and '.join(CONFUSED)}")
        scorer = Scorer(self.run, self.dataset)
        inputs_BCHW = scorer.inputs(self.ids_N[chosen].astype(np.int64))
        tiles = []
        for column in (first, second):
            asked = torch.full((len(chosen),), column, device=scorer.device)
            tiles.append((column, activation_maps(scorer.model, inputs_BCHW, asked)))
        shown = []
        for row, place in enumerate(chosen.tolist()):
            shown.append(self._tile(place, self._comparison(place)))
            for column, maps in tiles:
                where = "here" if maps[row].any() else "nowhere"
                lines = [
                    Line(f"{self.labels[column]}: seen {where}"),
                    Line(f"p = {self.p_NC[place, column]:.3f}", GREY),
                ]
                shown.append(Tile(self._shown(int(self.ids_N[place])), lines, maps[row]))
        return gallery(f"{' or '.join(CONFUSED)}? Class-activation maps", shown, columns=3)

    def _names(self, bits_C: NDArray[np.bool_]) -> list[str]:
        return [label for label, yes in zip(self.labels, bits_C, strict=True) if yes]

    def _shown(self, chip_id: int) -> NDArray[np.uint8]:
        return displayed(self.dataset.pixels(chip_id), self.dataset.manifest.image)

    def _comparison(self, place: int) -> list[Line]:
        return compared(self._names(self.true_NC[place]), self._names(self.decided_NC[place]))

    def _tile(self, place: int, lines: Sequence[Line]) -> Tile:
        chip_id = int(self.ids_N[place])
        return Tile(self._shown(chip_id), [Line(self.dataset.keys([chip_id])[0], GREY), *lines])

    def _compared(self, title: str, places: NDArray[np.intp]) -> Figure:
        return gallery(title, [self._tile(place, self._comparison(place)) for place in places.tolist()])


def loss_curve(run: FinishedRun) -> LossCurve:
    """The losses of a run, by its folder's name."""
    val = [float(epoch["loss"]) for epoch in run.epochs]
    return LossCurve(run.folder.root.name, run.train_losses(), val, run.phase_ends())


def draw_all(figures: RunFigures, out: Path, certain: Sequence[str], only: Sequence[str] = ()) -> Drawn:
    """Draws every figure into a folder, as NAME.png.

    Args:
        out: is made.
        certain: labels whose surest chips are shown.
        only: what the names of the wanted figures begin with; none for all.

    Raises:
        RunError: a file cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    drawn = Drawn()
    for name, make in figures.makers(certain).items():
        if only and not name.startswith(tuple(only)):
            continue
        try:
            figure = make()
        except Nothing as reason:
            drawn.left_out[name] = str(reason)
            continue
        drawn.files[name] = out / (re.sub(r"[^\w-]", "_", name) + ".png")  # a label may hold any sign but space
        write_png(drawn.files[name], figure)
    return drawn


def check_pair(run: FinishedRun, other: FinishedRun) -> None:
    """Makes sure that two runs can stand beside each other.

    Raises:
        RunError: they have other labels or other validation chips.
    """
    ours, theirs = run.predictions, other.predictions
    if ours.labels != theirs.labels or not np.array_equal(ours.ids_N, theirs.ids_N):
        raise RunError(
            f"{run.folder.root} and {other.folder.root} were validated on other chips or labels "
            f"({run.config.data.split} and {other.config.data.split}); give runs of one dataset and split"
        )


def certain_labels(vocabulary: Vocabulary, counts: Sequence[int], asked: Sequence[str]) -> list[str]:
    """The labels whose surest chips are shown: as asked, or illegal mining, or the rarest.

    Args:
        counts: chips of each label, C.

    Raises:
        ConfigError: a label that the vocabulary lacks.
    """
    unknown = [label for label in asked if label not in vocabulary.labels]
    if unknown:
        raise ConfigError(f"label {unknown[0]!r} is not in the vocabulary: {', '.join(vocabulary.labels)}")
    if asked:
        return list(asked)
    return [ILLEGAL if ILLEGAL in vocabulary.labels else vocabulary.labels[int(np.argmin(counts))]]
