"""Random damage to a dataset, and what reading and checking it come to."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
from PIL import Image

from shards.build import BuildOptions, build
from shards.errors import PlanetError
from shards.labels import PLANET
from shards.reader import Dataset
from shards.schema import index_bytes, sealed
from shards.verify import verify

CHIPS = 12


def make_dataset(folder: Path, kind: Literal["jpg", "tif"]) -> Path:
    """Twelve chips in several shards; one TIFF is compressed, one chip has no labels."""
    images = folder / f"chips-{kind}"
    images.mkdir(parents=True)
    rows = ["image_name,tags"]
    for number in range(CHIPS):
        rng = np.random.default_rng(number)
        if kind == "jpg":
            Image.frombytes("CMYK", (8, 8), rng.bytes(256)).save(images / f"train_{number}.jpg")
        else:
            pixels = rng.integers(0, 13200, (8, 8, 4)).astype(np.uint16)
            compression = "zlib" if number == 3 else None
            tifffile.imwrite(
                images / f"train_{number}.tif",
                pixels,
                photometric="minisblack",
                planarconfig="contig",
                compression=compression,
            )
        if number:
            rows.append(f"train_{number},clear {PLANET.labels[number % 3]}")
    labels = folder / f"{kind}.csv"
    labels.write_text("\n".join(rows) + "\n")
    out = folder / kind
    build(BuildOptions(images, labels, out, PLANET, shard_bytes=10240 if kind == "jpg" else 20480, unlabelled=True))
    return out


def content(root: Path) -> str:
    """A digest of all that training reads of a dataset: chips, names, labels and what the manifest says of them."""
    found = Dataset(root)
    index = found.index()
    digest = hashlib.sha256(index[["key", "labels", "labelled"]].tobytes())
    for chip_id in range(len(found)):
        digest.update(np.ascontiguousarray(found.pixels(chip_id)).tobytes())
    digest.update(repr(found.manifest.model_dump(exclude={"shards"})).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Outcome:
    """What a damaged dataset came to.

    Attributes:
        mutation: what was done to it.
        changed: whether any byte of it changed.
        read: "same", "other" or "refused".
        checked: "sound" or "found".
        text: what was said.
    """

    mutation: str
    changed: bool
    read: Literal["same", "other", "refused"]
    checked: Literal["sound", "found"]
    text: str

    def fault(self) -> str | None:
        """What is wrong with the outcome, None for a good one: nothing passes that the other one finds."""
        if self.read == "other":
            return "training would read something else, in silence"
        if self.read == "refused" and self.checked == "sound":
            return "reading refuses what the check takes for sound"
        if self.changed and self.checked == "sound":
            return "the check takes changed files for sound"
        return None


def judge(root: Path, mutation: str, expected: str, before: dict[str, object]) -> Outcome:
    """Reads and checks a dataset. Anything but a PlanetError is a defect, and comes through."""
    try:
        found = content(root)
        read: Literal["same", "other", "refused"] = "same" if found == expected else "other"
        text = ""
    except PlanetError as error:
        read, text = "refused", str(error)
    try:
        problems = verify(root).problems
        text += "\n".join(map(str, problems))
    except PlanetError as error:
        problems, text = [error], f"{text}\n{error}"  # type: ignore[list-item]
    return Outcome(mutation, fingerprint(root) != before, read, "found" if problems else "sound", text)


def fingerprint(root: Path) -> dict[str, object]:
    """The bytes of small files by name; of others what tells them apart without reading them."""
    found: dict[str, object] = {}
    for path in root.iterdir():
        status = path.lstat()
        small = path.is_file() and status.st_size < 2**24
        found[path.name] = path.read_bytes() if small else (status.st_mode, status.st_size)
    return found


Damage = Callable[[Path, np.random.Generator], str]


def _some(root: Path, rng: np.random.Generator, pattern: str = "*") -> Path:
    return root / str(rng.choice(sorted(path.name for path in root.glob(pattern))))


def _two(root: Path, rng: np.random.Generator, pattern: str = "*") -> tuple[Path, Path]:
    one, other = rng.choice(sorted(path.name for path in root.glob(pattern)), 2, replace=False)
    return root / str(one), root / str(other)


def _rewrite(root: Path, rng: np.random.Generator, change: Callable[[bytearray, int, int], None]) -> str:
    path = _some(root, rng)
    data = bytearray(path.read_bytes())
    start = int(rng.integers(len(data)))
    length = int(min(rng.integers(1, 600), len(data) - start))
    change(data, start, length)
    path.write_bytes(data)
    return f"{path.name}, {length} bytes from {start}"


def flip_bits(root: Path, rng: np.random.Generator) -> str:
    path = _some(root, rng)
    data = bytearray(path.read_bytes())
    places = rng.integers(len(data), size=rng.integers(1, 4)).tolist()
    for place in places:
        data[place] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)
    return f"{path.name} at {places}"


def overwrite(root: Path, rng: np.random.Generator) -> str:
    return _rewrite(root, rng, lambda data, at, length: data.__setitem__(slice(at, at + length), rng.bytes(length)))


def blank(root: Path, rng: np.random.Generator) -> str:
    return _rewrite(root, rng, lambda data, at, length: data.__setitem__(slice(at, at + length), bytes(length)))


def cut_out(root: Path, rng: np.random.Generator) -> str:
    return _rewrite(root, rng, lambda data, at, length: data.__delitem__(slice(at, at + length)))


def repeat(root: Path, rng: np.random.Generator) -> str:
    return _rewrite(root, rng, lambda data, at, length: data.__setitem__(slice(at, at), data[at : at + length]))


def truncate(root: Path, rng: np.random.Generator) -> str:
    path = _some(root, rng)
    length = int(rng.choice([0, 1, int(rng.integers(path.stat().st_size))]))
    os.truncate(path, length)
    return f"{path.name} to {length}"


def swell(root: Path, rng: np.random.Generator) -> str:
    path = _some(root, rng)
    length = int(rng.choice([path.stat().st_size + 1, 2**27, 2**40]))
    os.truncate(path, length)
    return f"{path.name} to {length}"


def remove(root: Path, rng: np.random.Generator) -> str:
    path = _some(root, rng)
    path.unlink()
    return path.name


def swap(root: Path, rng: np.random.Generator) -> str:
    pattern = str(rng.choice(["*.tar", "*.idx"]))
    one, other = _two(root, rng, pattern)
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    return f"{one.name} with {other.name}"


def put_in_place(root: Path, rng: np.random.Generator) -> str:
    one, other = _two(root, rng)
    other.write_bytes(one.read_bytes())
    return f"{one.name} in place of {other.name}"


def make_strange(root: Path, rng: np.random.Generator) -> str:
    path = _some(root, rng)
    kind = str(rng.choice(["folder", "pipe", "loop", "dangling link", "terminal"]))
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"loop": path.name, "dangling link": "/no/such/file", "terminal": "/dev/zero"}[kind])
    return f"a {kind} in place of {path.name}"


def add_a_stranger(root: Path, rng: np.random.Generator) -> str:
    name = str(rng.choice(["chips-999999.tar", "chips-0.idx", "notes.txt"]))
    (root / name).write_bytes(rng.bytes(100))
    return name


ABSURD: list[Any] = [0, -1, 1, 2**31, 2**53, 2**63, 2**64, 10**30, 0.5, 1e308, "", "x", "../../etc/passwd", None, True]
ABSURD += [[], {}, [[]], "0" * 64, "tif", "jpg", "float32", "\u202e", "a" * 10**5]


def _edit(table: Any, rng: np.random.Generator) -> str:
    """Changes one thing in a JSON table: a value for an absurd or a similar one, or an entry gone, doubled, moved."""
    node, at = table, []
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = keys[int(rng.integers(len(keys)))]
        at.append(str(key))
        if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.9:
            node = node[key]
            continue
        return f"{'.'.join(at)}: {_change(node, key, rng)}"


def _change(node: Any, key: Any, rng: np.random.Generator) -> str:
    how = str(rng.choice(["absurd", "absurd", "similar", "gone", "moved"]))
    value = node[key]
    if how == "similar" and isinstance(value, int | float):
        node[key] = value + int(rng.choice([-1, 1]))
    elif how == "similar" and isinstance(value, str) and value:
        node[key] = value[:-1] + ("0" if value[-1] != "0" else "1")
    elif how == "gone":
        del node[key]
    elif how == "moved" and isinstance(node, list):
        node.insert(int(rng.integers(len(node))), node[key])
    else:
        node[key] = ABSURD[int(rng.integers(len(ABSURD)))]
        return f"{how} {str(node[key])[:40]!r}"
    return how


def edit_manifest(root: Path, rng: np.random.Generator) -> str:
    path = root / "manifest.json"
    table = json.loads(path.read_bytes())
    done = _edit(table, rng)
    path.write_bytes((json.dumps(table, indent=1, ensure_ascii=False) + "\n").encode())
    return done


ACCIDENTS: list[Damage] = [
    *(flip_bits, overwrite, blank, cut_out, repeat, truncate, swell, remove, swap, put_in_place),
    *(make_strange, add_a_stranger, edit_manifest),
]


def forge_manifest(root: Path, rng: np.random.Generator) -> str:
    """As somebody would who knows of the seal."""
    path = root / "manifest.json"
    table = json.loads(path.read_bytes())
    done = _edit(table, rng)
    path.write_bytes(sealed(table))
    return done


def forge_index(root: Path, rng: np.random.Generator) -> str:
    """Changes an index's records, and lets the manifest's digest and seal follow."""
    table = json.loads((root / "manifest.json").read_bytes())
    number = int(rng.integers(len(table["shards"])))
    index = np.load(io.BytesIO((root / f"{table['shards'][number]['name']}.idx").read_bytes()))
    name = str(rng.choice(["key", "offset", "size", "pixels", "labels", "labelled", "digest"]))
    row = int(rng.integers(len(index)))
    absurd = {
        "key": [b"../../evil", b"", b"train_1", b"\xff\xfe", b"__x", b"a.b"],
        "labelled": [True, False],
        "digest": [np.zeros(16, np.uint8)],
    }.get(name, [0, 1, 511, 512, 2**31, 2**63, 2**64 - 1, int(rng.integers(20000))])
    value = absurd[int(rng.integers(len(absurd)))]
    return set_in_index(root, number, name, row, value)


def set_in_index(root: Path, number: int, name: str, row: int, value: object) -> str:
    """Sets a field of a record of a shard's index, with digests that follow."""
    table = json.loads((root / "manifest.json").read_bytes())
    path = root / f"{table['shards'][number]['name']}.idx"
    index = np.load(io.BytesIO(path.read_bytes()))
    index[name][row] = value
    return f"{path.name}, {name} of {row}: {value!r} " + _own_up(root, table, number, index_bytes(index), "idx")


def forge_index_header(root: Path, rng: np.random.Generator) -> str:
    """An index whose header claims what its bytes don't hold."""
    table = json.loads((root / "manifest.json").read_bytes())
    number = int(rng.integers(len(table["shards"])))
    path = root / f"{table['shards'][number]['name']}.idx"
    data = path.read_bytes()
    count = table["shards"][number]["count"]
    claimed = int(rng.choice([0, count + 1, 10**6, 10**9, 10**12, 10**18]))
    table["shards"][number]["count"] = claimed
    table["count"] += claimed - count
    data = data.replace(f"({count},)".encode(), f"({claimed},)".encode())
    return f"{path.name} claims {claimed} chips " + _own_up(root, table, number, data, "idx")


def forge_tar(root: Path, rng: np.random.Generator) -> str:
    """A tar whose changed bytes its sha256 knows of; the indexes' digests of chips do not."""
    table = json.loads((root / "manifest.json").read_bytes())
    number = int(rng.integers(len(table["shards"])))
    path = root / f"{table['shards'][number]['name']}.tar"
    data = bytearray(path.read_bytes())
    at = int(rng.integers(len(data)))
    data[at] ^= 0xFF
    return f"{path.name} at {at} " + _own_up(root, table, number, bytes(data), "tar")


def _own_up(root: Path, table: Any, number: int, data: bytes, ending: str) -> str:
    shard = table["shards"][number]
    (root / f"{shard['name']}.{ending}").write_bytes(data)
    shard["sha256" if ending == "tar" else "index_sha256"] = hashlib.sha256(data).hexdigest()
    (root / "manifest.json").write_bytes(sealed(table))
    return "with digests that follow"


FORGERIES: list[Damage] = [forge_manifest, forge_manifest, forge_index, forge_index_header, forge_tar]


def damaged(sound: Path, work: Path, damage: Damage, seed: int) -> str:
    """Copies a dataset and damages the copy; says how."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(sound, work)
    return f"{damage.__name__}: {damage(work, np.random.default_rng(seed))} (seed {seed})"
