"""Losses, as one number a chip.

Letters in names: B chips, C labels. Logits x, targets t from 0 to 1, probabilities p; for every loss by label p
is sigmoid(x), and each label's terms are summed with its weight w and divided by C:

    bce             -t log p - (1 - t) log(1 - p); both papers (first 3.3, second 3.2)
    focal           the same terms times (1 - p)^g and p^g, g = focal_gamma (Lin et al. 2017)
    asymmetric      -t (1 - p)^g1 log p - (1 - t) q^g0 log(1 - q), q = max(p - margin, 0) (Ridnik et al. 2021)
    soft-f2         1 - 5 sum(w p t) / (4 sum(w t) + sum(w p)); a chip without labels gives 1, and no gradient
    softmax         -sum(w s log p), p = softmax(x), s = t / sum(t); first paper, section 3: tried and dropped
    group-softmax   "softmax" over each exclusive group (0 for a chip that has none of it), added to the bce
                    terms of the other labels, divided by C (second paper, section 6)

The co-occurrence term (second paper, section 3.2) is alpha x sum(C_y * C_o), C_y = P^T P for the
probabilities P (B, C) of the batch: a sum over its chips of p C_o p^T, while the other terms are a mean over
them. So each chip's share is multiplied by the size of the global batch, and the mean over that batch is the
paper's L for any number of ranks and parts: call the loss with the size of the *global* batch.

C_o = "weather" is the paper's final choice: 1 for two different labels of the first exclusive group. C_o =
"data" follows its section 5.2 ("high weights on cells that correspond to labels that should not co-occur"),
since the observed counts themselves would punish what is common: max(0, 1 - (n_ij + 1) / (e_ij + 1)), where
n_ij training chips bear both labels and e_ij = n_i n_j / n would by chance; 0 on the diagonal.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from planet_dist.config import LossConfig
from shards.errors import ConfigError
from shards.labels import ExclusiveGroup, Vocabulary

_BY_LABEL = ("bce", "focal", "asymmetric", "group-softmax")


class Loss(nn.Module):
    """A loss per chip. It has no weights that train; move it to the device of the logits once.

    Args:
        config: which loss.
        groups: label indices that compete under softmax.
        label_weights_C: float32 (C,).
        positive_weights_C: float32 (C,), of a present label's terms.
        cooccurrence_CC: float32 (C, C), alpha included; None leaves the term out.
    """

    label_weights_C: Tensor
    positive_weights_C: Tensor
    cooccurrence_CC: Tensor | None
    ungrouped_U: Tensor

    def __init__(
        self,
        config: LossConfig,
        groups: Sequence[Sequence[int]],
        label_weights_C: Tensor,
        positive_weights_C: Tensor,
        cooccurrence_CC: Tensor | None,
    ) -> None:
        super().__init__()
        self.config = config
        in_groups = {label for group in groups for label in group}
        ungrouped = [label for label in range(len(label_weights_C)) if label not in in_groups]
        # Buffers, since indexing by a list would make the host wait for the device at every step.
        self._groups = [f"group{i}_G" for i in range(len(groups))]
        for name, group in zip(self._groups, groups, strict=True):
            self.register_buffer(name, torch.tensor(group, dtype=torch.int64))
        self.register_buffer("ungrouped_U", torch.tensor(ungrouped, dtype=torch.int64))
        self.register_buffer("label_weights_C", label_weights_C)
        self.register_buffer("positive_weights_C", positive_weights_C)
        self.register_buffer("cooccurrence_CC", cooccurrence_CC)

    @property
    def groups(self) -> list[Tensor]:
        """Label indices int64 (G,) of each group that competes under softmax."""
        return [self.get_buffer(name) for name in self._groups]

    def forward(self, logits_BC: Tensor, targets_BC: Tensor, batch_size: int) -> Tensor:
        """The loss of each chip; the global loss is their mean over the global batch.

        Args:
            logits_BC: of this rank's part of the batch, any float type.
            targets_BC: from 0 to 1, any type; between them where chips are mixed.
            batch_size: chips of the whole global batch, over all ranks and accumulated parts.

        Returns:
            float32 (B,), whatever autocast says (float64 for float64 logits).
        """
        with torch.autocast(logits_BC.device.type, enabled=False):
            logits_BC = _widened(logits_BC)
            targets_BC = targets_BC.to(logits_BC.dtype)
            loss_B = self._by_name(logits_BC, targets_BC)
            if self.cooccurrence_CC is not None:
                p_BC = self.independent_logits(logits_BC).sigmoid()
                pairs_BC = p_BC @ self.cooccurrence_CC.to(p_BC.dtype)
                loss_B = loss_B + batch_size * (pairs_BC * p_BC).sum(1)
            return loss_B

    def independent_logits(self, logits_BC: Tensor) -> Tensor:
        """independent_logits() with the groups that compete under this loss."""
        return independent_logits(logits_BC, self.groups)

    def _by_name(self, logits_BC: Tensor, targets_BC: Tensor) -> Tensor:
        name, labels = self.config.name, logits_BC.shape[1]
        if name == "softmax":
            return self._competing(logits_BC, targets_BC, self.groups[0])
        smoothing = self.config.label_smoothing
        soft_BC = targets_BC * (1 - smoothing) + smoothing / 2
        if name == "soft-f2":
            return self._soft_f2(logits_BC, soft_BC)
        if name == "focal":
            gammas, margin = (self.config.focal_gamma, self.config.focal_gamma), 0.0
        elif name == "asymmetric":
            gammas, margin = self.config.asymmetric_gammas, self.config.asymmetric_margin
        else:
            gammas, margin = (0.0, 0.0), 0.0
        terms_BC = self._terms(logits_BC, soft_BC, gammas, margin) * self.label_weights_C
        if name != "group-softmax":
            return terms_BC.sum(1) / labels
        total_B = terms_BC[:, self.ungrouped_U].sum(1)
        for group_G in self.groups:
            total_B = total_B + self._competing(logits_BC, targets_BC, group_G)
        return total_B / labels

    def _terms(self, logits_BC: Tensor, targets_BC: Tensor, gammas: tuple[float, float], margin: float) -> Tensor:
        log_p_BC, log_not_p_BC = F.logsigmoid(logits_BC), F.logsigmoid(-logits_BC)
        present_BC = -log_p_BC
        if gammas[0]:
            # As an exponential, since the derivative of p ** g is infinite where p underflows and g < 1.
            present_BC = present_BC * (gammas[0] * log_not_p_BC).exp()
        absent_BC = -log_not_p_BC
        focus_BC = log_p_BC
        if margin:
            # Not quite zero: a forgiven label then costs 1e-8 at most, and its gradient is exactly zero.
            shifted_BC = (logits_BC.sigmoid() - margin).clamp_min(1e-8)
            absent_BC, focus_BC = -torch.log1p(-shifted_BC), shifted_BC.log()
        if gammas[1]:
            absent_BC = absent_BC * (gammas[1] * focus_BC).exp()
        return targets_BC * self.positive_weights_C * present_BC + (1 - targets_BC) * absent_BC

    def _soft_f2(self, logits_BC: Tensor, targets_BC: Tensor) -> Tensor:
        p_BC = logits_BC.sigmoid()
        weighted_BC = p_BC * self.label_weights_C
        truth_B = (targets_BC * self.label_weights_C).sum(1)
        denominator_B = (4 * truth_B + weighted_BC.sum(1)).clamp_min(1e-8)
        return 1 - 5 * (weighted_BC * targets_BC).sum(1) / denominator_B

    def _competing(self, logits_BC: Tensor, targets_BC: Tensor, group_G: Tensor) -> Tensor:
        targets_BG = targets_BC[:, group_G]
        present_B1 = targets_BG.sum(1, keepdim=True)
        smoothing = self.config.label_smoothing
        shares_BG = targets_BG / present_B1.clamp_min(1) * (1 - smoothing) + smoothing / len(group_G)
        log_p_BG = logits_BC[:, group_G].log_softmax(1)
        terms_BG = -shares_BG * self.label_weights_C[group_G] * log_p_BG
        # A chip with none of these labels says nothing about which of them is right.
        return terms_BG.sum(1) * (present_B1[:, 0] > 0)


def build_loss(
    config: LossConfig,
    labels: int,
    vocabulary: Vocabulary,
    label_counts: ArrayLike,
    cooccurrence: ArrayLike,
    count: int,
) -> Loss:
    """Builds a loss from a recipe and the training chips' statistics.

    Args:
        config: which loss.
        labels: C, columns of the logits.
        vocabulary: names and exclusive groups of the labels.
        label_counts: (C,) training chips that bear each label.
        cooccurrence: (C, C) training chips that bear both labels.
        count: labelled training chips.

    Raises:
        ConfigError: weights for unknown labels or for a loss that has no use for them, or exclusive groups
            asked of a vocabulary without any.
    """
    assert labels == len(vocabulary.labels), (labels, vocabulary.labels)
    counts_C = np.asarray(label_counts, dtype=np.float64)
    groups = competing_groups(config, vocabulary)
    positive_C = np.ones(labels)
    if config.positive_weight == "balanced":
        if config.name not in _BY_LABEL:
            raise ConfigError(
                f'loss.positive_weight "balanced": {config.name} has no separate terms for present labels; '
                f"choose loss.name from {', '.join(_BY_LABEL)}, or positive_weight none"
            )
        # A label that no training chip bears has no such term to weigh.
        positive_C = np.where(counts_C > 0, (count - counts_C) / np.maximum(counts_C, 1), 1.0)
    matrix_CC = _cooccurrence(config, vocabulary, counts_C, np.asarray(cooccurrence, dtype=np.float64), count)
    return Loss(
        config,
        groups,
        torch.tensor(_label_weights(config, vocabulary), dtype=torch.float32),
        torch.tensor(positive_C, dtype=torch.float32),
        None if matrix_CC is None else torch.tensor(config.alpha * matrix_CC, dtype=torch.float32),
    )


def competing_groups(config: LossConfig, vocabulary: Vocabulary) -> list[list[int]]:
    """The label indices that compete under softmax, group by group; none where the loss takes each label by itself.

    Raises:
        ConfigError: the loss asks for groups that the vocabulary does not have.
    """
    if config.name == "softmax":
        if len(vocabulary.labels) < 2:
            raise ConfigError('loss.name "softmax" needs two labels or more to compete; choose "bce"')
        return [list(range(len(vocabulary.labels)))]
    if config.name != "group-softmax":
        return []
    groups = [_indices(vocabulary, group.labels) for group in _exclusive(vocabulary, 'loss.name "group-softmax"')]
    members = [label for group in groups for label in group]
    if len(set(members)) < len(members) or min(map(len, groups)) < 2:
        raise ConfigError(
            'loss.name "group-softmax": each exclusive group needs two labels or more, and no label may be in two; '
            "choose another loss, or build the dataset with other groups"
        )
    return groups


def independent_logits(logits_BC: Tensor, groups: Sequence[Sequence[int] | Tensor]) -> Tensor:
    """Logits whose sigmoid is each label's probability.

    Those of labels that compete under softmax become log(p / (1 - p)); all others stay as they are. What is stored of
    an evaluation, and decided on, should be these.

    Args:
        logits_BC: a network's, any float type.
        groups: competing_groups() of the loss that it was trained with.

    Returns:
        float32 (B, C) (float64 for float64 logits).
    """
    logits_BC = _widened(logits_BC)
    if not groups:
        return logits_BC
    result_BC = logits_BC.clone()
    for group in groups:
        result_BC[:, group] = _against_the_others(logits_BC[:, group])
    return result_BC


def _label_weights(config: LossConfig, vocabulary: Vocabulary) -> list[float]:
    unknown = sorted(set(config.label_weights) - set(vocabulary.labels))
    if unknown:
        raise ConfigError(
            f"loss.label_weights names {', '.join(unknown)}, which the dataset lacks; "
            f"its labels are {', '.join(vocabulary.labels)}"
        )
    return [config.label_weights.get(label, 1.0) for label in vocabulary.labels]


def _cooccurrence(
    config: LossConfig,
    vocabulary: Vocabulary,
    counts_C: NDArray[np.float64],
    observed_CC: NDArray[np.float64],
    count: int,
) -> NDArray[np.float64] | None:
    if config.cooccurrence == "none":
        return None
    if config.cooccurrence == "data":
        chance_CC = np.outer(counts_C, counts_C) / max(count, 1)
        # Adding one keeps pairs of rare labels, which chance alone may keep apart, from weighing as much as weather.
        matrix_CC = np.maximum(0.0, 1 - (observed_CC + 1) / (chance_CC + 1))
    else:
        first = _exclusive(vocabulary, 'loss.cooccurrence "weather"')[0]
        members_C = np.zeros(len(counts_C))
        members_C[_indices(vocabulary, first.labels)] = 1
        matrix_CC = np.outer(members_C, members_C)
    np.fill_diagonal(matrix_CC, 0)
    return matrix_CC


def _exclusive(vocabulary: Vocabulary, wanted_by: str) -> Sequence[ExclusiveGroup]:
    if not vocabulary.exclusive:
        raise ConfigError(
            f"{wanted_by} needs labels that exclude each other, and the dataset's vocabulary names none; "
            "build the dataset with a vocabulary that has an [[exclusive]] group, or choose another loss"
        )
    return vocabulary.exclusive


def _indices(vocabulary: Vocabulary, labels: Sequence[str]) -> list[int]:
    return [vocabulary.labels.index(label) for label in labels]


def _widened(logits_BC: Tensor) -> Tensor:
    return logits_BC.to(torch.promote_types(logits_BC.dtype, torch.float32))


def _against_the_others(logits_BG: Tensor) -> Tensor:
    """x_i - log(sum of exp(x_j) over j != i): the logit of label i's softmax probability."""
    labels = logits_BG.shape[1]
    own_GG = torch.eye(labels, dtype=torch.bool, device=logits_BG.device)
    others_BGG = logits_BG[:, None, :].masked_fill(own_GG, -torch.inf)
    return logits_BG - others_BGG.logsumexp(2)
