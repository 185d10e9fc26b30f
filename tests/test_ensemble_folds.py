"""Recipes over folds as one model: figures, files, bundle, page and commands."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from planet_dist.bundle import Bundle
from planet_dist.bundle_card import model_card
from planet_dist.bundle_files import load_bundle, read_description, write_bundle
from planet_dist.cli import main
from planet_dist.config import load_config
from planet_dist.ensemble_folds import FoldsEvaluation, combine_folds
from planet_dist.ensemble_page import page
from planet_dist.ensemble_train import load_ensemble_recipe, plan_members, recipes_as_ensemble
from planet_dist.metrics import mean_f2, probabilities
from planet_dist.onnx_export import export_onnx
from planet_dist.predictions import read_predictions
from planet_dist.stack import recipe_answers
from shards.errors import ConfigError, RunError
from shards.reader import Dataset
from tests.conftest import REPOSITORY
from tests.made_runs import made_fold_run
from tests.test_ensemble import LAUNCH

WORDS = {"one": [], "two": ["seed=4", "data.split_seed=0"]}


@pytest.fixture(scope="module")
def runs(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two recipes on three folds, the second noisier."""
    folder = tmp_path_factory.mktemp("ensemble") / "members"
    return [
        made_fold_run(
            folder / recipe / f"fold-{fold}", dataset, 5 * r + fold, f"kfold:3/{fold}", words=words, noise=1 + r
        )
        for r, (recipe, words) in enumerate(WORDS.items())
        for fold in range(3)
    ]


@pytest.fixture(scope="module")
def combined(
    runs: list[Path], dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[FoldsEvaluation, Path]:
    """The runs combined, and where."""
    out = tmp_path_factory.mktemp("combined") / "out"
    return combine_folds(runs, dataset.root, out), out


def test_figures_are_written_whole(combined: tuple[FoldsEvaluation, Path], dataset: Dataset) -> None:
    evaluation, out = combined
    table = json.loads((out / "evaluation" / "metrics.json").read_text())
    assert (table["rows"], table["folds"], table["f2"]) == (120, 3, evaluation.nested.headline.f2)
    assert [step["name"] for step in table["steps"]] == [step.name for step in evaluation.nested.steps]
    written = read_predictions(out / "evaluation" / "predictions.npz")
    np.testing.assert_allclose(written.probabilities_NC, evaluation.nested.probabilities_NC, atol=1e-11)
    assert written.ids_N.tolist() == list(range(120))
    assert evaluation.minutes == pytest.approx(3.0) and table["training_minutes"] == pytest.approx(3.0)
    assert [one["training_minutes"] for one in table["recipes"]] == pytest.approx([1.5, 1.5])


def test_labels_stand_in_a_table_with_their_intervals(combined: tuple[FoldsEvaluation, Path]) -> None:
    evaluation, out = combined
    with (out / "evaluation" / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == list(evaluation.material.labels)
    for c, row in enumerate(rows):
        assert float(row["f2"]) == pytest.approx(evaluation.label_scores.f2_C[c], abs=1e-6)
        assert float(row["f2_low"]) <= float(row["f2"]) <= float(row["f2_high"])
        assert int(row["support"]) == np.count_nonzero(evaluation.material.true_NC[:, c])


def test_each_member_has_its_own_score_and_minutes(runs: list[Path], combined: tuple[FoldsEvaluation, Path]) -> None:
    for run, member in zip(runs, combined[0].members, strict=True):
        found = read_predictions(run / "evaluation" / "predictions.npz")
        assert (member.recipe, f"fold-{member.fold}") == (run.parent.name, run.name)
        assert member.f2 == mean_f2(found.probabilities_NC > 0.2, found.targets_NC)
        assert (member.minutes, member.kept_by) == (0.5, "last")


def test_the_bundle_answers_by_networks_recipes_and_stack(
    runs: list[Path], combined: tuple[FoldsEvaluation, Path], dataset: Dataset
) -> None:
    evaluation, out = combined
    choice = evaluation.nested.choice
    bundle = Bundle.load(out / "bundle")
    images = [dataset.pixels(i) for i in range(20)]
    alone = np.stack([Bundle.load(run / "bundle").predict(images).probabilities_NC for run in runs])
    expected = choice.combined.stack.probabilities(recipe_answers(alone, [(0, 1, 2), (3, 4, 5)]))
    answers = bundle.predict(images)
    np.testing.assert_allclose(answers.probabilities_NC, expected, rtol=1e-12)
    assert (answers.decisions_NC == choice.evaluation.chosen.decide(expected)).all()
    assert (bundle.predict(images[3:5]).probabilities_NC == answers.probabilities_NC[3:5]).all()
    assert bundle.predict([]).decisions_NC.shape == (0, 17)
    said = bundle.description
    assert (said.rule, said.training_chips, len(said.members)) == ("stacked", 120, 6)
    assert said.training_label_counts == dataset.manifest.label_counts
    assert [member.name for member in said.members[:2]] == ["one fold 0", "one fold 1"]


def test_a_recipe_s_protocol_says_where_its_folds_differ(combined: tuple[FoldsEvaluation, Path]) -> None:
    said, _ = load_bundle(combined[1] / "bundle")
    members = [
        member.model_copy(update={"protocol": {"starts from": f"the network of sha256 {place}", "loss": "bce"}})
        for place, member in enumerate(said.members)
    ]
    card = model_card(said.model_copy(update={"members": members}))
    assert "| starts from | the network of sha256 0; the others have their own |" in card
    assert "| starts from | the network of sha256 3; the others have their own |" in card
    assert card.count("| loss | bce |") == 2


def test_every_kind_of_stack_comes_back_from_its_bundle(
    combined: tuple[FoldsEvaluation, Path], dataset: Dataset, tmp_path: Path
) -> None:
    said, _ = load_bundle(combined[1] / "bundle")
    assert said.stacking is not None
    rng = np.random.default_rng(0)
    logistic = said.stacking.model_copy(
        update={
            "scale": "logits",
            "weights": rng.normal(size=(2, 17, 17)).tolist(),
            "bias": rng.normal(size=17).tolist(),
        }
    )
    weights = [combined[1] / "bundle" / member.weights for member in said.members]
    write_bundle(tmp_path / "bundle", said.model_copy(update={"stacking": logistic}), weights)
    bundle = Bundle.load(tmp_path / "bundle")
    images = [dataset.pixels(i) for i in range(10)]
    answers_RNC = recipe_answers(bundle.member_probabilities(images), [(0, 1, 2), (3, 4, 5)])
    sums_NC = np.einsum("rnk,rkc->nc", np.log(answers_RNC / (1 - answers_RNC)), np.array(logistic.weights))
    np.testing.assert_allclose(
        bundle.predict(images).probabilities_NC, probabilities(sums_NC + logistic.bias), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("scale", ["probabilities", "logits"])
def test_a_stacked_bundle_is_exported_to_onnx(
    scale: str, combined: tuple[FoldsEvaluation, Path], tmp_path: Path
) -> None:
    """Of one recipe with one network, for the conversion of each takes seconds."""
    said, _ = load_bundle(combined[1] / "bundle")
    assert said.stacking is not None
    weights_RCC = np.random.default_rng(0).normal(size=(1, 17, 17)) / 6
    stacking = said.stacking.model_copy(
        update={
            "scale": scale,
            "weights": weights_RCC.tolist(),
            "bias": [0.4] * 17,
            "members": [[0]],
            "recipes": ["one"],
        }
    )
    (first, *_) = said.members
    alone = said.model_copy(update={"stacking": stacking, "members": [first]})
    write_bundle(tmp_path / "bundle", alone, [combined[1] / "bundle" / first.weights])
    exported = export_onnx(tmp_path / "bundle", tmp_path / "model.onnx")
    assert exported.largest_difference < 1e-5


def test_one_command_predicts_a_folder_with_it(
    combined: tuple[FoldsEvaluation, Path], dataset: Dataset, chips: Path, tmp_path: Path
) -> None:
    bundle, out = combined[1] / "bundle", tmp_path / "submission.csv"
    done = CliRunner().invoke(main, ["predict", str(bundle), "--images", str(chips / "train-jpg"), "--out", str(out)])
    assert done.exit_code == 0, done.output
    with out.open(newline="") as file:
        tags = {row["image_name"]: row["tags"] for row in csv.DictReader(file)}
    answers = Bundle.load(bundle).predict([dataset.pixels(i) for i in range(120)])
    assert tags == dict(zip(dataset.keys(range(120)), map(" ".join, answers.tags), strict=True))


def test_a_stack_that_does_not_fit_its_members_is_refused(combined: tuple[FoldsEvaluation, Path]) -> None:
    said = read_description(combined[1] / "bundle")
    whole = json.loads(said.model_dump_json())

    def changed(**stacking: object) -> str:
        return json.dumps(whole | {"stacking": whole["stacking"] | stacking})

    for text, message in [
        (json.dumps(whole | {"stacking": None}), "rule 'stacked' without stacking"),
        (json.dumps(whole | {"rule": "mean"}), "rule 'mean' with stacking"),
        (changed(members=[[0, 1, 2], [3, 4]]), "stacking.members"),
        (changed(bias=[0.0]), "bias 17"),
        (changed(weights=whole["stacking"]["weights"][:1]), "must be 2 x 17 x 17 numbers"),
    ]:
        with pytest.raises(ValueError, match=message):
            type(said).model_validate_json(text)


def test_the_card_and_the_page_say_what_it_is_and_what_it_is_worth(combined: tuple[FoldsEvaluation, Path]) -> None:
    evaluation, out = combined
    f2 = f"{evaluation.nested.headline.f2:.4f}"
    combiner = evaluation.nested.choice.combined.combiner.name
    card = (out / "bundle" / "MODEL_CARD.md").read_text()
    for shown in (f2, combiner, "one (3), two (3)", "95% interval", "best recipe at 0.2"):
        assert shown in card
    assert card.startswith("# Model card: one, two\n") and card.count("## Protocol") == 2
    shown_page = page(evaluation, "E <b>")
    for shown in (f2, combiner, "What each step gained", "3 min", "two", "E &lt;b&gt;", "selective_logging"):
        assert shown in shown_page
    assert "keep the epoch that did best" not in shown_page


def test_networks_kept_by_what_they_held_out_are_named_on_the_page(
    runs: list[Path], dataset: Dataset, tmp_path: Path
) -> None:
    chosen = [
        made_fold_run(tmp_path / f"{i}", dataset, i, f"kfold:3/{i}", words=["evaluate.best_by=f2"]) for i in range(3)
    ]
    for run in chosen:
        (run / "timing.jsonl").unlink()
    evaluation = combine_folds([*runs, *chosen], dataset.root, tmp_path / "out")
    assert "3 of 9 networks keep the epoch that did best" in page(evaluation, "E")
    assert evaluation.minutes is None and "F2 a minute" in page(evaluation, "E")


def run_command(*words: object) -> Result:
    return CliRunner().invoke(main, ["ensemble", *map(str, words)])


def test_runs_over_folds_are_combined_by_a_command(runs: list[Path], dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run_command("combine", *runs, "--rule", "stacked", "--data", dataset.root, "--out", out)
    assert done.exit_code == 0, done.output
    for shown in (
        "best recipe at 0.2",
        "combined, own rule",
        "selective_logging",
        "report.html",
        "3.0 min",
    ):
        assert shown in done.stdout
    assert (out / "report.html").is_file() and (out / "bundle" / "bundle.json").is_file()
    without = run_command("combine", *runs, "--rule", "stacked", "--out", tmp_path / "other")
    assert "--rule stacked needs --data" in without.stderr
    needless = run_command("combine", *runs, "--rule", "mean", "--data", dataset.root, "--out", tmp_path / "other")
    assert "--data is for --rule stacked" in needless.stderr


def test_recipes_are_trained_on_every_fold_by_one_command_which_goes_on_where_it_stopped(
    dataset: Dataset, tif_dataset: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    launch, out = tmp_path / "one.yaml", tmp_path / "out"
    launch.write_text(LAUNCH)
    recipes = []
    for name, smoothing in (("plain", 0.0), ("smoothed", 0.1)):
        recipes.append(tmp_path / f"{name}.toml")
        recipes[-1].write_text(
            f'description = "{name}"\n[model]\nname = "small-resnet"\nwidth = 8\n[data]\nsize = 32\n'
            f'[loss]\nlabel_smoothing = {smoothing}\n[tracking]\nwandb = "off"\n[runtime]\nfigures = false\n'
            "[[phases]]\nepochs = 2\nbatch_size = 40\nlearning_rate = 0.01\n"
        )
    given = ["--recipes", ",".join(map(str, recipes)), "--folds", 3, "--data", dataset.root, "--out", out]

    def train(*more: object) -> Result:
        return run_command("train", *given, "--launch-config", launch, *more)

    commands = [shlex.split(line) for line in train("--dry-run").stdout.splitlines()]
    places = [Path(command[command.index("--out") + 1]) for command in commands]
    assert places == [out / "members" / name / f"fold-{i}" for name in ("plain", "smoothed") for i in range(3)]
    for i, command in enumerate(commands):
        assert f"data.split=kfold:3/{i % 3}" in command
        assert "data.split_seed=0" in command and "evaluate.best_by=last" in command
    assert 'tracking.group="out-smoothed"' in commands[5]
    grouped = run_command("train", *given, "--grouped", "--launch-config", launch, "--dry-run")
    assert grouped.exit_code == 1 and "planet-shard groups" in grouped.stderr
    # All but the last are there already, made without training.
    for place, command in zip(places[:-1], commands[:-1], strict=True):
        words = command[command.index("auto") + 1 :]
        config = load_config(str(tmp_path / f"{place.parent.name}.toml"), words)
        made_fold_run(place, dataset, len(str(place)), config.data.split)
        (place / "config.toml").write_text(config.to_toml())
    before = {path: path.stat().st_mtime_ns for path in out.glob("members/*/fold-*/bundle/*")}
    done = train()
    assert done.exit_code == 0, done.output + capfd.readouterr().err
    assert done.stdout.count("finished already") == 5 and "combined, own rule" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(read_description(out / "bundle").members) == 6
    trained = [json.loads(line) for line in (places[-1] / "metrics.jsonl").read_text().splitlines()]
    assert [line["best"] for line in trained if line["kind"] == "epoch"] == [True, True], "the last epoch is kept"
    again = train()
    assert again.exit_code == 0 and again.stdout.count("finished already") == 6
    elsewhere = run_command("train", *given, "--data", tif_dataset.root, "--launch-config", launch)
    assert elsewhere.exit_code == 1 and "fold-0: was trained on another dataset" in elsewhere.stderr
    stopped = out / "members" / "plain" / "fold-0" / "config.toml"
    stopped.write_text(stopped.read_text().replace("epochs = 2", "epochs = 1"))
    other = train()
    assert other.exit_code == 1 and "trained with another configuration (phases differ)" in other.stderr


def test_members_of_their_own_seeds_have_one_seed_of_the_split(dataset: Dataset, tmp_path: Path) -> None:
    ensemble = load_ensemble_recipe("paper1-ensemble")
    launch = REPOSITORY / "launch" / "cpu.yaml"
    planned = plan_members(ensemble, dataset.root, tmp_path / "out", ("data.kind=any",), launch, folds=4)
    assert [str(member.run.relative_to(tmp_path / "out" / "members")) for member in planned[3:5]] == [
        "0-paper1-resnet50/fold-3",
        "1-paper1-resnet50/fold-0",
    ]
    assert all("data.split_seed=0" in member.command for member in planned)
    assert [word for word in planned[-1].command if word.startswith("seed=")] == ["seed=2"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipes", "small-resnet-32"], "--recipes needs --folds K"),
        (["--recipe", "paper1-ensemble", "--grouped"], "--grouped says how --folds"),
        (["--folds", "3"], "give either --recipe ENSEMBLE, or --recipes"),
        (["--recipe", "paper1-ensemble", "--recipes", "small-resnet-32", "--folds", "3"], "give either --recipe"),
        (["--recipes", "small-resnet-32", "--folds", "2"], "--folds 2: give 3 or more"),
        (["--recipes", "small-resnet-32,small-resnet-32", "--folds", "3"], "small-resnet-32 comes twice"),
        (["--recipes", ",", "--folds", "3"], "names none"),
        (["--recipes", "small-resnet-23", "--folds", "3"], "did you mean 'small-resnet-32'"),
        (["--recipes", "small-resnet-32", "--folds", "3", "data.split=tail:9"], "--folds 3 splits the chips already"),
    ],
)
def test_what_cannot_be_trained_over_folds_is_said_before_training(
    words: list[str], message: str, dataset: Dataset, tmp_path: Path
) -> None:
    done = run_command("train", *words, "--data", dataset.root, "--out", tmp_path / "out")
    assert done.exit_code == 1 and message in done.stderr
    assert not (tmp_path / "out").exists()


def test_one_recipe_alone_is_an_ensemble_of_its_folds(runs: list[Path], dataset: Dataset, tmp_path: Path) -> None:
    assert len(recipes_as_ensemble("small-resnet-32").members) == 1
    evaluation = combine_folds(runs[:3], dataset.root, tmp_path / "out")
    assert evaluation.material.recipes == ("one",)
    assert len(read_description(tmp_path / "out" / "bundle").members) == 3
    with pytest.raises(ConfigError, match="an ensemble of one member"):
        plan_members(recipes_as_ensemble("small-resnet-32"), dataset.root, tmp_path, (), REPOSITORY / "x.yaml")
    with pytest.raises(RunError, match=r"fold\(s\) 2 of 3 are missing"):
        combine_folds(runs[:2], dataset.root, tmp_path / "other")
