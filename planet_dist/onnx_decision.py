"""A fitted decision as a module of fixed arithmetic, for runtimes without this code.

Expected F2 is computed as in planet_dist/expected_f2.py, but without sorting, and without each unit from the start,
which costs more and needs no case told apart: a chip's 17 labels are nothing beside its network.

Letters in array names: B chips, C labels, U units, V units too, J other units that are true, K sizes of the set,
P pieces of a broken line.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from planet_dist.calibration import Calibration, Isotonic, Logistic
from planet_dist.decision import Decision, ExpectedF2
from planet_dist.expected_f2 import Units
from planet_dist.metrics import BETA_SQUARED, LEAST_PROBABILITY


def decision_module(decision: Decision) -> nn.Module:
    """A module that takes probabilities float64 (B, C) and gives decisions bool (B, C)."""
    if isinstance(decision, ExpectedF2):
        return nn.Sequential(_calibration_module(decision.calibration), MostExpected(decision.units()))
    return Above(decision.values)


class Above(nn.Module):
    """Thresholds.

    Args:
        values: C.
    """

    values_C: Tensor

    def __init__(self, values: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("values_C", torch.tensor(values, dtype=torch.float64))

    def forward(self, given_BC: Tensor) -> Tensor:
        """Decisions bool (B, C)."""
        return given_BC > self.values_C


def _calibration_module(calibration: Calibration) -> nn.Module:
    if isinstance(calibration, Logistic):
        return OnLogits(calibration)
    return BrokenLines(calibration) if isinstance(calibration, Isotonic) else nn.Identity()


class OnLogits(nn.Module):
    """A logistic calibration."""

    slopes_C: Tensor
    offsets_C: Tensor

    def __init__(self, calibration: Logistic) -> None:
        super().__init__()
        self.register_buffer("slopes_C", torch.tensor(calibration.slopes, dtype=torch.float64))
        self.register_buffer("offsets_C", torch.tensor(calibration.offsets, dtype=torch.float64))

    def forward(self, given_BC: Tensor) -> Tensor:
        """Calibrated probabilities float64 (B, C)."""
        # From below alone: the exporter keeps bounds in float32, in which 1 - LEAST_PROBABILITY is 1.
        present_BC, absent_BC = given_BC.clamp(min=LEAST_PROBABILITY), (1.0 - given_BC).clamp(min=LEAST_PROBABILITY)
        return torch.sigmoid(self.slopes_C * (present_BC.log() - absent_BC.log()) + self.offsets_C)


class BrokenLines(nn.Module):
    """An isotonic calibration: where a line starts, and how far each piece has risen."""

    start_C: Tensor
    point_CP: Tensor
    width_CP: Tensor
    rise_CP: Tensor

    def __init__(self, calibration: Isotonic) -> None:
        super().__init__()
        pieces = max(map(len, calibration.points)) - 1
        # Lines of fewer pieces end with pieces that don't rise.
        lines = zip(calibration.points, calibration.values, strict=True)
        rows = [
            (
                np.pad(points[:-1], (0, pieces + 1 - len(points))),
                np.pad(np.diff(points), (0, pieces + 1 - len(points)), constant_values=1.0),
                np.pad(np.diff(values), (0, pieces + 1 - len(points))),
            )
            for points, values in lines
        ]
        for name, place in (("point_CP", 0), ("width_CP", 1), ("rise_CP", 2)):
            self.register_buffer(name, torch.from_numpy(np.stack([row[place] for row in rows])).double())
        starts = [values[0] for values in calibration.values]
        self.register_buffer("start_C", torch.tensor(starts, dtype=torch.float64))

    def forward(self, given_BC: Tensor) -> Tensor:
        """Calibrated probabilities float64 (B, C)."""
        share_BCP = ((given_BC[:, :, None] - self.point_CP) / self.width_CP).clamp(0.0, 1.0)
        return self.start_C + (self.rise_CP * share_BCP).sum(dim=2)


class MostExpected(nn.Module):
    """The label set of greatest expected F2 among all.

    Args:
        units: which labels are true together.
    """

    alone_C: Tensor
    never_C: Tensor
    unit_CU: Tensor
    unit_of_C: Tensor
    required_U: Tensor
    others_UV: Tensor
    weights_JK: Tensor
    size_K: Tensor
    before_CC: Tensor

    def __init__(self, units: Units) -> None:
        super().__init__()
        labels, count = units.labels, len(units.members)
        unit_CU = torch.zeros(labels, count, dtype=torch.float64)
        for unit, members in enumerate(units.members):
            unit_CU[list(members), unit] = 1.0
        size_K = torch.arange(1, labels + 1)
        total_J1 = torch.arange(1, count + 1, dtype=torch.float64)[:, None]
        kept = {
            "alone_C": _marked(units.alone, labels),
            "never_C": _marked(units.never, labels),
            "unit_CU": unit_CU,
            "unit_of_C": unit_CU.argmax(dim=1),
            "required_U": torch.arange(count) < units.required,
            "others_UV": 1.0 - torch.eye(count, dtype=torch.float64),
            "weights_JK": (1.0 + BETA_SQUARED) / (BETA_SQUARED * total_J1 + size_K),
            "size_K": size_K,
            "before_CC": torch.ones(labels, labels).tril(-1).bool(),
        }
        for name, tensor in kept.items():
            self.register_buffer(name, tensor)
        self.groups = [
            (_marked([c for c in columns if c not in units.never], labels), required)
            for columns, required in units.groups
        ]

    def forward(self, given_BC: Tensor) -> Tensor:
        """Decisions bool (B, C)."""
        gains_BCK = self._joint(given_BC) @ self.weights_JK
        # Of equal gains the first label's counts as greater.
        greater_BCCK = gains_BCK[:, None] > gains_BCK[:, :, None]
        equal_BCCK = gains_BCK[:, None] == gains_BCK[:, :, None]
        rank_BCK = (greater_BCCK | (equal_BCCK & self.before_CC[:, :, None])).sum(dim=2)
        taken_BCK = rank_BCK < self.size_K
        value_BK = torch.where(taken_BCK, gains_BCK, 0.0).sum(dim=1)
        best_B1 = value_BK.argmax(dim=1, keepdim=True)
        chosen_BK = (self.size_K - 1 == best_B1) & (value_BK > 0.0)
        return (taken_BCK & chosen_BK[:, None]).sum(dim=2) > 0

    def _joint(self, given_BC: Tensor) -> Tensor:
        """P(label c is true, and j other labels are), float64 (B, C, J)."""
        given_BC = torch.where(self.never_C, 0.0, given_BC)
        for marked_C, required in self.groups:
            total_B1 = torch.where(marked_C, given_BC, 0.0).sum(dim=1, keepdim=True)
            if required:
                given_BC = torch.where(marked_C & (total_B1 <= 0.0), 1.0, given_BC)
                total_B1 = torch.where(marked_C, given_BC, 0.0).sum(dim=1, keepdim=True)
            else:
                total_B1 = total_B1.clamp(min=1.0)
            given_BC = torch.where(marked_C, given_BC / total_B1, given_BC)
        alone_B1 = torch.where(self.alone_C, given_BC, 0.0).sum(dim=1, keepdim=True)
        given_BC = torch.where(self.alone_C, given_BC / alone_B1.clamp(min=1.0), given_BC)
        rest_B1 = (1.0 - alone_B1).clamp(min=0.0)
        total_BU = given_BC @ self.unit_CU
        whole_BU = torch.where(self.required_U, total_BU, torch.maximum(total_BU, rest_B1))
        whole_BU = torch.where(whole_BU > 0.0, whole_BU, 1.0)
        within_BC = given_BC / whole_BU[:, self.unit_of_C]
        unit_BU = (total_BU / whole_BU).clamp(max=1.0)
        count_BUJ = self._true_without_each(unit_BU)
        joint_BCJ = (rest_B1 * within_BC)[:, :, None] * count_BUJ[:, self.unit_of_C]
        alone_BCJ = given_BC[:, :, None] * (self.size_K[: count_BUJ.shape[2]] == 1)
        return torch.where(self.alone_C[:, None], alone_BCJ, joint_BCJ)

    def _true_without_each(self, unit_BU: Tensor) -> Tensor:
        """P(j of the other units are true), float64 (B, U, J)."""
        others_BUV = unit_BU[:, None] * self.others_UV
        count_BUJ = torch.zeros_like(others_BUV)
        count_BUJ = torch.cat([count_BUJ[:, :, :1] + 1.0, count_BUJ[:, :, 1:]], dim=2)
        for unit in range(unit_BU.shape[1]):
            true_BU1 = others_BUV[:, :, unit : unit + 1]
            raised_BUJ = torch.cat([torch.zeros_like(true_BU1), count_BUJ[:, :, :-1]], dim=2)
            count_BUJ = count_BUJ * (1.0 - true_BU1) + raised_BUJ * true_BU1
        return count_BUJ


def _marked(columns: tuple[int, ...] | list[int], labels: int) -> Tensor:
    marked_C = torch.zeros(labels, dtype=torch.bool)
    marked_C[list(columns)] = True
    return marked_C
