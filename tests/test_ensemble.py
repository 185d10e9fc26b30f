"""Ensembles of finished runs: judged against slow references, refused when they don't belong together, and trained."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from sklearn.metrics import fbeta_score

from planet_dist.bundle import Bundle
from planet_dist.bundle_files import load_bundle, write_bundle
from planet_dist.cli import main
from planet_dist.combination import COMBINATION_RULES, CombinationRule
from planet_dist.config import ensemble_recipe_paths
from planet_dist.crossfit import evaluate_rules, fold_numbers
from planet_dist.ensemble import combine_runs
from planet_dist.ensemble_train import (
    PlannedMember,
    load_ensemble_recipe,
    plan_members,
    train_ensemble,
)
from planet_dist.metrics import Bools, Floats
from planet_dist.predictions import read_predictions
from planet_dist.thresholds import RULES
from shards.errors import ConfigError, RunError, TrainingError
from shards.reader import Dataset
from tests.conftest import REPOSITORY
from tests.made_runs import flat, made_run

FIT = {rule.name: rule.fit for rule in RULES}


@pytest.fixture(scope="module")
def runs(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs of all labels with different rules, and a specialist of one."""
    folder = tmp_path_factory.mktemp("runs")
    labels = dataset.manifest.labels
    return [
        made_run(folder / "a", dataset, 1),
        made_run(folder / "b", dataset, 2, thresholds=flat(labels, 0.3, "best-single")),
        made_run(folder / "agriculture", dataset, 3, noise=1.0, speaks_for=["agriculture"]),
    ]


def aligned(runs: list[Path]) -> tuple[list[Floats], Bools]:
    """Probabilities of each run and the truth, in ascending order of ids."""
    found = [read_predictions(run / "evaluation" / "predictions.npz") for run in runs]
    order = [np.argsort(one.ids_N) for one in found]
    return [one.probabilities_NC[o] for one, o in zip(found, order, strict=True)], found[0].targets_NC[order[0]]


def cross_fitted_by_hand(runs: list[Path], rule: CombinationRule, rare: list[int], mean_rule: str) -> Bools:
    """Chip by chip and label by label, with plain loops."""
    (p_a, p_b, p_s), true_NC = aligned(runs)
    folds = fold_numbers(len(true_NC), 5, 0)
    mean_NC = (p_a + p_b) / 2
    mean_NC[:, 0] = (p_a[:, 0] + p_b[:, 0] + p_s[:, 0]) / 3
    decided = np.zeros_like(true_NC)
    for n in range(len(true_NC)):
        others = folds != folds[n]
        by_b = FIT["best-single"](p_b[others], true_NC[others])
        by_mean = FIT[mean_rule](mean_NC[others], true_NC[others])
        for c in range(17):
            votes = [p_a[n, c] > 0.2, p_b[n, c] > by_b[c]] + ([p_s[n, c] > 0.2] if c == 0 else [])
            if rule == "vote":
                decided[n, c] = sum(votes) * 2 >= len(votes)
            elif rule == "any-rare" and c in rare:
                decided[n, c] = any(votes)
            else:
                decided[n, c] = mean_NC[n, c] > by_mean[c]
    return decided


@pytest.mark.parametrize("rule", COMBINATION_RULES)
def test_figures_are_those_of_votes_counted_by_hand(runs: list[Path], rule: CombinationRule, tmp_path: Path) -> None:
    evaluation = combine_runs(runs, rule, tmp_path / "out", rare=["agriculture", "road"])
    decided = cross_fitted_by_hand(runs, rule, [0, 13], evaluation.thresholds.rule)
    _, true_NC = aligned(runs)
    assert evaluation.f2 == pytest.approx(fbeta_score(true_NC, decided, beta=2, average="samples", zero_division=0))
    expected = fbeta_score(true_NC, decided, beta=2, average=None, zero_division=0)
    np.testing.assert_allclose(evaluation.label_scores.f2_C, expected)


def test_each_member_stands_beside_the_combinations_with_its_own_score(runs: list[Path], tmp_path: Path) -> None:
    evaluation = combine_runs(runs, "mean", tmp_path / "out")
    (p_a, p_b, p_s), true_NC = aligned(runs)
    by_name = {one.name: one for one in evaluation.contenders}
    assert list(by_name) == ["a", "b", "mean", "vote", "any-rare"], "a specialist has no score over all labels"
    for name, p_NC, rule in (("a", p_a, "flat-0.2"), ("b", p_b, "best-single")):
        alone = {score.rule: score for score in evaluate_rules(p_NC, true_NC, evaluation.labels).rules}[rule]
        assert by_name[name].cross_fitted_f2 == alone.cross_fitted_f2
        assert by_name[name].same_rows_f2 == alone.same_rows_f2
    assert max(by_name.values(), key=lambda one: one.cross_fitted_f2).behind_high == 0.0
    own_f2 = fbeta_score(true_NC[:, 0], p_s[:, 0] > 0.2, beta=2)
    assert evaluation.member_f2_MC[2, 0] == pytest.approx(own_f2)
    assert np.isnan(evaluation.member_f2_MC[2, 1:]).all()


def test_the_bundle_decides_as_the_evaluation_says(runs: list[Path], dataset: Dataset, tmp_path: Path) -> None:
    evaluation = combine_runs(runs, "vote", tmp_path / "out")
    bundle, weights = load_bundle(tmp_path / "out" / "bundle")
    assert [one.name for one in bundle.members] == ["a", "b", "agriculture"]
    assert bundle.members[2].speaks_for == ["agriculture"]
    assert (bundle.rule, bundle.thresholds, bundle.scores["f2"]) == ("vote", evaluation.thresholds, evaluation.f2)
    for run, tensors in zip(runs, weights, strict=True):
        _, (alone,) = load_bundle(run / "bundle")
        assert all((alone[name] == value).all() for name, value in tensors.items())
    answers = Bundle.load(tmp_path / "out" / "bundle").predict([dataset.pixels(i) for i in range(20)])
    assert answers.probabilities_NC.shape == (20, 17)


def test_the_means_predictions_and_all_figures_are_written(runs: list[Path], tmp_path: Path) -> None:
    evaluation = combine_runs(runs, "any-rare", tmp_path / "out")
    (p_a, p_b, _), true_NC = aligned(runs)
    written = read_predictions(tmp_path / "out" / "evaluation" / "predictions.npz")
    np.testing.assert_allclose(written.probabilities_NC[:, 1:], ((p_a + p_b) / 2)[:, 1:], atol=1e-12)
    assert (written.targets_NC == true_NC).all()
    table = json.loads((tmp_path / "out" / "evaluation" / "metrics.json").read_text())
    assert table["f2"] == evaluation.f2
    assert table["labels"][0]["members"].keys() == {"a", "b", "agriculture"}
    assert table["labels"][1]["members"].keys() == {"a", "b"}


def test_rare_labels_are_those_below_the_share_of_the_training_chips(
    runs: list[Path], dataset: Dataset, tmp_path: Path
) -> None:
    evaluation = combine_runs(runs, "any-rare", tmp_path / "out", rare_share=0.1)
    counts = dict(zip(dataset.manifest.labels, dataset.manifest.label_counts, strict=True))
    assert evaluation.rare == [label for label in dataset.manifest.labels if counts[label] < 0.1 * 120]
    assert 0 < len(evaluation.rare) < 17
    assert load_bundle(tmp_path / "out" / "bundle")[0].rare == evaluation.rare


def test_figures_do_not_depend_on_the_order_of_members(runs: list[Path], tmp_path: Path) -> None:
    first = combine_runs(runs, "vote", tmp_path / "first")
    second = combine_runs([runs[2], runs[1], runs[0]], "vote", tmp_path / "second")
    assert first.f2 == second.f2


def combine(*words: object) -> Result:
    return CliRunner().invoke(main, ["ensemble", "combine", *map(str, words)])


def test_the_command_prints_both_tables_and_will_not_write_over_a_bundle(runs: list[Path], tmp_path: Path) -> None:
    done = combine(*runs, "--rule", "vote", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    for shown in ("* vote", "any-rare", "agriculture", "selective_logging", "cross-fitted", "behind best", "#3"):
        assert shown in done.stdout
    again = combine(*runs, "--rule", "mean", "--out", tmp_path / "out")
    assert again.exit_code == 1 and "holds a bundle or a run already" in again.stderr
    assert load_bundle(tmp_path / "out" / "bundle")[0].rule == "vote"


def test_runs_that_do_not_belong_together_are_refused(
    runs: list[Path], dataset: Dataset, tif_dataset: Dataset, tmp_path: Path
) -> None:
    out = ["--rule", "mean", "--out", tmp_path / "out"]
    one = combine(runs[0], *out)
    assert "an ensemble has two members or more" in one.stderr
    assert "given more than once" in combine(runs[0], runs[1], runs[0], *out).stderr
    fewer = made_run(tmp_path / "fewer", dataset, 4, ids=range(50, 120))
    assert "has 70 validation chips, 70 of them among the 80 of" in combine(runs[0], fewer, *out).stderr
    other = made_run(tmp_path / "other", dataset, 4, ids=range(80))
    assert "has 80 validation chips, 40 of them among the 80 of" in combine(runs[0], other, *out).stderr
    elsewhere = made_run(tmp_path / "elsewhere", tif_dataset, 4)
    assert "trained on the dataset" in combine(runs[0], elsewhere, *out).stderr
    assert "no such file" in combine(runs[0], _without(runs[1], tmp_path, "evaluation"), *out).stderr
    assert "give RUN/bundle of a finished run" in combine(runs[0], _without(runs[1], tmp_path, "bundle"), *out).stderr
    specialists = [
        made_run(tmp_path / label, dataset, 5, speaks_for=[label]) for label in ("agriculture", "bare_ground")
    ]
    assert "no member was trained on artisinal_mine" in combine(*specialists, *out).stderr
    assert "rare labels lava" in combine(*runs, "--rare", "lava", *out).stderr
    assert not (tmp_path / "out").exists()


def _without(run: Path, tmp_path: Path, part: str) -> Path:
    copy = tmp_path / f"without-{part}"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / part)
    return copy


def test_other_truth_and_ensembles_of_ensembles_are_refused(runs: list[Path], dataset: Dataset, tmp_path: Path) -> None:
    relabelled = tmp_path / "relabelled"
    shutil.copytree(runs[1], relabelled)
    path = relabelled / "evaluation" / "predictions.npz"
    with np.load(path) as file:
        arrays = dict(file)
    arrays["targets"][0, 0] ^= 1
    np.savez(path, **arrays)
    with pytest.raises(RunError, match="bear other labels"):
        combine_runs([runs[0], relabelled], "mean", tmp_path / "out")
    combine_runs(runs, "mean", tmp_path / "out")
    with pytest.raises(RunError, match="is an ensemble of 3 itself; give its members' runs"):
        combine_runs([runs[0], tmp_path / "out"], "mean", tmp_path / "nested")


def test_members_of_one_name_are_told_apart(dataset: Dataset, runs: list[Path], tmp_path: Path) -> None:
    namesake = made_run(tmp_path / "elsewhere", dataset, 9)
    single, _ = load_bundle(namesake / "bundle")
    renamed = single.model_copy(update={"members": [single.members[0].model_copy(update={"name": "a"})]})
    write_bundle(namesake / "bundle", renamed, [namesake / "weights.safetensors"])
    evaluation = combine_runs([runs[0], namesake], "vote", tmp_path / "out")
    assert evaluation.members == ["0-a", "1-a"]


RECIPE = """
description = "two tiny networks"
rule = "vote"
shared = ["data.split=tail:40", "model.width=8", "phases.0.epochs=1", "phases.0.batch_size=40", "evaluate.turns=1",
    "runtime.figures=false"]
[[members]]
recipe = "small-resnet-32"
overrides = ["seed=0"]
[[members]]
recipe = "small-resnet-32"
overrides = ["seed=1", "loss.name=group-softmax"]
"""
LAUNCH = """
compute_environment: LOCAL_MACHINE
distributed_type: 'NO'
use_cpu: true
mixed_precision: 'no'
num_machines: 1
num_processes: 1
"""


def test_all_members_are_trained_by_one_command_which_goes_on_where_it_stopped(
    dataset: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe, launch, out = tmp_path / "two.toml", tmp_path / "one.yaml", tmp_path / "out"
    recipe.write_text(RECIPE)
    launch.write_text(LAUNCH)
    words = ["ensemble", "train", "--recipe", recipe, "--data", dataset.root, "--out", out, "--launch-config", launch]

    def train(*more: str) -> Result:
        return CliRunner().invoke(main, [*map(str, words), "tracking.wandb=off", *more])

    printed = train("--dry-run")
    commands = [shlex.split(line) for line in printed.stdout.splitlines()]
    assert [command[command.index("--out") + 1] for command in commands] == [
        str(out / "members" / f"{i}-small-resnet-32") for i in range(2)
    ]
    assert all('tracking.group="out"' in command for command in commands)
    assert not out.exists()
    done = train()
    assert done.exit_code == 0, done.output + capfd.readouterr().err
    assert "* vote" in done.stdout
    bundle, weights = load_bundle(out / "bundle")
    assert [one.name for one in bundle.members] == ["0-small-resnet-32", "1-small-resnet-32"]
    assert [bool(one.competing_groups) for one in bundle.members] == [False, True]
    assert any((weights[0][name] != weights[1][name]).any() for name in weights[0])
    # Only the combination is lost: the members are kept as they are.
    before = {path.name: path.read_bytes() for path in (out / "bundle").iterdir()}
    trained = [path.stat().st_mtime_ns for path in sorted(out.glob("members/*/metrics.jsonl"))]
    shutil.rmtree(out / "bundle")
    again = train()
    assert again.exit_code == 0, again.output
    assert again.stdout.count("finished already") == 2
    assert [path.stat().st_mtime_ns for path in sorted(out.glob("members/*/metrics.jsonl"))] == trained
    assert {path.name: path.read_bytes() for path in (out / "bundle").iterdir()} == before
    other = train("phases.0.learning_rate=0.1")
    assert other.exit_code == 1 and "trained with another configuration (phases differ)" in other.stderr


def test_members_that_would_validate_on_different_chips_are_refused_before_training(
    dataset: Dataset, tmp_path: Path
) -> None:
    recipe = tmp_path / "two.toml"
    recipe.write_text(RECIPE.replace("tail:40", "random:0.3"))
    ensemble = load_ensemble_recipe(str(recipe))
    with pytest.raises(ConfigError, match="holds out other chips than that of member 0"):
        plan_members(ensemble, dataset.root, tmp_path / "out", (), REPOSITORY / "launch" / "cpu.yaml")
    same = plan_members(ensemble, dataset.root, tmp_path / "out", ("seed=7",), REPOSITORY / "launch" / "cpu.yaml")
    assert len(same) == 2


def planned(run: Path, *lines: str, finished: bool = False) -> PlannedMember:
    """A member whose training is a line of Python."""
    return PlannedMember(run, [sys.executable, "-c", "\n".join(["from pathlib import Path", *lines])], finished)


def ending_with_a_bundle(run: Path) -> PlannedMember:
    folder = str(run / "bundle")
    return planned(run, f"Path({folder!r}).mkdir(parents=True)", f"Path({folder!r}, 'bundle.json').touch()")


def test_a_member_that_fails_is_named_and_stops_the_ensemble(tmp_path: Path) -> None:
    members = [
        planned(tmp_path / "kept", f"Path({str(tmp_path / 'kept')!r}).mkdir()", finished=True),
        ending_with_a_bundle(tmp_path / "first"),
        planned(tmp_path / "second", "raise SystemExit(3)"),
        ending_with_a_bundle(tmp_path / "third"),
    ]
    notes: list[str] = []
    with pytest.raises(TrainingError, match=r"member 3 of 4, .*second: training ended with status 3"):
        train_ensemble(load_ensemble_recipe("paper1-ensemble"), members, tmp_path / "out", note=notes.append)
    assert [path.name for path in tmp_path.iterdir()] == ["first"]
    assert len(notes) == 3 and notes[0].endswith("kept: finished already")


def test_a_member_that_was_asked_to_stop_stops_the_ensemble(tmp_path: Path) -> None:
    members = [planned(tmp_path / "first", "pass"), ending_with_a_bundle(tmp_path / "second")]
    with pytest.raises(RunError, match=r"member 1 of 2, .*first: stopped before its end; run the same command again"):
        train_ensemble(load_ensemble_recipe("paper1-ensemble"), members, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_first_papers_ensemble_is_three_resnets_of_40_epochs_that_vote() -> None:
    from planet_dist.config import load_config

    ensemble = load_ensemble_recipe("paper1-ensemble")
    assert ensemble.rule == "vote"
    configs = [load_config(one.recipe, [*ensemble.shared, *one.overrides]) for one in ensemble.members]
    assert [config.model.name for config in configs] == ["resnet50"] * 3
    assert len({config.seed for config in configs}) == 3
    assert [[phase.epochs for phase in config.phases] for config in configs] == [[40]] * 3
    assert all(c.augment.flip and c.augment.rotate_degrees and c.augment.shift for c in configs)
    assert configs[0].data.split == "tail:8000"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rule = ", "not TOML"),
        (RECIPE.replace("vote", "guess"), "rule: Input should be 'mean', 'vote' or 'any-rare'"),
        (RECIPE.replace("shared", "sharde"), "sharde: Extra inputs .*\n  .*valid keys: description, rule"),
        (RECIPE.partition("[[members]]")[0] + "members = []", "members: Tuple should have at least 1 item"),
    ],
)
def test_an_ensemble_recipe_that_cannot_be_used_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_ensemble_recipe(str(tmp_path / "bad.toml"))


def test_an_unknown_ensemble_is_answered_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="did you mean 'paper1-ensemble'"):
        load_ensemble_recipe("paper1-ensembel")
    assert all(load_ensemble_recipe(name).description for name in ensemble_recipe_paths())
