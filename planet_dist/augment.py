"""Integer chips to the network's input, on the device where they are used: resize, augment, normalise.

    images_BHWC as they come from disk
        |  resize to (S, S), antialiased; nothing where the size is right already
        |  mirror and quarter turns: pixels move, exactly
        |  any other turn, zoom or shift: one bilinear sampling, mirror and quarter turns fused into it
        |  normalise to float32
    images_BCHW, channels last

A chip is resized in the same way in training and in evaluation, and only then augmented, so that both see
the same pixels, and shrinking is antialiased at any factor. The sampling reads the resized chip: zooming in
gives no detail that the resizing took away, and zooming out by a factor steps over pixels by that factor.

Nothing here waits for the device: what is random is drawn on the host, and sent without blocking.

Shapes: B chips, H rows, W columns, C bands, R values of a row (W * C).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from planet_dist.config import AugmentConfig, DataConfig
from planet_dist.draws import Draws, draw, draw_mixing
from planet_dist.mixing import mix, partner_weights
from shards.errors import ConfigError, DatasetError
from shards.pixels import PixelFormat

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of RGB from 0 to 1, as torchvision's weights expect it
IMAGENET_STD = (0.229, 0.224, 0.225)

# The symmetries of the square by 4 * mirror + turns, mirrored left to right before turned counterclockwise:
# whether rows and columns are exchanged, and which axes of (B, H, W, C) are then reversed.
_SYMMETRIES: tuple[tuple[bool, tuple[int, ...]], ...] = (
    (False, ()),
    (True, (1,)),
    (False, (1, 2)),
    (True, (2,)),
    (False, (2,)),
    (True, ()),
    (False, (1,)),
    (True, (1, 2)),
)


class Preprocess:
    """Makes the network's input of a dataset's chips.

    Resizing is bilinear, with the triangle widened by the factor of a reduction, as PIL does it. uint8 is
    rounded (to within one level of the exact value, as PIL and OpenCV round, and ten times faster on a CPU);
    other dtypes are not.

    The normalisations:
      "dataset": each band less its mean, divided by its deviation (by 1 where that is 0), in the pixels' own
        units.
      "imagenet": uint8 RGB scaled to 0..1, less torchvision's mean, divided by its deviation.
      "per-chip": the second paper's "normalize() function from openCV" after resizing (section 3.3), whose
        arguments the paper leaves open. Taken as cv2.normalize(chip, None, 0, 1, NORM_MINMAX, CV_32F): the
        smallest value of any band becomes 0, the greatest 1, and a chip of one value 0. (Without arguments it
        divides by the Euclidean norm and rounds to integers, which leaves nothing of a uint8 chip.)
        The extremes are those before augmentation.

    Args:
        data: `size` and `normalise` are used.
        form: of the training chips. All must share its bands and dtype; its size is the output's where
            `data.size` is 0.
        mean, std: (C,) per band, in the pixels' own units; the dataset's manifest and a bundle have them.
        augment: what `train` may do to a chip.
        seed: of the draws.
        device: where the images will be.

    Attributes:
        height, width: of the output, in pixels.

    Raises:
        ConfigError: the configuration doesn't fit the chips.
    """

    def __init__(
        self,
        data: DataConfig,
        form: PixelFormat,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        augment: AugmentConfig | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        assert len(mean) == len(std) == form.bands, "the statistics have one entry for each band"
        self._data, self._mean, self._std = data, mean, std
        self.height, self.width = (data.size, data.size) if data.size else (form.height, form.width)
        self._form = form
        self._augment = augment or AugmentConfig()
        self._seed = seed
        self._device = torch.device(device)
        if self._augment.quarter_turns and self.height != self.width:
            raise ConfigError(
                f"augment.quarter_turns with chips of {self.height}x{self.width}: a quarter turn takes "
                "a square; set data.size, or augment.quarter_turns=false"
            )
        self._per_chip = data.normalise == "per-chip"
        if data.normalise == "imagenet":
            offset, deviation = _imagenet_statistics(form)
        else:
            offset = np.asarray(mean, np.float64)
            deviation = np.where(np.asarray(std) > 0, std, 1.0)
        self._offset_R = self._per_row(offset)
        self._scale_R = self._per_row(1 / deviation)

    @property
    def side(self) -> int:
        """The side of the network's square input, in pixels.

        Raises:
            ConfigError: the chips are not square, and data.size does not make them so.
        """
        if self.height != self.width:
            raise ConfigError(f"chips of {self.height}x{self.width}: networks here take squares; set data.size")
        return self.height

    def at(self, size: int) -> Preprocess:
        """The same for another size of the output, in pixels; 0 for that of the chips themselves."""
        return self._with(self._data.model_copy(update={"size": size}), self._augment)

    def plain(self) -> Preprocess:
        """The same, but training chips are mirrored and turned by quarters alone."""
        augment = self._augment
        return self._with(self._data, AugmentConfig(flip=augment.flip, quarter_turns=augment.quarter_turns))

    def _with(self, data: DataConfig, augment: AugmentConfig) -> Preprocess:
        return Preprocess(
            data, self._form, self._mean, self._std, augment=augment, seed=self._seed, device=self._device
        )

    def train(self, images_BHWC: Tensor, ids_B: NDArray[np.int64], epoch: int) -> Tensor:
        """The chips, each changed at random by (seed, epoch, its id).

        Args:
            images_BHWC: of the form's dtype and bands, on the device; they are left as they are.
            ids_B: int64; -1 is padding.
            epoch: from 0.

        Returns:
            float32 images_BCHW of (height, width), channels last, in memory of their own.

        Raises:
            DatasetError: the images are not of the form.
        """
        draws = draw(self._augment, self._seed, epoch, ids_B)
        resized_BHWC = self._resize(images_BHWC)
        if self._augment.rotate_degrees or self._augment.shift or self._augment.scale:
            images_BCHW = self.normalise(resized_BHWC).permute(0, 3, 1, 2)
            maps_B23 = source_maps(draws, self.height, self.width)
            return sample(images_BCHW, _send(torch.from_numpy(maps_B23).float(), self._device))
        if self._augment.flip or self._augment.quarter_turns:
            resized_BHWC = _move_each(resized_BHWC, 4 * draws.mirror_B + draws.turns_B)
        return self.normalise(resized_BHWC).permute(0, 3, 1, 2)

    def mix(
        self, images_BCHW: Tensor, targets_BC: Tensor, ids_B: NDArray[np.int64], epoch: int
    ) -> tuple[Tensor, Tensor]:
        """What `train` gives, mixed with others of the batch at random by (seed, epoch, id); labels likewise.

        Returns:
            Images and targets of planet_dist.mixing; the same ones where nothing is to be mixed.
        """
        if not (self._augment.cutmix or self._augment.mixup):
            return images_BCHW, targets_BC
        weights_BHW = partner_weights(draw_mixing(self._augment, self._seed, epoch, ids_B), self.height, self.width)
        return mix(images_BCHW, targets_BC, _send(torch.from_numpy(weights_BHW), self._device))

    def evaluate(self, images_BHWC: Tensor) -> Tensor:
        """The chips as they are; shapes and errors as for `train`."""
        return self.normalise(self._resize(images_BHWC)).permute(0, 3, 1, 2)

    def blank(self, count: int) -> Tensor:
        """What `evaluate` gives of `count` black chips."""
        form = self._form
        shape = (count, form.height, form.width, form.bands)
        return self.evaluate(torch.zeros(shape, dtype=getattr(torch, form.dtype), device=self._device))

    def _resize(self, images_BHWC: Tensor) -> Tensor:
        """The chips at the output's size: uint8 or float32, (B, height, width, C)."""
        dtype = str(images_BHWC.dtype).removeprefix("torch.")
        if images_BHWC.ndim != 4 or images_BHWC.shape[3] != self._form.bands or dtype != self._form.dtype:
            raise DatasetError(
                f"chips of {tuple(images_BHWC.shape)} {dtype}: they must have (B, H, W, {self._form.bands}) "
                f"{self._form.dtype}, as those that the network is made for; give it chips of that kind"
            )
        if images_BHWC.dtype != torch.uint8:
            images_BHWC = images_BHWC.float()
        if images_BHWC.shape[1:3] == (self.height, self.width):
            return images_BHWC
        if images_BHWC.dtype == torch.uint8 and images_BHWC.device.type != "cpu":
            # Only the CPU resizes integers; rounding keeps the others within one level of it.
            return _resample(images_BHWC.float(), self.height, self.width).round_()
        return _resample(images_BHWC, self.height, self.width)

    def normalise(self, images_BHWC: Tensor) -> Tensor:
        """Chips of the output's size, normalised: a new float32 tensor (B, height, width, C).

        The values of one chip depend on that chip alone.
        """
        count, height, width, bands = images_BHWC.shape
        if self._per_chip:
            flat = images_BHWC.reshape(count, -1)
            low_B1 = flat.amin(1, keepdim=True).float()
            range_B1 = flat.amax(1, keepdim=True).float().sub_(low_B1)
            scale_B1 = torch.where(range_B1 > 0, range_B1.reciprocal(), 0.0)
            out = flat.to(torch.float32, copy=True).sub_(low_B1).mul_(scale_B1)
        else:
            # Whole rows at once: broadcasting over bands alone keeps a CPU from using its vector units.
            rows = images_BHWC.reshape(count * height, width * bands)
            out = rows.to(torch.float32, copy=True).sub_(self._offset_R).mul_(self._scale_R)
        return out.view(count, height, width, bands)

    def _per_row(self, values_C: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(np.tile(values_C, self.width)).float().to(self._device)


def views(images_BCHW: Tensor, turns: int) -> Iterator[Tensor]:
    """The views of each chip whose predictions are averaged at test time.

    Args:
        images_BCHW: normalised chips.
        turns: 1, the chips themselves alone, or 8, the quarter turns of the chips and of their mirror images.

    Yields:
        `turns` tensors like images_BCHW, channels last; the first is images_BCHW's own view.

    Raises:
        ConfigError: 8 views of chips that aren't square.
    """
    assert turns in (1, 8), turns
    height, width = images_BCHW.shape[2:]
    images_BHWC = images_BCHW.permute(0, 2, 3, 1)
    if turns == 8 and height != width:
        raise ConfigError(
            f"evaluate.turns=8 with chips of {height}x{width}: a quarter turn takes a square; "
            "set data.size, or evaluate.turns=1"
        )
    for symmetry in range(turns):
        yield _move(images_BHWC, symmetry).contiguous().permute(0, 3, 1, 2)


def source_maps(draws: Draws, height: int, width: int) -> NDArray[np.float64]:
    """Where each pixel of an augmented chip comes from.

    Returns:
        float64 maps_B23: a pixel at (x, y) comes from maps @ (x, y, 1), both in pixels to the right and
        down from the centre of the chip.
    """
    # Quarters and angle add up to one turn after the mirroring; undoing them, the turn comes first. Quarters
    # are kept apart from the angle because their sines are whole numbers.
    quarter_cos_B = np.array([1.0, 0.0, -1.0, 0.0])[draws.turns_B]
    quarter_sin_B = np.array([0.0, 1.0, 0.0, -1.0])[draws.turns_B]
    cos_B, sin_B = np.cos(draws.angle_B), np.sin(draws.angle_B)
    turn_cos_B = (cos_B * quarter_cos_B - sin_B * quarter_sin_B) / draws.zoom_B
    turn_sin_B = (sin_B * quarter_cos_B + cos_B * quarter_sin_B) / draws.zoom_B
    sign_B = np.where(draws.mirror_B, -1.0, 1.0)
    maps_B23 = np.empty((len(sign_B), 2, 3))
    maps_B23[:, 0, 0] = sign_B * turn_cos_B
    maps_B23[:, 0, 1] = -sign_B * turn_sin_B
    maps_B23[:, 1, 0] = turn_sin_B
    maps_B23[:, 1, 1] = turn_cos_B
    shift_B2 = draws.shift_B2 * (width, height)
    maps_B23[:, :, 2] = -np.einsum("bij,bj->bi", maps_B23[:, :, :2], shift_B2)
    return maps_B23


def sample(images_BCHW: Tensor, maps_B23: Tensor) -> Tensor:
    """Bilinear sampling; what lies outside a chip is its reflection at the chip's edge.

    Args:
        images_BCHW: float32.
        maps_B23: float32 on the same device; see source_maps.

    Returns:
        Like images_BCHW, channels last.
    """
    height, width = images_BCHW.shape[2:]
    device = images_BCHW.device
    x_W = torch.arange(width, dtype=torch.float32, device=device) - (width - 1) / 2
    y_H1 = torch.arange(height, dtype=torch.float32, device=device)[:, None] - (height - 1) / 2
    # Not a matrix product, which may run in reduced precision (moving pixels) or sum in an order set by the
    # batch.
    maps = maps_B23[..., None, None]
    grid_BHW2 = torch.stack(
        [
            (maps[:, axis, 0] * x_W + maps[:, axis, 1] * y_H1 + maps[:, axis, 2]) * (2 / side)
            for axis, side in enumerate((width, height))
        ],
        dim=3,
    )
    sampled_BCHW = functional.grid_sample(
        images_BCHW, grid_BHW2, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    return sampled_BCHW.contiguous(memory_format=torch.channels_last)


def _resample(images_BHWC: Tensor, height: int, width: int) -> Tensor:
    images_BCHW = images_BHWC.permute(0, 3, 1, 2)
    resized_BCHW = functional.interpolate(images_BCHW, size=(height, width), mode="bilinear", antialias=True)
    return resized_BCHW.permute(0, 2, 3, 1)


def _move_each(images_BHWC: Tensor, symmetry_B: NDArray[np.int64]) -> Tensor:
    """Gives each chip its own symmetry: sorted by symmetry, moved group by group, and put back in order."""
    order_B = np.argsort(symmetry_B, kind="stable")
    sorted_BHWC = images_BHWC.index_select(0, _send(torch.from_numpy(order_B), images_BHWC.device))
    counts = np.bincount(symmetry_B, minlength=len(_SYMMETRIES)).tolist()
    groups = [_move(group, symmetry) for symmetry, group in enumerate(torch.split(sorted_BHWC, counts))]
    return torch.cat(groups).index_select(0, _send(torch.from_numpy(np.argsort(order_B)), images_BHWC.device))


def _move(images_BHWC: Tensor, symmetry: int) -> Tensor:
    exchange, reverse = _SYMMETRIES[symmetry]
    moved_BHWC = images_BHWC.transpose(1, 2) if exchange else images_BHWC
    return moved_BHWC.flip(reverse) if reverse else moved_BHWC


def _send(values: Tensor, device: torch.device) -> Tensor:
    # A copy from ordinary memory would wait for the device's queue.
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def _imagenet_statistics(form: PixelFormat) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if form.bands != 3 or form.dtype != "uint8":
        raise ConfigError(
            f"data.normalise=imagenet with chips of {form.bands} bands, {form.dtype}: its statistics are "
            "those of uint8 RGB; use data.normalise=dataset"
        )
    return 255 * np.array(IMAGENET_MEAN), 255 * np.array(IMAGENET_STD)
