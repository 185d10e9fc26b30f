"""The numbers that the two papers publish, by table. First is the ResNet-50 ensemble paper, second Inception-v3's."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelScores:
    """A row of the first paper's Table 1: sample-averaged F2 on training and validation chips."""

    model: str
    train_f2: float
    val_f2: float


# First paper, Table 1, by the row of `reproduce`.
PAPER1_TABLE1 = {
    "paper1-baseline": ModelScores("Baseline", 0.875, 0.836),
    "paper1-vgg16": ModelScores("VGG-16", 0.903, 0.897),
    "paper1-inception-v3": ModelScores("Inception-v3", 0.912, 0.901),
    "paper1-resnet50": ModelScores("ResNet-50", 0.921, 0.907),
    "paper1-ensemble": ModelScores("ResNet-50 (data aug/ensemble)", 0.922, 0.908),
}
PAPER1_LABEL_F2 = {"selective_logging": 0.310, "conventional_mine": 0.479, "artisinal_mine": 0.770}  # section 5
PAPER1_UNIFORM_GAIN, PAPER1_PER_LABEL_GAIN = 0.04, 0.001  # section 4.5: 0.5 to 0.2, then to one for each label
PAPER1_TEST_F2 = 0.907  # section 5, the competition's test chips
RARE_SHARE = 0.01  # first paper, section 1: six ground labels stand on fewer than one percent of the chips

# Second paper, Table 1.
PAPER2_THRESHOLDS = {
    "agriculture": 0.18,
    "artisinal_mine": 0.13,
    "bare_ground": 0.19,
    "blooming": 0.17,
    "blow_down": 0.05,
    "clear": 0.15,
    "cloudy": 0.21,
    "conventional_mine": 0.09,
    "cultivation": 0.22,
    "habitation": 0.19,
    "haze": 0.23,
    "partly_cloudy": 0.23,
    "primary": 0.29,
    "road": 0.18,
    "selective_logging": 0.10,
    "slash_burn": 0.10,
    "water": 0.15,
}


@dataclass(frozen=True)
class PhaseScores:
    """The second paper's Table 2 or 3: after the dense layers alone, and after joint training."""

    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    f2: float


PAPER2_TABLE2 = PhaseScores(0.1621, 0.9438, 0.1657, 0.9421, 0.8645)
PAPER2_TABLE3 = PhaseScores(0.0057, 0.9997, 0.2160, 0.9529, 0.8894)
# Second paper, Table 4: co-occurrence of "clear" with another weather label, without and with the loss.
PAPER2_TABLE4 = {"cloudy": (0.006, 8.27e-05), "haze": (0.0351, 2.88e-04), "partly_cloudy": (0.026, 1.99e-04)}
PAPER2_TABLE5 = (0.8559, 0.8894, 0.033)  # F2 before and after the choice of thresholds, and its gain, as printed
PAPER2_SIMPLE_F2 = {"paper2-simple-cnn-64": 0.8974, "paper2-simple-cnn-140": 0.8645}  # section 5.1.1
