"""The house rules: which way imports point, what files may be called, and how large they may grow."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

# From what knows least to what knows most; a module imports only from the groups before its own, and shards.
LAYERS = [
    {"display", "efficientnet_lite", "memory", "precision"},
    # What was asked for and what is known, each by itself.
    {
        "backbones",
        "charts",
        "checkpoint",
        "config",
        "eager",
        "ema",
        "figures_style",
        "interop",
        "launched",
        "launching",
        "muon",
    },
    {"liveness", "metrics", "page_style", "papers", "plan", "progress", "split", "stopping"},
    {"stopwatch", "traces"},
    {"git_state", "tracking_files", "tracking_names"},
    # Chips on their way to a network, and what its answers are measured by.
    {"calibration", "expected_f2"},
    {"chip_choice", "cuts", "data", "draws", "figures_chips", "host_cache", "label_noise", "losses", "models"},
    {"device_cache", "mixing", "page", "predictions"},
    {"runfolder", "stream", "tracking_dashboard", "tracking_merge", "tracking_tables"},
    {"runlogs", "runstate"},
    {"provenance", "report_parts"},
    {"augment", "describe", "saliency", "thresholds", "tracking_log", "tracking_starts"},
    {"decision", "tracking"},
    {"assembly", "combination", "crossfit", "evaluate", "learner", "norms", "stack"},
    {"shrinkage", "stack_logistic"},
    {"decision_rules", "stack_fits"},
    {"stack_choice"},
    {"stack_nested"},
    # What a run leaves behind.
    {"bundle_description", "epoch_detail", "figures_reliability", "figures_scores", "finished"},
    {"runs", "tables", "tracking_sync"},
    {"bundle_card", "trained_on"},
    {"bundle_files", "onnx_decision"},
    {"bundle", "compare", "ending", "ensemble_scores", "figures"},
    {"report_figures", "teacher"},
    {"lineage"},
    {"judge"},
    {"onnx_network", "predict_files", "predict_inputs", "report"},
    {"onnx_export", "predict_parts"},
    {"predict"},
    # A georeferenced scene, from its file to its map.
    {"scene_bands", "scene_grid"},
    {"scene_read", "scene_shapes"},
    {"scene_picture", "scene_write"},
    {"scene_map"},
    {"scene"},
    {"scene_cli"},
    # Whole runs, then several of them.
    {"engine", "ensemble", "ensemble_tables", "out_of_fold"},
    {"ensemble_folds"},
    {"ensemble_folds_tables", "ensemble_page"},
    {"ensemble_train"},
    {"doctor_findings", "submit"},
    {"doctor_machine", "doctor_speed"},
    {"doctor_run"},
    {"doctor"},
    {"doctor_cli", "ensemble_cli", "runs_cli", "tracking_cli"},
    {"submit_cli"},
    {"reproduce_rows"},
    {"reproduce_found"},
    {"reproduce_paper1", "reproduce_paper2"},
    {"reproduce"},
    # The entry points.
    {"__init__", "cli", "train"},
]
ENTRY_POINTS = {"planet_dist.cli", "planet_dist.train", "shards.cli"}
KEPT_OUT_OF_SHARDS = {"planet_dist", "torch", "torchvision", "accelerate", "webdataset", "wandb"}
# Modules whose tests stand in another's file; test_synth.py is that of synth.py and of every synth_*.py without one.
TESTED_ELSEWHERE = {
    "planet_dist.__init__": "test_interop",
    "planet_dist.backbones": "test_models",
    "planet_dist.cli": "test_planet_cli",
    "planet_dist.display": "test_figures",
    "planet_dist.ending": "test_progress",
    "planet_dist.engine": "test_train",
    "planet_dist.finished": "test_figures",
    "planet_dist.precision": "test_launched",
    "planet_dist.papers": "test_reproduce",
    "planet_dist.trained_on": "test_out_of_fold",
    "shards.__init__": "test_architecture",
    "shards.assemble": "test_build",
    "shards.blocks": "test_overlaps",
    "shards.borders": "test_relatives",
    "shards.cli": "test_shards_cli",
    "shards.csvlabels": "test_sources",
    "shards.inspection": "test_verify",
    "shards.packing": "test_build",
    "shards.summary": "test_shards_cli",
    "shards.unfinished": "test_build",
}


def name_of(path: Path) -> str:
    return f"{path.parent.name}.{path.stem}"


FILES = sorted(path for package in ("shards", "planet_dist") for path in (REPOSITORY / package).rglob("*.py"))
TREES = {name_of(path): ast.parse(path.read_text(), str(path)) for path in FILES}


def imports_of(tree: ast.AST) -> set[str]:
    """Full names of the modules that a file imports anywhere in it, types and functions' own imports too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, f"line {node.lineno}: imports are absolute"
            # `from planet_dist import config` names a module; `from planet_dist.config import Config` does not.
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= full & set(TREES)
            found |= {node.module} if full - set(TREES) else set()
    return found


def python(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_packages_are_flat() -> None:
    assert {path.parent.name for path in FILES} == {"shards", "planet_dist"}


def test_shards_imports_neither_the_training_package_nor_its_libraries() -> None:
    found = {
        (name, imported)
        for name, tree in TREES.items()
        if name.startswith("shards.")
        for imported in imports_of(tree)
        if imported.split(".")[0] in KEPT_OUT_OF_SHARDS
    }
    assert found == set()


def test_nothing_that_shards_imports_brings_the_training_libraries_along() -> None:
    modules = [name.removesuffix(".__init__") for name in TREES if name.startswith("shards.")]
    code = f"import sys, {', '.join(modules)}\nprint(*sorted({KEPT_OUT_OF_SHARDS!r} & set(sys.modules)), sep='\\n')"
    assert [line for line in python(code) if line] == []


def test_every_module_of_planet_dist_stands_in_one_layer() -> None:
    placed = [module for layer in LAYERS for module in layer]
    assert len(placed) == len(set(placed))
    assert set(placed) == {name.removeprefix("planet_dist.") for name in TREES if name.startswith("planet_dist.")}


@pytest.mark.parametrize("place", range(len(LAYERS)))
def test_a_layer_imports_only_from_those_before_it(place: int) -> None:
    allowed = {f"planet_dist.{module}" for layer in LAYERS[:place] for module in layer}
    found = {
        (module, imported)
        for module in LAYERS[place]
        for imported in imports_of(TREES[f"planet_dist.{module}"])
        if imported.split(".")[0] == "planet_dist" and imported not in allowed
    }
    assert found == set()


def test_nothing_imports_an_entry_point() -> None:
    assert {(name, entry) for name, tree in TREES.items() for entry in imports_of(tree) & ENTRY_POINTS} == set()


def test_no_modules_import_each_other_in_a_circle_when_they_load() -> None:
    waiting = {}
    for name, tree in TREES.items():
        top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        waiting[name] = imports_of(top) & set(TREES)
    while ready := {name for name, imported in waiting.items() if not imported & set(waiting)}:
        waiting = {name: imported for name, imported in waiting.items() if name not in ready}
    assert waiting == {}


def test_no_module_hides_a_standard_or_installed_one() -> None:
    own = {"planet_dist", "shards", "tests"}
    # `accelerate launch planet_dist/train.py` puts planet_dist/ first on sys.path.
    installed = set(packages_distributions()) - own
    hidden = {path.stem for path in FILES if path.parent.name == "planet_dist"} & (installed | sys.stdlib_module_names)
    assert hidden == set()
    # shards/ never stands there, so that only what the project itself imports could be confused with a file of it.
    imported = {full.split(".")[0] for tree in TREES.values() for full in imports_of(tree)} - own
    hidden = {path.stem for path in FILES if path.parent.name == "shards"} & (imported | sys.stdlib_module_names)
    assert hidden == set()


def test_no_module_is_a_drawer_for_odds_and_ends() -> None:
    assert {path.stem for path in FILES} & {"utils", "util", "helpers", "common", "misc"} == set()


def test_the_training_script_only_wires() -> None:
    assert len((REPOSITORY / "planet_dist" / "train.py").read_text().splitlines()) < 150


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_modules_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 420


def test_every_module_has_tests_in_a_file_named_after_it_its_family_or_a_stated_one() -> None:
    tests = {path.stem for path in (REPOSITORY / "tests").glob("test_*.py")}
    named = {name for name in TREES if tests & family_files(name.split(".")[1])}
    missing = set(TREES) - named - {name for name, file in TESTED_ELSEWHERE.items() if file in tests}
    assert missing == set()
    assert set(TESTED_ELSEWHERE) - set(TREES) == set(), "modules that are no more"
    assert named & set(TESTED_ELSEWHERE) == set(), "modules with a test file of their own"


def family_files(module: str) -> set[str]:
    """The test files that a module's name stands for: a_b_c has test_a_b_c, test_a_b and test_a."""
    parts = module.split("_")
    return {f"test_{'_'.join(parts[:length])}" for length in range(1, len(parts) + 1)}


def test_every_public_module_class_and_function_says_what_it_does() -> None:
    silent = []
    for name, tree in TREES.items():
        silent += [name] if ast.get_docstring(tree) is None else []
        for holder in [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef) and is_public(node))]:
            for node in holder.body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and is_public(node) and not ast.get_docstring(node):
                    silent.append(f"{name}.{node.name} (line {node.lineno})")
    assert silent == []


def is_public(node: ast.FunctionDef | ast.ClassDef) -> bool:
    return not node.name.startswith("_")


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("shards.cli", {"numpy", "pydantic", "torch", "rich", "PIL", "tifffile"}),
        ("planet_dist.cli", {"numpy", "pydantic", "torch", "rich", "webdataset"}),
        ("planet_dist.train", {"numpy", "torch", "accelerate", "webdataset", "wandb"}),
    ],
)
def test_help_answers_without_loading_what_only_work_needs(module: str, heavy: set[str]) -> None:
    code = (
        f"import sys\nfrom {module} import main\n"
        "main(['--help'], standalone_mode=False)\n"
        f"print('loaded:', *sorted({heavy!r} & set(sys.modules)))"
    )
    shown = python(code)
    assert shown[0].startswith("Usage:")
    assert shown[-1] == "loaded:"
