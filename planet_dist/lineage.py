"""The finished runs that a run has something of: the network that it starts from, and its teacher.

Neither may know the chips that this run holds out: the score would be too good. Which chips a run was trained on is
drawn again and held against its bundle, and one that was trained on such a chip is refused, with the first of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from planet_dist.bundle import Bundle, Ready
from planet_dist.bundle_files import DESCRIPTION, read_description
from planet_dist.config import Config
from planet_dist.data import Data, split_data
from planet_dist.runfolder import RunFolder
from planet_dist.teacher import Teacher
from planet_dist.trained_on import trained_on
from shards.errors import RunError

START, TEACHER = "starts from", "teacher"  # of a bundle's protocol
ORIGINS = {
    "none": "random weights",
    "imagenet": "imagenet weights",
}  # what START says of a run that comes from no other


@dataclass(frozen=True)
class Lineage:
    """What a run has of others.

    Attributes:
        teacher: from whose answers it learns beside the labels.
        weights: of the network that it starts from, by their names there.
        start: which network that is; "" where it isn't a run's.
    """

    teacher: Teacher | None = None
    weights: dict[str, Tensor] | None = None
    start: str = ""

    def stated(self) -> dict[str, str]:
        """Which networks those are, for a bundle's protocol and a checkpoint; START and TEACHER are its keys."""
        start = {START: self.start} if self.start else {}
        return start | ({TEACHER: self.teacher.stated()} if self.teacher else {})


NO_LINEAGE = Lineage()


def open_lineage(config: Config, data: Data, device: torch.device) -> Lineage:
    """Opens the runs that a configuration names (model.weights, teacher.run).

    Args:
        data: the chips of the run that is to train.
        device: where a teacher answers.

    Raises:
        RunError: one isn't finished, is an ensemble or a specialist, cannot be read, has other labels or bands, was
            trained on another dataset, or on chips that this run holds out; or model.weights is a file of a run.
    """
    teacher, weights, start = None, None, ""
    if config.model.starts_from_run:
        earlier = _open_run("model.weights", config.model.weights, data, torch.device("cpu"))
        if earlier.normalise != config.data.normalise:
            raise RunError(
                f"model.weights {config.model.weights}: its network knows chips normalised by {earlier.normalise}, and "
                f"this run has data.normalise={config.data.normalise}; give data.normalise={earlier.normalise}"
            )
        weights, start = earlier.network.model.state_dict(), f"the network of sha256 {earlier.sha256}{earlier.kept}"
    elif config.model.weights not in ORIGINS:
        _refuse_file_of_run(Path(config.model.weights), data)
    if config.teacher.run:
        earlier = _open_run("teacher.run", config.teacher.run, data, device)
        teacher = Teacher(earlier.network, earlier.sha256, config.teacher.weight, earlier.kept)
    return Lineage(teacher, weights, start)


def _refuse_file_of_run(path: Path, data: Data) -> None:
    """Of a run of this dataset the folder has to be named, from which it shows what the run was trained on."""
    for folder in path.resolve().parents:
        for bundle in (folder, folder / "bundle"):
            if not (bundle / DESCRIPTION).is_file():
                continue
            if read_description(bundle).dataset_digest == data.dataset.digest:
                raise RunError(
                    f"model.weights {path}: a file of a run of this dataset, which may have been trained on chips that "
                    f"this run holds out; name the run's folder, where that shows: model.weights={bundle.parent}"
                )
            return


@dataclass(frozen=True)
class _Earlier:
    """A finished run's network.

    Attributes:
        sha256: of its weights.
        normalise: how its chips were normalised.
        kept: how its epoch was chosen, where chips had a say in it that the later run holds out too; or "".
    """

    network: Ready
    sha256: str
    normalise: str
    kept: str


def _open_run(key: str, run: str, data: Data, device: torch.device) -> _Earlier:
    folder = RunFolder(Path(run))
    where = f"{key} {folder.root}"
    if not (folder.bundle / DESCRIPTION).is_file():
        also = "; weights of other kinds are none, imagenet, and files that end in .pth or .safetensors"
        raise RunError(
            f"{where}: not a finished run (it has no bundle); train it to its end first, or say where it lies now"
            f"{also if key == 'model.weights' else ''}"
        )
    bundle = Bundle.load(folder.bundle, device=device, turns=1)
    description = bundle.description
    if len(description.members) != 1:
        raise RunError(f"{where}: is an ensemble of {len(description.members)}; name the run of one network")
    if description.labels != data.labels:
        raise RunError(f"{where}: its labels are {description.labels}, and the dataset's {data.labels}")
    member = description.members[0]
    if set(member.speaks_for) != set(data.labels):
        raise RunError(
            f"{where}: was trained on {', '.join(member.speaks_for)} alone; name a run that answers for all labels"
        )
    was = folder.read_config(remedy="restore it, or train that run again")
    split = trained_on(folder.root, description, split_data(was, data.dataset))
    leaked = np.intersect1d(split.train_ids, data.split.val_ids)
    if len(leaked):
        raise RunError(
            f"{where}: was trained on {len(leaked):,} of the {len(data.split.val_ids):,} chips that this run holds out "
            f"({data.dataset.keys([int(leaked[0])])[0]} is the first), and would tell their labels; train both with "
            "one data.split and one data.split_seed"
        )
    unseen = np.setdiff1d(data.split.val_ids, split.val_ids)  # neither trained on nor held out
    if len(unseen) and (TEACHER in member.protocol or member.protocol.get(START) not in ORIGINS.values()):
        raise RunError(
            f"{where}: has something of another network, which may have been trained on {len(unseen):,} of the chips "
            f"that this run holds out ({data.dataset.keys([int(unseen[0])])[0]} is the first); train both with one "
            "data.limit, or name a run that starts from random or ImageNet weights and has no teacher"
        )
    chosen = was.evaluate.best_by != "last" and len(np.intersect1d(split.val_ids, data.split.val_ids)) > 0
    kept = (
        f", of the epoch that was best by {was.evaluate.best_by} on chips that are held out here too" if chosen else ""
    )
    return _Earlier(bundle.members[0], member.sha256, member.normalise, kept)
