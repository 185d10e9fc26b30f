"""Which chips figures show."""

from __future__ import annotations

import numpy as np

from planet_dist.chip_choice import confusions, labelled_examples, most_certain, several_of, worst_mistakes


def bits(*rows: str) -> np.ndarray:
    return np.array([[sign == "1" for sign in row] for row in rows])


def test_examples_show_each_exclusive_label_by_its_richest_chip() -> None:
    true = bits("1000", "1011", "0111", "0100", "0010")
    assert labelled_examples(true, [0, 1], 3).tolist() == [1, 2, 0]


def test_examples_of_fewer_chips_than_wanted_are_all_of_them() -> None:
    assert sorted(labelled_examples(bits("10", "01"), [], 4).tolist()) == [0, 1]


def test_worst_mistakes_leave_right_chips_out_and_put_more_wrong_labels_first() -> None:
    true = bits("1100", "1100", "1100", "1100")
    decided = bits("1100", "0000", "0011", "1000")
    assert worst_mistakes(decided, true, 9).tolist() == [2, 1, 3]


def test_chips_given_two_exclusive_labels_come_by_the_surer_second() -> None:
    decided = bits("110", "110", "101", "011")
    p = np.array([[0.9, 0.4, 0.1], [0.8, 0.7, 0.1], [0.9, 0.1, 0.9], [0.1, 0.9, 0.9]])
    assert several_of(decided, [0, 1], p, 9).tolist() == [1, 0]


def test_the_most_certain_are_those_of_highest_probability() -> None:
    assert most_certain(np.array([[0.1], [0.9], [0.5]]), 0, 2).tolist() == [1, 2]


def test_confusions_bear_one_label_alone_and_are_given_the_other() -> None:
    true = bits("10", "01", "11", "10", "00")
    decided = bits("01", "11", "11", "10", "11")
    p = np.array([[0.1, 0.6], [0.8, 0.9], [0.9, 0.9], [0.9, 0.1], [0.9, 0.9]])
    assert confusions(decided, true, 0, 1, p).tolist() == [1, 0]
