"""A build gives the same bytes however it is run, and bad input gives problems rather than a dataset."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from shards.build import BuildOptions, build, common_form
from shards.errors import ConfigError, DatasetError, InputError
from shards.labels import PLANET, Vocabulary
from shards.moments import counted_rows
from shards.reader import Dataset
from shards.schema import MANIFEST
from shards.sources import Record

CHIPS = 9
SMALL_SHARD = 10240  # three of these chips


def jpeg(seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> bytes:
    """A JPEG of noise, of `size` (height, width)."""
    height, width = size
    noise = np.random.default_rng(seed).bytes(height * width * len(mode))
    buffer = io.BytesIO()
    Image.frombytes(mode, (width, height), noise).save(buffer, "JPEG")
    return buffer.getvalue()


def tiff(pixels: np.ndarray) -> bytes:
    """An uncompressed TIFF of pixels (H, W) or (H, W, bands)."""
    buffer = io.BytesIO()
    planes = {"planarconfig": "contig"} if pixels.ndim == 3 else {}
    tifffile.imwrite(buffer, pixels, photometric="minisblack", **planes)
    return buffer.getvalue()


@pytest.fixture
def options(tmp_path: Path) -> BuildOptions:
    """Nine good chips, train_0 to train_8, in a build of several shards."""
    images = tmp_path / "chips"
    images.mkdir()
    rows = ["image_name,tags"]
    for number in range(CHIPS):
        (images / f"train_{number}.jpg").write_bytes(jpeg(number))
        rows.append(f"train_{number},clear {PLANET.labels[number % 4]}")
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(rows) + "\n")
    return BuildOptions(images, labels, tmp_path / "out", PLANET, shard_bytes=SMALL_SHARD)


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_dataset_holds_the_original_bytes_labels_and_exact_statistics(options: BuildOptions) -> None:
    report = build(options)
    dataset = Dataset(options.out)
    assert dataset.keys(range(CHIPS)) == [f"train_{number}" for number in range(CHIPS)]
    assert len(report.manifest.shards) > 2
    pixels = []
    for chip_id in range(CHIPS):
        original = options.images / f"train_{chip_id}.jpg"
        assert bytes(dataset.image(chip_id)) == original.read_bytes()
        pixels.append(np.asarray(Image.open(original).convert("RGB"), np.float64))
    stacked = np.stack(pixels)[:, counted_rows(pixels[0].shape[0])]
    assert report.manifest.mean == pytest.approx(stacked.mean(axis=(0, 1, 2)), rel=1e-8)
    assert report.manifest.std == pytest.approx(stacked.std(axis=(0, 1, 2)), rel=1e-8)
    bits = dataset.index()["labels"]
    assert [PLANET.names(int(b)) for b in bits[:2]] == [["agriculture", "clear"], ["artisinal_mine", "clear"]]
    matrix = PLANET.matrix(bits).astype(int)
    assert report.manifest.cooccurrence == (matrix.T @ matrix).tolist()
    assert report.manifest.label_counts == matrix.sum(0).tolist()


def test_tars_hold_plain_ustar_members_without_owner_or_time(options: BuildOptions) -> None:
    build(options)
    with tarfile.open(options.out / "chips-000000.tar") as tar:
        members = tar.getmembers()
        assert [member.name for member in members[:2]] == ["train_0.jpg", "train_0.cls"]
        for member in members:
            assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (0, 0, 0, "", 0o644)
        text = tar.extractfile(members[1])
        assert text and PLANET.names(int(text.read())) == ["agriculture", "clear"]
    assert (options.out / "chips-000000.tar").stat().st_size <= SMALL_SHARD


def test_two_worker_processes_write_the_bytes_that_one_writes(options: BuildOptions, tmp_path: Path) -> None:
    build(options)
    build(replace(options, workers=2, out=tmp_path / "parallel"))
    assert contents(tmp_path / "parallel") == contents(options.out)


def test_the_time_of_the_files_leaves_no_trace(options: BuildOptions, tmp_path: Path) -> None:
    build(options)
    for path in options.images.iterdir():
        os.utime(path, (1, 1))
    build(replace(options, out=tmp_path / "later"))
    assert contents(tmp_path / "later") == contents(options.out)


# Runs a build that kills itself at its n-th step on the disk; prints the number of steps when it ends.
KILLED_BUILD = """
import os, signal, sys
from pathlib import Path
from shards.build import BuildOptions, build
from shards.labels import PLANET

images, labels, out, shard_bytes, limit = sys.argv[1:]
steps = 0

def counted(function):
    def call(*arguments, **options):
        global steps
        steps += 1
        if steps == int(limit):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call

os.fsync, os.unlink, os.rmdir = counted(os.fsync), counted(os.unlink), counted(os.rmdir)
Path.rename = counted(Path.rename)
build(BuildOptions(Path(images), Path(labels), Path(out), PLANET, shard_bytes=int(shard_bytes)))
print(steps)
"""


def killed_build(options: BuildOptions, out: Path, limit: int) -> subprocess.CompletedProcess[str]:
    arguments = [str(options.images), str(options.labels), str(out), str(options.shard_bytes), str(limit)]
    return subprocess.run([sys.executable, "-c", KILLED_BUILD, *arguments], capture_output=True, text=True, check=False)


def test_a_build_killed_at_any_step_continues_to_the_same_bytes(options: BuildOptions, tmp_path: Path) -> None:
    whole = killed_build(options, options.out, limit=0)
    steps = int(whole.stdout)
    assert steps > 30
    for limit in [1, 2, *range(4, steps, steps // 8), steps - 2, steps]:
        out = tmp_path / f"killed-{limit}"
        assert killed_build(options, out, limit).returncode == -signal.SIGKILL
        if (out / ".build").exists():  # else it was killed after its end
            assert limit < steps
            build(replace(options, out=out))
        assert contents(out) == contents(options.out), f"killed at step {limit} of {steps}"


def test_a_killed_build_cannot_be_opened_and_finished_shards_are_not_packed_again(
    options: BuildOptions, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    assert killed_build(options, out, limit=30).returncode == -signal.SIGKILL
    with pytest.raises(DatasetError, match="run the same planet-shard build again"):
        Dataset(out)
    finished = {path.stem: path for path in (out / ".build").glob("chips-*.json")}
    assert finished
    before = {name: (out / f"{name}.tar").stat().st_ino for name in finished}
    assert build(replace(options, out=out)).reused_shards == len(finished)
    assert {name: (out / f"{name}.tar").stat().st_ino for name in finished} == before


@pytest.mark.parametrize("ending", ["tar", "idx"])
def test_a_finished_shard_that_was_damaged_is_packed_again(options: BuildOptions, tmp_path: Path, ending: str) -> None:
    build(options)
    out = tmp_path / "killed"
    killed_build(options, out, limit=30)
    damaged = out / f"chips-000000.{ending}"
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    build(replace(options, out=out))
    assert contents(out) == contents(options.out)


def test_a_build_whose_labels_changed_meanwhile_packs_anew(options: BuildOptions, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    killed_build(options, out, limit=30)
    assert options.labels
    options.labels.write_text(options.labels.read_text().replace("train_0,clear", "train_0,haze"))
    build(options)
    build(replace(options, out=out))
    assert contents(out) == contents(options.out)


def test_a_command_killed_with_its_workers_at_work_continues_to_the_same_bytes(tmp_path: Path) -> None:
    images = tmp_path / "chips"
    images.mkdir()
    for number in range(300):
        (images / f"a{number}.jpg").write_bytes(jpeg(number, (96, 96)))
    shape = ["--images", str(images), "--unlabelled", "--shard-bytes", "100kB", "--workers", "2"]
    command = [sys.executable, "-m", "shards.cli", "build", *shape, "--out"]
    victim = subprocess.Popen([*command, str(tmp_path / "killed")], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob("killed/.build/chips-*.json")) and time.monotonic() < deadline:
        time.sleep(0.002)
    victim.kill()
    victim.wait()
    assert not (tmp_path / "killed" / MANIFEST).exists()
    subprocess.run([*command, str(tmp_path / "killed")], check=True, capture_output=True)
    build(BuildOptions(images, None, tmp_path / "whole", PLANET, 1, shard_bytes=100_000, unlabelled=True))
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_four_component_jpegs_are_normal(options: BuildOptions) -> None:
    (options.images / "train_1.jpg").write_bytes(jpeg(0, mode="CMYK"))
    build(options)
    expected = np.asarray(Image.open(options.images / "train_1.jpg").convert("RGB"))
    np.testing.assert_array_equal(Dataset(options.out).pixels(1), expected)


BAD_IMAGES: dict[str, tuple[Callable[[], bytes], str]] = {
    "no bytes": (lambda: b"", "0 bytes"),
    "truncated": (lambda: jpeg(1)[:-200], ""),
    "no image": (lambda: b"hello, I am a text", "unknown bytes"),
    "a PNG by its bytes": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(50), "PNG"),
    "a TIFF by its bytes": (lambda: tiff(np.zeros((8, 8), np.uint8)), "a TIFF"),
    "another size": (lambda: jpeg(1, (8, 16)), "8x16"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_a_bad_image_stops_the_build_with_its_name_and_leaves_no_manifest(options: BuildOptions, case: str) -> None:
    make, value = BAD_IMAGES[case]
    (options.images / "train_4.jpg").write_bytes(make())
    with pytest.raises(InputError) as caught:
        build(options)
    (problem,) = caught.value.problems
    assert problem.file.endswith("train_4.jpg") and value in problem.value and problem.remedy
    assert not (options.out / MANIFEST).exists()


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_a_bad_image_is_left_out_and_listed_when_skipping(options: BuildOptions, case: str) -> None:
    make, _ = BAD_IMAGES[case]
    good = build(replace(options, out=options.out.with_name("good"))).manifest
    (options.images / "train_4.jpg").write_bytes(make().ljust(len(jpeg(4)), b"\0") if case != "no bytes" else b"")
    report = build(replace(options, on_bad="skip"))
    assert report.manifest.count == CHIPS - 1 == len(Dataset(options.out).index())
    assert report.manifest.sources.rejected == 1
    with (options.out / "rejected.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["file"].endswith("train_4.jpg") and list(row) == ["file", "row", "value", "rule", "remedy"]
    if case != "no bytes":
        assert report.manifest.shards[0] == good.shards[0]
        assert report.manifest.shards[-1] == good.shards[-1]


def test_problems_of_names_rows_and_pixels_are_reported_together(options: BuildOptions) -> None:
    (options.images / "train_4.jpg").write_bytes(b"")
    (options.images / "a.b.jpg").write_bytes(jpeg(1))
    assert options.labels
    with options.labels.open("a") as file:
        file.write("train_5,clear\ntrain_77,clear\n")
    with pytest.raises(InputError) as caught:
        build(options)
    assert len(caught.value.problems) == 4
    assert not options.out.exists()


def test_when_every_chip_is_bad_skipping_makes_no_dataset(options: BuildOptions) -> None:
    for path in options.images.iterdir():
        path.write_bytes(b"\xff\xd8\xff")
    with pytest.raises(InputError) as caught:
        build(replace(options, on_bad="skip"))
    assert len(caught.value.problems) == CHIPS
    assert not (options.out / MANIFEST).exists()


def test_a_build_stopped_by_a_bad_image_goes_on_when_it_is_left_out(options: BuildOptions, tmp_path: Path) -> None:
    (options.images / "train_4.jpg").write_bytes(b"")
    with pytest.raises(InputError):
        build(options)
    report = build(replace(options, on_bad="skip"))
    assert report.reused_shards == len(report.manifest.shards) - 1
    build(replace(options, on_bad="skip", out=tmp_path / "fresh"))
    assert contents(options.out) == contents(tmp_path / "fresh")


TIFF_DTYPES = ["uint8", "uint16", "int16", "float32"]


@pytest.mark.parametrize("dtype", TIFF_DTYPES)
def test_tiffs_of_any_dtype_get_their_bands_and_statistics(tmp_path: Path, dtype: str) -> None:
    images = tmp_path / "chips"
    images.mkdir()
    rng = np.random.default_rng(0)
    stack = rng.normal(100, 20, (5, 300, 4, 4)).astype(dtype)
    for number, pixels in enumerate(stack):
        (images / f"a{number}.tif").write_bytes(tiff(pixels))
    manifest = build(BuildOptions(images, None, tmp_path / "out", PLANET, unlabelled=True)).manifest
    assert (manifest.image.height, manifest.image.width, manifest.image.dtype) == (300, 4, dtype)
    assert manifest.image.band_order == ["blue", "green", "red", "near_infrared"]
    exact = stack[:, counted_rows(300)].astype(np.float64)
    assert manifest.mean == pytest.approx(exact.mean(axis=(0, 1, 2)), rel=1e-8)
    assert manifest.std == pytest.approx(exact.std(axis=(0, 1, 2)), rel=1e-7)
    dataset = Dataset(tmp_path / "out")
    assert (dataset.index()["pixels"] > 0).all()
    np.testing.assert_array_equal(dataset.pixels(3), stack[3])


@pytest.mark.parametrize(
    "odd",
    [np.zeros((8, 8, 3), np.uint16), np.zeros((8, 8, 4), np.uint8), np.zeros((9, 8, 4), np.uint16)],
    ids=["bands", "dtype", "size"],
)
def test_a_chip_of_another_form_is_a_problem_that_names_both_forms(tmp_path: Path, odd: np.ndarray) -> None:
    images = tmp_path / "chips"
    images.mkdir()
    for number in range(3):
        (images / f"a{number}.tif").write_bytes(tiff(np.zeros((8, 8, 4), np.uint16)))
    (images / "a0.tif").write_bytes(tiff(odd))
    with pytest.raises(InputError) as caught:
        build(BuildOptions(images, None, tmp_path / "out", PLANET, unlabelled=True))
    (problem,) = caught.value.problems
    assert problem.file.endswith("a0.tif") and "8x8, 4 bands, uint16" in problem.rule


def test_floats_that_are_no_numbers_are_a_problem(tmp_path: Path) -> None:
    images = tmp_path / "chips"
    images.mkdir()
    (images / "a.tif").write_bytes(tiff(np.full((8, 8, 2), np.nan, np.float32)))
    with pytest.raises(InputError, match="finite numbers"):
        build(BuildOptions(images, None, tmp_path / "out", PLANET, unlabelled=True))


def test_the_common_form_is_that_of_most_chips_not_of_the_first(tmp_path: Path) -> None:
    records = []
    for number in range(5):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(b"bad" if number == 0 else jpeg(0, (8, 8) if number == 1 else (16, 8)))
        records.append(Record(str(number), str(path), path.stat().st_size, 0, None))
    form = common_form(records, "jpg")
    assert form and (form.height, form.width) == (16, 8)
    assert common_form(records[:1], "jpg") is None


def test_labels_of_another_vocabulary_are_packed_in_its_order(options: BuildOptions) -> None:
    assert options.labels
    names = tuple(f"label_{number}" for number in range(64))
    rows = [f"train_{number},label_63 label_{number}" for number in range(CHIPS)]
    options.labels.write_text("image_name,tags\n" + "\n".join(rows) + "\n")
    manifest = build(replace(options, vocabulary=Vocabulary(names))).manifest
    assert manifest.label_counts[63] == CHIPS and manifest.label_counts[:2] == [1, 1]
    assert int(Dataset(options.out).index()["labels"][1]) == 1 << 63 | 2


def test_without_labels_a_build_must_be_told_so(options: BuildOptions) -> None:
    with pytest.raises(ConfigError, match="--unlabelled"):
        build(replace(options, labels=None))


def test_a_band_order_of_another_length_is_refused(options: BuildOptions) -> None:
    with pytest.raises(ConfigError, match="names 2 bands, the images have 3"):
        build(replace(options, band_order=("red", "green")))


def test_a_folder_with_a_finished_dataset_is_left_as_it_is(options: BuildOptions) -> None:
    build(options)
    before = contents(options.out)
    with pytest.raises(DatasetError, match="already holds a finished dataset"):
        build(options)
    assert contents(options.out) == before


def test_a_folder_that_holds_anything_else_is_refused(options: BuildOptions) -> None:
    options.out.mkdir()
    (options.out / "thesis.tex").write_text("precious")
    with pytest.raises(DatasetError, match=r"thesis\.tex"):
        build(options)


def test_an_unfinished_build_of_other_images_is_refused(options: BuildOptions, tmp_path: Path) -> None:
    killed_build(options, options.out, limit=30)
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "train_0.jpg").write_bytes(jpeg(0))
    with pytest.raises(DatasetError, match="unfinished build of other sources"):
        build(replace(options, images=tmp_path / "others"))


def test_two_builds_into_one_folder_do_not_mix(options: BuildOptions) -> None:
    from shards.unfinished import open_workplace

    with (
        open_workplace(options.out, options.images, options.labels),
        pytest.raises(DatasetError, match="another planet-shard build"),
    ):
        build(options)


def test_a_full_disk_names_the_file_and_the_space_and_the_build_continues(options: BuildOptions) -> None:
    # A limit on the size of a file fails a write as a full disk does.
    code = "import resource, signal; resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n" + KILLED_BUILD
    arguments = [str(options.images), str(options.labels), str(options.out), str(SMALL_SHARD), "0"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert "chips-000000.tar" in done.stderr and "MiB in all" in done.stderr and "DatasetError" in done.stderr
    assert not (options.out / MANIFEST).exists()
    assert build(options).manifest.count == CHIPS


def test_too_little_free_space_is_said_before_anything_is_packed(
    options: BuildOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shards.build.shutil.disk_usage", lambda path: usage)
    with pytest.raises(DatasetError, match=r"0\.0 MiB free"):
        build(options)
    assert not list(options.out.glob("*.tar"))


def test_a_folder_that_cannot_be_made_is_named(options: BuildOptions) -> None:
    with pytest.raises(DatasetError, match="/proc/out"):
        build(replace(options, out=Path("/proc/out")))


def test_missing_images_and_labels_are_named(options: BuildOptions, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        build(replace(options, images=tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"nothing\.csv"):
        build(replace(options, labels=tmp_path / "nothing.csv"))
