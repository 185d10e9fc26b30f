"""Muon's steps are orthogonal where they should be, AdamW's elsewhere, none where a step is not sound, and resume."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from planet_dist.checkpoint import load_optimizer, optimizer_tensors
from planet_dist.config import ModelConfig
from planet_dist.models import build_model
from planet_dist.muon import Muon, is_hidden, orthogonal, shares
from tests.conftest import REPOSITORY

LR, DECAY = 0.01, 0.1


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_parameters(seed: int = 0) -> list[nn.Parameter]:
    """A filter in channels_last, a matrix, a first filter, and a bias."""
    random = torch.Generator().manual_seed(seed)
    shapes = [(40, 32, 3, 3), (48, 64), (32, 3, 3, 3), (17,)]
    values = [torch.randn(shape, generator=random) for shape in shapes]
    values[0] = values[0].to(memory_format=torch.channels_last)
    return [nn.Parameter(value) for value in values]


def give_gradients(parameters: Sequence[nn.Parameter], seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=random))


@pytest.mark.parametrize("shape", [(32, 288), (200, 64), (64, 64)])
def test_the_orthogonal_matrix_keeps_directions_and_levels_their_strength(shape: tuple[int, int]) -> None:
    random = torch.Generator().manual_seed(1)
    side = min(shape)
    left, right = (torch.linalg.qr(torch.randn(n, side, generator=random))[0] for n in shape)
    strengths = torch.logspace(0, -1.5, side)  # from 1 to 0.03
    found = left.T @ orthogonal(left @ torch.diag(strengths) @ right.T).float() @ right
    levels = found.diagonal()
    assert levels.min() > 0.6
    assert levels.max() < 1.3
    assert (found - torch.diag(levels)).abs().max() < 0.06


def test_zeros_give_no_direction() -> None:
    assert torch.equal(orthogonal(torch.zeros(32, 40)).float(), torch.zeros(32, 40))


@pytest.mark.parametrize("kernels", [True, False])
def test_products_are_in_float32_where_the_cpu_has_no_kernels_for_bf16(
    kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("planet_dist.muon.cpu_has_bf16", lambda: kernels)
    assert orthogonal(torch.eye(32)).dtype == (torch.bfloat16 if kernels else torch.float32)


def test_a_step_of_a_hidden_layer_is_orthogonal_as_long_as_asked_and_decays() -> None:
    filters, matrix, *_ = make_parameters()
    before = [filters.detach().clone(), matrix.detach().clone()]
    optimizer = Muon([filters, matrix], LR, DECAY)
    give_gradients([filters, matrix], 1)
    optimizer.step()
    for parameter, old in zip((filters, matrix), before, strict=True):
        step = ((1 - LR * DECAY) * old - parameter.detach()).flatten(1)
        longest = max(step.shape)
        # Random gradients have singular values within a factor of ten, where all become about one.
        values = torch.linalg.svdvals(step) / (LR * 0.2 * math.sqrt(longest))
        assert values.min() > 0.6
        assert values.max() < 1.3
        assert parameter.grad is not None
        overlap = (step * parameter.grad.flatten(1)).sum() / (step.norm() * parameter.grad.norm())
        assert overlap > 0.8


def test_the_average_of_gradients_sets_the_direction() -> None:
    (matrix,) = [make_parameters()[1]]
    optimizer = Muon([matrix], LR, 0.0)
    average = torch.zeros(48, 64)
    for seed in range(4):
        give_gradients([matrix], seed)
        assert matrix.grad is not None
        average = 0.95 * average + 0.05 * matrix.grad
        expected = orthogonal(0.05 * matrix.grad + 0.95 * average).float()
        before = matrix.detach().clone()
        optimizer.step()
        found = (before - matrix.detach()) / (LR * 0.2 * math.sqrt(64))
        assert (found - expected).abs().max() < 0.03


def test_all_else_takes_the_steps_of_adamw() -> None:
    mine, theirs = make_parameters()[2:], make_parameters()[2:]
    optimizer = Muon(mine, LR, DECAY)
    first, bias = theirs
    reference = torch.optim.AdamW(
        [{"params": [first], "weight_decay": DECAY}, {"params": [bias], "weight_decay": 0.0}], lr=LR
    )
    for seed in range(3):
        for parameters, one in ((mine, optimizer), (theirs, reference)):
            give_gradients(parameters, seed)
            one.step()
    for found, expected in zip(mine, theirs, strict=True):
        torch.testing.assert_close(found, expected)


SHARED = """
import sys
import torch, torch.distributed as dist
from planet_dist import muon
from tests.test_muon import give_gradients, make_parameters, LR, DECAY
torch.set_num_threads(1)
rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
made = []
one = muon.orthogonal
muon.orthogonal = lambda matrix_OI: made.append(matrix_OI.shape) or one(matrix_OI)
parameters = make_parameters()
optimizer = muon.Muon(parameters, LR, DECAY)
for seed in range(2):
    give_gradients(parameters, seed)
    optimizer.step()
torch.save({"parameters": [p.detach() for p in parameters], "made": len(made)}, out)
dist.destroy_process_group()
"""


def test_ranks_share_the_work_and_take_the_very_steps_of_one(tmp_path: Path) -> None:
    outs = [tmp_path / "0.pt", tmp_path / "1.pt"]
    command = [sys.executable, "-c", SHARED]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store"), str(out)], cwd=REPOSITORY)
        for rank, out in enumerate(outs)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    parameters = make_parameters()
    optimizer = Muon(parameters, LR, DECAY)
    for seed in range(2):
        give_gradients(parameters, seed)
        optimizer.step()
    for out in outs:
        found = torch.load(out)
        assert found["made"] == 2  # of two matrices in two steps, each rank makes one
        assert all(torch.equal(p, q) for p, q in zip(found["parameters"], parameters, strict=True))


def test_the_dearest_matrices_are_shared_out_first() -> None:
    shapes = [(64, 576), (256, 2304), (128, 1152), (128, 1152), (64, 576)]
    assert shares(shapes, 2) == [[1], [2, 3, 0, 4]]
    assert shares(shapes, 8)[5:] == [[], [], []]


def test_hidden_layers_are_all_but_the_first_the_last_and_vectors() -> None:
    model = build_model(ModelConfig(name="small-resnet"), 17, 3, 32)
    others = {name for name, p in model.named_parameters() if p.ndim > 1 and not is_hidden(p)}
    assert others == {"backbone.stem1.0.weight", "head.dense1.weight"}


def test_a_step_that_is_not_sound_changes_nothing() -> None:
    parameters = make_parameters()
    optimizer = Muon(parameters, LR, DECAY)
    give_gradients(parameters, 0)
    optimizer.step()
    before = [p.detach().clone() for p in parameters]
    kept = {name: value.clone() for name, value in optimizer_tensors(optimizer).items()}
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, torch.nan)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(parameters, before, strict=True))
    after = optimizer_tensors(optimizer)
    assert kept.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in kept.items())
    optimizer.found_inf = torch.zeros(())
    give_gradients(parameters, 1)
    optimizer.step()
    assert not any(torch.equal(p, old) for p, old in zip(parameters, before, strict=True))


def test_steps_after_a_checkpoint_are_those_without_one() -> None:
    def steps(optimizer: Muon, parameters: Sequence[nn.Parameter], seeds: range) -> None:
        for seed in seeds:
            give_gradients(parameters, seed)
            optimizer.step()

    whole = make_parameters()
    steps(Muon(whole, LR, DECAY), whole, range(5))
    first = make_parameters()
    stopped = Muon(first, LR, DECAY)
    steps(stopped, first, range(3))
    saved: dict[str, Tensor] = {name: value.contiguous().clone() for name, value in optimizer_tensors(stopped).items()}
    again = [nn.Parameter(torch.empty_like(p).copy_(p.detach())) for p in first]
    resumed = Muon(again, LR, DECAY)
    load_optimizer(resumed, saved)
    steps(resumed, again, range(3, 5))
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
