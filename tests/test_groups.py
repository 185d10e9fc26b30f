"""shards.groups: made of what is related, stored beside the dataset, and refused where they belong to another one."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from shards.cli import main
from shards.errors import DatasetError
from shards.groups import make_groups, read_groups, unite, write_groups
from shards.indexing import IndexOptions, index_tars
from shards.labels import PLANET
from shards.reader import Dataset
from shards.relatives import Link
from shards.storage import CacheOptions
from shards.verify import verify
from tests.file_server import serving
from tests.made_ground import Pixels, ground, mosaic, pack

STRIP = [f"strip_{i}" for i in range(4)]


def made_chips() -> dict[str, Pixels]:
    """A strip of four chips side by side, a chip twice, and strangers."""
    chips = {f"other_{i}": ground(3000 + i) for i in range(20)}
    chips |= {f"strip_{column}": pixels for (_, column), pixels in mosaic(1, 1, 4).items()}
    return chips | {"twice_1": ground(7), "twice_2": ground(7)}


@pytest.fixture
def made(tmp_path: Path) -> Dataset:
    return pack(tmp_path, made_chips(), shard_bytes=2**15)


def keys_of(dataset: Dataset) -> list[str]:
    return dataset.keys(range(len(dataset)))


def groups_command(dataset: object) -> Result:
    return CliRunner().invoke(main, ["groups", str(dataset), "--workers", "1"])


def test_the_command_stores_the_groups_and_says_what_it_found(made: Dataset) -> None:
    result = groups_command(made.root)
    assert result.exit_code == 0, result.stderr
    assert "26 chips; related pairs: 1 of equal pixels, 0 that overlap, 3 side by side" in result.stdout
    assert "6 chips in 2 groups, 4 in the largest" in result.stdout
    opened = read_groups(made, keys_of(made))
    assert opened.groups.groups == [STRIP, ["twice_1", "twice_2"]]
    kinds = {frozenset((each.first, each.second)): each.kind for each in opened.groups.relations}
    assert kinds[frozenset(("twice_1", "twice_2"))] == "same" and kinds[frozenset(STRIP[1:3])] == "border"
    numbers = dict(zip(keys_of(made), opened.groups.numbers(keys_of(made)).tolist(), strict=True))
    assert len({numbers[key] for key in STRIP}) == 1
    assert len(set(numbers.values())) == len(made) - 4
    assert verify(made.root).problems == []


def test_the_groups_are_the_same_however_the_chips_were_packed(made: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "shuffled"
    folder.mkdir()
    keys = np.random.default_rng(3).permutation(keys_of(made)).tolist()
    for number, part in enumerate((keys[:9], keys[9:])):
        with tarfile.open(folder / f"part-{number}.tar", "w") as tar:
            for key in part:
                image = (made.root.parent / "images" / f"{key}.jpg").read_bytes()
                member = tarfile.TarInfo(f"{key}.jpg")
                member.size = len(image)
                tar.addfile(member, io.BytesIO(image))
    index_tars(IndexOptions(folder, tmp_path / "labels.csv", PLANET))
    shuffled = Dataset(folder)
    assert keys_of(shuffled) != keys_of(made)
    assert make_groups(shuffled, 2).groups == make_groups(made, 1).groups
    assert groups_command(folder).exit_code == 0
    assert verify(folder).problems == []


def test_a_dataset_without_groups_names_the_command_that_finds_them(made: Dataset) -> None:
    with pytest.raises(DatasetError, match=rf"no such file.*run planet-shard groups {made.root}"):
        read_groups(made, keys_of(made))
    assert verify(made.root).problems == []


def test_groups_of_another_dataset_are_refused_and_found_by_verify(made: Dataset, tmp_path: Path) -> None:
    other = pack(tmp_path / "other", made_chips() | {"one_more": ground(99)})
    assert groups_command(other.root).exit_code == 0
    (made.root / "groups.json").write_bytes((other.root / "groups.json").read_bytes())
    with pytest.raises(DatasetError, match=r"belongs to another dataset.*run planet-shard groups"):
        read_groups(made, keys_of(made))
    (problem,) = verify(made.root).problems
    assert "groups.json: belongs to another dataset" in str(problem) and "planet-shard groups" in problem.remedy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table["groups"][0].append("nobody"), "1 chip.s. that the dataset lacks, such as 'nobody'"),
        (lambda table: table["groups"][1].append("strip_0"), "'strip_0' stands in it more than once"),
        (lambda table: table["groups"][1].append("twice_1"), "'twice_1' stands in it more than once"),
        (lambda table: table["groups"].append(["other_1"]), "a group has two at least"),
        (lambda table: table["groups"].pop(0), "stand in different groups"),
        (lambda table: table.update(version=9), "its format is not 'planet-dist-groups', version 1"),
        (lambda table: table.update(more=1), "more: Extra inputs are not permitted"),
        (lambda table: table.update(groups=[[1, 2]]), "groups.0.0: Input should be a valid string"),
    ],
)
def test_a_damaged_file_is_an_error_and_a_problem_for_verify(
    made: Dataset, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = write_groups(made.root, make_groups(made, 1))
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))
    with pytest.raises(DatasetError, match=message):
        read_groups(made, keys_of(made))
    assert len(verify(made.root).problems) == 1


def test_a_file_that_is_cut_off_is_an_error(made: Dataset) -> None:
    path = write_groups(made.root, make_groups(made, 1))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DatasetError, match="run planet-shard groups again"):
        read_groups(made, keys_of(made))


def test_groups_can_be_written_by_hand(made: Dataset) -> None:
    table = {"format": "planet-dist-groups", "version": 1, "dataset": made.digest, "groups": [["other_1", "other_2"]]}
    (made.root / "groups.json").write_text(json.dumps(table))
    assert read_groups(made, keys_of(made)).groups.groups == [["other_1", "other_2"]]
    assert verify(made.root).problems == []


def test_groups_behind_a_url_are_read_and_not_written(made: Dataset, tmp_path: Path) -> None:
    with serving(made.root) as server:
        remote = Dataset(server.url, CacheOptions(tmp_path / "cache"))
        with pytest.raises(DatasetError, match=r"on a copy of the dataset in a folder, and upload its groups.json"):
            read_groups(remote, keys_of(made))
        stored = write_groups(made.root, make_groups(made, 1)).read_bytes()
        assert read_groups(remote, keys_of(made)).groups.to_bytes() == stored
        result = groups_command(server.url)
    assert result.exit_code == 1 and "a dataset behind a URL is only read" in result.stderr


def test_a_folder_that_cannot_be_written_is_an_error(made: Dataset) -> None:
    (made.root / "groups.json").mkdir()
    result = groups_command(made.root)
    assert result.exit_code == 1 and "groups.json" in result.stderr and "Traceback" not in result.stderr


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=30))
def test_without_a_limit_groups_are_the_connected_chips(pairs: list[tuple[int, int]]) -> None:
    links = [Link(min(pair), max(pair), "border", 0.5) for pair in pairs if pair[0] != pair[1]]
    kept, groups = unite(links, 12, largest=12)
    reached = [{chip} for chip in range(12)]
    for _ in range(12):
        for link in links:
            both = reached[link.first] | reached[link.second]
            for chip in both:
                reached[chip] = reached[chip] | both
    expected = {frozenset(each) for each in reached if len(each) > 1}
    assert kept == links
    assert {frozenset(group) for group in groups} == expected
    assert groups == sorted(sorted(group) for group in groups)


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=30), st.integers(2, 6))
def test_a_chain_stops_at_the_largest_group_and_leaves_out_the_least_sure_links(
    pairs: list[tuple[int, int]], largest: int
) -> None:
    links = [Link(min(pair), max(pair), "border", 1 - i / 100) for i, pair in enumerate(pairs) if pair[0] != pair[1]]
    kept, groups = unite(links, 12, largest)
    assert max(map(len, groups), default=0) <= largest
    number_of = {chip: number for number, group in enumerate(groups) for chip in group}
    assert all(number_of[link.first] == number_of[link.second] for link in kept)
    # a link is left out only where those before it, by themselves, had made two groups that are too large together
    for i, link in enumerate(links):
        if link not in kept:
            before = {chip: {chip} for chip in range(12)}
            for group in unite(links[:i], 12, largest)[1]:
                before |= {chip: set(group) for chip in group}
            assert len(before[link.first] | before[link.second]) > largest
