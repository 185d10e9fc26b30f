"""What a bundle says of itself: bundle.json, typed and validated."""

from __future__ import annotations

import json
from importlib.metadata import version
from itertools import pairwise
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

from planet_dist.combination import Combination
from planet_dist.config import ModelConfig
from planet_dist.decision import Decision, decision_from_json
from planet_dist.stack import Stack, StackedCombination
from planet_dist.thresholds import Thresholds
from shards.labels import ExclusiveGroup, Vocabulary
from shards.schema import Count, Group, ImageForm, Sha256

FORMAT: Final = "planet-dist-bundle"
VERSION: Final = 2


def _decision(value: Any) -> Any:
    return decision_from_json(value, "thresholds") if isinstance(value, dict) else value


_DecisionField = Annotated[
    Decision, BeforeValidator(_decision), PlainSerializer(lambda decision: decision.to_json(), return_type=dict)
]


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
        thresholds: the decision that it makes alone; always thresholds where it doesn't speak for all labels.
        protocol: how it was trained, by what is said, for people to read.
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
    thresholds: _DecisionField
    protocol: dict[str, str]


class Stacking(_Record):
    """How recipes' answers are made one (planet_dist.stack); the members are networks of a recipe's folds.

    Attributes:
        combiner: the way to combine that was fitted (planet_dist.stack_fits).
        recipes: their names.
        members: for each recipe the places of its members.
        scale: of what is added up.
        weights: for each recipe and each label that it speaks about, how much that counts in each label's sum.
        bias: of each label's sum.
    """

    combiner: str
    recipes: list[str] = Field(min_length=1)
    members: list[Annotated[list[Count], Field(min_length=1)]]
    scale: Literal["probabilities", "logits"]
    weights: list[list[list[float]]]
    bias: list[float]

    @property
    def stack(self) -> Stack:
        """The map, as arrays."""
        weights_RCC = np.array(self.weights, dtype=np.float64)
        return Stack(self.scale, weights_RCC.reshape(-1, weights_RCC.shape[2]), np.array(self.bias, dtype=np.float64))


class Description(_Record):
    """One or many trained models, ready to predict.

    Attributes:
        labels, exclusive, alone: the vocabulary; labels in the order of the logits.
        image: the form of the training chips: kind, bands, dtype and, where a member's size is 0, the size.
        rule: how the members decide together: as planet_dist.combination says, or "stacked".
        rare: labels for which any member's decision suffices under "any-rare".
        thresholds: the decision on the mean of the members' probabilities, or on what the stack makes of them.
        stacking: under "stacked" alone.
        training_chips, training_label_counts: how many chips the members were trained on, and how many of them bear
            each label.
        scores: what evaluation found, for people to read.
        dataset_digest: of the manifest that all members were trained on.
        made_by: the release of planet-dist that wrote it.
    """

    format: Literal["planet-dist-bundle"] = FORMAT
    version: Literal[2] = VERSION
    labels: list[str]
    exclusive: list[Group]
    alone: list[str]
    image: ImageForm
    members: list[Member] = Field(min_length=1)
    rule: Literal["mean", "vote", "any-rare", "stacked"] = "mean"
    rare: list[str] = []
    thresholds: _DecisionField
    stacking: Stacking | None = None
    training_chips: Count
    training_label_counts: list[Count]
    scores: dict[str, Any]
    dataset_digest: Sha256
    made_by: str = Field(default_factory=lambda: version("planet-dist"))

    @model_validator(mode="after")
    def _consistent(self) -> Description:
        labels, bands = set(self.vocabulary.labels), self.image.bands
        if len(self.training_label_counts) != len(self.labels):
            raise ValueError(f"training_label_counts must have one entry for each of {len(self.labels)} labels")
        json.dumps(self.scores, allow_nan=False)  # raises ValueError for what other readers of JSON refuse
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
            if set(member.speaks_for) != labels and not isinstance(member.thresholds, Thresholds):
                # What it says of the others would change what is decided of its own.
                raise ValueError(f"{member.name}: a specialist decides by thresholds, not by {member.thresholds.rule}")
        self._check_stacking()
        return self

    def _check_stacking(self) -> None:
        stacking = self.stacking
        if (self.rule == "stacked") != (stacking is not None):
            raise ValueError(f"rule {self.rule!r} {'without' if stacking is None else 'with'} stacking")
        if stacking is None:
            return
        recipes, labels = len(stacking.recipes), len(self.labels)
        places = sorted(place for members in stacking.members for place in members)
        if len(stacking.members) != recipes or places != list(range(len(self.members))):
            raise ValueError(
                f"stacking.members {stacking.members} of {recipes} recipes and {len(self.members)} members"
            )
        shape = {(len(stacking.weights), len(rows), len(row)) for rows in stacking.weights for row in rows}
        if shape != {(recipes, labels, labels)} or len(stacking.bias) != labels:
            raise ValueError(f"stacking.weights must be {recipes} x {labels} x {labels} numbers, and bias {labels}")

    @property
    def vocabulary(self) -> Vocabulary:
        """The labels with their rules."""
        groups = tuple(ExclusiveGroup(g.name, tuple(g.labels), g.required) for g in self.exclusive)
        return Vocabulary(tuple(self.labels), groups, tuple(self.alone))

    def combination(self) -> Combination | StackedCombination:
        """How the members decide together, as arrays."""
        if self.stacking is not None:
            members = tuple(tuple(places) for places in self.stacking.members)
            return StackedCombination(members, self.stacking.stack, self.thresholds)
        return self.member_combination()

    def member_combination(self) -> Combination:
        """How members that are not stacked decide together, as arrays."""
        assert self.rule != "stacked"
        return Combination(
            self.rule,
            np.array([[label in member.speaks_for for label in self.labels] for member in self.members]),
            tuple(member.thresholds for member in self.members),
            self.thresholds,
            np.array([label in self.rare for label in self.labels]),
        )
