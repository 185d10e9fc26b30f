"""A dataset's chips on the device that trains, as the integers that they are, gathered there by id.

Each process keeps the chips that it has decoded. With data.lanes a multiple of the processes, a process meets the same
chips in every epoch, and decodes each once; otherwise it goes on meeting chips that others have decoded before.

Letters in array names: N chips of the dataset, B of one batch, F those of it that are new, H rows, W columns, C bands.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from planet_dist.host_cache import available_memory_bytes
from shards.errors import DatasetError
from shards.reader import Dataset

MOST_OF_FREE = 0.5  # the network, its gradients and its activations have to fit beside the chips

_WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}


class DeviceCache:
    """The chips of one dataset on one device, for one process.

    Args:
        dataset: whose chips they are.
        device: where they are kept; all are given room for at once.

    Raises:
        DatasetError: they would take more than half of the device's free memory.
    """

    def __init__(self, dataset: Dataset, device: torch.device) -> None:
        form = dataset.manifest.image.pixels
        count = len(dataset)
        self._shape = (form.height, form.width, form.bands)
        self._dtype: torch.dtype = getattr(torch, form.dtype)
        chip_bytes = int(np.prod(self._shape)) * self._dtype.itemsize
        # Large words: they are moved faster, and torch gathers no uint16.
        word_bytes = next(size for size in _WORDS if chip_bytes % size == 0)
        needed = (count + 1) * chip_bytes
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory_bytes()
        if needed > MOST_OF_FREE * free:
            raise DatasetError(
                f"{dataset.shown}: its {count:,} chips take {needed:,} bytes on {device}, and {free:,} are free there, "
                f"of which data.cache=device leaves half to the network; set data.cache=host, or none"
            )
        # The last row, which -1 names, is the padding.
        self._words_NW = torch.zeros((count + 1, chip_bytes // word_bytes), dtype=_WORDS[word_bytes], device=device)
        self._filled_N = np.zeros(count + 1, bool)
        self._filled_N[-1] = True

    def holds(self, ids_B: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these chips (B,) are on the device; padding, -1, is."""
        return self._filled_N[ids_B]

    def put(self, ids_F: NDArray[np.int64], images_FHWC: Tensor) -> None:
        """Keeps chips that are on the device; none of them is padding."""
        if len(ids_F):
            words_FW = images_FHWC.reshape(len(ids_F), -1).view(self._words_NW.dtype)
            self._words_NW.index_copy_(0, self._on_device(ids_F), words_FW)
            self._filled_N[ids_F] = True

    def take(self, ids_B: NDArray[np.int64]) -> Tensor:
        """Chips that the device holds, images_BHWC of the dataset's dtype in memory of their own."""
        words_BW = self._words_NW.index_select(0, self._on_device(ids_B % len(self._filled_N)))
        return words_BW.view(self._dtype).view(-1, *self._shape)

    def _on_device(self, ids_B: NDArray[np.int64]) -> Tensor:
        ids = torch.from_numpy(ids_B)
        device = self._words_NW.device
        # A copy from ordinary memory would wait for the device's queue.
        return ids.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else ids
