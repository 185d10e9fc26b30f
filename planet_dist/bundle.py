"""The bundle: one folder with all that inference needs, and nothing that executes when it is read (bundle_files).

A single model is an ensemble of one.

    >>> bundle = Bundle.load("RUN/bundle")
    >>> answers = bundle.predict(images_NHWC)  # any number of chips, as they come from disk
    >>> answers.probabilities_NC, answers.tags

Networks run in float32 whatever precision they were trained in, so that a bundle predicts alike on machines with and
without bf16, and in batches of one fixed shape, the last one padded, so that a chip's probabilities don't depend on
the chips beside it. Evaluation runs under the launch file's precision: probabilities near a threshold may fall on
its other side here.

Letters in array names: M members, N chips, B of one batch, C labels, H and W pixels, S the side of a network's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from planet_dist.augment import Preprocess
from planet_dist.bundle_description import Description, Member
from planet_dist.bundle_files import DESCRIPTION, Tensors, file_sha256, load_bundle
from planet_dist.config import DataConfig
from planet_dist.evaluate import mean_logits
from planet_dist.losses import independent_logits
from planet_dist.metrics import Bools, Floats, probabilities
from planet_dist.models import build_model
from shards.errors import RunError
from shards.pixels import Pixels

Turns = Literal[1, 8]


@dataclass(frozen=True)
class Answers:
    """What a bundle says about chips.

    Attributes:
        labels: C names.
        probabilities_NC: float64 in [0, 1], the mean over the members, or what the bundle's stack makes of them.
        decisions_NC: bool, by the bundle's rule and thresholds.
    """

    labels: tuple[str, ...]
    probabilities_NC: Floats
    decisions_NC: Bools

    @property
    def tags(self) -> list[list[str]]:
        """N lists of the labels that are decided, in the order of `labels`."""
        return [[label for label, yes in zip(self.labels, row, strict=True) if yes] for row in self.decisions_NC]


@dataclass(frozen=True)
class Ready:
    """A member on a device.

    Attributes:
        model: in evaluation mode.
        preprocess: makes its input.
        competing_groups: for losses.independent_logits.
        turns: views to average.
    """

    model: nn.Module
    preprocess: Preprocess
    competing_groups: list[list[int]]
    turns: Turns


@dataclass(frozen=True)
class Bundle:
    """A bundle opened for predicting; see `load`.

    Attributes:
        description: what it says of itself: labels, members, rules, scores.
        members: its networks, ready on `device`.
        device: where they compute.
        digest: sha256 of bundle.json, which stands for the whole content.
    """

    description: Description
    members: list[Ready]
    device: torch.device
    digest: str

    @classmethod
    def load(
        cls, folder: str | Path, *, device: str | torch.device | None = None, turns: Turns | None = None
    ) -> Bundle:
        """Opens a bundle.

        Args:
            folder: RUN/bundle of a finished run.
            device: for instance "cpu" or "cuda:1"; a GPU where there is one by default.
            turns: views to average for each chip: 1, or 8 (the quarter turns of a chip and of its mirror image); by
                default what each member was evaluated with.

        Raises:
            RunError: it's missing, damaged, changed since it was written, or of another version.
        """
        description, weights = load_bundle(Path(folder))
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        members = [
            _ready(description, member, tensors, where, turns)
            for member, tensors in zip(description.members, weights, strict=True)
        ]
        return cls(description, members, where, file_sha256(Path(folder) / DESCRIPTION))

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the labels, in the order of the columns."""
        return tuple(self.description.labels)

    @property
    def batch_size(self) -> int:
        """Chips of one forward pass."""
        return 16 if self.device.type == "cpu" else 64

    def predict(self, images_NHWC: NDArray[np.generic] | Sequence[Pixels]) -> Answers:
        """What the bundle says about chips.

        Sums of floats depend on torch.get_num_threads() in their last bits, and on nothing else of the call: a chip
        gets the same answer in any company.

        Args:
            images_NHWC: pixels as they come from disk, in the bands and the dtype of the training chips
                (description.image): uint8 (N, H, W, 3) in the order R, G, B for JPEG chips. Any size: members resize.
                Also a sequence of N arrays (H, W, bands) of different sizes. N may be 0.

        Raises:
            RunError: images of another shape or dtype, or a network's answer that is not finite; the image is named.
        """
        chips = self._checked(images_NHWC)
        parts = [
            self.member_probabilities(chips[start : start + self.batch_size])
            for start in range(0, len(chips), self.batch_size)
        ]
        probabilities_MNC = np.concatenate([np.empty((len(self.members), 0, len(self.labels))), *parts], axis=1)
        finite_N = np.isfinite(probabilities_MNC).all(axis=(0, 2))
        if not finite_N.all():
            raise RunError(
                f"image {int(np.flatnonzero(~finite_N)[0])} of {len(chips)}: the network's answer is not a finite "
                f"number ({np.count_nonzero(~finite_N)} such images); look at its pixels for NaN and extreme values"
            )
        return self.decide(probabilities_MNC)

    def member_probabilities(self, chips: Sequence[Pixels]) -> Floats:
        """What each member says about one batch.

        Args:
            chips: 1 to batch_size arrays (H, W, bands) of the training chips' bands and dtype.

        Returns:
            float64 (M, B, C), NaN where a network's answer is not finite. A chip's row is the same in any company.
        """
        return np.stack([probabilities(self._logits(member, chips)) for member in self.members])

    def decide(self, probabilities_MNC: Floats) -> Answers:
        """The members' answers as one.

        Args:
            probabilities_MNC: float64 in [0, 1], of member_probabilities.
        """
        combination = self.description.combination()
        if not probabilities_MNC.shape[1]:
            return Answers(self.labels, np.empty((0, len(self.labels))), np.empty((0, len(self.labels)), bool))
        combined_NC = combination.probabilities(probabilities_MNC)
        return Answers(self.labels, combined_NC, combination.decide(probabilities_MNC))

    def _checked(self, images_NHWC: NDArray[np.generic] | Sequence[Pixels]) -> list[Pixels]:
        form = self.description.image
        chips = [np.asarray(image) for image in images_NHWC]
        for number, chip in enumerate(chips):
            if chip.ndim != 3 or chip.shape[2] != form.bands or chip.dtype.name != form.dtype or not chip.size:
                raise RunError(
                    f"image {number} of {len(chips)} has shape {chip.shape} and dtype {chip.dtype}; the model was "
                    f"trained on {form.dtype} (height, width, {form.bands} bands: {', '.join(form.band_order)}); "
                    "give images_NHWC of that kind, not scaled"
                )
        return chips

    def _logits(self, member: Ready, chips: Sequence[Pixels]) -> NDArray[np.float32]:
        inputs_BCHW = self._inputs(member.preprocess, chips)
        independent = partial(independent_logits, groups=member.competing_groups)
        logits_BC: NDArray[np.float32] = mean_logits(member.model, independent, inputs_BCHW, member.turns).cpu().numpy()
        return logits_BC[: len(chips)]

    def _inputs(self, preprocess: Preprocess, chips: Sequence[Pixels]) -> torch.Tensor:
        """A network's input, padded to one fixed shape."""
        assert 0 < len(chips) <= self.batch_size, len(chips)
        if len({chip.shape for chip in chips}) == 1:
            images_BCHW = preprocess.evaluate(torch.from_numpy(np.stack(chips)).to(self.device))
        else:
            each = [torch.from_numpy(np.ascontiguousarray(chip[None])).to(self.device) for chip in chips]
            images_BCHW = torch.cat([preprocess.evaluate(image_1HWC) for image_1HWC in each])
        padded_BCHW = images_BCHW.new_zeros((self.batch_size, *images_BCHW.shape[1:]))
        padded_BCHW = padded_BCHW.contiguous(memory_format=torch.channels_last)
        padded_BCHW[: len(chips)] = images_BCHW
        return padded_BCHW


def _ready(
    description: Description, member: Member, weights: Tensors, device: torch.device, turns: Turns | None
) -> Ready:
    data = DataConfig(size=member.size, normalise=member.normalise)
    image = description.image
    preprocess = Preprocess(data, image.pixels, member.mean, member.std, device=device)
    # The weights come from here, never from where training began.
    config = member.model.without_weights()
    model = build_model(config, len(description.labels), image.bands, preprocess.side, image.band_order)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise RunError(
            f"{member.weights}: not the weights of {config.name} ({str(error).splitlines()[0]}); copy the bundle again"
        ) from error
    model.to(device).to(memory_format=torch.channels_last)
    return Ready(model.eval(), preprocess, member.competing_groups, turns or member.turns)
