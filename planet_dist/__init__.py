"""Distributed training of image classifiers on satellite chips.

Importing this package imports neither torch nor webdataset.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from webdataset.pipeline import DataPipeline


def as_webdataset(dataset_path: str | Path, *, shuffle_shards: bool = False, seed: int = 0) -> DataPipeline:
    """A dataset as a webdataset pipeline with its splitters set: planet_dist.interop.as_webdataset."""
    from planet_dist.interop import as_webdataset as make_pipeline

    return make_pipeline(dataset_path, shuffle_shards=shuffle_shards, seed=seed)
