"""What specialists, oversampling, loss weights and synthetic copies do to rare labels, and to the whole.

    python benchmarks/rare_labels.py --images DIR --labels CSV --out DIR [--validate N] [SECTION.KEY=VALUE ...]

The first paper ends with the question whether its rare labels would gain from "proper data augmentation and loss
weighting", or from a model for each that may speak on its own. Here every answer is a run of one recipe on the same
chips, the last N of them kept aside to judge; labels on less than 1% of the training chips are rare.

    plain          the recipe as it is
    loss weights   loss.positive_weight=balanced: a present label weighs as much more as it is rarer
    gentle weights rare labels' terms weigh 3
    oversampled    every training chip with a rare label comes five times (each time turned and mirrored by the recipe)
    synthetic      the same, but the four copies are changed: turned by any angle, moved, zoomed, lighter or darker
    specialist     trains on the rare labels alone; beside plain, it answers for them: alone, by the mean with plain,
                   or by the paper's rule, that any model's word suffices

A rare label's F2 is that of the label by itself, over the chips, at the threshold that gives the most of it on the
other half of the judged chips; the table has their mean. The whole is the sample-averaged F2 at a flat 0.2. Behind
each stands how far it is from plain, with a paired bootstrap interval (95%) over the judged chips: that another seed
would give another run is not in it. DIR keeps the runs; the same command goes on.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from printed import wide_console
from rich.table import Table

from planet_dist.augment import sample, source_maps
from planet_dist.config import load_config
from planet_dist.crossfit import fold_numbers
from planet_dist.draws import Draws
from planet_dist.ensemble_train import PlannedMember, train_members
from planet_dist.launching import training_command
from planet_dist.metrics import bootstrap_means, f2_of_counts, interval, mean_f2, sample_f2
from planet_dist.predictions import Predictions, read_predictions
from planet_dist.runfolder import RunFolder
from shards.build import BuildOptions, build
from shards.errors import PlanetError
from shards.labels import PLANET
from shards.names import natural_order

RARE_SHARE = 0.01
COPIES = 4
CUT = 0.2
RESAMPLINGS = 400
LAUNCH_FILE = Path(__file__).parent.parent / "launch" / "one_cpu.yaml"

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Chips:
    """Rows of the CSV in natural order: names without suffix, and their labels; the last ones judge."""

    names: list[str]
    labels: list[list[str]]
    trained: int

    @property
    def rare(self) -> list[str]:
        """Labels on less than RARE_SHARE of the chips that train, but on one."""
        given = [label for labels in self.labels[: self.trained] for label in set(labels)]
        return [label for label in PLANET.labels if 0 < given.count(label) < RARE_SHARE * self.trained]


def main() -> None:
    """Builds the datasets, trains the runs and prints the table."""
    parser = argparse.ArgumentParser(description="Rare labels: specialists, oversampling, weights, synthetic copies")
    parser.add_argument("--images", required=True, type=Path, help="a folder of JPEG chips")
    parser.add_argument("--labels", required=True, type=Path, help="their CSV")
    parser.add_argument("--out", required=True, type=Path, help="for datasets and runs")
    parser.add_argument("--validate", type=int, default=6479, help="how many of the last chips judge")
    parser.add_argument("--recipe", default="best-32")
    parser.add_argument("--at-once", type=int, default=2, help="runs that train side by side, of one process each")
    parser.add_argument("overrides", nargs="*", metavar="SECTION.KEY=VALUE", help="of every run")
    options = parser.parse_args()
    try:
        show(options)
    except PlanetError as error:
        parser.exit(1, f"error: {error}\n")


def show(options: argparse.Namespace) -> None:
    """Trains what is missing, and prints the table."""
    chips = read_chips(options.labels, options.validate)
    rare = chips.rare
    datasets = {name: dataset(options, chips, name) for name in ("plain", "oversampled", "synthetic")}
    not_rare = ", ".join(f"{label} = 0.0" for label in PLANET.labels if label not in rare)
    runs = {
        "plain": ("plain", []),
        "loss weights": ("plain", ["loss.positive_weight=balanced"]),
        "gentle weights": ("plain", [f"loss.label_weights={{{', '.join(f'{label} = 3.0' for label in rare)}}}"]),
        "oversampled": ("oversampled", []),
        "synthetic": ("synthetic", []),
        "specialist": ("plain", [f"loss.label_weights={{{not_rare}}}"]),
    }
    members = []
    for name, (data, own) in runs.items():
        run = options.out / "runs" / name.replace(" ", "-")
        words = [f"data.split=tail:{options.validate}", "tracking.wandb=off", *options.overrides, *own]
        command = training_command(options.recipe, datasets[data], run, words, LAUNCH_FILE)
        finished = RunFolder(run).is_finished(load_config(options.recipe, words))
        members.append(PlannedMember(run, command, finished))
    train_members(members, at_once=options.at_once, note=print)
    found = {
        name: read_predictions(RunFolder(member.run).evaluation / "predictions.npz")
        for name, member in zip(runs, members, strict=True)
    }
    wide_console().print(table(found, rare))


def read_chips(path: Path, validate: int) -> Chips:
    """The CSV's rows in natural order."""
    with path.open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: natural_order(row["image_name"]))
    return Chips([row["image_name"] for row in rows], [row["tags"].split() for row in rows], len(rows) - validate)


def dataset(options: argparse.Namespace, chips: Chips, name: str) -> Path:
    """The dataset with copies of rare training chips, built where it isn't there."""
    out: Path = options.out / "datasets" / name
    if out.is_dir():
        return out
    images = options.out / "images" / name
    images.mkdir(parents=True, exist_ok=True)
    names, labels = list(chips.names), list(chips.labels)
    for chip in chips.names:
        shutil.copyfile(options.images / f"{chip}.jpg", images / f"{chip}.jpg")
    rare = set(chips.rare)
    random = np.random.default_rng(0)
    for chip, tags in zip(chips.names[: chips.trained], chips.labels[: chips.trained], strict=True):
        for number in range(COPIES if name != "plain" and rare & set(tags) else 0):
            # Before "train_..." in natural order, so that the last chips stay those that judge.
            copied = f"copy{number}_{chip}"
            if name == "synthetic":
                (images / f"{copied}.jpg").write_bytes(changed(options.images / f"{chip}.jpg", random))
            else:
                shutil.copyfile(options.images / f"{chip}.jpg", images / f"{copied}.jpg")
            names.append(copied)
            labels.append(tags)
    rows = images.with_suffix(".csv")
    with rows.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_name", "tags"])
        writer.writerows(zip(names, (" ".join(tags) for tags in labels), strict=True))
    build(BuildOptions(images, rows, out, PLANET))
    return out


def changed(path: Path, random: np.random.Generator) -> bytes:
    """A chip turned by any angle, and by up to a tenth moved, zoomed, and lighter or darker."""
    with Image.open(path) as image:
        pixels_HWC = np.asarray(image.convert("RGB"), dtype=np.float32)
    draws = Draws(
        np.array([random.random() < 0.5]),
        np.array([random.integers(4)]),
        np.array([random.uniform(-math.pi, math.pi)]),
        np.array([random.uniform(0.9, 1.1)]),
        random.uniform(-0.1, 0.1, (1, 2)),
    )
    maps_B23 = torch.from_numpy(source_maps(draws, *pixels_HWC.shape[:2])).float()
    moved_1CHW = sample(torch.from_numpy(pixels_HWC.copy()).permute(2, 0, 1)[None], maps_B23)
    lit_HWC = moved_1CHW[0].permute(1, 2, 0).numpy() * random.uniform(0.9, 1.1)
    out = io.BytesIO()
    Image.fromarray(lit_HWC.round().clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=95)
    return out.getvalue()


def table(found: dict[str, Predictions], rare: Sequence[str]) -> Table:
    """What each answer comes to, on the rare labels and on the whole."""
    plain = found["plain"]
    true_NC = plain.targets_NC.astype(bool)
    places = [plain.labels.index(label) for label in rare]
    for predictions in found.values():
        assert np.array_equal(predictions.targets_NC.astype(bool), true_NC), "the same chips judge all runs"
    answers = {name: predictions.probabilities_NC for name, predictions in found.items() if name != "specialist"}
    special_NC = found["specialist"].probabilities_NC
    answers["specialist for rare labels"] = merged(plain.probabilities_NC, special_NC, places, lambda p, s: s)
    answers["mean with specialist"] = merged(plain.probabilities_NC, special_NC, places, lambda p, s: (p + s) / 2)
    answers["either says so (paper)"] = merged(plain.probabilities_NC, special_NC, places, np.maximum)
    halves_N = fold_numbers(len(true_NC), 2, 0)
    decided = {name: own_thresholds(p_NC[:, places], true_NC[:, places], halves_N) for name, p_NC in answers.items()}
    rng = np.random.default_rng(0)
    draws = [rng.multinomial(len(true_NC), np.full(len(true_NC), 1 / len(true_NC))) for _ in range(RESAMPLINGS)]
    shown = Table(title=f"{len(true_NC):,} chips judge; rare: {', '.join(rare)}")
    for heading in ("", "rare labels' F2", "against plain (95%)", "rare, flat 0.2", "whole F2", "against plain (95%)"):
        shown.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    true_NR = true_NC[:, places]
    base_B = rare_means(decided["plain"], true_NR, draws)
    base_N = sample_f2(plain.probabilities_NC > CUT, true_NC)
    for name, p_NC in answers.items():
        one = np.ones((1, len(true_NC)))
        rare_f2 = float(rare_means(decided[name], true_NR, one)[0])
        flat = float(rare_means(p_NC[:, places] > CUT, true_NR, one)[0])
        moved_B = rare_means(decided[name], true_NR, draws) - base_B
        whole_N = sample_f2(p_NC > CUT, true_NC)
        change_B = bootstrap_means((whole_N - base_N)[:, None], 0)[:, 0]
        shown.add_row(
            name,
            f"{rare_f2:.3f}",
            "" if name == "plain" else spread(rare_f2 - float(rare_means(decided["plain"], true_NR, one)[0]), moved_B),
            f"{flat:.3f}",
            f"{mean_f2(p_NC > CUT, true_NC):.4f}",
            "" if name == "plain" else spread(float((whole_N - base_N).mean()), change_B, digits=4),
        )
    return shown


def merged(
    plain_NC: Floats, special_NC: Floats, places: Sequence[int], rule: Callable[[Floats, Floats], Floats]
) -> Floats:
    """Plain's answers, those on the rare labels by a rule of both."""
    merged_NC = plain_NC.copy()
    merged_NC[:, places] = rule(plain_NC[:, places], special_NC[:, places])
    return merged_NC


def own_thresholds(p_NR: Floats, true_NR: Bools, halves_N: NDArray[np.int64]) -> Bools:
    """Decisions on each half at the thresholds that give each label the most F2 of its own on the other."""
    decided_NR = np.zeros(p_NR.shape, dtype=bool)
    for half in (0, 1):
        fitted_N = halves_N != half
        for place in range(p_NR.shape[1]):
            cut = best_cut(p_NR[fitted_N, place], true_NR[fitted_N, place])
            decided_NR[~fitted_N, place] = p_NR[~fitted_N, place] >= cut
    return decided_NR


def best_cut(p_N: Floats, true_N: Bools) -> float:
    """The threshold of the most F2 of one label."""
    order_N = np.argsort(-p_N, kind="stable")
    hits_N = np.cumsum(true_N[order_N])
    best = int(np.argmax(f2_of_counts(hits_N, true_N.sum(), np.arange(1, len(p_N) + 1))))
    return float(p_N[order_N[best]])


def rare_means(decided_NR: Bools, true_NR: Bools, weights: Iterable[Floats | NDArray[np.int64]]) -> Floats:
    """The mean of the labels' F2 for each weighting of the chips."""
    hits_NR = decided_NR & true_NR
    return np.array([float(f2_of_counts(w_N @ hits_NR, w_N @ true_NR, w_N @ decided_NR).mean()) for w_N in weights])


def spread(found: float, draws_B: Floats, digits: int = 3) -> str:
    """A difference and its interval."""
    low, high = interval(draws_B)
    return f"{found:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


if __name__ == "__main__":
    main()
