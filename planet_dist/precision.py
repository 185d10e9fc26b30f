"""Whether bf16 pays on this CPU.

oneDNN, which computes torch's convolutions on the CPU, has bf16 kernels for AVX-512 and newer alone. Elsewhere torch
falls back to a loop of its own, many times slower than float32 (docs/decisions.md).
"""

from __future__ import annotations

import torch


def cpu_has_bf16() -> bool:
    """Whether convolutions and products in bf16 have kernels of their own on this CPU."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
