"""A finished run that teaches another: what it answers to a training chip becomes part of that chip's targets.

    target = (1 - weight) x label + weight x the teacher's probability

Knowledge distillation (Hinton et al. 2015), in the form of Furlanello et al. 2018, where the student may be as large as
its teacher. Where labels are wrong or missing, the teacher's answer moves the target towards what chips of that look
mostly bear, and the student learns fewer faults by heart.

A teacher that was trained on chips which the student holds out would tell it of their labels, and is refused. It looks
at each training chip once, before the student's first step, as the chip lies in the dataset.

Letters in names: N chips, C labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from planet_dist.bundle import Bundle, Ready
from planet_dist.bundle_files import DESCRIPTION
from planet_dist.config import Config
from planet_dist.data import Data, split_data
from planet_dist.evaluate import Independent, Logits
from planet_dist.losses import independent_logits
from planet_dist.metrics import probabilities
from planet_dist.runfolder import RunFolder
from planet_dist.trained_on import trained_on
from shards.errors import RunError


@dataclass(frozen=True)
class Teacher:
    """A run's network, ready to answer.

    Attributes:
        network: on the student's device, with its own preprocessing.
        sha256: of its weights.
        weight: of its answers in the targets.
    """

    network: Ready
    sha256: str
    weight: float

    @property
    def independent(self) -> Independent:
        """Turns its logits into those whose sigmoid is each label's probability."""
        return partial(independent_logits, groups=self.network.competing_groups)

    def stated(self) -> str:
        """Which network it is, and what it has to say, for a bundle's protocol."""
        return f"weights of sha256 {self.sha256}, {self.weight:g} of the targets"

    def soften(self, targets_NC: NDArray[np.uint8], answers: Logits) -> NDArray[np.float32]:
        """The targets of all chips, those that it answered to moved towards its answers: float32 (N, C).

        Args:
            targets_NC: 0 and 1, by id.
            answers: to the training chips.
        """
        soft_NC = targets_NC.astype(np.float32)
        told_NC = probabilities(answers.logits_NC).astype(np.float32)
        soft_NC[answers.ids_N] += self.weight * (told_NC - soft_NC[answers.ids_N])
        return soft_NC


def open_teacher(config: Config, data: Data, device: torch.device) -> Teacher | None:
    """Opens the teacher that a configuration names, or None where it names none.

    Args:
        config: the student's.
        data: the student's chips.
        device: where the teacher answers.

    Raises:
        RunError: the teacher isn't finished, is an ensemble or a specialist, cannot be read, has other labels or
            bands, was trained on another dataset, or on chips that the student holds out.
    """
    if not config.teacher.run:
        return None
    folder = RunFolder(Path(config.teacher.run))
    where = f"teacher.run {folder.root}"
    if not (folder.bundle / DESCRIPTION).is_file():
        raise RunError(f"{where}: not a finished run (it has no bundle); train it to its end first")
    bundle = Bundle.load(folder.bundle, device=device, turns=1)
    description = bundle.description
    if len(description.members) != 1:
        raise RunError(f"{where}: is an ensemble of {len(description.members)}; name the run of one network")
    if description.labels != data.labels:
        raise RunError(f"{where}: its labels are {description.labels}, and the dataset's {data.labels}")
    member = description.members[0]
    if set(member.speaks_for) != set(data.labels):
        raise RunError(
            f"{where}: was trained on {', '.join(member.speaks_for)} alone; a teacher answers for all labels"
        )
    taught = folder.read_config(remedy="restore it, or train that run again")
    split = trained_on(folder.root, description, split_data(taught, data.dataset))
    leaked = np.intersect1d(split.train_ids, data.split.val_ids)
    if len(leaked):
        raise RunError(
            f"{where}: was trained on {len(leaked):,} of the {len(data.split.val_ids):,} chips that this run holds out "
            f"({data.dataset.keys([int(leaked[0])])[0]} is the first), and would tell their labels; train both with "
            "one data.split and one data.split_seed"
        )
    return Teacher(bundle.members[0], member.sha256, config.teacher.weight)
