"""Evaluation counts each chip once, and its figures do not depend on the ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from planet_dist.evaluate import Logits, audit
from shards.errors import TrainingError
from shards.reader import Dataset
from tests.conftest import launch


def test_one_and_two_processes_give_the_same_logits_bit_for_bit(dataset: Dataset, tmp_path: Path) -> None:
    found = {}
    for ranks in (1, 2):
        out = tmp_path / f"{ranks}.npz"
        done = launch("tests/ranks_evaluate.py", str(dataset.root), str(out), ranks=ranks)
        assert done.returncode == 0, done.stderr
        found[ranks] = np.load(out)
        assert found[ranks]["ranks"] == ranks
    assert np.array_equal(found[1]["ids"], np.arange(7, 107))
    assert np.array_equal(found[1]["ids"], found[2]["ids"])
    assert np.array_equal(found[1]["logits"], found[2]["logits"])


def gathered(*ids: int) -> Logits:
    return Logits(np.array(ids, np.int64), np.arange(len(ids), dtype=np.float32)[:, None])


def test_the_audit_drops_padding_and_puts_the_logits_in_order_of_their_ids() -> None:
    found = audit(gathered(5, -1, 2, 9, -1), np.array([2, 5, 9]))
    assert found.ids_N.tolist() == [2, 5, 9]
    assert found.logits_NC.ravel().tolist() == [2, 0, 3]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ((2, 5), r"gathered 2 of 3 chips: missing \[9\]"),
        ((2, 5, 9, 5), r"gathered 4 of 3 chips: .*doubled \[5\]"),
        ((2, 5, 9, 4), r"foreign \[4\]"),
    ],
)
def test_the_audit_refuses_any_other_set_of_chips(ids: tuple[int, ...], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        audit(gathered(*ids), np.array([2, 5, 9]))
