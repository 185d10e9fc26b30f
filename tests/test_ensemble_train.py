"""Members train in turn or side by side, each with its share of the GPUs, and a failure begins no other."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from planet_dist import ensemble_train
from planet_dist.config import load_config
from planet_dist.ensemble_train import (
    PlannedMember,
    load_ensemble_recipe,
    member_words,
    plan_members,
    train_members,
)
from shards.errors import ConfigError, RunError, TrainingError
from shards.reader import Dataset
from tests.made_runs import made_fold_run

BUNDLE = """
import pathlib, sys
bundle = pathlib.Path(sys.argv[1], "bundle")
bundle.mkdir(parents=True)
(bundle / "bundle.json").touch()
"""
# Ends only once the other's bundle is there: in turn, neither would.
MEET = """
import pathlib, sys, time
other = pathlib.Path(sys.argv[2], "bundle")
for _ in range(600):
    other.exists() or time.sleep(0.05)
assert other.exists()
"""


def member(run: Path, code: str, *words: object, finished: bool = False) -> PlannedMember:
    return PlannedMember(run, [sys.executable, "-c", code, str(run), *map(str, words)], finished)


@pytest.fixture
def no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ensemble_train, "visible_devices", list)


@pytest.mark.usefixtures("no_gpus")
def test_members_train_side_by_side_and_each_says_it_in_a_log_of_its_own(tmp_path: Path) -> None:
    runs = [tmp_path / "a" / "fold-0", tmp_path / "a" / "fold-1"]
    code = f"{BUNDLE}\nprint('I am', sys.argv[1])\n{MEET}"
    notes: list[str] = []
    members = [member(runs[0], code, runs[1]), member(runs[1], code, runs[0])]
    train_members(members, at_once=2, note=notes.append)
    for run in runs:
        assert run.with_name(f"{run.name}.log").read_text() == f"I am {run}\n"
        assert f"{run}: trained" in " ".join(notes)


@pytest.mark.usefixtures("no_gpus")
@pytest.mark.parametrize("at_once", [1, 2])
def test_finished_members_are_kept_and_one_stopped_before_its_end_is_told(tmp_path: Path, at_once: int) -> None:
    kept = member(tmp_path / "a", "raise SystemExit(1)", finished=True)
    stopped = member(tmp_path / "b", "pass")
    with pytest.raises(RunError, match=r"member 2 of 2, .*b: stopped before its end; run the same command again"):
        train_members([kept, stopped], at_once=at_once)


@pytest.mark.usefixtures("no_gpus")
def test_a_failure_lets_the_others_end_and_begins_none(tmp_path: Path) -> None:
    runs = [tmp_path / name for name in "abc"]
    failing = f"{BUNDLE}\nprint('the reason')\nraise SystemExit(3)"
    members = [member(runs[0], failing), member(runs[1], f"{MEET}\n{BUNDLE}", runs[0]), member(runs[2], BUNDLE)]
    with pytest.raises(TrainingError, match=r"member 1 of 3, .*status 3, .*at the end of .*a\.log"):
        train_members(members, at_once=2)
    assert "the reason" in runs[0].with_name("a.log").read_text()
    assert (runs[1] / "bundle" / "bundle.json").exists()
    assert not runs[2].exists()


@pytest.mark.usefixtures("no_gpus")
@pytest.mark.parametrize("at_once", [1, 3])
def test_a_member_begins_once_what_it_needs_has_ended(tmp_path: Path, at_once: int) -> None:
    slow, other, taught = (tmp_path / name for name in ("slow", "other", "taught"))
    needs = "import pathlib, sys\nassert pathlib.Path(sys.argv[2], 'bundle', 'bundle.json').exists()\n"
    members = [member(slow, f"import time\ntime.sleep(1.5)\n{BUNDLE}"), member(other, BUNDLE)]
    members.append(replace(member(taught, f"{needs}{BUNDLE}", slow), needs=(slow,)))
    train_members(members, at_once=at_once)
    assert (taught / "bundle" / "bundle.json").exists()


@pytest.mark.usefixtures("no_gpus")
def test_a_member_that_needs_one_that_failed_never_begins(tmp_path: Path) -> None:
    members = [member(tmp_path / "teacher", "import time\ntime.sleep(1)\nraise SystemExit(3)")]
    members.append(replace(member(tmp_path / "taught", BUNDLE), needs=(tmp_path / "teacher",)))
    with pytest.raises(TrainingError, match=r"member 1 of 2, .*status 3"):
        train_members(members, at_once=2)
    assert not (tmp_path / "taught").exists()


PAIR = """
description = "a network and another that comes from it"
rule = "mean"
[[members]]
recipe = "small-resnet-32"
overrides = ["model.width=8"]
[[members]]
recipe = "small-resnet-32"
overrides = ["model.width=16"]
{key} = "{name}"
"""


@pytest.mark.parametrize(
    ("key", "option", "stated"),
    [("teacher", "teacher.run", "teacher"), ("starts_from", "model.weights", "starts from")],
)
def test_each_fold_of_a_member_comes_from_the_run_of_that_fold(
    key: str, option: str, stated: str, dataset: Dataset, tmp_path: Path
) -> None:
    recipe, out = tmp_path / "pair.toml", tmp_path / "out"
    recipe.write_text(PAIR.format(key=key, name="0-small-resnet-32"))
    plan = partial(plan_members, load_ensemble_recipe(str(recipe)), dataset.root, out, (), Path("x.yaml"), folds=3)
    members = plan()
    earlier = [out / "members" / "0-small-resnet-32" / f"fold-{fold}" for fold in range(3)]
    assert [member.needs for member in members] == [(), (), (), *((run,) for run in earlier)]
    assert [f"{option}={json.dumps(str(run))}" in " ".join(members[3].command) for run in earlier] == [
        True, False, False,
    ]  # fmt: skip
    # Finished, but come from another network than the one that now is there.
    for place in (0, 3):
        run = members[place].run
        words = members[place].command[members[place].command.index("auto") + 1 :]
        made_fold_run(run, dataset, place, "kfold:3/0", protocol={stated: "something of sha256 0123"})
        (run / "config.toml").write_text(load_config("small-resnet-32", words).to_toml())
    with pytest.raises(RunError, match=r"1-small-resnet-32/fold-0: learned or started from another network than that"):
        plan()
    shutil.rmtree(members[0].run)
    assert [member.finished for member in plan()] == [False, False, False, True, False, False]


def test_members_that_differ_only_in_what_they_come_from_are_refused_before_they_train(tmp_path: Path) -> None:
    recipe = tmp_path / "three.toml"
    second = PAIR.format(key="starts_from", name="0-small-resnet-32")
    third = second.rpartition("[[members]]")[2].replace("0-small", "1-small")
    recipe.write_text(f"{second}[[members]]{third}")
    ensemble = load_ensemble_recipe(str(recipe))
    with pytest.raises(ConfigError, match=r"member 2 \(small-.*\) is configured as member 1 is, .*another seed"):
        member_words(ensemble, (), folds=3)
    assert len(member_words(ensemble, ())) == 3  # without folds they are told apart by their places


@pytest.mark.parametrize("key", ["teacher", "starts_from"])
def test_what_a_member_comes_from_is_an_earlier_one(key: str, tmp_path: Path) -> None:
    recipe = tmp_path / "pair.toml"
    recipe.write_text(PAIR.format(key=key, name="1-small-resnet-32"))
    with pytest.raises(ConfigError, match=rf"members.1.{key}: '1-small.*' is no earlier member; .* 0-small-resnet-32"):
        load_ensemble_recipe(str(recipe))


@pytest.mark.parametrize(
    ("gpus", "at_once", "expected"),
    [
        (["4", "5", "6", "7"], 2, {"4,5", "6,7"}),
        (["0", "1"], 2, {"0", "1"}),
        (["3"], 2, {"3"}),
    ],
)
def test_gpus_are_divided_among_members(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: list[str], at_once: int, expected: set[str]
) -> None:
    monkeypatch.setattr(ensemble_train, "visible_devices", lambda: gpus)
    runs = [tmp_path / name for name in "ab"]
    code = f"import os; print(os.environ['CUDA_VISIBLE_DEVICES'])\n{BUNDLE}\n{MEET}"
    train_members([member(runs[0], code, runs[1]), member(runs[1], code, runs[0])], at_once=at_once)
    assert {run.with_name(f"{run.name}.log").read_text().strip() for run in runs} == expected
