"""The moving average follows the weights by the stated formula, and counts what is not a number by copying."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from planet_dist.ema import MovingAverage

ONE = torch.ones(())


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def test_the_average_starts_as_a_copy_that_does_not_train_and_does_not_follow_by_itself() -> None:
    model = network().train()
    average = MovingAverage(model, 0.9)
    assert all(torch.equal(a, b) for a, b in zip(average.model.parameters(), model.parameters(), strict=True))
    assert not average.model.training and not any(p.requires_grad for p in average.model.parameters())
    assert model.training and all(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        model[0].weight.add_(1)
    assert not torch.equal(average.model[0].weight, model[0].weight)


@pytest.mark.parametrize(("updates", "decay"), [(0, 0.1), (9, 10 / 19), (80, 0.9), (1000, 0.9)])
def test_the_decay_rises_from_a_tenth_to_the_one_asked_for(updates: int, decay: float) -> None:
    model = network()
    average = MovingAverage(model, 0.9)
    before = average.model[0].weight.clone()
    with torch.no_grad():
        model[0].weight.add_(torch.randn_like(model[0].weight))
    average.update(model, updates, ONE)
    expected = decay * before.double() + (1 - decay) * model[0].weight.detach().double()
    assert torch.allclose(average.model[0].weight.double(), expected, atol=1e-7)


def test_a_share_of_nothing_leaves_the_average_where_it_is() -> None:
    model = network()
    average = MovingAverage(model, 0.9)
    before = average.model[0].weight.clone()
    with torch.no_grad():
        model[0].weight.add_(1)
    average.update(model, 100, torch.zeros(()))
    assert torch.equal(average.model[0].weight, before)


def test_batch_norm_statistics_are_averaged_and_its_counter_copied() -> None:
    model = network().train()
    average = MovingAverage(model, 0.5)
    model(torch.randn(8, 3, 6, 6))
    moved = model[1].running_mean.clone()
    average.update(model, 100, ONE)
    assert torch.allclose(average.model[1].running_mean, 0.5 * moved, atol=1e-7)
    assert int(average.model[1].num_batches_tracked) == 1


def test_averaging_leaves_the_weights_and_their_gradients_alone() -> None:
    model = network()
    model(torch.randn(2, 3, 6, 6)).sum().backward()
    before = [(p.detach().clone(), p.grad.clone()) for p in model.parameters() if p.grad is not None]
    MovingAverage(model, 0.9).update(model, 3, ONE)
    assert all(
        torch.equal(p, weight) and torch.equal(p.grad, grad)
        for p, (weight, grad) in zip(model.parameters(), before, strict=True)
        if p.grad is not None
    )
