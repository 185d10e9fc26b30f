"""A bundle as one module of fixed arithmetic, from a chip's integers to decisions, for runtimes without this code.

The resizing stands for torch's antialiased interpolation, which ONNX has no exact word for. It is separable, and the
chips' size is fixed, so that it is two products with matrices known beforehand: columns, then rows. uint8 is resized
as torch resizes it on a CPU: weights rounded to 16-bit fixed point, each product rounded to a level. In float64 these
products are exact, and so the pixels are torch's bit for bit.

Letters in array names: B chips, H and W pixels, S the side of the input, C bands or labels, M members, V all chips'
views.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from planet_dist.augment import views
from planet_dist.bundle import Bundle, Ready
from planet_dist.losses import independent_logits
from planet_dist.metrics import LEAST_PROBABILITY
from planet_dist.onnx_decision import decision_module
from planet_dist.stack import StackedCombination

_FIXED_POINT_BITS = 15  # torch's weights stay below 2^15
_MOST_PRECISION = 22


class FixedResize(nn.Module):
    """Antialiased bilinear resizing of chips of one size.

    Args:
        height, width: of the chips.
        out_height, out_width: of the result.
        integers: whether the chips are uint8, and the result rounded to levels as torch rounds it.
    """

    columns_WS: Tensor
    rows_SH: Tensor

    def __init__(self, height: int, width: int, out_height: int, out_width: int, *, integers: bool) -> None:
        super().__init__()
        self.integers = integers
        columns_SW, self.column_precision = _weights(width, out_width, integers)
        rows_SH, self.row_precision = _weights(height, out_height, integers)
        self.register_buffer("columns_WS", columns_SW.T.contiguous())
        self.register_buffer("rows_SH", rows_SH)
        self.moves_columns, self.moves_rows = width != out_width, height != out_height

    def forward(self, images_BHWC: Tensor) -> Tensor:
        """The resized chips, float32 (B, out_height, out_width, C)."""
        images_BCHW = images_BHWC.double().permute(0, 3, 1, 2)
        if self.moves_columns:
            images_BCHW = self._level(images_BCHW @ self.columns_WS, self.column_precision)
        if self.moves_rows:
            images_BCHW = self._level(self.rows_SH @ images_BCHW, self.row_precision)
        return images_BCHW.permute(0, 2, 3, 1).float()

    def _level(self, sums: Tensor, precision: int) -> Tensor:
        if not self.integers:
            return sums
        return torch.floor((sums + 2.0 ** (precision - 1)) / 2.0**precision).clamp(0.0, 255.0)


def _weights(side: int, out_side: int, integers: bool) -> tuple[Tensor, int]:
    """The matrix (out_side, side) of resizing along one axis, float64, and how many bits its integers are scaled by."""
    # What a linear map does to the unit vectors is its matrix.
    unit = torch.eye(side, dtype=torch.float64)[None, None]
    exact = functional.interpolate(unit, size=(out_side, side), mode="bilinear", antialias=True)[0, 0]
    if not integers:
        return exact, 0
    largest, precision = float(exact.max()), 0
    while precision < _MOST_PRECISION and int(0.5 + largest * 2 ** (precision + 1)) < 2**_FIXED_POINT_BITS:
        precision += 1
    return torch.floor(exact * 2**precision + 0.5), precision


def chip_network(bundle: Bundle) -> nn.Module:
    """A bundle on a CPU, from pixels to probabilities float32 (B, C) and decisions bool (B, C)."""
    combination = bundle.description.combination()
    return StackedNetwork(bundle, combination) if isinstance(combination, StackedCombination) else ChipNetwork(bundle)


class StackedNetwork(nn.Module):
    """A bundle of recipes and folds on a CPU, from pixels to probabilities and decisions.

    Args:
        bundle: on a CPU.
        combination: how its members decide together.
    """

    weights_DC: Tensor
    bias_C: Tensor

    def __init__(self, bundle: Bundle, combination: StackedCombination) -> None:
        super().__init__()
        self.members = nn.ModuleList(_MemberNetwork(bundle, member) for member in bundle.members)
        self.places, self.scale = combination.members, combination.stack.scale
        self.register_buffer("weights_DC", torch.from_numpy(combination.stack.weights_DC))
        self.register_buffer("bias_C", torch.from_numpy(combination.stack.bias_C))
        self.decision = decision_module(combination.decision)

    def forward(self, images_BHWC: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities float32 (B, C), and decisions bool (B, C).

        Args:
            images_BHWC: pixels of the training chips' size, bands and dtype.
        """
        logits = [member(images_BHWC) for member in self.members]
        columns_BD = self._recipes(logits)
        if self.scale == "logits":
            # As stack.logits has them; the complement by itself, for 1 - 1e-12 is 1 in an exporter's float32 constant.
            others_BD = self._recipes([-one for one in logits])
            columns_BD = columns_BD.clamp(min=LEAST_PROBABILITY).log() - others_BD.clamp(min=LEAST_PROBABILITY).log()
        sums_BC = columns_BD @ self.weights_DC + self.bias_C
        combined_BC = sums_BC.clamp(0.0, 1.0) if self.scale == "probabilities" else torch.sigmoid(sums_BC)
        return combined_BC.float(), self.decision(combined_BC)

    def _recipes(self, logits: list[Tensor]) -> Tensor:
        """The means of recipes' probabilities (B, D)."""
        means = [torch.stack([torch.sigmoid(logits[m]) for m in places]).mean(dim=0) for places in self.places]
        return torch.cat(means, dim=1)


class ChipNetwork(nn.Module):
    """A bundle whose members stand side by side, on a CPU, from pixels to probabilities and decisions.

    Args:
        bundle: on a CPU.
    """

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.members = nn.ModuleList(_MemberNetwork(bundle, member) for member in bundle.members)
        combination = bundle.description.member_combination()
        self.rule = combination.rule
        self.register_buffer("speaks_MC", torch.from_numpy(combination.speaks_MC))
        self.own = nn.ModuleList(decision_module(decision) for decision in combination.own)
        self.by_mean = decision_module(combination.mean)
        self.register_buffer("rare_C", torch.from_numpy(combination.rare_C))

    speaks_MC: Tensor
    rare_C: Tensor

    def forward(self, images_BHWC: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities float32 (B, C), and decisions bool (B, C).

        Args:
            images_BHWC: pixels of the training chips' size, bands and dtype.
        """
        probabilities_BMC = torch.stack([torch.sigmoid(member(images_BHWC)) for member in self.members], dim=1)
        heard_BMC = torch.where(self.speaks_MC, probabilities_BMC, 0.0)
        speakers_C = self.speaks_MC.sum(dim=0)
        mean_BC = heard_BMC.sum(dim=1) / speakers_C.clamp(min=1)
        decided_BC: Tensor = self.by_mean(mean_BC)
        if self.rule != "mean":
            said = [decide(probabilities_BMC[:, m]) for m, decide in enumerate(self.own)]
            said_BMC = torch.stack(said, dim=1) & self.speaks_MC
            votes_BC = said_BMC.sum(dim=1)
            if self.rule == "vote":
                decided_BC = (votes_BC > 0) & (2 * votes_BC >= speakers_C)
            else:
                decided_BC = (self.rare_C & (votes_BC > 0)) | (~self.rare_C & decided_BC)
        return mean_BC.float(), decided_BC


class _MemberNetwork(nn.Module):
    def __init__(self, bundle: Bundle, member: Ready) -> None:
        super().__init__()
        form = bundle.description.image
        self.model, self.preprocess = member.model, member.preprocess
        self.turns, self.groups = member.turns, member.competing_groups
        side = (member.preprocess.height, member.preprocess.width)
        self.resize = FixedResize(form.height, form.width, *side, integers=form.dtype == "uint8")

    def forward(self, images_BHWC: Tensor) -> Tensor:
        """Logits float64 (B, C)."""
        inputs_BCHW = self.preprocess.normalise(self.resize(images_BHWC)).permute(0, 3, 1, 2)
        # All views go through the network at once, or the file would hold its layers once a view.
        logits_VC = independent_logits(self.model(torch.cat(list(views(inputs_BCHW, self.turns)))), self.groups)
        mean_BC: Tensor = logits_VC.reshape(self.turns, -1, logits_VC.shape[1]).mean(dim=0)
        return mean_BC.double()
