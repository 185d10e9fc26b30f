"""What a folder and a CSV turn into: records in order, and every problem with its file, row and remedy."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shards.errors import Problem
from shards.labels import PLANET
from shards.sources import Scan, scan_sources


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "chips"
    folder.mkdir()
    for number in (1, 2, 10):
        (folder / f"train_{number}.jpg").write_bytes(b"x" * number)
    return folder


def scan(images: Path, text: str | bytes | None, *, unlabelled: bool = False, strict: bool = False) -> Scan:
    labels = None
    if text is not None:
        labels = images.parent / "labels.csv"
        labels.write_bytes(text.encode() if isinstance(text, str) else text)
    return scan_sources(images, labels, PLANET, unlabelled=unlabelled, strict=strict)


GOOD = "image_name,tags\ntrain_1,clear\ntrain_2,haze primary\ntrain_10,cloudy\n"


def only(problems: list[Problem]) -> Problem:
    assert len(problems) == 1, problems
    assert problems[0].remedy
    return problems[0]


def test_records_come_in_natural_order_with_sizes_and_packed_labels(images: Path) -> None:
    found = scan(images, GOOD)
    assert not found.problems and not found.fatal
    assert [record.key for record in found.records] == ["train_1", "train_2", "train_10"]
    assert [record.size for record in found.records] == [1, 2, 10]
    assert [PLANET.names(record.labels or 0) for record in found.records] == [
        ["clear"],
        ["haze", "primary"],
        ["cloudy"],
    ]


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbf" + GOOD.encode(),
        GOOD.replace("\n", "\r\n").encode(),
        GOOD.replace("train_1,", "train_1.jpg,").replace("train_10,", "train_10.TIFF,").encode(),
        GOOD.replace("\n", "\n\n").encode(),
        b'tags,extra,image_name\nclear,1,train_1\n"primary haze",2,train_2\ncloudy,3,train_10\n',
    ],
    ids=["byte order mark", "CRLF", "names with endings", "blank lines", "columns in another order"],
)
def test_harmless_differences_of_a_csv_change_nothing(images: Path, text: bytes) -> None:
    found = scan(images, text)
    assert not found.problems
    assert found.records == scan(images, GOOD).records


@pytest.mark.parametrize("text", ["name,tags\ntrain_1,clear\n", "image_name\ntrain_1\n", "", "train_1,clear\n"])
def test_a_csv_without_its_columns_is_one_fatal_problem(images: Path, text: str) -> None:
    found = scan(images, text)
    problem = only(found.problems)
    assert found.fatal and problem.row == 1 and "image_name" in problem.rule and "image_name,tags" in problem.remedy


def test_a_csv_of_a_header_alone_is_fatal(images: Path) -> None:
    found = scan(images, "image_name,tags\n")
    assert found.fatal and "has rows" in only(found.problems).rule


def test_a_csv_that_is_no_utf8_names_the_line(images: Path) -> None:
    found = scan(images, b"image_name,tags\ntrain_1,cl\xff\n")
    assert found.fatal and only(found.problems).row == 2


def test_an_open_quote_does_not_swallow_rows_in_silence(images: Path) -> None:
    found = scan(images, 'image_name,tags\ntrain_1,"clear\ntrain_2,haze\ntrain_10,cloudy\n')
    assert found.fatal and "closed quotes" in only(found.problems).rule


def test_an_unknown_tag_is_named_with_its_row_and_the_nearest_label(images: Path) -> None:
    found = scan(images, GOOD.replace("primary", "primry"))
    problem = only(found.problems)
    assert problem.row == 3 and "train_2: 'primry' (perhaps 'primary')" in problem.value
    assert [record.key for record in found.records] == ["train_1", "train_10"]


def test_a_repeated_tag_is_kept_once_and_counted(images: Path) -> None:
    found = scan(images, GOOD.replace("haze primary", "haze primary haze primary"))
    assert not found.problems and found.repeated_tags == 1
    assert found.records == scan(images, GOOD).records


def test_a_name_with_two_rows_is_left_out_whatever_they_say(images: Path) -> None:
    found = scan(images, GOOD + "train_1,clear\n")
    problem = only(found.problems)
    assert problem.row == 5 and "line 2" in problem.value
    assert [record.key for record in found.records] == ["train_2", "train_10"]


def test_a_name_with_two_files_is_left_out(images: Path) -> None:
    (images / "train_1.tif").write_bytes(b"x")
    found = scan(images, GOOD)
    problem = only(found.problems)
    assert problem.file.endswith("train_1.tif") and "train_1.jpg" in problem.value
    assert [record.key for record in found.records] == ["train_2", "train_10"]


def test_an_image_without_a_row_and_a_row_without_its_image_are_both_named(images: Path) -> None:
    found = scan(images, GOOD.replace("train_1,", "train_3,"))
    imageless, rowless = sorted(found.problems)
    assert rowless.file.endswith("train_1.jpg")
    assert imageless.row == 2 and "train_3" in imageless.value


def test_images_without_a_row_are_packed_unlabelled_on_demand(images: Path) -> None:
    found = scan(images, GOOD.replace("train_1,clear\n", ""), unlabelled=True)
    assert not found.problems
    assert [record.labels is None for record in found.records] == [True, False, False]
    assert [record.labels for record in scan(images, None, unlabelled=True).records] == [None] * 3


@pytest.mark.parametrize("name", ["../up", "a/b", "a\\b", "a.b", "__meta", "x" * 91, "", "a\x01b"])
def test_a_row_with_an_unfit_name_is_a_problem(images: Path, name: str) -> None:
    found = scan(images, GOOD + f"{name},clear\n")
    assert only(found.problems).row == 5
    assert len(found.records) == 3


@pytest.mark.parametrize(
    "name", ["a.b.jpg", "__meta.jpg", "x" * 91 + ".jpg", ".jpg", "a\nb.jpg", os.fsdecode(b"\xff.jpg")]
)
def test_a_file_with_an_unfit_name_is_a_problem(images: Path, name: str) -> None:
    (images / name).write_bytes(b"x")
    problem = only(scan(images, GOOD).problems)
    problem.file.encode()
    problem.value.encode()


def test_the_less_frequent_kind_of_image_is_a_problem(images: Path) -> None:
    (images / "train_3.tif").write_bytes(b"x")
    found = scan(images, GOOD + "train_3,clear\n")
    problem = only(found.problems)
    assert found.kind == "jpg" and problem.file.endswith("train_3.tif") and "one kind" in problem.rule


def test_image_endings_count_in_any_case_and_other_files_are_named(images: Path) -> None:
    (images / "train_1.jpg").rename(images / "train_1.JPEG")
    (images / "notes.txt").write_text("hello")
    found = scan(images, GOOD)
    assert not found.problems and len(found.records) == 3
    assert found.other_files == ["notes.txt"]


def test_what_is_not_a_readable_file_is_a_problem_and_never_opened(images: Path) -> None:
    (images / "train_3.jpg").symlink_to(images / "nowhere")
    os.mkfifo(images / "train_4.jpg")
    (images / "train_5.jpg").mkdir()
    found = scan(images, GOOD + "train_3,clear\ntrain_4,clear\ntrain_5,clear\n")
    assert len(found.problems) == 3 and len({problem.rule for problem in found.problems}) == 1
    assert len(found.records) == 3


def test_a_row_with_a_comma_too_many_is_a_problem(images: Path) -> None:
    found = scan(images, GOOD.replace("haze primary", "haze,primary"))
    assert only(found.problems).row == 3
    assert len(found.records) == 2


def test_a_folder_without_images_is_fatal(tmp_path: Path) -> None:
    (tmp_path / "chips").mkdir()
    assert scan(tmp_path / "chips", None, unlabelled=True).fatal


BREACHES = "image_name,tags\ntrain_1,clear haze\ntrain_2,primary\ntrain_10,cloudy road\n"


def test_label_sets_against_the_rules_are_counted(images: Path) -> None:
    found = scan(images, BREACHES)
    assert not found.problems and len(found.records) == 3
    assert found.breaches == {
        "more than one weather label": 1,
        "no weather label": 1,
        "cloudy beside other labels": 1,
    }


def test_label_sets_against_the_rules_are_problems_when_strict(images: Path) -> None:
    found = scan(images, BREACHES, strict=True)
    assert sorted(problem.row for problem in found.problems) == [2, 3, 4]
    assert not found.records


def test_all_problems_are_found_together(images: Path) -> None:
    (images / "a.b.jpg").write_bytes(b"x")
    (images / "train_3.tif").write_bytes(b"x")
    text = "image_name,tags\ntrain_1,sunny\ntrain_2,haze\ntrain_2,haze\ntrain_3,clear\ntrain_9,clear\n../x,clear\n"
    found = scan(images, text)
    assert len({problem.rule for problem in found.problems}) == 6
    assert len(found.problems) == 7
    assert not found.records and found.fatal
