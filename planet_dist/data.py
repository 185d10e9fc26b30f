"""A run's chips: the dataset, every chip's labels, and which train and which validate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planet_dist.config import Config, PhaseConfig
from planet_dist.plan import Plan
from planet_dist.split import Split, parse_split, split
from shards.errors import ConfigError
from shards.groups import read_groups
from shards.names import natural_order
from shards.reader import Dataset
from shards.storage import CacheOptions


@dataclass(frozen=True)
class Data:
    """What a run trains on.

    Attributes:
        dataset: opened for reading.
        targets_NC: uint8 (N, C), 0 or 1, the labels of every chip by id.
        split: ids that train and ids that validate.
        groups_digest: sha256 of the groups of related chips that the split follows; None where it follows none.
    """

    dataset: Dataset
    targets_NC: NDArray[np.uint8]
    split: Split
    groups_digest: str | None = None

    @property
    def labels(self) -> list[str]:
        """The vocabulary's labels, in the order of the columns."""
        return self.dataset.manifest.labels

    def plan(self, config: Config, phase: PhaseConfig) -> Plan:
        """The order of a phase."""
        shard_starts = np.cumsum([0] + [shard.count for shard in self.dataset.manifest.shards])
        return Plan(
            self.split.train_ids,
            shard_starts,
            phase.batch_size,
            seed=config.seed,
            lanes=config.data.lanes,
            window=config.data.shuffle_window,
        )


def open_data(config: Config, location: str | Path) -> Data:
    """Opens a dataset, in a folder or behind a URL, and splits it.

    Raises:
        DatasetError: it cannot be opened, or lacks the groups that the split follows.
        ConfigError: it is not of the kind that the recipe is meant for, or the split doesn't fit it.
    """
    runtime = config.runtime
    cache = CacheOptions(Path(runtime.cache_dir), round(runtime.cache_gib * 2**30))
    return split_data(config, Dataset(location, cache))


def split_data(config: Config, dataset: Dataset) -> Data:
    """Splits a dataset that is open, as a run of `config` does; errors as those of open_data."""
    manifest = dataset.manifest
    if config.data.kind not in ("any", manifest.image.kind):
        raise ConfigError(
            f"{dataset.shown}: the chips are {manifest.image.kind}, and the recipe is meant for {config.data.kind}; "
            "give a dataset of that kind, or set data.kind=any"
        )
    index = dataset.index()
    targets_NC = manifest.vocabulary.matrix(index["labels"])
    keys = [key.decode() for key in index["key"].tolist()]
    takes_part_N = _first(config.data.limit, keys, index["labelled"])
    opened = read_groups(dataset, keys) if parse_split(config.data.split).needs_groups else None
    groups_N = opened.groups.numbers(keys) if opened else None
    seed = config.seed if config.data.split_seed < 0 else config.data.split_seed
    parts = split(config.data.split, keys, targets_NC, seed, labelled_N=takes_part_N, groups_N=groups_N)
    return Data(dataset, targets_NC, parts, opened.digest if opened else None)


def _first(limit: int, keys: list[str], labelled_N: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The labelled chips, or the first `limit` of them by natural key order."""
    if not limit:
        return labelled_N
    chosen = sorted(np.flatnonzero(labelled_N).tolist(), key=lambda i: natural_order(keys[i]))[:limit]
    takes_part_N = np.zeros_like(labelled_N)
    takes_part_N[chosen] = True
    return takes_part_N
