"""The configuration of a run: typed, validated, frozen.

A recipe is a TOML file in planet_dist/recipes (or anywhere); what the command line gives as
section.key=value stands above it, and the defaults below it. No environment variable changes a run. The
process count, the device and the precision are the launch file's (launch/*.yaml); nothing here repeats them.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shards.errors import ConfigError

RECIPES = Path(__file__).parent / "recipes"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(_Section):
    """Which chips, in which form.

    Attributes:
        limit: only the first so many labelled chips, by natural key order, take part; 0 takes all.
        split: "tail:N", "random:FRACTION", "kfold:K/I" or "kfold-grouped:K/I"; see planet_dist.split.
        split_seed: of all splits but tail; -1 takes the run's seed. Runs of different seeds that share it share
            their folds.
        size: side in pixels of the network's input; 0 keeps the chips' own size.
        normalise: "dataset" (the dataset's mean and deviation per band), "imagenet", or "per-chip" (each
            chip's smallest value becomes 0 and its greatest 1); see planet_dist.augment.
        kind: the image kind that the recipe is meant for; "any" takes both.
        lanes: parts of the dataset read side by side, for many hosts; a property of the order, not of the
            cluster. See planet_dist.plan.
        shuffle_window: samples within which a chip moves; a window as large as a lane shuffles uniformly.
        threads: decoding threads of each process; 0 shares the host's cores among its processes.
        prefetch_batches: batches decoded ahead.
        cache: where decoded chips are kept for later epochs: "none", "host" (a file in runtime.cache_dir, shared by
            all processes of the host) or "device" (each process's own). It doesn't change what a run comes to.
    """

    limit: int = Field(0, ge=0)
    split: str = "tail:8000"
    split_seed: int = Field(-1, ge=-1)
    size: int = Field(0, ge=0)
    normalise: Literal["dataset", "imagenet", "per-chip"] = "dataset"
    kind: Literal["any", "jpg", "tif"] = "any"
    lanes: int = Field(1, gt=0)
    shuffle_window: int = Field(65536, gt=1)
    threads: int = Field(0, ge=0)
    prefetch_batches: int = Field(3, ge=2)
    cache: Literal["none", "host", "device"] = "none"


class AugmentConfig(_Section):
    """Random changes to each training chip, drawn from (seed, epoch, chip id).

    Attributes:
        flip: mirror left to right with probability one half.
        quarter_turns: turn by 0, 90, 180 or 270 degrees, each as likely.
        rotate_degrees: turn by an angle drawn from [-x, x]; what lies outside is reflected in.
        shift: move by a fraction of the side drawn from [-x, x] along both axes; reflected likewise.
        scale: zoom by a factor drawn from [1 - x, 1 + x].
        cutmix, mixup: shares of the chips of which a box is another's of the batch, or which are blended with one,
            labels likewise; see planet_dist.mixing.
    """

    flip: bool = False
    quarter_turns: bool = False
    rotate_degrees: float = Field(0.0, ge=0, le=180)
    shift: float = Field(0.0, ge=0, lt=1)
    scale: float = Field(0.0, ge=0, lt=1)
    cutmix: float = Field(0.0, ge=0, le=1)
    mixup: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _one_mixing_a_chip(self) -> AugmentConfig:
        if self.cutmix + self.mixup > 1:
            raise ValueError(f"cutmix {self.cutmix} and mixup {self.mixup} are shares of the chips; together 1 at most")
        return self


class ModelConfig(_Section):
    """The network (planet_dist.models has the layers).

    Attributes:
        name: "paper1-cnn", "paper2-cnn", "small-resnet", a torchvision classification model,
            "efficientnet_lite0" (or 1, or 2).
        width: channels of small-resnet's first stage, 8 or more.
        dropout: probability: between the layers of paper2-cnn, before every dense layer elsewhere.
        stochastic_depth: probability to leave a block out for a chip, of a network with shortcuts: from 0 at the first
            block evenly up to this at the last (Huang et al. 2016). -1 takes what torchvision gives the network, and
            none for EfficientNet-Lite.
        l2: weight of the squared-weights penalty in the loss, on the layers that the papers name (Keras's
            L2).
        head: what follows a torchvision backbone: "linear", "paper1" (pooling and three dense layers) or
            "paper2" (global average pooling, 512 units, ReLU).
        weights: "none" (random ones); of a network that is none of the first three, "imagenet", or the path of a .pth
            or .safetensors file; of any network, the folder of a finished run of the same dataset, whose network this
            run goes on with (planet_dist.lineage).
    """

    name: str
    # Below 8, oneDNN writes past the end of what a 1x1 convolution of stride 2 gets on a CPU with AVX2 (torch 2.15).
    width: int = Field(64, ge=8, multiple_of=2)
    dropout: float = Field(0.0, ge=0, lt=1)
    stochastic_depth: float = Field(-1.0, ge=-1, lt=1)
    l2: float = Field(0.0, ge=0)
    head: Literal["linear", "paper1", "paper2"] = "linear"
    weights: str = "none"

    @property
    def starts_from_run(self) -> bool:
        """Whether `weights` names a finished run."""
        return self.weights not in ("none", "imagenet") and Path(self.weights).suffix not in (".pth", ".safetensors")

    @property
    def stated_weights(self) -> str:
        """`weights`, but for a finished run's, which may lie elsewhere later."""
        return "a run's" if self.starts_from_run else self.weights

    def without_weights(self) -> ModelConfig:
        """The same network, from random weights."""
        return self.model_copy(update={"weights": "none"})

    @model_validator(mode="after")
    def _stochastic_depth_is_a_probability(self) -> ModelConfig:
        if -1 < self.stochastic_depth < 0:
            raise ValueError(f"stochastic_depth {self.stochastic_depth} is no probability; take 0 or more, or -1")
        return self


class LossConfig(_Section):
    """What is minimised: the mean over the global batch (planet_dist.losses has the formulas).

    Attributes:
        name: "bce" is binary cross-entropy on logits, averaged over the labels, as in both papers; "focal"
            and "asymmetric" weigh its terms by how wrong they are; "soft-f2" is one minus each chip's F2 with
            probabilities in place of decisions; "softmax" lets all labels compete; "group-softmax" lets the
            labels of each exclusive group compete (weather) and takes "bce" for the rest (second paper,
            section 6).
        label_smoothing: moves the targets 0 and 1 towards one half by this share; under softmax, a chip's
            share of each label towards the same share for all.
        label_weights: of a label's terms by its name; those not named weigh 1.
        positive_weight: "balanced" weighs a label's terms by (chips without it) / (chips with it) where it is
            present.
        cooccurrence: the matrix C_o of the co-occurrence term (second paper, section 3.2): "none", "weather"
            (1 for two labels of the first exclusive group) or "data" (more for labels that rarely meet in
            training).
        alpha: weight of the co-occurrence term.
        focal_gamma: exponent of "focal".
        asymmetric_gammas: exponents of "asymmetric" for a present and for an absent label.
        asymmetric_margin: probability below which "asymmetric" forgives an absent label.
    """

    name: Literal["bce", "focal", "asymmetric", "soft-f2", "softmax", "group-softmax"] = "bce"
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    label_weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    positive_weight: Literal["none", "balanced"] = "none"
    cooccurrence: Literal["none", "weather", "data"] = "none"
    alpha: float = Field(1e-4, ge=0)
    focal_gamma: float = Field(2.0, ge=0)
    asymmetric_gammas: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]] = (1.0, 4.0)
    asymmetric_margin: float = Field(0.05, ge=0, lt=1)


class TeacherConfig(_Section):
    """Another run that teaches this one (knowledge distillation; planet_dist.teacher).

    Attributes:
        run: the folder of a finished run of the same dataset that was trained on none of this run's validation chips;
            "" for none.
        weight: how much of each training chip's targets is the teacher's answer; the rest is its labels.
    """

    run: str = ""
    weight: float = Field(0.5, gt=0, le=1)


class PhaseConfig(_Section):
    """One stretch of training with an optimizer of its own.

    Attributes:
        epochs: passes over the training chips.
        size: side in pixels of the network's input while this phase trains, for progressive resizing; 0 takes
            data.size. Validation always has data.size.
        batch_size: chips of an optimizer step over all processes together.
        accumulate: parts in which each process takes its share of a batch, to save memory.
        trains: "all" weights, those of the "head", or "from:MODULE": that module and all after it (for
            instance "from:Mixed_6d", "from:layer4"). What is frozen keeps its batch-norm statistics too.
        optimizer: "adam", "adamw", "sgd", or "muon" (planet_dist.muon), which needs fewer epochs where a network starts
            from random weights.
        schedule: the learning rate after warm-up: "constant", or "cosine" down to zero at the phase's end.
        warmup_epochs: over which the learning rate grows linearly from zero.
        clip_norm: largest norm of the whole gradient; 0 does not clip.
        ema_decay: of the moving average of the weights that is evaluated and kept; 0 keeps none.
        plain_epochs: the last ones, in which chips are mirrored and turned by quarters, where `augment` says so, and
            left as they are otherwise, so that the network ends on chips like those that it is judged on.
        norm_chips: training chips, evenly spread, on which the weights that are kept have their batch-norm statistics
            measured anew after the last epoch (planet_dist.norms); 0 keeps those that followed along.
    """

    epochs: int = Field(gt=0)
    size: int = Field(0, ge=0)
    batch_size: int = Field(gt=0)
    accumulate: int = Field(1, gt=0)
    trains: str = Field("all", pattern=r"^(all|head|from:[A-Za-z0-9_.]+)$")
    optimizer: Literal["adam", "adamw", "sgd", "muon"] = "adamw"
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(0.0, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_epochs: float = Field(0.0, ge=0)
    clip_norm: float = Field(0.0, ge=0)
    ema_decay: float = Field(0.0, ge=0, lt=1)
    plain_epochs: int = Field(0, ge=0)
    norm_chips: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _plain_epochs_are_of_the_phase(self) -> PhaseConfig:
        if self.plain_epochs > self.epochs:
            raise ValueError(f"plain_epochs {self.plain_epochs} are more than the {self.epochs} epochs of the phase")
        return self


class EvaluateConfig(_Section):
    """How a model is judged.

    Attributes:
        best_by: what the best checkpoint is best by, on the validation chips: "f2" (sample-averaged, with the
            best single threshold), "accuracy" (element-wise at 0.5: the first paper's choice, which it names
            as its mistake, section 6) or "loss"; "last" keeps the last epoch's, so that the choice takes nothing from
            the validation chips.
        batch_size: chips of one forward pass of one process.
        turns: views averaged at test time: 1, or 8 (the four quarter turns and their mirror images).
    """

    best_by: Literal["f2", "accuracy", "loss", "last"] = "f2"
    batch_size: int = Field(256, gt=0)
    turns: Literal[1, 8] = 1


class RuntimeConfig(_Section):
    """How a run behaves on its machine.

    Attributes:
        compute_threads: threads of one process for CPU arithmetic. Set, never inherited: sums depend on it.
        log_every_steps: between lines of metrics.jsonl.
        checkpoint_steps: steps between checkpoints within an epoch; 0 makes them at an epoch's end alone.
        checkpoint_minutes: between checkpoints by the clock; 0 makes none. They don't change what a run comes to.
        keep_checkpoints: newest ones kept, beside the best.
        cache_dir, cache_gib: where the shards of a dataset behind a URL are kept, for all processes of a host, and
            how many GiB they may take there; and likewise the decoded chips of data.cache=host, which may take as
            much again.
        timeout_minutes: that a rank waits for another before the run ends: a rank that hangs takes it down.
        figures: whether a finished run's page shows the papers' figures, which takes some seconds at its end;
            `planet-dist figures` draws them at any time.
    """

    compute_threads: int = Field(1, gt=0)
    log_every_steps: int = Field(10, gt=0)
    checkpoint_steps: int = Field(0, ge=0)
    checkpoint_minutes: float = Field(0.0, ge=0)
    keep_checkpoints: int = Field(2, gt=0)
    cache_dir: str = "~/.cache/planet-dist"
    cache_gib: float = Field(64.0, gt=0)
    timeout_minutes: float = Field(10.0, gt=0)
    figures: bool = True


class TrackingConfig(_Section):
    """How a run is watched: Weights & Biases, and the terminal.

    Attributes:
        wandb: "auto" is online when logged in and offline otherwise; or "online", "offline", "off".
        project, group: where the run stands there.
        terminal: "auto" shows a live line on a terminal and plain lines elsewhere; "quiet" nothing but errors; "json"
            one JSON object a line on stdout (planet_dist.progress).
    """

    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    project: str = "planet-dist"
    group: str = ""
    terminal: Literal["auto", "quiet", "json"] = "auto"


class Config(_Section):
    """A whole run; see the sections.

    Attributes:
        description: one line, shown by `planet-dist recipes`.
        seed: of the split (unless data.split_seed is), the order, the augmentation and the initial weights.
    """

    description: str
    seed: int = Field(0, ge=0)
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig
    loss: LossConfig = LossConfig()
    teacher: TeacherConfig = TeacherConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    tracking: TrackingConfig = TrackingConfig()
    phases: tuple[PhaseConfig, ...] = Field(min_length=1)

    def to_toml(self) -> str:
        """The resolved configuration as a recipe that gives it again."""
        return tomli_w.dumps(self.model_dump(mode="json"))


def recipe_paths() -> dict[str, Path]:
    """The recipes that come with the package, by name."""

    # By the numbers in their names; shards.names would load NumPy where help is asked for.
    def parts(path: Path) -> list[str]:
        return [word.zfill(9) if word.isdigit() else word for word in path.stem.split("-")]

    in_order = sorted(RECIPES.glob("*.toml"), key=parts)
    return {path.stem: path for path in in_order}


def ensemble_recipe_paths() -> dict[str, Path]:
    """The ensembles' recipes that come with the package (planet_dist.ensemble_train), by name."""
    return {path.stem: path for path in sorted((RECIPES / "ensembles").glob("*.toml"))}


def load_config(recipe: str, overrides: Sequence[str] = ()) -> Config:
    """Resolves a recipe and overrides.

    Args:
        recipe: the name of one of recipe_paths(), or the path of a TOML file.
        overrides: "section.key=value"; the value is TOML, or a bare string. A phase is named by its place:
            "phases.0.epochs=3".

    Raises:
        ConfigError: an unknown recipe or key, or a value that its key does not take; it lists what is valid.
    """
    known = recipe_paths()
    path = known.get(recipe, Path(recipe))
    if path.suffix != ".toml" or not path.is_file():
        close = difflib.get_close_matches(recipe, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(f"recipe {recipe!r}: {hint}there are {', '.join(known)}, or give the path of a .toml file")
    try:
        table = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path}: not TOML: {error}") from error
    for override in overrides:
        _apply(table, override)
    return parse_config(table, str(path))


def parse_config(table: dict[str, Any], where: str) -> Config:
    """Validates a configuration read from TOML; `where` names it in errors.

    Raises:
        ConfigError: every unknown key and unfit value at once.
    """
    try:
        return Config.model_validate(table)
    except ValidationError as error:
        faults = [fault for fault in error.errors() if fault["type"] != "too_short"] or error.errors()
        lines = [f"  {_explain(fault)}" for fault in faults]
        raise ConfigError("\n".join([f"configuration {where}:", *lines])) from error


def _apply(table: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    parts = path.split(".")
    if not equals or not all(parts):
        raise ConfigError(f"override {override!r}: give section.key=value, for instance phases.0.epochs=3")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    node: Any = table
    for part in parts[:-1]:
        node = _item(node, part, override) if isinstance(node, list) else node.setdefault(part, {})
        if not isinstance(node, dict | list):
            raise ConfigError(f"override {override!r}: {part!r} is a value, not a section")
    if isinstance(node, list):
        raise ConfigError(f"override {override!r}: name a key of one item, for instance {parts[0]}.0.KEY=VALUE")
    node[parts[-1]] = value


def _item(items: list[Any], part: str, override: str) -> Any:
    if not part.isdigit() or int(part) >= len(items):
        raise ConfigError(f"override {override!r}: {part!r} is not the place of one of {len(items)} item(s), from 0")
    return items[int(part)]


def _explain(fault: Any) -> str:
    at = ".".join(str(part) for part in fault["loc"]) or "(top)"
    if fault["type"] == "value_error":  # of a validator here, which names what is wrong itself
        return f"{at}: {fault['ctx']['error']}"
    if fault["type"] != "extra_forbidden":
        return f"{at}: {fault['msg']}" + ("" if fault["type"] == "missing" else f", not {fault['input']!r}")
    section: Any = Config
    for part in fault["loc"][:-1]:
        if isinstance(part, str):
            annotation = section.model_fields[part].annotation
            section = annotation.__args__[0] if hasattr(annotation, "__args__") else annotation
    valid = list(section.model_fields)
    close = difflib.get_close_matches(str(fault["loc"][-1]), valid, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"{at}: unknown key{hint}; valid: {', '.join(valid)}"
