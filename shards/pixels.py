"""Encoded bytes to pixels: the one place that decodes, for the build's check and for training alike.

JPEG gives the pixels of PIL's convert("RGB"), TIFF those of tifffile, bit for bit.
"""

from __future__ import annotations

import io
import math
import zlib
from dataclasses import dataclass

import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray

from shards.errors import DecodeError

Pixels = NDArray[np.generic]

DTYPES = ("uint8", "uint16", "int16", "float32")
MAX_PIXELS = 4096 * 4096  # of one chip: a file that claims more is refused before memory is taken for it
MAX_BANDS = 64

_DEFLATE = (8, 32946)
_PLAIN_COMPRESSIONS = (1, 5, 32773)  # none, LZW, PackBits: none of them grows a thousandfold

_MAGIC = {
    "jpg": (b"\xff\xd8\xff",),
    "tif": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
}
_OTHER_MAGIC = {
    b"\x89PNG": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"RIFF": "WebP",
    b"%PDF": "PDF",
    b"<": "HTML or XML",
}


@dataclass(frozen=True)
class PixelFormat:
    """The form that every chip of a dataset shares."""

    height: int
    width: int
    bands: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.height}x{self.width}, {self.bands} bands, {self.dtype}"


def decode(data: bytes | memoryview, kind: str, out: Pixels | None = None) -> Pixels:
    """Decodes one image.

    Args:
        data: the whole file.
        kind: "jpg" or "tif".
        out: (H, W, bands) array of the image's own dtype to write into, C-contiguous.

    Returns:
        `out`, or a new array (H, W, bands).

    Raises:
        DecodeError: the bytes are not a whole, sane image of that kind, or do not fit `out`.
    """
    check_magic(data, kind)
    if kind == "tif":
        pixels, _ = decode_tiff(data)
        return pixels if out is None else _copy_into(pixels, out)
    return _decode_jpeg(data, out)


def check_magic(data: bytes | memoryview, kind: str) -> None:
    """Raises DecodeError unless the first bytes are those of `kind`."""
    head = bytes(data[:8])
    if not head:
        raise DecodeError("0 bytes", "an image file holds bytes", "copy the file again from its source")
    if head.startswith(_MAGIC[kind]):
        return
    claims = {"jpg": "a JPEG", "tif": "a TIFF"}
    known = {magic: claims[name] for name, magics in _MAGIC.items() for magic in magics}
    known |= _OTHER_MAGIC
    found = next((name for magic, name in known.items() if head.startswith(magic)), f"unknown bytes {head!r}")
    raise DecodeError(
        f"starts like {found}",
        f"a file named .{kind} is {claims[kind]}",
        "rename it by its true type or convert it",
    )


def _decode_jpeg(data: bytes | memoryview, out: Pixels | None) -> Pixels:
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if height * width > MAX_PIXELS:
            raise _too_large(height, width)
        if out is not None and out.shape != (height, width, 3):
            raise _misfit((height, width, 3), out)
        if colorspace in ("CMYK", "YCCK"):
            return _cmyk_to_rgb(simplejpeg.decode_jpeg(data, "CMYK"), out)
        rgb = np.empty((height, width, 3), np.uint8) if out is None else out
        simplejpeg.decode_jpeg(data, "RGB", buffer=rgb)
        return rgb
    except DecodeError:
        raise
    except ValueError as error:
        raise DecodeError(str(error), "a JPEG decodes without a warning", _COPY_AGAIN) from error


_COPY_AGAIN = "copy the file again from its source, or leave it out"


def _cmyk_to_rgb(cmyk: NDArray[np.uint8], out: Pixels | None) -> Pixels:
    """PIL's conversion of a four-component (inverted) JPEG: R = C * K / 255, rounded as PIL rounds.

    The Planet chips hold K = 255 everywhere, where the conversion is to drop K.
    """
    height, width, _ = cmyk.shape
    rgb = np.empty((height, width, 3), np.uint8) if out is None else out
    words_N = cmyk.reshape(-1).view(np.uint32)
    if words_N.min() >= 0xFF000000:
        # Four bytes are written for each pixel, three apart, so that the next pixel covers K: ten times
        # faster than a copy of three bytes out of four. The last pixel would write past the end.
        flat = rgb.reshape(-1)
        spread_N = np.ndarray((words_N.size - 1,), np.uint32, flat.data, strides=(3,))
        spread_N[:] = words_N[:-1]
        flat[-3:] = cmyk[-1, -1, :3]
        return rgb
    inverse = 255 - cmyk.astype(np.int32)
    key = inverse[..., 3:]
    product = inverse[..., :3] * (255 - key) + 128
    rgb[:] = np.clip(255 - key - (((product >> 8) + product) >> 8), 0, 255)
    return rgb


def decode_tiff(data: bytes | memoryview) -> tuple[Pixels, int]:
    """Decodes a TIFF of one page.

    Returns:
        The pixels (H, W, bands), and the offset in `data` from which they lie as they are, uncompressed,
        little-endian and interleaved; 0 where they don't, and have to be decoded each time.

    Raises:
        DecodeError: not a whole TIFF of one page, of a size and dtype that a chip may have.
    """
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as tif:
            if len(tif.pages) != 1:
                raise DecodeError(
                    f"{len(tif.pages)} pages",
                    "a chip is a TIFF of one page",
                    "split the file into one file a page",
                )
            page = tif.pages.first
            if page.imagewidth * page.imagelength * page.samplesperpixel > 4 * MAX_PIXELS:
                raise _too_large(page.imagelength, page.imagewidth)
            if page.axes not in ("YX", "YXS", "SYX"):
                raise DecodeError(
                    f"axes {page.axes}", "a chip has rows, columns and bands", "write it as (H, W, bands)"
                )
            _check_sizes(page, data)
            pixels = page.asarray()
            plain = page.is_contiguous and page.axes != "SYX" and tif.byteorder == "<"
            offset = page.dataoffsets[0] if plain else 0
            axes = page.axes
    except DecodeError:
        raise
    except Exception as error:  # tifffile raises whatever its parser stumbles over
        raise DecodeError(f"{type(error).__name__}: {error}", "a TIFF decodes whole", _COPY_AGAIN) from error
    if axes == "YX":
        pixels = pixels[..., None]
    elif axes == "SYX":
        pixels = np.ascontiguousarray(np.moveaxis(pixels, 0, -1))
    if offset and offset + pixels.nbytes > len(data):
        raise DecodeError(f"{len(data)} bytes of {offset + pixels.nbytes}", "a TIFF holds all its pixels", _COPY_AGAIN)
    return pixels, offset


def _check_sizes(page: tifffile.TiffPage, data: bytes | memoryview) -> None:
    """Raises DecodeError unless a page of bearable size unpacks to what its tags say, before memory is taken for it."""
    dtype = "unknown" if page.dtype is None else page.dtype.name
    if page.dtype is None or dtype not in DTYPES:
        raise DecodeError(
            f"dtype {dtype}", f"pixels are one of {', '.join(DTYPES)}", "convert the file to one of these"
        )
    segment_pixels = math.prod(page.chunks)
    if segment_pixels > 4 * MAX_PIXELS:
        raise DecodeError(f"tiles of {page.chunks}", "a TIFF's tiles are no larger than a chip may be", _COPY_AGAIN)
    if page.compression in _DEFLATE:
        # tifffile unpacks whatever a segment holds: a few megabytes can hold gigabytes of zeros.
        most = segment_pixels * page.dtype.itemsize
        for offset, size in zip(page.dataoffsets, page.databytecounts, strict=False):
            if len(zlib.decompressobj().decompress(data[offset : offset + size], most + 1)) > most:
                raise DecodeError(
                    f"a segment that unpacks to more than its {most} bytes",
                    "a TIFF holds the pixels that its tags name and no more",
                    _COPY_AGAIN,
                )
    elif page.compression not in _PLAIN_COMPRESSIONS:
        raise DecodeError(
            f"compression {getattr(page.compression, 'name', page.compression)}",
            "a TIFF is uncompressed, or compressed by deflate, LZW or PackBits",
            "convert it to one of these",
        )


def raw_pixels(data: bytes | memoryview, offset: int, form: PixelFormat, out: Pixels) -> Pixels:
    """Copies pixels that lie uncompressed at `offset` of `data` into `out` (H, W, bands).

    Raises:
        DecodeError: they would lie outside of `data`, or do not fit `out`.
    """
    count = form.height * form.width * form.bands
    if offset + count * np.dtype(form.dtype).itemsize > len(data):
        raise DecodeError(
            f"pixels from byte {offset} of {len(data)} on", "an image holds all its pixels", "run planet-shard verify"
        )
    flat = np.frombuffer(data, np.dtype(form.dtype).newbyteorder("<"), count, offset)
    return _copy_into(flat.reshape(form.height, form.width, form.bands), out)


def _copy_into(pixels: Pixels, out: Pixels) -> Pixels:
    if pixels.shape != out.shape or pixels.dtype != out.dtype:
        raise _misfit(pixels.shape, out, pixels.dtype.name)
    out[...] = pixels
    return out


def _misfit(shape: tuple[int, ...], out: Pixels, dtype: str = "uint8") -> DecodeError:
    return DecodeError(
        f"pixels {shape} {dtype}",
        f"the dataset's chips are {out.shape} {out.dtype}",
        "run planet-shard verify",
    )


def _too_large(height: int, width: int) -> DecodeError:
    return DecodeError(
        f"{height}x{width} pixels", f"a chip has at most {MAX_PIXELS} pixels", "cut the image into chips"
    )
