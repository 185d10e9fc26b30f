"""What a run trains with, made from its configuration and its chips: preprocessing, network and loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from planet_dist.augment import Preprocess
from planet_dist.config import Config, ModelConfig
from planet_dist.data import Data
from planet_dist.losses import Loss, build_loss
from planet_dist.models import Network, build_model
from shards.errors import ConfigError


@dataclass(frozen=True)
class Parts:
    """What a run trains with, on its device; the network in channels_last."""

    preprocess: Preprocess
    model: Network
    loss: Loss


def assemble(config: Config, data: Data, device: torch.device, weights: dict[str, torch.Tensor] | None = None) -> Parts:
    """Makes the parts of a run; the random weights follow from the seed.

    Args:
        weights: of a checkpoint's network, or of that of the run which this one starts from, in place of those that
            the recipe starts from.

    Raises:
        ConfigError: the configuration doesn't fit the chips, or its weights cannot be had or don't fit its network.
    """
    manifest = data.dataset.manifest
    preprocess = Preprocess(
        config.data,
        manifest.image.pixels,
        manifest.mean,
        manifest.std,
        augment=config.augment,
        seed=config.seed,
        device=device,
    )
    torch.manual_seed(config.seed)
    assert weights is not None or not config.model.starts_from_run, config.model.weights
    model = build_model(
        config.model if weights is None else config.model.without_weights(),
        len(data.labels),
        manifest.image.bands,
        preprocess.side,
        manifest.image.band_order,
    )
    if weights is not None:
        if config.model.starts_from_run:
            _require_same_network(model, weights, config.model)
        model.load_state_dict(weights)
    trained_NC = data.targets_NC[data.split.train_ids].astype(np.int64)
    loss = build_loss(
        config.loss,
        len(data.labels),
        manifest.vocabulary,
        trained_NC.sum(axis=0),
        trained_NC.T @ trained_NC,
        len(trained_NC),
    )
    model = model.to(device).to(memory_format=torch.channels_last)
    for number, phase in enumerate(config.phases):
        if phase.size:
            _require_size(model, preprocess.at(phase.size), f"phases.{number}.size {phase.size}", config.model.name)
    return Parts(preprocess, model, loss.to(device))


def _require_same_network(model: Network, weights: dict[str, torch.Tensor], config: ModelConfig) -> None:
    """Refuses weights of a run whose network is another one."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    faults = [name for name in wanted | given if wanted.get(name) != given.get(name)]
    if faults:
        first, kinds = faults[0], [shapes.get(faults[0], "missing") for shapes in (given, wanted)]
        raise ConfigError(
            f"model.weights {config.weights}: another network's than this {config.name} ({first} is {kinds[0]}, not "
            f"{kinds[1]}; {len(faults)} such faults); give this run the [model] and data.size of that one"
        )


def _require_size(model: Network, preprocess: Preprocess, what: str, name: str) -> None:
    """Refuses a phase's size that the network, made for another one, cannot take."""
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(preprocess.blank(1))
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"{what}: {name} cannot take it beside its own size ({error}); "
            "leave it out, or choose another size or network"
        ) from error
    finally:
        model.train(was_training)
