"""The files of a bundle, written whole and read with every change noticed.

bundle/
    model.safetensors   weights and buffers; model-0.safetensors, model-1.safetensors ... of an ensemble
    MODEL_CARD.md       what it is, for people (bundle_card)
    bundle.json         labels, members (network, input, statistics, thresholds, digest), rules, scores, the card's
                        digest, and last a seal: the sha256 of all before it (shards.schema.sealed)
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load

from planet_dist.bundle_card import model_card
from planet_dist.bundle_description import FORMAT, VERSION, Description
from shards.errors import RunError
from shards.schema import sealed, sync_folder, write_whole

DESCRIPTION: Final = "bundle.json"
CARD: Final = "MODEL_CARD.md"
_EXCHANGE, _HERE = 2, -100  # renameat2's RENAME_EXCHANGE, and AT_FDCWD

Tensors = dict[str, torch.Tensor]


def file_sha256(path: Path) -> str:
    """A file's digest in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_bundle(folder: Path, bundle: Description, weights: Sequence[Path]) -> None:
    """Writes a bundle aside, flushes it, and renames it into place.

    A bundle that stands there already is exchanged for the new one in a single step where the file system can do so
    (Linux: ext4, XFS, Btrfs, tmpfs, overlays). Elsewhere (NFS) there is none for the moment between two renames; a
    machine that dies just then leaves both whole, as .NAME.old and .NAME.tmp. A reader that has opened the old one
    meanwhile may find its files gone, and is told so; it never gets the description of one with the weights of the
    other, whose digest would not agree.

    Args:
        weights: a safetensors file for each member, to copy.

    Raises:
        RunError: it cannot be written, or a file has not the digest that its member states.
    """
    aside = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for member, path in zip(bundle.members, weights, strict=True):
            shutil.copyfile(path, aside / member.weights)
            with (aside / member.weights).open("rb") as file:
                os.fsync(file.fileno())
            if file_sha256(aside / member.weights) != member.sha256:
                raise RunError(f"{path}: changed while the bundle was written; write it again")
        card = model_card(bundle).encode()
        write_whole(aside / CARD, card)
        table = bundle.model_dump(mode="json") | {"card_sha256": hashlib.sha256(card).hexdigest()}
        write_whole(aside / DESCRIPTION, sealed(table))
        _put_in_place(aside, folder)
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error}); free some space or give another folder") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _put_in_place(aside: Path, folder: Path) -> None:
    """Renames `aside` to `folder`; an older folder is gone afterwards."""
    if not folder.exists():
        aside.rename(folder)
    elif not _exchange(aside, folder):
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        aside.rename(folder)
        shutil.rmtree(old)
    sync_folder(folder.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Exchanges two folders in one step; False, and nothing done, where the system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    done: int = rename(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE)
    return done == 0


def load_bundle(folder: Path) -> tuple[Description, list[Tensors]]:
    """Reads a bundle's description and its members' weights.

    Raises:
        RunError: it's missing, damaged, changed since it was written, or of another version.
    """
    bundle = read_description(folder)
    return bundle, [_read_weights(folder / member.weights, member.sha256) for member in bundle.members]


def read_description(folder: Path) -> Description:
    """Reads what a bundle says of itself, and leaves its weights alone; errors as for load_bundle."""
    path = folder / DESCRIPTION
    try:
        data = path.read_bytes()
        table = json.loads(data)
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: {error}; give RUN/bundle of a finished run") from error
    if not isinstance(table, dict) or table.get("format") != FORMAT:
        raise RunError(f"{path}: not a bundle (its format is not {FORMAT!r}); give RUN/bundle of a finished run")
    if table.get("version") != VERSION:
        raise RunError(
            f"{path}: bundle version {table.get('version')!r}; this program reads version {VERSION}; "
            "use the release that wrote it"
        )
    if sealed(table) != data:
        raise _changed(path)
    described = {key: value for key, value in table.items() if key not in ("seal", "card_sha256")}
    try:
        bundle = Description.model_validate_json(json.dumps(described))
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(part) for part in first["loc"]) or "bundle"
        raise RunError(f"{path}: {at}: {first['msg']} ({error.error_count()} fault(s) in all)") from error
    _read_digested(folder / CARD, str(table.get("card_sha256")))
    return bundle


def _changed(path: Path) -> RunError:
    return RunError(f"{path}: changed since the bundle was written; copy the bundle again")


def _read_digested(path: Path, sha256: str) -> bytes:
    """A file's bytes: those that were digested are those that are used."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error}); copy the bundle again") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise _changed(path)
    return data


def _read_weights(path: Path, sha256: str) -> Tensors:
    try:
        return load(_read_digested(path, sha256))
    except SafetensorError as error:
        raise RunError(f"{path}: cannot be read ({error}); copy the bundle again") from error
