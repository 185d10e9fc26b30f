"""A step follows the mean over the global batch, however it is divided, and a bad one changes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from numpy.typing import NDArray
from torch import nn

from planet_dist.config import AugmentConfig, PhaseConfig
from planet_dist.learner import Learner, NonFiniteError, learning_rate, make_optimizer
from planet_dist.losses import Loss
from planet_dist.muon import Muon
from planet_dist.stopping import Wish
from shards.errors import ConfigError
from tests.conftest import launch
from tests.ranks_learner import BAD_ID, CHIPS, NotANumber, make_batch, make_learner, part_of, take, weights

Weights = dict[str, NDArray[Any]]


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    """One process on the CPU, in float32."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True, mixed_precision="no")
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, NDArray[Any]]]:
    """What ranks_learner.py found on each of two ranks, of which one has 5 chips and the other 2."""
    out = tmp_path_factory.mktemp("ranks")
    done = launch("tests/ranks_learner.py", str(out))
    assert done.returncode == 0, done.stderr
    return [dict(np.load(out / f"rank{rank}.npz")) for rank in (0, 1)]


def changes(before: Weights, after: Weights) -> set[str]:
    return {name for name in before if not np.array_equal(before[name], after[name])}


def largest_difference(a: Weights, b: Weights) -> float:
    assert a.keys() == b.keys()
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


def moved(before: Weights, after: Weights) -> float:
    """The Euclidean norm of the change of all weights together."""
    return math.sqrt(sum(float(np.square(after[name].astype(np.float64) - before[name]).sum()) for name in before))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_follows_the_mean_loss_plus_the_penalty_once(accelerator: Accelerator, accumulate: int) -> None:
    learner, batch = make_learner(accelerator, accumulate=accumulate), make_batch()
    reference = make_learner(accelerator)
    model = reference.model.train()
    logits_BC = model(reference.preprocess.train(batch.images_BHWC, batch.ids_B, 0))
    loss = nn.functional.binary_cross_entropy_with_logits(logits_BC, batch.targets_BC)
    penalty = 0.01 * sum(model.head.get_parameter(f"{name}.weight").square().sum() for name in ("dense2", "dense3"))
    gradients = torch.autograd.grad(loss + penalty, list(model.parameters()))
    before = weights(learner)
    result = take(learner, batch, 0, CHIPS)
    assert result.loss == pytest.approx(loss.item(), rel=1e-6)
    assert result.grad_norm == pytest.approx(math.sqrt(sum(float(g.square().sum()) for g in gradients)), rel=1e-5)
    for (name, weight), gradient in zip(learner.model.named_parameters(), gradients, strict=True):
        expected = torch.from_numpy(before[name]) - 0.1 * gradient
        assert torch.allclose(weight, expected, atol=1e-6, rtol=0), name


def test_the_last_epochs_of_a_phase_take_plain_chips(accelerator: Accelerator) -> None:
    flips = AugmentConfig(flip=True)
    more = AugmentConfig(flip=True, shift=0.3, scale=0.4, mixup=0.5)

    def stepped(done_steps: int, augment: AugmentConfig, **phase: int) -> Weights:
        learner = make_learner(accelerator, augment=augment, **phase)  # of 4 epochs of 10 steps
        take(learner, make_batch(done_steps // 10, done_steps % 10), done_steps, CHIPS)
        return weights(learner)

    for done_steps, alike in ((29, more), (30, flips), (39, flips)):
        found = stepped(done_steps, more, plain_epochs=1)
        assert not changes(found, stepped(done_steps, alike)), done_steps
    assert changes(stepped(30, more), stepped(30, flips))
    assert not changes(stepped(0, more, plain_epochs=4), stepped(0, flips))


def test_more_parts_than_chips_are_as_good_as_one(accelerator: Accelerator) -> None:
    found = {}
    for accumulate in (1, 6):
        learner = make_learner(accelerator, accumulate=accumulate)
        learner.step(make_batch(count=4), 0, 4)
        found[accumulate] = weights(learner)
    assert largest_difference(found[1], found[6]) < 1e-6


def test_batch_norm_takes_more_parts_than_chips(accelerator: Accelerator) -> None:
    learner = make_learner(accelerator, "small-resnet", accumulate=6)
    learner.step(make_batch(count=4), 0, 4)
    assert all(np.isfinite(values).all() for values in weights(learner).values())


def test_a_rank_without_chips_is_an_error_on_every_rank_not_a_hang(accelerator: Accelerator) -> None:
    learner = make_learner(accelerator)
    with pytest.raises(ConfigError, match="0 chip"):
        learner.step(make_batch(count=0), 0, 0)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_unlike_ranks_step_as_one_process_does(
    accelerator: Accelerator, two_ranks: list[dict[str, NDArray[Any]]], accumulate: int
) -> None:
    learner = make_learner(accelerator)
    results = [take(learner, make_batch(0, step), step, CHIPS) for step in range(3)]
    expected = weights(learner)
    for rank in two_ranks:
        assert rank["ranks"] == 2
        found = {name: rank[f"{accumulate}:{name}"] for name in expected}
        assert largest_difference(found, expected) < 1e-6
        assert rank[f"{accumulate}:losses"] == pytest.approx([result.loss for result in results], rel=1e-6)
        assert rank[f"{accumulate}:norms"] == pytest.approx([result.grad_norm for result in results], rel=1e-5)
    one, two = ({name: rank[f"{accumulate}:{name}"] for name in expected} for rank in two_ranks)
    assert changes(one, two) == set()


def test_a_chip_that_is_not_a_number_stops_every_rank_and_names_it(two_ranks: list[dict[str, NDArray[Any]]]) -> None:
    for rank in two_ranks:
        assert rank["bad_ids"].tolist() == [BAD_ID]
        assert rank["changed"].tolist() == []


def test_evaluation_sees_the_batch_norm_statistics_of_rank_0(two_ranks: list[dict[str, NDArray[Any]]]) -> None:
    first, second = two_ranks
    assert not np.array_equal(first["own_mean"], second["own_mean"])
    for rank in two_ranks:
        assert np.array_equal(rank["shared_mean"], first["own_mean"])
        assert np.array_equal(rank["shared_ema_mean"], first["shared_ema_mean"])


def state_of(learner: Learner) -> Weights:
    """Weights, the moving average's too, and what the optimizer remembers."""
    assert learner.average is not None
    found = weights(learner)
    found |= {f"ema {name}": value.numpy().copy() for name, value in learner.average.model.state_dict().items()}
    for place, state in learner.optimizer.state_dict()["state"].items():
        found |= {f"optimizer {place} {name}": value.numpy().copy() for name, value in state.items()}
    return found


def test_a_pixel_that_is_not_a_number_changes_neither_weights_nor_optimizer(accelerator: Accelerator) -> None:
    learner = make_learner(accelerator, preprocess=NotANumber, optimizer="adamw", ema_decay=0.9, accumulate=2)
    learner.step(make_batch(0, 0), 0, CHIPS)
    before = state_of(learner)
    assert any(name.startswith("optimizer") for name in before)
    with pytest.raises(NonFiniteError, match=r"epoch 0, step 1: the loss of 1 sample.*clip_norm") as caught:
        take(learner, make_batch(0, 1, first_id=BAD_ID - 2), 1, CHIPS)
    assert caught.value.ids == [BAD_ID]
    assert changes(before, state_of(learner)) == set()


def test_weights_that_are_not_numbers_blame_every_chip(accelerator: Accelerator) -> None:
    learner = make_learner(accelerator)
    with torch.no_grad():
        learner.model.head.get_parameter("dense3.bias")[1] = torch.inf
    with pytest.raises(NonFiniteError) as caught:
        take(learner, make_batch(), 0, CHIPS)
    assert caught.value.ids == list(range(100, 100 + CHIPS))


class SteepAtZero(nn.Module):
    """A loss of zero whose derivative is not finite."""

    def forward(self, logits_BC: torch.Tensor, targets_BC: torch.Tensor, batch_size: int) -> torch.Tensor:
        return (logits_BC * 0).sum(1).sqrt()


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_changes_nothing_either(accelerator: Accelerator, clip_norm: float) -> None:
    learner = make_learner(accelerator, optimizer="adamw", clip_norm=clip_norm, ema_decay=0.9)
    learner.step(make_batch(0, 0), 0, CHIPS)
    before = state_of(learner)
    steep: Any = SteepAtZero()
    learner.loss = steep
    with pytest.raises(NonFiniteError, match="the gradient is not finite") as caught:
        take(learner, make_batch(0, 1), 1, CHIPS)
    assert caught.value.ids == []
    assert changes(before, state_of(learner)) == set()


def test_a_step_is_read_while_the_next_is_under_way_and_nothing_changes_after_a_bad_one(
    accelerator: Accelerator,
) -> None:
    learner = make_learner(accelerator, preprocess=NotANumber, optimizer="adamw", ema_decay=0.9)
    learner.step(make_batch(0, 0), 0, CHIPS)
    assert list(learner.results(unread=1)) == []
    learner.step(make_batch(0, 1), 1, CHIPS, Wish(save=True))
    first, *others = learner.results(unread=1)
    assert first.wish == Wish() and others == []
    before = state_of(learner)
    learner.step(make_batch(0, 2, first_id=BAD_ID - 2), 2, CHIPS)
    [second] = learner.results(unread=1)
    assert second.wish == Wish(save=True) and second.loss != first.loss
    learner.step(make_batch(0, 3), 3, CHIPS)  # a sound one, begun before anybody knows
    with pytest.raises(NonFiniteError, match="epoch 0, step 2: the loss of 1 sample") as caught:
        list(learner.results(unread=1))
    assert caught.value.ids == [BAD_ID]
    assert changes(before, state_of(learner)) == set()


@pytest.fixture
def scaled(accelerator: Accelerator) -> Accelerator:
    """As training in fp16 has it: losses are scaled, and the scaler says which steps are taken."""
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    return accelerator


def test_under_a_scaler_a_bad_loss_halts_too(scaled: Accelerator) -> None:
    learner = make_learner(scaled, preprocess=NotANumber, optimizer="adamw", ema_decay=0.9)
    take(learner, make_batch(0, 0), 0, CHIPS)
    before = state_of(learner)
    learner.step(make_batch(0, 1, first_id=BAD_ID - 2), 1, CHIPS)
    learner.step(make_batch(0, 2), 2, CHIPS)
    with pytest.raises(NonFiniteError, match="step 1: the loss of 1 sample"):
        list(learner.results(unread=1))
    assert changes(before, state_of(learner)) == set()


def test_a_first_step_that_the_scaler_skips_leaves_momentum_at_zero(scaled: Accelerator) -> None:
    learner = make_learner(scaled, momentum=0.9)
    sound, steep = learner.loss, SteepAtZero()
    learner.loss = cast(Any, steep)
    before = weights(learner)
    take(learner, make_batch(), 0, CHIPS)  # a gradient that is not finite is the scaler's to leave out
    assert changes(before, weights(learner)) == set()
    moments = [state["momentum_buffer"] for state in learner.optimizer.state_dict()["state"].values()]
    assert moments and all(torch.count_nonzero(moment) == 0 for moment in moments)
    learner.loss = sound
    take(learner, make_batch(), 1, CHIPS)
    fresh = make_learner(scaled, momentum=0.9)
    take(fresh, make_batch(), 0, CHIPS)
    assert largest_difference(weights(learner), weights(fresh)) < 1e-6


def test_a_long_gradient_is_clipped_and_a_short_one_is_not(accelerator: Accelerator) -> None:
    free = take(make_learner(accelerator, learning_rate=1.0), make_batch(), 0, CHIPS).grad_norm
    for clip_norm, length in ((free / 4, free / 4), (free * 4, free)):
        learner = make_learner(accelerator, learning_rate=1.0, clip_norm=clip_norm)
        before = weights(learner)
        result = take(learner, make_batch(), 0, CHIPS)
        assert result.grad_norm == pytest.approx(free, rel=1e-5)  # what is logged is the length before clipping
        assert moved(before, weights(learner)) == pytest.approx(length, rel=1e-4)


def test_weight_decay_spares_biases_and_norms(accelerator: Accelerator) -> None:
    learner = make_learner(accelerator, "small-resnet", optimizer="adamw", learning_rate=0.1, weight_decay=0.5)
    with torch.no_grad():
        for parameter in learner.model.parameters():
            parameter.add_(1)
            parameter.grad = torch.zeros_like(parameter)
    before = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
    learner.optimizer.step()
    spared = {name for name, p in learner.model.named_parameters() if torch.equal(p, before[name])}
    assert spared == {name for name in before if name.endswith("bias") or before[name].ndim == 1}
    assert "backbone.stem1.1.weight" in spared and "head.dense1.bias" in spared
    for name in before.keys() - spared:
        assert torch.allclose(learner.model.get_parameter(name), before[name] * 0.95, rtol=1e-6), name


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD), ("muon", Muon)],
)
def test_each_optimizer_is_the_one_named(name: str, kind: type[torch.optim.Optimizer]) -> None:
    phase = PhaseConfig(epochs=1, batch_size=1, learning_rate=0.25, optimizer=name, weight_decay=0.125, momentum=0.75)
    optimizer = make_optimizer(phase, [nn.Parameter(torch.ones(2, 2))])
    assert type(optimizer) is kind
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.25, 0.125)
    assert group.get("momentum", 0.75) == 0.75


def rates(steps: range, **phase: Any) -> list[float]:
    settings = PhaseConfig.model_validate({"epochs": 5, "batch_size": 1, "learning_rate": 0.8} | phase)
    return [learning_rate(settings, step, steps_per_epoch=4) for step in steps]


def test_the_rate_is_constant_unless_told_otherwise() -> None:
    assert rates(range(20)) == [0.8] * 20


def test_warm_up_grows_linearly_and_ends_at_the_rate() -> None:
    assert rates(range(6), warmup_epochs=1) == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    assert rates(range(3), warmup_epochs=0.5) == pytest.approx([0.4, 0.8, 0.8])
    assert rates(range(3), warmup_epochs=0.01) == pytest.approx([0.8, 0.8, 0.8])
    assert max(rates(range(20), warmup_epochs=10)) == pytest.approx(0.4)  # longer than the phase


def test_cosine_starts_at_the_rate_halves_midway_and_ends_at_zero() -> None:
    found = rates(range(21), schedule="cosine")
    assert found[0] == 0.8
    assert found[10] == pytest.approx(0.4)
    assert 0 < found[19] < 0.01
    assert found[20] == pytest.approx(0, abs=1e-12)
    assert all(a > b for a, b in pairwise(found))


def test_cosine_takes_what_warm_up_leaves() -> None:
    found = rates(range(21), schedule="cosine", warmup_epochs=1)
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])
    assert found[12] == pytest.approx(0.4)
    assert found[20] == pytest.approx(0, abs=1e-12)


def test_a_step_is_taken_with_the_rate_of_its_place(accelerator: Accelerator) -> None:
    learner = make_learner(accelerator, learning_rate=0.5, warmup_epochs=1)
    before = weights(learner)
    result = take(learner, make_batch(0, 2), 2, CHIPS)
    assert result.learning_rate == pytest.approx(0.15)
    assert moved(before, weights(learner)) == pytest.approx(0.15 * result.grad_norm, rel=1e-4)


def test_the_moving_average_is_judged_where_there_is_one(accelerator: Accelerator) -> None:
    plain = make_learner(accelerator)
    assert plain.average is None and plain.evaluated_model() is plain.model
    learner = make_learner(accelerator, ema_decay=0.95)
    first = weights(learner)
    learner.step(make_batch(), 0, CHIPS)
    last = weights(learner)
    averaged = learner.evaluated_model().state_dict()
    assert learner.evaluated_model() is not learner.model
    for name in first:
        assert np.allclose(averaged[name].numpy(), 0.1 * first[name] + 0.9 * last[name], atol=1e-6), name


def test_dropout_is_drawn_from_seed_epoch_and_step_alone(accelerator: Accelerator) -> None:
    def loss(epoch: int = 2, step: int = 3, seed: int = 3, draws_before: int = 0) -> float:
        learner = make_learner(accelerator, dropout=0.5, seed=seed)
        torch.rand(draws_before)
        batch = make_batch()
        placed = type(batch)(epoch, step, batch.ids_B, batch.images_BHWC, batch.targets_BC)
        learner.preprocess.train = lambda images_BHWC, ids_B, epoch: learner.preprocess.evaluate(images_BHWC)  # type: ignore[method-assign]
        return take(learner, placed, 0, CHIPS).loss

    assert loss() == loss(draws_before=17)
    assert len({loss(), loss(epoch=3), loss(step=2), loss(epoch=3, step=2), loss(seed=4)}) == 5


@pytest.mark.parametrize(("trains", "first"), [("head", "head."), ("from:stage3", "backbone.stage3.")])
def test_what_is_frozen_does_not_move_nor_do_its_statistics(accelerator: Accelerator, trains: str, first: str) -> None:
    learner = make_learner(accelerator, "small-resnet", trains=trains, optimizer="adamw", weight_decay=0.5)
    before = weights(learner)
    for step in range(2):
        learner.step(make_batch(0, step), step, CHIPS)
    trained = {name for name in before if name.startswith((first, "head."))}
    assert changes(before, weights(learner)) == trained
    remembered = {id(p) for group in learner.optimizer.param_groups for p in group["params"]}
    assert remembered == {id(p) for name, p in learner.model.named_parameters() if name in trained}


def test_a_phase_goes_on_from_the_weights_of_the_one_before(accelerator: Accelerator) -> None:
    first = make_learner(accelerator, "small-resnet", trains="head")
    first.step(make_batch(), 0, CHIPS)
    kept = weights(first)
    first.close()
    second = Learner(
        first.phase.model_copy(update={"trains": "all"}),
        first.model,
        first.loss,
        first.preprocess,
        accelerator,
        steps_per_epoch=10,
        seed=3,
    )
    assert changes(kept, weights(second)) == set()
    second.step(make_batch(0, 1), 0, CHIPS)
    assert "backbone.stem1.0.weight" in changes(kept, weights(second))


def test_a_batch_that_cannot_be_divided_is_refused_with_a_remedy(accelerator: Accelerator) -> None:
    with pytest.raises(ConfigError, match=r"batch_size 3 gives no sample .* 1 processes x 4 parts; raise batch_size"):
        make_learner(accelerator, batch_size=3, accumulate=4)


def test_the_loss_reported_leaves_the_penalty_out(accelerator: Accelerator) -> None:
    learner = make_learner(accelerator)
    assert isinstance(learner.loss, Loss)
    learner.model.l2 = 0.0
    plain = take(learner, make_batch(), 0, CHIPS).loss
    assert take(make_learner(accelerator), make_batch(), 0, CHIPS).loss == pytest.approx(plain, rel=1e-6)


def part_sizes(accumulate: int, chosen: slice) -> list[int]:
    from planet_dist.learner import _parts

    return [len(ids_B) for _, ids_B, _ in _parts(part_of(make_batch(), chosen), accumulate)]


def test_parts_differ_by_one_chip_at_most_and_none_is_empty() -> None:
    assert part_sizes(3, slice(0, 7)) == [2, 2, 3]
    assert part_sizes(4, slice(0, 2)) == [1, 1]
    assert part_sizes(1, slice(0, 7)) == [7]


def test_a_phase_trains_at_its_own_size(accelerator: Accelerator) -> None:
    seen: list[torch.Size] = []
    learner = make_learner(accelerator, "small-resnet", size=24)
    learner.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    take(learner, make_batch(), 0, CHIPS)
    assert seen == [torch.Size((CHIPS, 3, 24, 24))]


def test_a_step_trains_on_mixed_chips_and_labels(accelerator: Accelerator) -> None:
    learner, batch = make_learner(accelerator, augment=AugmentConfig(cutmix=0.5, mixup=0.5)), make_batch()
    reference = make_learner(accelerator)
    preprocess, model = learner.preprocess, reference.model.train()
    images_BCHW = preprocess.train(batch.images_BHWC, batch.ids_B, 0)
    mixed_BCHW, soft_BC = preprocess.mix(images_BCHW, batch.targets_BC, batch.ids_B, 0)
    loss = nn.functional.binary_cross_entropy_with_logits(model(mixed_BCHW), soft_BC)
    assert take(learner, batch, 0, CHIPS).loss == pytest.approx(loss.item(), rel=1e-6)
    assert not torch.equal(soft_BC, batch.targets_BC)


def test_every_phase_computes_in_the_precision_of_the_launch_file() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator, seen = Accelerator(cpu=True, mixed_precision="bf16"), []
    first = make_learner(accelerator, "small-resnet")
    first.model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(torch.is_autocast_enabled("cpu")))
    take(first, make_batch(), 0, CHIPS)
    first.close()
    second = Learner(first.phase, first.model, first.loss, first.preprocess, accelerator, steps_per_epoch=10, seed=0)
    take(second, make_batch(), 0, CHIPS)
    second.close()
    first.model(torch.zeros(2, 3, 16, 16))
    AcceleratorState._reset_state(reset_partial_state=True)
    assert seen == [True, True, False]
