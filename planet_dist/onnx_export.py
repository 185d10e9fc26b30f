"""A bundle as one ONNX file with the preprocessing inside, written only where onnxruntime agrees with PyTorch.

    input   images_NHWC      the chips' own integers or floats, any number of chips of the training chips' size
    output  probabilities_NC float32
            decisions_NC     bool, by the bundle's rule
    metadata                 labels, the bundle's digest, bands, thresholds and rule, as JSON

Letters in array names: N chips, H and W pixels, C bands or labels.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from planet_dist.bundle import Bundle
from planet_dist.bundle_description import Description
from planet_dist.onnx_network import chip_network
from shards.errors import ConfigError, PlanetError, RunError
from shards.schema import write_whole

TOLERANCE = 1e-5
_CHECKED_CHIPS = 12
_MOST_BYTES = 2**31 - 1  # of one file of ONNX's format
_INPUT, _OUTPUTS = "images_NHWC", ("probabilities_NC", "decisions_NC")


@dataclass(frozen=True)
class Exported:
    """What was written and found.

    Attributes:
        chips: made ones, on which onnxruntime and PyTorch were compared.
        largest_difference: between their probabilities.
        file_bytes: of the file.
    """

    chips: int
    largest_difference: float
    file_bytes: int


def export_onnx(bundle_folder: Path, out: Path) -> Exported:
    """Exports a bundle.

    Raises:
        ConfigError: a library is missing; the error names the extra to install.
        RunError: the bundle cannot be used or expressed, or onnxruntime answers otherwise than PyTorch (then nothing
            is written).
        PlanetError: the file cannot be written.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"export needs {error.name}; pip install 'planet-dist[export]'") from error
    bundle = Bundle.load(bundle_folder, device="cpu")
    proto = _converted(bundle)
    onnx.helper.set_model_props(proto, _metadata(bundle))
    size = proto.ByteSize()
    if size > _MOST_BYTES:
        raise RunError(f"{bundle_folder}: {size:,} bytes as ONNX, whose file holds 2 GiB; export single members' runs")
    data: bytes = proto.SerializeToString(deterministic=True)
    images_NHWC = made_chips(bundle.description, _CHECKED_CHIPS)
    difference = largest_difference(bundle, data, images_NHWC)
    try:
        write_whole(out, data)
    except OSError as error:
        raise PlanetError(f"{out}: cannot be written ({error}); give another --onnx") from error
    return Exported(len(images_NHWC), difference, len(data))


def largest_difference(bundle: Bundle, data: bytes, images_NHWC: NDArray[np.generic]) -> float:
    """How far onnxruntime's probabilities are from PyTorch's on a CPU.

    Args:
        bundle: on a CPU.
        data: an exported file's bytes.
        images_NHWC: two chips or more, of the training chips' size, bands and dtype.

    Raises:
        RunError: farther than 1e-5, or another tag.
    """
    import onnxruntime

    expected = bundle.predict(images_NHWC)
    try:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        # The first chip alone: a number of chips that the conversion didn't see.
        parts = [session.run(list(_OUTPUTS), {_INPUT: part}) for part in (images_NHWC[:1], images_NHWC[1:])]
    except Exception as error:  # it has no common class for its own
        raise RunError(f"onnxruntime cannot run what torch made: {str(error).strip().splitlines()[0]}") from error
    probabilities_NC, decisions_NC = (np.concatenate(both) for both in zip(*parts, strict=True))
    difference = float(np.abs(probabilities_NC - expected.probabilities_NC).max())
    other = int(np.count_nonzero((decisions_NC != expected.decisions_NC).any(axis=1)))
    if not difference <= TOLERANCE or other:
        raise RunError(
            f"onnxruntime's probabilities differ from PyTorch's by up to {difference:.2g} ({TOLERANCE:g} is allowed), "
            f"and the tags of {other} of {len(images_NHWC)} chips; nothing was written. Deep networks that were hardly "
            "trained magnify the rounding of float32: train longer; or try other releases of torch and onnxruntime"
        )
    return difference


def made_chips(description: Description, count: int) -> NDArray[np.generic]:
    """Chips (count, H, W, bands) to compare on: noise, slopes and flat ones, as bright as the training chips."""
    form, first = description.image, description.members[0]
    rng = np.random.default_rng([0, count])
    slope_HW = np.add.outer(np.linspace(-1, 1, form.height), np.linspace(-1, 1, form.width))
    noise_NHWC = rng.normal(size=(count, form.height, form.width, form.bands))
    share_N111 = ((np.arange(count) % 4) / 3)[:, None, None, None]
    mixed_NHWC = share_N111 * noise_NHWC + (1 - share_N111) * slope_HW[..., None]
    mixed_NHWC[count // 2] = 0.5
    # From dark chips to bright ones.
    mixed_NHWC += np.linspace(-1, 1, count)[:, None, None, None]
    pixels_NHWC = np.array(first.mean) + np.array(first.std) * mixed_NHWC
    if np.issubdtype(form.dtype, np.integer):
        pixels_NHWC = np.clip(pixels_NHWC, 0, np.iinfo(form.dtype).max)
    return pixels_NHWC.astype(form.dtype)


def _converted(bundle: Bundle) -> Any:
    images_NHWC = torch.from_numpy(made_chips(bundle.description, 3))
    network = chip_network(bundle).eval()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of the exporter about itself
            program = torch.onnx.export(
                network,
                (images_NHWC,),
                dynamo=True,
                input_names=[_INPUT],
                output_names=list(_OUTPUTS),
                dynamic_shapes=({0: torch.export.Dim("N")},),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        names = ", ".join(member.model.name for member in bundle.description.members)
        raise RunError(f"torch cannot express {names} in ONNX: {str(error).strip().splitlines()[0]}") from error
    assert program is not None
    return program.model_proto


def _metadata(bundle: Bundle) -> dict[str, str]:
    description = bundle.description
    form = description.image
    stated: dict[str, Any] = {
        "labels": description.labels,
        "bundle_sha256": bundle.digest,
        "image": form.model_dump(),
        "rule": description.rule,
        "thresholds": description.thresholds.to_json(),
    }
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in stated.items()}
