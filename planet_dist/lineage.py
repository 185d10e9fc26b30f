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
from planet_dist.bundle_files import DESCRIPTION
from planet_dist.config import Config
from planet_dist.data import Data, split_data
from planet_dist.runfolder import RunFolder
from planet_dist.teacher import Teacher
from planet_dist.trained_on import trained_on
from shards.errors import RunError

START, TEACHER = "starts from", "teacher"  # of a bundle's protocol


@dataclass(frozen=True)
class Lineage:
    """What a run has of others.

    Attributes:
        teacher: from whose answers it learns beside the labels.
        weights: of the network that it starts from, by their names there.
        start_sha256: of those weights; "" where they aren't a run's.
    """

    teacher: Teacher | None = None
    weights: dict[str, Tensor] | None = None
    start_sha256: str = ""

    def stated(self) -> dict[str, str]:
        """Which networks those are, for a bundle's protocol and a checkpoint; START and TEACHER are its keys."""
        start = {START: f"the network of sha256 {self.start_sha256}"} if self.start_sha256 else {}
        return start | ({TEACHER: self.teacher.stated()} if self.teacher else {})


NO_LINEAGE = Lineage()


def open_lineage(config: Config, data: Data, device: torch.device) -> Lineage:
    """Opens the runs that a configuration names (model.weights, teacher.run).

    Args:
        data: the chips of the run that is to train.
        device: where a teacher answers.

    Raises:
        RunError: one isn't finished, is an ensemble or a specialist, cannot be read, has other labels or bands, was
            trained on another dataset, or on chips that this run holds out.
    """
    teacher, weights, start_sha256 = None, None, ""
    if config.model.starts_from_run:
        network, start_sha256 = _open_run("model.weights", config.model.weights, data, torch.device("cpu"))
        weights = network.model.state_dict()
    if config.teacher.run:
        network, sha256 = _open_run("teacher.run", config.teacher.run, data, device)
        teacher = Teacher(network, sha256, config.teacher.weight)
    return Lineage(teacher, weights, start_sha256)


def _open_run(key: str, run: str, data: Data, device: torch.device) -> tuple[Ready, str]:
    """The network of a finished run, and the sha256 of its weights."""
    folder = RunFolder(Path(run))
    where = f"{key} {folder.root}"
    if not (folder.bundle / DESCRIPTION).is_file():
        also = "; weights of other kinds are none, imagenet, and files that end in .pth or .safetensors"
        raise RunError(
            f"{where}: not a finished run (it has no bundle); train it to its end first"
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
    unseen = np.setdiff1d(data.split.val_ids, split.val_ids)  # by its own split, which says nothing of runs before it
    if len(unseen) and not {START, TEACHER}.isdisjoint(member.protocol):
        raise RunError(
            f"{where}: comes from another run itself, which may have been trained on {len(unseen):,} of the chips that "
            f"this run holds out ({data.dataset.keys([int(unseen[0])])[0]} is the first); train both with one "
            "data.limit, or name the run that it comes from"
        )
    return bundle.members[0], member.sha256
