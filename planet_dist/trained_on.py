"""Which chips a finished run was trained on, and which it held out: nothing is taken on trust."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from planet_dist.bundle_description import Description
from planet_dist.data import Data
from planet_dist.split import Split
from shards.errors import RunError


def trained_on(root: Path, bundle: Description, data: Data) -> Split:
    """The split of a finished run, drawn again, once its bundle agrees with it.

    Args:
        root: the run's folder, for errors.
        bundle: of the run.
        data: a dataset with the split of the run's own configuration.

    Raises:
        RunError: the run was trained on another dataset, or its bundle says that it was trained on other chips.
    """
    if bundle.dataset_digest != data.dataset.digest:
        raise RunError(
            f"{root}: trained on the dataset {bundle.dataset_digest[:12]}, and {data.dataset.shown} is "
            f"{data.dataset.digest[:12]}; give the dataset of the runs"
        )
    train_ids = data.split.train_ids
    label_counts = data.targets_NC[train_ids].sum(axis=0, dtype=np.int64).tolist()
    if (len(train_ids), label_counts) != (bundle.training_chips, bundle.training_label_counts):
        raise RunError(
            f"{root}: its split, drawn again, has {len(train_ids):,} chips to train on, and not the "
            f"{bundle.training_chips:,} of its bundle with their labels: the configuration or the dataset's labels "
            "changed since; train it again"
        )
    return data.split
