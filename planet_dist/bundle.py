"""The bundle: one folder with all that inference needs, and nothing that executes when it is read.

bundle/
    model.safetensors   weights and buffers; model-0.safetensors, model-1.safetensors ... of an ensemble
    bundle.json         labels, members (network, input, statistics, thresholds, digest), rules, scores

A single model is an ensemble of one.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from planet_dist.augment import Preprocess
from planet_dist.combination import Combination, CombinationRule
from planet_dist.config import DataConfig, ModelConfig
from planet_dist.models import build_model
from planet_dist.thresholds import Thresholds
from shards.errors import RunError
from shards.labels import ExclusiveGroup, Vocabulary
from shards.schema import Count, Group, ImageForm, Sha256, sync_folder, write_whole

FORMAT: Final = "planet-dist-bundle"
VERSION: Final = 1
_DESCRIPTION = "bundle.json"
_EXCHANGE, _HERE = 2, -100  # renameat2's RENAME_EXCHANGE, and AT_FDCWD

Tensors = dict[str, torch.Tensor]


def _thresholds(value: Any) -> Any:
    return Thresholds.from_json(value, "thresholds") if isinstance(value, dict) else value


_ThresholdsField = Annotated[Thresholds, BeforeValidator(_thresholds), PlainSerializer(Thresholds.to_json)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Member(_Record):
    """One trained network.

    Attributes:
        name: for people to read.
        weights: the file's name in the bundle.
        sha256: of the file.
        model: the network.
        size, normalise: how a chip becomes its input, as config.DataConfig has them.
        mean, std: per band, in the pixels' own units.
        turns: views averaged for each chip.
        competing_groups: label indices that compete under softmax, group by group; see losses.independent_logits.
        speaks_for: labels that it was trained on.
        thresholds: by which it decides alone.
    """

    name: str
    weights: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*\.safetensors$")
    sha256: Sha256
    model: ModelConfig
    size: Count
    normalise: Literal["dataset", "imagenet", "per-chip"]
    mean: list[float]
    std: list[Annotated[float, Field(ge=0)]]
    turns: Literal[1, 8]
    competing_groups: list[list[Count]]
    speaks_for: list[str]
    thresholds: _ThresholdsField


class Bundle(_Record):
    """One or many trained models, ready to predict.

    Attributes:
        labels, exclusive, alone: the vocabulary; labels in the order of the logits.
        image: the form of the training chips: kind, bands, dtype and, where a member's size is 0, the size.
        rule: how the members decide together (planet_dist.combination).
        rare: labels for which any member's decision suffices under "any-rare".
        thresholds: of the mean of the members' probabilities.
        training_chips, training_label_counts: how many chips the members were trained on, and how many of them bear
            each label.
        scores: what evaluation found, for people to read.
        dataset_digest: of the manifest that all members were trained on.
    """

    format: Literal["planet-dist-bundle"] = FORMAT
    version: Literal[1] = VERSION
    labels: list[str]
    exclusive: list[Group]
    alone: list[str]
    image: ImageForm
    members: list[Member] = Field(min_length=1)
    rule: CombinationRule = "mean"
    rare: list[str] = []
    thresholds: _ThresholdsField
    training_chips: Count
    training_label_counts: list[Count]
    scores: dict[str, Any]
    dataset_digest: Sha256

    @model_validator(mode="after")
    def _consistent(self) -> Bundle:
        labels, bands = set(self.vocabulary.labels), self.image.bands
        if len(self.training_label_counts) != len(self.labels):
            raise ValueError(f"training_label_counts must have one entry for each of {len(self.labels)} labels")
        if not set(self.rare) <= labels:
            raise ValueError(f"rare names {sorted(set(self.rare) - labels)}, which labels lacks")
        names = sorted(member.weights for member in self.members)
        if any(first == second for first, second in pairwise(names)):
            raise ValueError("two members bear one file")
        for fitted in (self.thresholds, *(member.thresholds for member in self.members)):
            if list(fitted.labels) != self.labels:
                raise ValueError(f"thresholds for the labels {list(fitted.labels)}, not {self.labels}")
        for member in self.members:
            if len(member.mean) != bands or len(member.std) != bands:
                raise ValueError(f"{member.name}: mean and std must have one entry for each of {bands} bands")
            competing = [label for group in member.competing_groups for label in group]
            if len(set(competing)) < len(competing) or any(label >= len(labels) for label in competing):
                raise ValueError(f"{member.name}: competing_groups {member.competing_groups} of {len(labels)} labels")
            if not set(member.speaks_for) <= labels:
                raise ValueError(f"{member.name}: speaks_for names {sorted(set(member.speaks_for) - labels)}")
        return self

    @property
    def vocabulary(self) -> Vocabulary:
        """The labels with their rules."""
        groups = tuple(ExclusiveGroup(g.name, tuple(g.labels), g.required) for g in self.exclusive)
        return Vocabulary(tuple(self.labels), groups, tuple(self.alone))

    def combination(self) -> Combination:
        """How the members decide together, as arrays."""
        return Combination(
            self.rule,
            np.array([[label in member.speaks_for for label in self.labels] for member in self.members]),
            np.array([member.thresholds.values for member in self.members]),
            np.array(self.thresholds.values),
            np.array([label in self.rare for label in self.labels]),
        )

    def build(self, weights: Sequence[Tensors], device: torch.device | str = "cpu") -> list[Ready]:
        """The members in evaluation mode on a device, in order.

        Args:
            weights: as from load_bundle.

        Raises:
            RunError: weights are another network's.
        """
        return [self._ready(member, tensors, device) for member, tensors in zip(self.members, weights, strict=True)]

    def _ready(self, member: Member, weights: Tensors, device: torch.device | str) -> Ready:
        data = DataConfig(size=member.size, normalise=member.normalise)
        preprocess = Preprocess(data, self.image.pixels, member.mean, member.std, device=device)
        # The weights come from here, never from where training began.
        config = member.model.model_copy(update={"weights": "none"})
        model = build_model(config, len(self.labels), self.image.bands, preprocess.side, self.image.band_order)
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise RunError(
                f"{member.weights}: not the weights of {config.name} ({str(error).splitlines()[0]}); "
                "copy the bundle again"
            ) from error
        model.to(device).to(memory_format=torch.channels_last)
        return Ready(model.eval(), preprocess, member.competing_groups, member.turns)


@dataclass(frozen=True)
class Ready:
    """A member on a device.

    Attributes:
        model: in evaluation mode.
        preprocess: makes its input.
        competing_groups: for losses.independent_logits.
        turns: views to average.
    """

    model: nn.Module
    preprocess: Preprocess
    competing_groups: list[list[int]]
    turns: int


def file_sha256(path: Path) -> str:
    """A file's digest in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_bundle(folder: Path, bundle: Bundle, weights: Sequence[Path]) -> None:
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
        text = json.dumps(bundle.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False)
        write_whole(aside / _DESCRIPTION, f"{text}\n".encode())
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


def load_bundle(folder: Path) -> tuple[Bundle, list[Tensors]]:
    """Reads a bundle and its members' weights.

    Raises:
        RunError: it's missing, damaged, changed since it was written, or of another version.
    """
    path = folder / _DESCRIPTION
    try:
        table = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: {error}; give RUN/bundle of a finished run") from error
    if not isinstance(table, dict) or table.get("format") != FORMAT:
        raise RunError(f"{path}: not a bundle (its format is not {FORMAT!r}); give RUN/bundle of a finished run")
    if table.get("version") != VERSION:
        raise RunError(
            f"{path}: bundle version {table.get('version')!r}; this program reads version {VERSION}; "
            "use the release that wrote it"
        )
    try:
        bundle = Bundle.model_validate_json(json.dumps(table))
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(part) for part in first["loc"]) or "bundle"
        raise RunError(f"{path}: {at}: {first['msg']} ({error.error_count()} fault(s) in all)") from error
    return bundle, [_read_weights(folder / member.weights, member.sha256) for member in bundle.members]


def _read_weights(path: Path, sha256: str) -> Tensors:
    try:
        data = path.read_bytes()
        # The bytes that were digested are the bytes that are used.
        if hashlib.sha256(data).hexdigest() != sha256:
            raise RunError(f"{path}: changed since the bundle was written; copy the bundle again")
        return load(data)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: cannot be read ({error}); copy the bundle again") from error
