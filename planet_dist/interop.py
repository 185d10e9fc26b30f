"""Datasets as webdataset sees them, for programs that bring their own training loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from webdataset.pipeline import DataPipeline
from webdataset.shardlists import SimpleShardList, split_by_node, split_by_worker
from webdataset.tariterators import group_by_keys, tar_file_expander

from shards.errors import DatasetError
from shards.reader import Dataset


def as_webdataset(dataset_path: str | Path, *, shuffle_shards: bool = False, seed: int = 0) -> DataPipeline:
    """A dataset as a webdataset pipeline: every chip once over all ranks and DataLoader workers.

    Each sample is a dict of __key__ (the chip's name), jpg or tif (the image's bytes), and cls (the label bits as
    the bytes of a decimal integer; absent for an unlabelled chip). Further stages follow in webdataset's own way:

        pipeline = as_webdataset("DATASET").compose(wds.decode("rgb"), wds.to_tuple("jpg", "cls"))

    Whole shards are dealt out, first to ranks and then to workers, so that a rank or worker beyond the number of
    shards gets nothing, and ranks may get different numbers of chips: build with a smaller --shard-bytes for more
    of them.

    Args:
        dataset_path: the dataset's folder.
        shuffle_shards: deal the shards out in an order drawn from `seed`, the same on all ranks; give another
            seed each epoch.
        seed: of that order.

    Raises:
        DatasetError: there is no whole dataset in that folder, or it is a URL.
    """
    dataset = Dataset(dataset_path)
    if dataset.storage.remote:
        raise DatasetError(
            f"{dataset.shown}: lies behind a URL; copy it into a folder, or give its shards' URLs to webdataset itself"
        )
    urls = [str(dataset.root.resolve() / f"{shard.name}.tar") for shard in dataset.manifest.shards]
    return DataPipeline(
        SimpleShardList(urls, seed=seed if shuffle_shards else None),
        split_by_node,
        split_by_worker,
        _open_shards,
        tar_file_expander,
        group_by_keys,
    )


def _open_shards(shards: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """In place of webdataset's opener, which leaves every shard open until it's collected."""
    for shard in shards:
        with Path(shard["url"]).open("rb") as stream:
            yield {**shard, "stream": stream}
