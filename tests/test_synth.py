"""Made chips on disk."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from shards import synth
from shards.errors import ConfigError
from shards.labels import PLANET
from shards.pixels import decode, decode_tiff
from shards.synth import write_chips
from shards.synth_scene import draw_chip


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_layout_is_that_of_the_competition(tmp_path: Path) -> None:
    write_chips(tmp_path / "out", 3, "both", seed=1, size=48, workers=1)
    assert sorted(digests(tmp_path / "out")) == [
        *(f"train-jpg/train_{i}.jpg" for i in range(3)),
        *(f"train-tif/train_{i}.tif" for i in range(3)),
        "train.csv",
    ]
    with (tmp_path / "out" / "train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image_name"] for row in rows] == ["train_0", "train_1", "train_2"]
    for index, row in enumerate(rows):
        assert tuple(row["tags"].split(" ")) == draw_chip(1, index, 48).labels
        assert PLANET.breaches(PLANET.mask(row["tags"].split(" "))) == []


@pytest.mark.parametrize("kind", ["jpg", "tif"])
def test_one_kind_writes_only_that_folder(tmp_path: Path, kind: synth.Kind) -> None:
    write_chips(tmp_path / "out", 1, kind, seed=0, size=32, workers=1)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"train-{kind}", "train.csv"]


def test_jpegs_have_three_components_and_show_the_drawn_colours(tmp_path: Path) -> None:
    write_chips(tmp_path / "out", 1, "jpg", seed=2, size=64, workers=1)
    data = (tmp_path / "out" / "train-jpg" / "train_0.jpg").read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        assert (image.mode, image.size) == ("RGB", (64, 64))
    error = decode(data, "jpg").astype(float) - draw_chip(2, 0, 64).rgb_HWC
    assert np.abs(error).mean() < 6


def test_tiffs_hold_the_bands_uncompressed_and_interleaved(tmp_path: Path) -> None:
    write_chips(tmp_path / "out", 1, "tif", seed=2, size=64, workers=1)
    data = (tmp_path / "out" / "train-tif" / "train_0.tif").read_bytes()
    pixels, offset = decode_tiff(data)
    assert offset > 0
    assert np.array_equal(pixels, draw_chip(2, 0, 64).bands_HWB)
    with tifffile.TiffFile(io.BytesIO(data)) as tif:
        assert tif.byteorder == "<"
        assert tif.pages.first.compression == 1
        assert "DateTime" not in tif.pages.first.tags


def test_the_same_bytes_for_any_count_and_number_of_workers(tmp_path: Path) -> None:
    write_chips(tmp_path / "one", 20, "both", seed=3, size=32, workers=1)
    write_chips(tmp_path / "two", 35, "both", seed=3, size=32, workers=2)
    one, two = digests(tmp_path / "one"), digests(tmp_path / "two")
    assert {name: two[name] for name in one if name != "train.csv"} == {
        name: digest for name, digest in one.items() if name != "train.csv"
    }
    first, second = ((tmp_path / name / "train.csv").read_text().splitlines() for name in ("one", "two"))
    assert second[: len(first)] == first
    assert len(second) == 36


def test_jpegs_do_not_depend_on_the_kinds_beside_them(tmp_path: Path) -> None:
    write_chips(tmp_path / "jpg", 2, "jpg", seed=3, size=32, workers=1)
    write_chips(tmp_path / "both", 2, "both", seed=3, size=32, workers=1)
    both = digests(tmp_path / "both")
    assert all(both[name] == digest for name, digest in digests(tmp_path / "jpg").items())


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_counts_up_to_the_number_of_chips(tmp_path: Path, workers: int) -> None:
    seen: list[int] = []
    write_chips(tmp_path / "out", 40, "jpg", seed=0, size=32, workers=workers, progress=seen.append)
    assert seen == sorted(set(seen))
    assert seen[-1] == 40
    assert len(seen) > 1


def test_an_empty_folder_is_filled_and_one_with_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_chips(tmp_path / "empty", 1, "jpg", seed=0, size=32, workers=1)
    before = digests(tmp_path / "empty")
    with pytest.raises(ConfigError, match=r"empty: exists and is not an empty folder.*give another folder"):
        write_chips(tmp_path / "empty", 2, "jpg", seed=1, size=32, workers=1)
    assert digests(tmp_path / "empty") == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"count": 0}, "count 0"),
        ({"kind": "png"}, "kind 'png': .* jpg, tif, both"),
        ({"seed": -1}, "seed -1"),
        ({"size": 31}, "size 31: .* 32 to 4096"),
        ({"workers": 0}, "workers 0"),
    ],
)
def test_an_argument_out_of_range_is_named_with_its_rule(
    tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    arguments = {"count": 1, "kind": "jpg", "seed": 0, "size": 32, "workers": 1} | changed
    with pytest.raises(ConfigError, match=message):
        write_chips(tmp_path / "out", **arguments)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_an_error_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_chips(tmp_path / "file" / "out", 1, "jpg", seed=0, size=32, workers=1)


def test_nothing_is_left_behind_when_drawing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_chip: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(synth, "encode_jpeg", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        write_chips(tmp_path / "out", 2, "jpg", seed=0, size=32, workers=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_nothing_is_left_behind_when_it_is_interrupted(tmp_path: Path, workers: int) -> None:
    def interrupt(_done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_chips(tmp_path / "out", 64, "jpg", seed=0, size=32, workers=workers, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_the_current_folder_can_be_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_chips(Path(), 1, "tif", seed=0, size=32, workers=1)
    assert sorted(digests(tmp_path)) == ["train-tif/train_0.tif", "train.csv"]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_workers_die_with_a_killed_parent(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from shards.synth import write_chips\n"
        "if __name__ == '__main__':\n"
        "    write_chips(Path(sys.argv[1]), 100000, 'jpg', 0, 64, 2, lambda done: print(done, flush=True))\n"
    )
    program = tmp_path / "draw.py"
    program.write_text(script)
    with subprocess.Popen([sys.executable, str(program), str(tmp_path / "out")], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        assert len(children) >= 2
        parent.kill()
    deadline = time.monotonic() + 10
    workers = [pid for pid in children if running(pid)]
    while workers and time.monotonic() < deadline:
        time.sleep(0.02)
        workers = [pid for pid in workers if running(pid)]
    for pid in workers:
        os.kill(int(pid), signal.SIGKILL)
    assert workers == []
    assert not (tmp_path / "out").exists()


def running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False
