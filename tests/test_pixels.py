"""Decoded pixels are those of PIL and tifffile, and what is no sane image is refused."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from shards.errors import DecodeError
from shards.pixels import MAX_PIXELS, PixelFormat, check_magic, decode, decode_tiff, raw_pixels


def jpeg(mode: str, size: tuple[int, int] = (31, 17), seed: int = 0, **options: Any) -> bytes:
    noise = np.random.default_rng(seed).bytes(size[0] * size[1] * len(mode))
    buffer = io.BytesIO()
    Image.frombytes(mode, size, noise).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def tiff(pixels: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, photometric="minisblack", **options)
    return buffer.getvalue()


def rgb_of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L"])
@pytest.mark.parametrize("options", [{}, {"quality": 40}, {"progressive": True}, {"subsampling": 0}])
def test_a_jpeg_gives_the_pixels_that_pil_gives(mode: str, options: dict[str, Any]) -> None:
    data = jpeg("L" if mode == "L" else mode, **options)
    np.testing.assert_array_equal(decode(data, "jpg"), rgb_of(data))


def test_a_four_component_jpeg_whose_fourth_is_full_gives_the_pixels_that_pil_gives() -> None:
    inks = np.random.default_rng(1).integers(0, 256, (16, 24, 4), np.uint8)
    inks[..., 3] = 0  # PIL holds inks, the file their complement
    image = Image.frombytes("CMYK", (24, 16), inks.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    out = np.zeros((16, 24, 3), np.uint8)
    assert decode(buffer.getvalue(), "jpg", out) is out
    np.testing.assert_array_equal(out, rgb_of(buffer.getvalue()))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"byteorder": ">"}, {"planar": True}])
def test_a_tiff_gives_the_pixels_that_were_written(dtype: str, options: dict[str, Any]) -> None:
    pixels = np.random.default_rng(0).integers(0, 120, (9, 7, 4)).astype(dtype)
    if options.get("planar"):
        data = tiff(np.moveaxis(pixels, -1, 0), planarconfig="separate")
    else:
        data = tiff(pixels, planarconfig="contig", **options)
    found, offset = decode_tiff(data)
    np.testing.assert_array_equal(found, pixels)
    assert (offset > 0) == (not options)
    if offset:
        out = np.zeros_like(pixels)
        np.testing.assert_array_equal(raw_pixels(data, offset, PixelFormat(9, 7, 4, dtype), out), pixels)


def test_a_tiff_of_one_band_gets_an_axis_for_it() -> None:
    assert decode(tiff(np.zeros((5, 6), np.uint16)), "tif").shape == (5, 6, 1)


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (b"", "0 bytes"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"GIF89a", "GIF"),
        (b"<html>", "HTML"),
        (b"II*\0", "a TIFF"),
        (b"plain", "unknown bytes"),
    ],
)
def test_a_file_that_lies_about_its_type_is_told_by_its_first_bytes(head: bytes, found: str) -> None:
    with pytest.raises(DecodeError, match=found) as caught:
        check_magic(head, "jpg")
    assert caught.value.remedy and caught.value.rule


@pytest.mark.parametrize("kind", ["jpg", "tif"])
def test_every_truncation_of_an_image_is_refused(kind: str) -> None:
    data = jpeg("CMYK") if kind == "jpg" else tiff(np.ones((9, 7, 4), np.uint16), planarconfig="contig")
    for length in range(0, len(data) - 2, max(1, len(data) // 40)):
        with pytest.raises(DecodeError):
            decode(data[:length], kind)


@pytest.mark.parametrize("kind", ["jpg", "tif"])
def test_damaged_images_are_decoded_or_refused_but_never_crash(kind: str) -> None:
    sound = jpeg("RGB") if kind == "jpg" else tiff(np.ones((9, 7, 4), np.uint16), planarconfig="contig")
    rng = np.random.default_rng(5)
    refused = 0
    for _ in range(150):
        data = bytearray(sound)
        for at in rng.integers(0, min(len(data), 400), 4):
            data[at] = rng.integers(0, 256)
        try:
            decode(bytes(data), kind)
        except DecodeError as error:
            refused += 1
            assert error.rule and error.remedy
    assert refused


def test_an_image_that_claims_to_be_huge_is_refused_before_memory_is_taken() -> None:
    data = bytearray(jpeg("RGB"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = b"\x40\x00\x40\x00"
    with pytest.raises(DecodeError, match=str(MAX_PIXELS)):
        decode(bytes(data), "jpg")


def test_a_tiff_of_several_pages_or_of_another_dtype_is_refused() -> None:
    with pytest.raises(DecodeError, match="2 pages"):
        decode(tiff(np.zeros((2, 5, 6), np.uint8)), "tif")
    with pytest.raises(DecodeError, match="float64"):
        decode(tiff(np.zeros((5, 6), np.float64)), "tif")


def test_an_image_that_does_not_fit_the_array_is_refused() -> None:
    with pytest.raises(DecodeError, match="dataset's chips are"):
        decode(jpeg("RGB"), "jpg", np.zeros((5, 5, 3), np.uint8))
    with pytest.raises(DecodeError, match="dataset's chips are"):
        decode(tiff(np.zeros((5, 6), np.uint16)), "tif", np.zeros((5, 6, 1), np.uint8))
