"""The tables of an epoch at W&B, from its detail line in metrics.jsonl: rows first, then W&B's own objects.

Suffixes: H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planet_dist.tracking_names import key_parts

Picture = Callable[[int], NDArray[np.uint8]]


def table_rows(detail: Mapping[str, Any]) -> dict[str, tuple[list[str], list[list[Any]]]]:
    """Column names and rows, by key.

    Args:
        detail: a line of kind "detail" (planet_dist.epoch_detail).
    """
    bins = detail["calibration"]["bins"]
    parts = key_parts(list(detail["confusion"]))
    tables: dict[str, tuple[list[str], list[list[Any]]]] = {
        "calibration/reliability": (
            ["from", "to", "decisions", "mean probability", "share true"],
            [[place / len(bins), (place + 1) / len(bins), *values] for place, values in enumerate(bins)],
        ),
        "cooccurrence/labels": (["label", "with", "chips", "chips given both"], _pairs(detail["cooccurrence"])),
        "mistakes/worst": (
            ["chip", "f2", "truth", "missed", "added"],
            [
                [one["key"], one["f2"], *(", ".join(one[name]) for name in ("truth", "missed", "added"))]
                for one in detail["mistakes"]
            ],
        ),
    }
    for group, counted in detail["confusion"].items():
        names, counts = counted["labels"], counted["chips"]
        rows = [[names[i], names[j], counts[i][j]] for i in range(len(names)) for j in range(len(names))]
        tables[f"confusion/{parts[group]}"] = (["true", "most probable", "chips"], rows)
    return tables


def _pairs(together: Mapping[str, Any]) -> list[list[Any]]:
    labels = together["labels"]
    pairs = [(i, j) for i in range(len(labels)) for j in range(i, len(labels))]
    rows = [[labels[i], labels[j], together["true"][i][j], together["decided"][i][j]] for i, j in pairs]
    return [row for row in rows if row[2] or row[3]]


def wandb_tables(detail: Mapping[str, Any], picture: Picture | None) -> dict[str, Any]:
    """The tables as wandb.Table, by key.

    Args:
        picture: gives a chip uint8 (H, W, 3) by its id; None leaves the pictures of the mistakes out.
    """
    import wandb

    tables = table_rows(detail)
    if picture is not None:
        columns, rows = tables["mistakes/worst"]
        pictures = [wandb.Image(picture(one["id"]), file_type="jpg") for one in detail["mistakes"]]
        shown = [[image, *row] for image, row in zip(pictures, rows, strict=True)]
        tables["mistakes/worst"] = (["picture", *columns], shown)
    return {key: wandb.Table(columns=[*columns], data=rows) for key, (columns, rows) in tables.items()}
