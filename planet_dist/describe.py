"""A recipe's network, layer by layer: shapes, weights, and what each phase trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from planet_dist.config import Config
from planet_dist.models import Network, build_model, count_parameters, set_trainable


@dataclass(frozen=True)
class Layer:
    """A module of a network, or a whole block of it.

    Attributes:
        name: as "from:MODULE" takes it, or "head.NAME".
        kind: its class.
        output: shape of what it gives for one chip, without the batch.
        weights: numbers in it that may train.
        trained: of those, how many each phase trains.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    weights: int
    trained: tuple[int, ...]


@dataclass(frozen=True)
class Description:
    """A network.

    Attributes:
        layers: in the order in which they run.
        phases: what each trains, as the recipe says it.
        totals: numbers of weights that train and that are frozen, for each phase.
        input: bands and side in pixels.
    """

    layers: list[Layer]
    phases: list[str]
    totals: list[tuple[int, int]]
    input: tuple[int, int]


def describe(
    config: Config, *, labels: int, bands: int, size: int, band_order: Sequence[str] | None = None, every: bool = False
) -> Description:
    """Builds a recipe's network without its pretrained weights, and runs it once without arithmetic.

    Args:
        labels: logits a chip.
        bands: of the chips.
        size: side of the network's input in pixels.
        every: each single layer, instead of the blocks that the backbone and the head consist of.

    Raises:
        ConfigError: the network cannot be built, or a phase names a module that it lacks.
    """
    model = build_model(config.model.without_weights(), labels, bands, size, band_order).to("meta").eval()
    shown = _leaves(model) if every else _blocks(model)
    outputs = _outputs(model, shown, bands, size)
    trained: dict[str, list[int]] = {name: [] for name in shown}
    totals = []
    for phase in config.phases:
        set_trainable(model, phase.trains)
        totals.append(count_parameters(model))
        for name, module in shown.items():
            trained[name].append(count_parameters(module)[0])
    layers = [
        Layer(
            name.removeprefix("backbone."),
            type(shown[name]).__name__.lstrip("_"),
            outputs[name],
            sum(count_parameters(shown[name])),
            tuple(trained[name]),
        )
        for name in outputs
    ]
    return Description(layers, [phase.trains for phase in config.phases], totals, (bands, size))


def _blocks(model: Network) -> dict[str, nn.Module]:
    """The backbone's and the head's own children; in place of a mere list of layers or blocks, what it lists."""
    found: dict[str, nn.Module] = {}
    for part in ("backbone", "head"):
        for name, child in model.get_submodule(part).named_children():
            if isinstance(child, nn.Sequential):
                found |= {f"{part}.{name}.{inner}": block for inner, block in child.named_children()}
            else:
                found[f"{part}.{name}"] = child
    return found


def _leaves(model: Network) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if not list(module.children())}


def _outputs(model: Network, shown: dict[str, nn.Module], bands: int, size: int) -> dict[str, tuple[int, ...]]:
    """The shapes of what modules give, in the order in which they first run; those that do not run are left out."""
    shapes: dict[str, tuple[int, ...]] = {}

    def recorder(name: str) -> Any:
        def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                shapes.setdefault(name, tuple(output.shape[1:]))

        return record

    handles = [module.register_forward_hook(recorder(name)) for name, module in shown.items()]
    try:
        # In its two parts: the whole network's forward sets up autocast, which the meta device doesn't know.
        model.head(model.backbone(torch.empty(1, bands, size, size, device="meta")))
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def description_table(name: str, description: Description) -> Table:
    """The layers as a table: for each phase what trains in them."""
    bands, size = description.input
    total = sum(description.totals[0])
    table = Table(title=f"{name}: {bands} bands, {size}x{size}; {total:,} weights", show_footer=True)
    table.add_column("layer", "trains\nfrozen", no_wrap=True)
    table.add_column("kind")
    table.add_column("output", justify="right", no_wrap=True)
    table.add_column("weights", justify="right", no_wrap=True)
    for i, (trains, (training, frozen)) in enumerate(zip(description.phases, description.totals, strict=True), start=1):
        table.add_column(f"phase {i}\n{trains}", f"{training:,}\n{frozen:,}", justify="right", no_wrap=True)
    for layer in description.layers:
        marks = ["" if not layer.weights else _mark(count, layer.weights) for count in layer.trained]
        weights = f"{layer.weights:,}" if layer.weights else ""
        table.add_row(layer.name, layer.kind, "x".join(map(str, layer.output)), weights, *marks)
    return table


def _mark(trained: int, weights: int) -> str:
    return "trains" if trained == weights else "frozen" if not trained else f"{trained:,} train"


def print_description(name: str, description: Description, console: Console | None = None) -> None:
    """Prints the table, to standard output unless a console is given."""
    (console or Console()).print(description_table(name, description))
