"""A dataset built in parts, in any order and at once, is the one that an undivided build makes."""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from shards.build import BuildOptions, build, build_part
from shards.cli import main
from shards.errors import ConfigError, DatasetError, InputError
from shards.labels import PLANET
from shards.publish import Part, publish
from shards.reader import Dataset


@pytest.fixture
def options(chips: Path, tmp_path: Path) -> BuildOptions:
    """120 chips in about a dozen shards."""
    return BuildOptions(chips / "train-jpg", chips / "train.csv", tmp_path / "out", PLANET, shard_bytes=24 * 1024)


def contents(folder: Path) -> dict[str, str]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.mark.parametrize("count", [1, 2, 3, 40])
def test_parts_in_any_order_come_to_the_bytes_of_an_undivided_build(
    options: BuildOptions, tmp_path: Path, count: int
) -> None:
    whole = build(options)
    parted = replace(options, out=tmp_path / "parts")
    reports = [build_part(parted, Part(number, count)) for number in reversed(range(count))]
    assert sum(report.shards for report in reports) == len(whole.manifest.shards)
    assert sum(report.chips for report in reports) == whole.manifest.count
    with pytest.raises(DatasetError, match="did not finish"):
        Dataset(parted.out)
    report = publish(parted.out)
    assert report.manifest == whole.manifest and report.breaches == whole.breaches
    assert contents(parted.out) == contents(options.out)


def test_parts_that_run_at_once_come_to_the_same_bytes_even_when_one_is_started_twice(
    options: BuildOptions, tmp_path: Path
) -> None:
    build(options)
    out = tmp_path / "parts"
    words = ["--images", options.images, "--labels", options.labels, "--out", out, "--shard-bytes", "24KiB"]
    command = [sys.executable, "-m", "shards.cli", "build", *map(str, words), "--workers", "1", "--part"]
    parts = [subprocess.Popen([*command, part], stdout=subprocess.PIPE) for part in ("0/2", "1/2", "1/2")]
    printed = [part.communicate()[0].decode() for part in parts]
    assert [part.returncode for part in parts] == [0, 0, 0]
    assert "part 1/2 done" in printed[1] and f"planet-shard publish --out {out}" in printed[1]
    result = CliRunner().invoke(main, ["publish", "--out", str(out)])
    assert result.exit_code == 0 and "120 chips" in result.output
    assert contents(out) == contents(options.out)


def test_publishing_names_what_is_missing_and_the_part_that_packs_it(options: BuildOptions) -> None:
    build_part(options, Part(0, 3))
    build_part(options, Part(2, 3))
    with pytest.raises(DatasetError, match=r"missing or damaged: chips-000001, chips-000004.* --part 1/3 ") as caught:
        publish(options.out)
    assert "0/3" not in str(caught.value)
    build_part(options, Part(1, 3))
    assert publish(options.out).manifest.count == 120


def test_a_shard_damaged_after_it_was_packed_is_missing_until_its_part_runs_again(options: BuildOptions) -> None:
    for number in range(2):
        build_part(options, Part(number, 2))
    tar = options.out / "chips-000003.tar"
    tar.write_bytes(tar.read_bytes()[:-1])
    with pytest.raises(DatasetError, match=r"1 of \d+ shards are missing or damaged: chips-000003; .* --part 1/2 "):
        publish(options.out)
    report = build_part(options, Part(1, 2))
    assert report.reused_shards == report.shards - 1
    publish(options.out)


def test_parts_of_other_options_count_as_missing(options: BuildOptions) -> None:
    build_part(options, Part(0, 2))
    build_part(replace(options, shard_bytes=48 * 1024), Part(1, 2))
    with pytest.raises(DatasetError, match="chips-000000"):
        publish(options.out)


def test_another_number_of_parts_goes_on_with_what_is_packed(options: BuildOptions, tmp_path: Path) -> None:
    build_part(options, Part(0, 2))
    again = [build_part(options, Part(number, 4)) for number in range(4)]
    assert [report.reused_shards == report.shards for report in again] == [True, False, True, False]
    publish(options.out)
    build(replace(options, out=tmp_path / "whole"))
    assert contents(options.out) == contents(tmp_path / "whole")


def test_an_undivided_build_goes_on_with_what_parts_have_packed(options: BuildOptions) -> None:
    part = build_part(options, Part(0, 2))
    assert build(options).reused_shards == part.shards


def test_bad_chips_are_left_out_and_listed_as_in_an_undivided_build(
    options: BuildOptions, chips: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for path in options.images.iterdir():
        (images / path.name).write_bytes(b"" if path.stem in ("train_7", "train_60") else path.read_bytes())
    (images / "a.b.jpg").write_bytes(b"")
    bad = replace(options, images=images, on_bad="skip")
    build(bad)
    parted = replace(bad, out=tmp_path / "parts")
    for number in range(3):
        build_part(parted, Part(number, 3))
    publish(parted.out)
    assert contents(parted.out) == contents(bad.out)
    assert (parted.out / "rejected.csv").is_file()


def test_a_part_with_a_bad_chip_fails_and_names_it(options: BuildOptions, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for path in options.images.iterdir():
        data = path.read_bytes()
        (images / path.name).write_bytes(data[: len(data) // 2] if path.stem == "train_0" else data)
    parted = replace(options, images=images)
    with pytest.raises(InputError, match=r"train_0\.jpg"):
        build_part(parted, Part(0, 2))
    build_part(parted, Part(1, 2))
    with pytest.raises(DatasetError, match="chips-000000"):
        publish(parted.out)


def test_publishing_waits_for_no_part_but_says_that_one_is_at_work(options: BuildOptions) -> None:
    build_part(options, Part(0, 1))
    with (options.out / ".build" / "lock").open("r") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        with pytest.raises(DatasetError, match="--part is writing there"):
            publish(options.out)
        with pytest.raises(DatasetError, match="another planet-shard build"):
            build(options)
        build_part(options, Part(0, 2))
    publish(options.out)


def test_publishing_again_changes_nothing_and_clears_what_a_killed_publisher_left(options: BuildOptions) -> None:
    for number in range(2):
        build_part(options, Part(number, 2))
    state = options.out / ".build"
    kept = {path.name: path.read_bytes() for path in state.iterdir()}
    publish(options.out)
    before = contents(options.out)
    publish(options.out)
    assert contents(options.out) == before
    state.mkdir()
    for name in list(kept)[1:]:
        (state / name).write_bytes(kept[name])
    assert publish(options.out).manifest.count == 120
    assert contents(options.out) == before


def test_where_nothing_was_begun_in_parts_publishing_says_what_to_run(options: BuildOptions, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no build has begun"):
        publish(tmp_path / "nothing")
    build_part(options, Part(0, 2))
    (options.out / ".build" / "parts.json").unlink()
    with pytest.raises(DatasetError, match="was not begun in parts"):
        publish(options.out)
    (options.out / ".build" / "parts.json").write_text("{}")
    with pytest.raises(DatasetError, match="damaged"):
        publish(options.out)


@pytest.mark.parametrize(("number", "count"), [(2, 2), (-1, 2), (0, 0), (1, -2)])
def test_a_part_that_cannot_be_is_refused(number: int, count: int) -> None:
    with pytest.raises(ConfigError, match="I from 0 to N - 1"):
        Part(number, count)


@pytest.mark.parametrize("part", ["2/2", "1", "one/two", "0/2/3"])
def test_the_command_line_refuses_what_is_no_part(options: BuildOptions, part: str) -> None:
    words = ["build", "--images", str(options.images), "--unlabelled", "--out", str(options.out), "--part", part]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2 and "0/4" in result.stderr
