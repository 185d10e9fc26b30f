"""What a launch's precision comes to here: bf16 pays on few CPUs.

oneDNN, which computes torch's convolutions on the CPU, has bf16 kernels for AVX-512 and newer alone. Elsewhere torch
falls back to a loop of its own, many times slower than float32 (docs/decisions.md).
"""

from __future__ import annotations

import torch


def cpu_has_bf16() -> bool:
    """Whether convolutions and products in bf16 have kernels of their own on this CPU."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def precision_for(asked: str, *, on_cpu: bool) -> str:
    """What this process can compute in: as asked, but "no" (float32) for bf16 on a CPU that has no kernels for it."""
    return "no" if asked == "bf16" and on_cpu and not cpu_has_bf16() else asked


def describe_precision(used: str, asked: str) -> str:
    """How people are told of a precision, and why it isn't what the launch asked for."""
    name = "float32" if used == "no" else used
    return name if used == asked else f"{name} ({asked} was asked for, and the CPU has no kernels for it)"
