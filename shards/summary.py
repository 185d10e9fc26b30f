"""What a dataset holds, as tables for people."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from shards.labels import Vocabulary
from shards.schema import Manifest


def rule_breaches(vocabulary: Vocabulary, index_N: NDArray[np.void]) -> Counter[str]:
    """How many labelled chips break each rule of the vocabulary."""
    breaches = Counter[str]()
    bits_U, counts_U = np.unique(index_N["labels"][index_N["labelled"]], return_counts=True)
    for bits, count in zip(bits_U.tolist(), counts_U.tolist(), strict=True):
        for rule in vocabulary.breaches(bits):
            breaches[rule] += count
    return breaches


def dataset_tables(root: str, manifest: Manifest, breaches: Counter[str]) -> RenderableType:
    """Counts, bands, labels and breaches of rules."""
    facts = Table(show_header=False, box=None, pad_edge=False)
    image = manifest.image
    total_bytes = sum(shard.bytes for shard in manifest.shards)
    facts.add_row("dataset", Text(root))
    facts.add_row("chips", f"{manifest.count:,} ({manifest.labelled:,} labelled)")
    facts.add_row("images", f"{image.kind}, {image.pixels}")
    facts.add_row("shards", f"{len(manifest.shards):,}, {total_bytes / 2**20:,.1f} MiB")
    facts.add_row("repeated tags", f"{manifest.sources.repeated_tags:,} rows, each tag kept once")
    facts.add_row("left out", f"{manifest.sources.rejected:,} chips and rows (rejected.csv)")
    for rule, count in sorted(breaches.items()):
        facts.add_row("rule breach", Text(f"{rule}: {count:,} chips"))
    if not breaches:
        facts.add_row("rule breach", "none")
    return Group(facts, "", _bands(manifest), "", _labels(manifest))


def _bands(manifest: Manifest) -> Table:
    table = Table("band", box=None, pad_edge=False)
    table.add_column("mean", justify="right")
    table.add_column("std", justify="right")
    for name, mean, std in zip(manifest.image.band_order, manifest.mean, manifest.std, strict=True):
        table.add_row(Text(name), f"{mean:,.4g}", f"{std:,.4g}")
    return table


def _labels(manifest: Manifest) -> Table:
    table = Table("label", box=None, pad_edge=False)
    table.add_column("chips", justify="right")
    table.add_column("share", justify="right")
    counted = sorted(zip(manifest.labels, manifest.label_counts, strict=True), key=lambda pair: (-pair[1], pair[0]))
    for label, count in counted:
        share = f"{count / manifest.labelled:.2%}" if manifest.labelled else "-"
        table.add_row(Text(label), f"{count:,}", share)
    return table
