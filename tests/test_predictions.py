"""planet_dist.predictions: both forms, and what is wrong with files."""

import numpy as np
import pytest

from planet_dist.metrics import probabilities
from planet_dist.predictions import read_predictions, write_predictions
from shards.errors import RunError

HEADER = "image_name,clear_pred,water_pred,clear_true,water_true"


def test_what_evaluation_writes_is_read_back(tmp_path):
    path = tmp_path / "predictions.npz"
    logits_NC = np.array([[-1.5, 2.0], [0.25, -4.0], [7.0, 0.0]], dtype=np.float32)
    targets_NC = np.array([[0, 1], [1, 0], [1, 1]], dtype=np.uint8)
    write_predictions(path, ["clear", "water"], np.array([5, 3, 9]), logits_NC, targets_NC)
    found = read_predictions(path)
    assert found.labels == ("clear", "water")
    assert found.ids_N.tolist() == [5, 3, 9]
    np.testing.assert_array_equal(found.probabilities_NC, probabilities(logits_NC))
    np.testing.assert_array_equal(found.targets_NC, targets_NC == 1)


def test_the_same_predictions_are_written_as_the_same_bytes(tmp_path):
    for name in ("a.npz", "b.npz"):
        write_predictions(tmp_path / name, ["clear"], np.arange(2), np.zeros((2, 1)), np.ones((2, 1)))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_an_npz_may_hold_probabilities_and_no_label_names(tmp_path):
    path = tmp_path / "predictions.npz"
    np.savez(path, ids=np.array(["x", "y"]), probabilities=np.eye(2), targets=np.eye(2))
    found = read_predictions(path)
    assert found.labels == ("label_0", "label_1")
    np.testing.assert_array_equal(found.probabilities_NC, np.eye(2))


def test_a_csv_is_read_by_its_column_names(tmp_path):
    path = tmp_path / "predictions.csv"
    path.write_bytes(
        b"\xef\xbb\xbfwater_true,clear_pred,image_name,clear_true,water_pred\r\n"
        b"1.0,0.25,train_7,0.0,0.75\r\n\r\n0,1e-3,train_2,1,0\r\n"
    )
    found = read_predictions(path)
    assert found.labels == ("clear", "water")
    assert found.ids_N.tolist() == ["train_7", "train_2"]
    assert found.probabilities_NC.tolist() == [[0.25, 0.75], [0.001, 0.0]]
    assert found.targets_NC.tolist() == [[False, True], [True, False]]


def test_a_repeated_tag_counts_once_and_is_reported(tmp_path):
    path = tmp_path / "predictions.csv"
    path.write_text(f"{HEADER}\ntrain_1,0.5,0.5,2.0,0.0\n")
    found = read_predictions(path)
    assert found.targets_NC.tolist() == [[True, False]]
    assert found.repeated_tags == 1


def test_a_csv_without_ids_numbers_its_rows(tmp_path):
    path = tmp_path / "predictions.csv"
    path.write_text("clear_pred,clear_true\n0.5,1\n0.25,0\n")
    assert read_predictions(path).ids_N.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r":1: no column ends with _pred"),
        ("image_name,tags\na,clear\n", r":1: no column ends with _pred"),
        (f"{HEADER}\n", "no rows below the header"),
        ("clear_pred,water_true\n0.5,1\n", r"\['clear', 'water'\] lack one of"),
        ("clear_pred,clear_pred,clear_true\n", r"the header repeats \['clear_pred'\]"),
        (f"{HEADER}\na,0.5,0.5,1,0\nb,0.5,0.5,1\n", r"csv:3: 4 fields where the header has 5"),
        (f"{HEADER}\na,0.5,0.5,1,0\nb,0.5,none,1,0\n", r"csv:3: water_pred is 'none'; it must be a prob"),
        (f"{HEADER}\na,0.5,nan,1,0\n", r"csv:2: water_pred is 'nan'"),
        (f"{HEADER}\na,0.5,,1,0\n", r"csv:2: water_pred is ''"),
        (f"{HEADER}\na,1.5,0.5,1,0\n", r"csv:2: clear_pred is '1.5'; it must be a probability in \[0, 1\]"),
        (f"{HEADER}\na,0.5,0.5,0.5,0\n", r"csv:2: clear_true is '0.5'; it must be 0 or 1"),
        (f"{HEADER}\na,0.5,0.5,-1,0\n", r"csv:2: clear_true is '-1'"),
        (f"{HEADER}\na,0.5,0.5,inf,0\n", r"csv:2: clear_true is 'inf'"),
        (f"{HEADER}\na,0.5,0.5,1,0\na,0.5,0.5,1,0\n", "id a comes 2 times"),
        (f'{HEADER}\n"a,0.5,0.5,1,0\n', "not a readable CSV"),
    ],
)
def test_a_csv_that_cannot_be_used_is_an_error_that_names_file_and_line(tmp_path, text, message):
    path = tmp_path / "predictions.csv"
    path.write_text(text)
    with pytest.raises(RunError, match=message) as caught:
        read_predictions(path)
    assert str(path) in str(caught.value)


GOOD = {"ids": np.arange(2), "logits": np.zeros((2, 3)), "targets": np.zeros((2, 3), np.uint8)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": None}, r"has the arrays \['ids', 'targets'\]"),
        ({"ids": None}, "it needs ids, targets"),
        ({"targets": None}, "it needs ids, targets"),
        ({"probabilities": np.zeros((2, 3))}, "one of logits, probabilities"),
        ({"ids": np.arange(3)}, r"ids \(3,\) and logits \(2, 3\) do not match"),
        ({"ids": np.array([4, 4])}, "id 4 comes 2 times"),
        ({"logits": np.zeros(2)}, "do not match"),
        ({"logits": np.array([[0, 0, 0], [0, np.nan, 0]])}, "row 1, label 1: the probability is nan"),
        ({"logits": np.full((2, 3), "a")}, "could not convert"),
        ({"targets": np.zeros((2, 2))}, r"targets have shape \(2, 2\), probabilities \(2, 3\)"),
        ({"targets": np.full((2, 3), 2)}, "the target is 2"),
        ({"labels": np.array(["a", "b"])}, "2 labels for 3 columns"),
        ({"ids": np.array([{}, {}], dtype=object)}, "not a readable npz"),
    ],
)
def test_an_npz_that_cannot_be_used_is_an_error_that_names_it(tmp_path, change, message):
    path = tmp_path / "predictions.npz"
    np.savez(path, **{name: array for name, array in (GOOD | change).items() if array is not None})
    with pytest.raises(RunError, match=message) as caught:
        read_predictions(path)
    assert str(path) in str(caught.value)


def test_missing_and_damaged_files_are_errors(tmp_path):
    with pytest.raises(RunError, match="no such file; give an npz"):
        read_predictions(tmp_path / "none.npz")
    path = tmp_path / "damaged.npz"
    np.savez(path, **GOOD)
    data = bytearray(path.read_bytes())
    data[150:260] = bytes(110)
    path.write_bytes(data)
    with pytest.raises(RunError, match=r"damaged\.npz: not a readable npz"):
        read_predictions(path)
    path.write_bytes(bytes(data[:200]))
    with pytest.raises(RunError, match=r"damaged\.npz"):
        read_predictions(path)
