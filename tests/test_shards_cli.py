"""planet-shard as it's typed: output, exit status, and messages without tracebacks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from shards.cli import ByteSize, main
from shards.labels import PLANET
from tests.conftest import HEARS_CTRL_C

Run = Callable[..., Result]


@pytest.fixture
def chips(tmp_path: Path) -> Path:
    """A folder of three chips beside labels.csv, of which one row breaks a rule and one repeats a tag."""
    images = tmp_path / "chips"
    images.mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).bytes(8 * 8 * 3)
        Image.frombytes("RGB", (8, 8), noise).save(images / f"train_{number}.jpg")
    (images / "readme.md").write_text("hello")
    rows = ["image_name,tags", "train_0,clear primary primary", "train_1,cloudy road", "train_2,haze"]
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    return images


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "120")
    return lambda *arguments: CliRunner().invoke(main, [str(argument) for argument in arguments])


def build_arguments(chips: Path, *more: str) -> list[str]:
    labels, out = chips.parent / "labels.csv", chips.parent / "out"
    return ["build", "--images", str(chips), "--labels", str(labels), "--out", str(out), "--workers", "1", *more]


def test_build_says_what_it_packed_and_what_it_noticed(run: Run, chips: Path) -> None:
    result = run(*build_arguments(chips))
    assert result.exit_code == 0, result.stderr
    assert "3 chips (8x8, 3 bands, uint8) in 1 shard(s)" in result.stdout
    assert "repeated tags: 1 row(s)" in result.stdout
    assert "not images, left alone: 1 file(s): readme.md" in result.stdout
    assert "cloudy beside other labels: 1 chip(s)" in result.stdout


def test_progress_without_a_terminal_is_plain_lines(run: Run, chips: Path) -> None:
    result = run(*build_arguments(chips))
    assert "packing: 3 of 3 images" in result.stderr
    assert "\r" not in result.stderr and "\x1b" not in result.stderr


def test_bad_input_exits_with_1_and_every_problem_without_a_traceback(run: Run, chips: Path) -> None:
    (chips / "train_1.jpg").write_bytes(b"")
    (chips / "train_9.jpg").write_bytes(b"x")
    result = run(*build_arguments(chips))
    assert result.exit_code == 1
    assert "train_1.jpg: 0 bytes" in result.stderr and "train_9.jpg: no row" in result.stderr
    assert result.stderr.count("remedy:") == 2 and "Traceback" not in result.stderr
    assert not (chips.parent / "out" / "manifest.json").exists()


def test_skipping_says_how_many_were_left_out_and_why(run: Run, chips: Path) -> None:
    (chips / "train_1.jpg").write_bytes(b"")
    result = run(*build_arguments(chips, "--on-bad", "skip"))
    assert result.exit_code == 0, result.stderr
    assert "left out: 1 chip(s) and row(s)" in result.stdout
    assert "1 against the rule: an image file holds bytes" in result.stdout
    assert (chips.parent / "out" / "rejected.csv").is_file()


def test_strict_makes_a_breach_of_a_rule_a_problem(run: Run, chips: Path) -> None:
    result = run(*build_arguments(chips, "--strict"))
    assert result.exit_code == 1
    assert "labels.csv:3: train_1: cloudy road" in result.stderr


def test_a_vocabulary_file_replaces_planets_labels(run: Run, chips: Path) -> None:
    vocabulary = chips.parent / "vocabulary.toml"
    vocabulary.write_text('labels = ["clear", "primary", "cloudy", "road", "haze"]\nalone = ["haze"]\n')
    result = run(*build_arguments(chips, "--vocabulary", str(vocabulary)))
    assert result.exit_code == 0, result.stderr
    table = json.loads(run("info", chips.parent / "out", "--json").stdout)
    assert table["labels"] == ["clear", "primary", "cloudy", "road", "haze"] and table["alone"] == ["haze"]
    assert "label rule" not in result.stdout


def test_info_as_json_is_the_manifest(run: Run, chips: Path) -> None:
    run(*build_arguments(chips))
    result = run("info", chips.parent / "out", "--json")
    assert result.stdout == (chips.parent / "out" / "manifest.json").read_text()


def test_info_shows_counts_labels_bands_and_breaches(run: Run, chips: Path) -> None:
    run(*build_arguments(chips))
    result = run("info", chips.parent / "out")
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["primary", "1", "33.33%"] in lines
    assert {"red", "green", "blue"} <= {line[0] for line in lines if line}
    assert "cloudy beside other labels: 1 chips" in result.stdout
    assert set(PLANET.labels) <= {line[0] for line in lines if line}


def test_verify_passes_a_sound_dataset_and_names_what_is_wrong_with_another(run: Run, chips: Path) -> None:
    out = chips.parent / "out"
    run(*build_arguments(chips))
    result = run("verify", out, "--workers", "1")
    assert result.exit_code == 0 and "3 chips, all sound" in result.stdout
    data = bytearray((out / "chips-000000.tar").read_bytes())
    data[600] ^= 1
    (out / "chips-000000.tar").write_bytes(data)
    result = run("verify", out, "--workers", "1")
    assert result.exit_code == 1 and "chip 'train_0'" in result.stderr and "problem(s)" in result.stderr


@pytest.mark.parametrize("command", ["verify", "info"])
def test_a_folder_that_is_no_dataset_is_an_error_with_a_remedy(run: Run, tmp_path: Path, command: str) -> None:
    result = run(command, tmp_path)
    assert result.exit_code == 1 and "planet-shard build" in result.stderr
    result = run(command, tmp_path / "nowhere")
    assert result.exit_code == 1 and "no such folder" in result.stderr


def test_synth_draws_a_folder_that_build_packs(run: Run, tmp_path: Path) -> None:
    result = run("synth", "--out", tmp_path / "made", "--count", 2, "--kind", "jpg", "--seed", 3)
    assert result.exit_code == 0, result.stderr
    images, labels = tmp_path / "made" / "train-jpg", tmp_path / "made" / "train.csv"
    arguments = ["--images", images, "--labels", labels, "--out", tmp_path / "out", "--workers", 1]
    result = run("build", *arguments, "--strict")
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize(
    ("text", "size"),
    [("64MiB", 64 << 20), ("10MB", 10**7), ("10 kib", 10240), ("1.5g", 1_500_000_000), ("77", 77)],
)
def test_sizes_take_units(text: str, size: int) -> None:
    assert ByteSize().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "big", "-1", "0", "1 parsec", "nanMB", "infMB", "mi"])
def test_sizes_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="64MiB"):
        ByteSize().convert(text, None, None)


def test_help_imports_nothing_that_takes_long() -> None:
    code = (
        "import sys; from shards.cli import main\n"
        "try: main(['build', '--help'])\n"
        "except SystemExit: pass\n"
        "slow = {'numpy', 'pydantic', 'rich', 'torch', 'tifffile', 'simplejpeg'} & set(sys.modules)\n"
        "print(slow, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "set()" and "--shard-bytes" in done.stdout


def test_ctrl_c_exits_with_130_and_says_that_the_build_can_be_continued(tmp_path: Path) -> None:
    images = tmp_path / "chips"
    images.mkdir()
    noise = np.random.default_rng(0).bytes(256 * 256 * 3)
    Image.frombytes("RGB", (256, 256), noise).save(images / "a.jpg")
    for number in range(3000):
        os.link(images / "a.jpg", images / f"a{number}.jpg")
    arguments = ["--images", str(images), "--unlabelled", "--out", str(tmp_path / "out"), "--workers", "1"]
    command = [sys.executable, "-m", "shards.cli", "build", *arguments]
    build = subprocess.Popen([*HEARS_CTRL_C, *command], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 20
    while not (tmp_path / "out" / ".build" / "chips-000000.tar").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    build.send_signal(signal.SIGINT)
    _, message = build.communicate(timeout=20)
    assert build.returncode == 130, message
    assert "run the same command again" in message and "Traceback" not in message
