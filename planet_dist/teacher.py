"""A finished run that teaches another: what it answers to a training chip becomes part of that chip's targets.

    target = (1 - weight) x label + weight x the teacher's probability

Knowledge distillation (Hinton et al. 2015), in the form of Furlanello et al. 2018, where the student may be as large as
its teacher. Where labels are wrong or missing, the teacher's answer moves the target towards what chips of that look
mostly bear, and the student learns fewer faults by heart.

It looks at each training chip once, before the student's first step, as the chip lies in the dataset. Which runs may
teach is planet_dist.lineage's.

Letters in names: N chips, C labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from planet_dist.bundle import Ready
from planet_dist.evaluate import Independent, Logits
from planet_dist.losses import independent_logits
from planet_dist.metrics import probabilities


@dataclass(frozen=True)
class Teacher:
    """A run's network, ready to answer.

    Attributes:
        network: on the student's device, with its own preprocessing.
        sha256: of its weights.
        weight: of its answers in the targets.
        kept: how its epoch was chosen, where chips had a say in it that the student holds out (planet_dist.lineage).
    """

    network: Ready
    sha256: str
    weight: float
    kept: str = ""

    @property
    def independent(self) -> Independent:
        """Turns its logits into those whose sigmoid is each label's probability."""
        return partial(independent_logits, groups=self.network.competing_groups)

    def stated(self) -> str:
        """Which network it is, and what it has to say, for a bundle's protocol."""
        return f"weights of sha256 {self.sha256}{self.kept}, {self.weight:g} of the targets"

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
