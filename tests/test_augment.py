import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from planet_dist.augment import IMAGENET_MEAN, IMAGENET_STD, Preprocess, sample, source_maps, views
from planet_dist.config import AugmentConfig, DataConfig
from planet_dist.draws import Draws, draw
from shards.errors import ConfigError, DatasetError
from shards.pixels import PixelFormat

TURNING = AugmentConfig(flip=True, quarter_turns=True)
EVERYTHING = AugmentConfig(flip=True, quarter_turns=True, rotate_degrees=40, shift=0.15, scale=0.2)
DTYPES = ("uint8", "uint16", "int16", "float32")
TOP = {"uint8": 255, "uint16": 13_000, "int16": 13_000, "float32": 1}
Floats = NDArray[np.float64]


def make_chips(count: int, side: int, bands: int = 3, dtype: str = "uint8", seed: int = 0) -> torch.Tensor:
    """Chips with structure at all scales and noise: (count, side, side, bands)."""
    random = np.random.default_rng(seed)
    waves = np.sin(np.arange(side) * random.uniform(0.02, 0.8, (count, bands, 1)))
    smooth = 0.5 + 0.25 * (waves[:, :, None] + waves[:, :, :, None])
    pixels = 0.7 * smooth + 0.3 * random.random(smooth.shape)
    return torch.from_numpy((pixels * TOP[dtype]).astype(dtype).transpose(0, 2, 3, 1).copy())


def preprocess(
    side: int,
    bands: int = 3,
    dtype: str = "uint8",
    size: int = 0,
    normalise: str = "dataset",
    **more: AugmentConfig | int | str,
) -> Preprocess:
    """With statistics that leave the pixels as they are."""
    data = DataConfig.model_validate({"size": size, "normalise": normalise})
    form = PixelFormat(side, side, bands, dtype)
    return Preprocess(data, form, [0.0] * bands, [1.0] * bands, **more)  # type: ignore[arg-type]


def reference_weights(size_in: int, size_out: int) -> Floats:
    """Of a bilinear reduction, by its definition: (size_out, size_in)."""
    factor = size_in / size_out
    reach = max(factor, 1.0)
    weights = np.zeros((size_out, size_in))
    for out in range(size_out):
        centre = (out + 0.5) * factor
        for source in range(size_in):
            weights[out, source] = max(0.0, 1 - abs(source + 0.5 - centre) / reach)
        weights[out] /= weights[out].sum()
    return weights


def reference_resize(chip_HWC: Floats, size: int) -> Floats:
    rows, columns = (reference_weights(side, size) for side in chip_HWC.shape[:2])
    return np.einsum("ih,hwc,jw->ijc", rows, chip_HWC, columns)


def reference_augment(chip_HWC: Floats, draws: Draws, place: int) -> Floats:
    """Change by change, pixel by pixel, in float64."""
    mirrored = chip_HWC[:, ::-1] if draws.mirror_B[place] else chip_HWC
    source = np.rot90(mirrored, draws.turns_B[place])
    height, width, bands = source.shape
    angle, zoom = draws.angle_B[place], draws.zoom_B[place]
    right, down = draws.shift_B2[place] * (width, height)
    out = np.empty_like(source)
    for row, column in itertools.product(range(height), range(width)):
        # From the centre, with y upwards, where a counterclockwise turn has its textbook form.
        z = complex(column - (width - 1) / 2 - right, -(row - (height - 1) / 2 - down))
        z = z / zoom * complex(math.cos(angle), -math.sin(angle))
        x = reflect(z.real + (width - 1) / 2, width)
        y = reflect(-z.imag + (height - 1) / 2, height)
        left, top = math.floor(x), math.floor(y)
        pixel = np.zeros(bands)
        for i, j in itertools.product((0, 1), (0, 1)):
            weight = (1 - abs(y - top - i)) * (1 - abs(x - left - j))
            pixel += weight * source[min(max(top + i, 0), height - 1), min(max(left + j, 0), width - 1)]
        out[row, column] = pixel
    return out


def reflect(position: float, size: int) -> float:
    """Into the chip, whose edges lie half a pixel beyond the centres of its outermost pixels."""
    place = (position + 0.5) % (2 * size)
    return min(max(min(place, 2 * size - place) - 0.5, 0), size - 1)


def pixels_of(images_BCHW: torch.Tensor) -> Floats:
    return images_BCHW.permute(0, 2, 3, 1).double().numpy()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 20])
def test_pixels_are_kept_bit_for_bit_when_the_size_is_right(dtype: str, size: int) -> None:
    chips_BHWC = make_chips(3, 20, 4, dtype)
    out_BCHW = preprocess(20, 4, dtype, size).evaluate(chips_BHWC)
    assert out_BCHW.dtype == torch.float32
    assert out_BCHW.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(out_BCHW, chips_BHWC.float().permute(0, 3, 1, 2))


@pytest.mark.parametrize("side, size", [(64, 16), (61, 17), (48, 40), (16, 24)])
@pytest.mark.parametrize("dtype, bands", [("uint8", 3), ("uint8", 5), ("uint16", 4), ("int16", 2), ("float32", 1)])
def test_resizing_is_that_of_the_float64_reference(side: int, size: int, dtype: str, bands: int) -> None:
    chips_BHWC = make_chips(2, side, bands, dtype)
    out_BHWC = pixels_of(preprocess(side, bands, dtype, size).evaluate(chips_BHWC))
    expected_BHWC = np.stack([reference_resize(chip.astype(float), size) for chip in chips_BHWC.numpy()])
    tolerance = 1.01 if dtype == "uint8" else 1e-5 * TOP[dtype]
    np.testing.assert_allclose(out_BHWC, expected_BHWC, rtol=0, atol=tolerance)


def test_uint8_resizing_is_that_of_pil_within_one_level() -> None:
    chips_BHWC = make_chips(2, 256)
    out_BHWC = pixels_of(preprocess(256, size=64).evaluate(chips_BHWC))
    for out_HWC, chip_HWC in zip(out_BHWC, chips_BHWC.numpy(), strict=True):
        pil_HWC = np.asarray(Image.fromarray(chip_HWC).resize((64, 64), Image.Resampling.BILINEAR))
        assert np.abs(out_HWC - pil_HWC).max() <= 1
        assert np.abs(out_HWC - pil_HWC).mean() < 0.01


@pytest.mark.parametrize("augment", [AugmentConfig(), EVERYTHING])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_shrinking_by_eight_leaves_no_trace_of_a_pattern_of_single_pixels(dtype: str, augment: AugmentConfig) -> None:
    board_HW = np.indices((128, 128)).sum(0) % 2 * TOP[dtype]
    chips_BHWC = torch.from_numpy(np.repeat(board_HW[None, :, :, None], 3, 3).astype(dtype)).repeat(8, 1, 1, 1)
    out_BCHW = preprocess(128, 3, dtype, 16, augment=augment).train(chips_BHWC, np.arange(8), 0)
    assert (out_BCHW - TOP[dtype] / 2).abs().max() <= 0.01 * TOP[dtype]


@pytest.mark.parametrize("size", [0, 12])
def test_flips_and_quarter_turns_move_the_pixels_exactly(size: int) -> None:
    chips_BHWC, ids_B = make_chips(64, 24), np.arange(64)
    prepare = preprocess(24, size=size, augment=TURNING, seed=3)
    plain_BHWC = pixels_of(prepare.evaluate(chips_BHWC))
    out_BHWC = pixels_of(prepare.train(chips_BHWC, ids_B, 1))
    draws = draw(TURNING, 3, 1, ids_B)
    assert len(set(zip(draws.mirror_B, draws.turns_B, strict=True))) == 8
    for plain_HWC, out_HWC, mirror, turns in zip(plain_BHWC, out_BHWC, draws.mirror_B, draws.turns_B, strict=True):
        mirrored = plain_HWC[:, ::-1] if mirror else plain_HWC
        np.testing.assert_array_equal(out_HWC, np.rot90(mirrored, turns))


@pytest.mark.parametrize("size", [0, 14])
def test_all_changes_together_are_those_of_the_float64_reference(size: int) -> None:
    chips_BHWC, ids_B = make_chips(24, 28, 2, "float32"), np.arange(24)
    out_BHWC = pixels_of(preprocess(28, 2, "float32", size, augment=EVERYTHING).train(chips_BHWC, ids_B, 0))
    draws = draw(EVERYTHING, 0, 0, ids_B)
    for place, chip_HWC in enumerate(chips_BHWC.numpy().astype(float)):
        resized_HWC = reference_resize(chip_HWC, size) if size else chip_HWC
        expected_HWC = reference_augment(resized_HWC, draws, place)
        np.testing.assert_allclose(out_BHWC[place], expected_HWC, rtol=0, atol=2e-5)


def test_a_chip_that_is_not_square_turns_without_shear() -> None:
    form = PixelFormat(20, 32, 1, "float32")
    augment = AugmentConfig(flip=True, rotate_degrees=90, shift=0.1)
    prepare = Preprocess(DataConfig(), form, [0.0], [1.0], augment=augment)
    chips_BHWC, ids_B = make_chips(6, 32, 1, "float32")[:, :20].contiguous(), np.arange(6)
    out_BHWC = pixels_of(prepare.train(chips_BHWC, ids_B, 0))
    draws = draw(augment, 0, 0, ids_B)
    for place, chip_HWC in enumerate(chips_BHWC.numpy().astype(float)):
        expected_HWC = reference_augment(chip_HWC, draws, place)
        np.testing.assert_allclose(out_BHWC[place], expected_HWC, rtol=0, atol=2e-5)


def test_sampling_where_nothing_changes_gives_the_chip_again() -> None:
    chips_BCHW = make_chips(2, 64, 3, "float32").permute(0, 3, 1, 2)
    maps_B23 = torch.from_numpy(source_maps(draw(AugmentConfig(), 0, 0, np.arange(2)), 64, 64)).float()
    torch.testing.assert_close(sample(chips_BCHW, maps_B23), chips_BCHW, rtol=0, atol=2e-5)


@pytest.mark.parametrize("augment", [AugmentConfig(), TURNING, EVERYTHING])
@pytest.mark.parametrize("normalise", ["dataset", "per-chip"])
@pytest.mark.parametrize("dtype, bands", [("uint8", 1), ("uint8", 3), ("uint16", 4)])
def test_a_chip_alone_is_the_chip_in_a_batch_bit_for_bit(
    dtype: str, bands: int, normalise: str, augment: AugmentConfig
) -> None:
    chips_BHWC, ids_B = make_chips(9, 36, bands, dtype), np.array([5, 2, 8, 41, 3, 9, 11, 2, -1])
    for size in (0, 15):
        prepare = preprocess(36, bands, dtype, size, normalise, augment=augment)
        together_BCHW = prepare.train(chips_BHWC, ids_B, 4)
        for place in range(len(ids_B)):
            alone_BCHW = prepare.train(chips_BHWC[place : place + 1], ids_B[place : place + 1], 4)
            assert torch.equal(alone_BCHW[0], together_BCHW[place])


@pytest.mark.parametrize("normalise", ["dataset", "imagenet", "per-chip"])
@pytest.mark.parametrize("size", [0, 16])
def test_training_sees_the_pixels_of_evaluation_when_nothing_is_random(size: int, normalise: str) -> None:
    chips_BHWC = make_chips(4, 32)
    prepare = preprocess(32, size=size, normalise=normalise, seed=1)
    assert torch.equal(prepare.train(chips_BHWC, np.arange(4), 3), prepare.evaluate(chips_BHWC))


@pytest.mark.parametrize("augment", [AugmentConfig(), TURNING, EVERYTHING])
@pytest.mark.parametrize("dtype", DTYPES)
def test_output_is_channels_last_and_shares_no_memory_with_the_input(dtype: str, augment: AugmentConfig) -> None:
    chips_BHWC = make_chips(4, 16, 3, dtype)
    before_BHWC = chips_BHWC.clone()
    out_BCHW = preprocess(16, 3, dtype, augment=augment).train(chips_BHWC, np.arange(4), 0)
    assert out_BCHW.shape == (4, 3, 16, 16)
    assert out_BCHW.dtype == torch.float32
    assert out_BCHW.is_contiguous(memory_format=torch.channels_last)
    out_BCHW.zero_()
    assert np.array_equal(chips_BHWC.numpy(), before_BHWC.numpy())


def test_dataset_normalisation_is_per_band_and_spares_a_constant_band() -> None:
    chips_BHWC = make_chips(3, 8, 3, "uint16")
    mean, std = [4000.0, 5000.0, 6000.0], [900.0, 1100.0, 0.0]
    prepare = Preprocess(DataConfig(), PixelFormat(8, 8, 3, "uint16"), mean, std)
    expected = (chips_BHWC.numpy().astype(float) - mean) / [900, 1100, 1]
    np.testing.assert_allclose(pixels_of(prepare.evaluate(chips_BHWC)), expected, rtol=1e-6, atol=1e-6)


def test_imagenet_normalisation_is_torchvisions() -> None:
    chips_BHWC = make_chips(3, 8)
    expected = (chips_BHWC.numpy() / 255.0 - IMAGENET_MEAN) / IMAGENET_STD
    out_BHWC = pixels_of(preprocess(8, normalise="imagenet").evaluate(chips_BHWC))
    np.testing.assert_allclose(out_BHWC, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_per_chip_normalisation_stretches_each_chip_from_0_to_1(dtype: str) -> None:
    chips_BHWC = make_chips(3, 8, 4, dtype)
    chips_BHWC[1] = 77
    out_BHWC = pixels_of(preprocess(8, 4, dtype, normalise="per-chip").evaluate(chips_BHWC))
    for place, chip_HWC in enumerate(chips_BHWC.numpy().astype(float)):
        span = chip_HWC.max() - chip_HWC.min()
        expected_HWC = (chip_HWC - chip_HWC.min()) / span if span else np.zeros_like(chip_HWC)
        np.testing.assert_allclose(out_BHWC[place], expected_HWC, rtol=0, atol=1e-6)


def test_per_chip_extremes_do_not_depend_on_what_augmentation_moves_out_of_sight() -> None:
    chips_BHWC, ids_B = make_chips(8, 32, 3, "float32"), np.arange(8)
    stretched_BHWC = preprocess(32, 3, "float32", normalise="per-chip").evaluate(chips_BHWC)
    augmented = preprocess(32, 3, "float32", normalise="per-chip", augment=EVERYTHING)
    later = preprocess(32, 3, "float32", augment=EVERYTHING)
    expected_BCHW = later.train(stretched_BHWC.permute(0, 2, 3, 1), ids_B, 0)
    assert torch.equal(augmented.train(chips_BHWC, ids_B, 0), expected_BCHW)


def test_draws_follow_seed_and_epoch() -> None:
    chips_BHWC, ids_B = make_chips(16, 8), np.arange(16)
    outputs = [
        preprocess(8, augment=TURNING, seed=seed).train(chips_BHWC, ids_B, epoch)
        for seed, epoch in [(0, 0), (0, 0), (0, 1), (1, 0)]
    ]
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], outputs[3])


def test_eight_views_are_the_symmetries_of_the_square_and_the_first_is_the_chip() -> None:
    images_BCHW = preprocess(6).evaluate(make_chips(2, 6))
    seen = list(views(images_BCHW, 8))
    assert torch.equal(seen[0], images_BCHW)
    expected = [turned.rot90(turns, (2, 3)) for turned in (images_BCHW, images_BCHW.flip(3)) for turns in range(4)]
    for view_BCHW, expected_BCHW in zip(seen, expected, strict=True):
        assert torch.equal(view_BCHW, expected_BCHW)
        assert view_BCHW.is_contiguous(memory_format=torch.channels_last)
    assert len({view_BCHW.numpy().tobytes() for view_BCHW in seen}) == 8


def test_one_view_is_the_chip() -> None:
    images_BCHW = preprocess(6).evaluate(make_chips(2, 6))
    (only,) = views(images_BCHW, 1)
    assert torch.equal(only, images_BCHW)


@pytest.mark.parametrize("augment", [AugmentConfig(), TURNING, EVERYTHING])
@pytest.mark.parametrize("normalise", ["dataset", "per-chip"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_waits_for_the_device(dtype: str, normalise: str, augment: AugmentConfig) -> None:
    # A tensor on the meta device has no values, so whatever would read one back raises.
    chips_BHWC = make_chips(4, 32, 3, dtype).to("meta")
    prepare = preprocess(32, 3, dtype, 16, normalise, augment=augment, device="meta")
    out_BCHW = prepare.train(chips_BHWC, np.arange(4), 0)
    assert out_BCHW.shape == (4, 3, 16, 16)
    assert [view.shape for view in views(out_BCHW, 8)] == [out_BCHW.shape] * 8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("augment", [AugmentConfig(), TURNING, EVERYTHING])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gpu_gives_the_pixels_of_the_cpu_within_one_level_without_waiting(dtype: str, augment: AugmentConfig) -> None:
    chips_BHWC, ids_B = make_chips(16, 64, 3, dtype), np.arange(16)
    expected_BCHW = preprocess(64, 3, dtype, 24, augment=augment).train(chips_BHWC, ids_B, 0)
    prepare = preprocess(64, 3, dtype, 24, augment=augment, device="cuda")
    there_BHWC = chips_BHWC.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        out_BCHW = prepare.train(there_BHWC, ids_B, 0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    tolerance = 1.01 if dtype == "uint8" else 1e-4 * TOP[dtype]
    torch.testing.assert_close(out_BCHW.cpu(), expected_BCHW, rtol=0, atol=tolerance)


def test_quarter_turns_of_chips_that_are_not_square_are_refused_with_the_remedy() -> None:
    form = PixelFormat(8, 12, 3, "uint8")
    with pytest.raises(ConfigError, match=r"8x12.*data\.size"):
        Preprocess(DataConfig(), form, [0.0] * 3, [1.0] * 3, augment=TURNING)
    Preprocess(DataConfig(size=8), form, [0.0] * 3, [1.0] * 3, augment=TURNING)
    with pytest.raises(ConfigError, match=r"8x12.*data\.size"):
        list(views(torch.zeros(1, 3, 8, 12), 8))


@pytest.mark.parametrize("dtype, bands", [("uint8", 4), ("uint16", 3), ("float32", 3)])
def test_imagenet_statistics_are_refused_for_other_than_uint8_rgb(dtype: str, bands: int) -> None:
    with pytest.raises(ConfigError, match=rf"{bands} bands, {dtype}.*data\.normalise=dataset"):
        preprocess(8, bands, dtype, normalise="imagenet")


@pytest.mark.parametrize("dtype, bands", [("uint8", 3), ("uint16", 3), ("int16", 4)])
def test_chips_of_another_form_are_refused(dtype: str, bands: int) -> None:
    prepare = preprocess(8, 4, "uint16")
    with pytest.raises(DatasetError, match="4\\) uint16"):
        prepare.evaluate(make_chips(1, 8, bands, dtype))


def test_chips_of_another_size_are_resized_to_that_of_the_form() -> None:
    out_BCHW = preprocess(8, 3, "uint8").evaluate(make_chips(2, 16))
    assert torch.equal(out_BCHW, preprocess(16, 3, "uint8", 8).evaluate(make_chips(2, 16)))


def test_another_size_differs_in_nothing_else() -> None:
    chips_BHWC, ids_B = make_chips(5, 24), np.arange(5)
    for size in (16, 24, 0):
        found = preprocess(24, size=20, augment=EVERYTHING, seed=4).at(size)
        expected = preprocess(24, size=size, augment=EVERYTHING, seed=4)
        assert found.side == expected.side == (size or 24)
        assert torch.equal(found.train(chips_BHWC, ids_B, 2), expected.train(chips_BHWC, ids_B, 2))
        assert torch.equal(found.evaluate(chips_BHWC), expected.evaluate(chips_BHWC))


def test_plain_chips_are_mirrored_and_turned_by_quarters_alone() -> None:
    chips_BHWC, ids_B = make_chips(64, 24), np.arange(64)
    augment = EVERYTHING.model_copy(update={"cutmix": 0.5, "mixup": 0.5})
    plain = preprocess(24, size=16, augment=augment, seed=4).plain()
    found_BCHW = plain.train(chips_BHWC, ids_B, 2)
    views_8BCHW = torch.stack(list(views(plain.evaluate(chips_BHWC), 8)))
    is_view_8B = (views_8BCHW == found_BCHW).all(4).all(3).all(2)
    assert is_view_8B.any(0).all()
    assert is_view_8B.any(1).all(), "every symmetry occurs"
    targets_BC = torch.eye(64)
    mixed_BCHW, soft_BC = plain.mix(found_BCHW, targets_BC, ids_B, 2)
    assert torch.equal(mixed_BCHW, found_BCHW) and torch.equal(soft_BC, targets_BC)
    still = preprocess(24, augment=AugmentConfig(scale=0.2), seed=4).plain()
    assert torch.equal(still.train(chips_BHWC, ids_B, 2), still.evaluate(chips_BHWC)), "where it asked for neither"
