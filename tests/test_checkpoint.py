"""Checkpoints are whole or absent, come back bit for bit, and never lose the best."""

from __future__ import annotations

import errno
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from planet_dist import checkpoint as module
from planet_dist.checkpoint import (
    Best,
    Checkpoint,
    Position,
    State,
    load_checkpoint,
    load_optimizer,
    mark_best,
    newest,
    optimizer_tensors,
    prune,
    save_checkpoint,
)
from shards.errors import RunError


def state(total_steps: int = 7, best: Best | None = None) -> State:
    return State(Position(0, 1, 2), total_steps, 345, best, {"scale": 2.0}, {"seed": 0}, "abc", {"torch": "x"})


def save(folder: Path, total_steps: int = 7) -> Path:
    tensors = {"weight": torch.arange(6.0).reshape(2, 3), "seen": torch.tensor(3)}
    return save_checkpoint(folder, state(total_steps), tensors, None, {"0.step": torch.tensor(1.0)})


def network() -> nn.Conv2d:
    """A convolution in channels_last, as training has it."""
    return nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)


def trained(optimizer_class: type[torch.optim.Optimizer], steps: int) -> tuple[nn.Conv2d, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = network()
    optimizer = make(optimizer_class, model)
    for _ in range(steps):
        step(model, optimizer)
    return model, optimizer


def make(optimizer_class: type[torch.optim.Optimizer], model: nn.Module) -> torch.optim.Optimizer:
    more = {"momentum": 0.9} if optimizer_class is torch.optim.SGD else {}
    return optimizer_class(model.parameters(), lr=1e-3, fused=True, **more)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.arange(96.0).reshape(2, 3, 4, 4)).square().sum().backward()
    optimizer.step()


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    folder = save(tmp_path / "checkpoints")
    found = load_checkpoint(folder)
    assert found.state == state()
    assert torch.equal(found.model["weight"], torch.arange(6.0).reshape(2, 3))
    assert found.model["seen"].dtype == torch.int64
    assert found.ema is None


@pytest.mark.parametrize("optimizer_class", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_an_optimizer_goes_on_as_if_it_had_never_been_saved(
    optimizer_class: type[torch.optim.Optimizer], tmp_path: Path
) -> None:
    straight, _ = trained(optimizer_class, 3)
    model, optimizer = trained(optimizer_class, 2)
    folder = save_checkpoint(tmp_path / "checkpoints", state(), model.state_dict(), None, optimizer_tensors(optimizer))
    resumed = network()
    resumed.load_state_dict(load_checkpoint(folder).model)
    again = make(optimizer_class, resumed)
    load_optimizer(again, load_checkpoint(folder).optimizer)
    step(resumed, again)
    assert torch.equal(resumed.weight, straight.weight)
    assert torch.equal(resumed.bias, straight.bias)


def test_the_newest_complete_checkpoint_is_found_and_leftovers_are_not(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    assert newest(checkpoints) is None
    for total_steps in (9, 100):
        save(checkpoints, total_steps)
    (checkpoints / ".step-00000200.tmp").mkdir()  # a save that was cut off
    assert newest(checkpoints) == checkpoints / "step-00000100"


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    for total_steps in (1, 2, 3, 4, 5):
        save(checkpoints, total_steps)
    mark_best(checkpoints, "step-00000002")
    prune(checkpoints, keep=2, best=Best(0.5, "step-00000002"))
    left = sorted(path.name for path in checkpoints.iterdir())
    assert left == ["best", "step-00000002", "step-00000004", "step-00000005"]
    assert (checkpoints / "best" / "state.json").exists()


def test_a_full_disk_while_saving_leaves_the_checkpoint_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = tmp_path / "checkpoints"
    save(checkpoints, 1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(RunError, match=r"step-00000002: cannot be written .*No space.*--resume auto"):
        save(checkpoints, 2)
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("damage", ["state.json", "model.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("how", ["missing", "cut", "pickle"])
def test_damage_is_named_and_nothing_in_a_checkpoint_is_executed(damage: str, how: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "checkpoints")
    marker = tmp_path / "executed"
    path = folder / damage
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    else:
        path.write_bytes(pickle.dumps(Malicious(str(marker))))
    with pytest.raises(RunError, match=r"step-00000007.*remove (the|its) folder"):
        load_checkpoint(folder)
    assert not marker.exists()


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.marker, "w")


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "checkpoints")
    table = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**table, "version": 99}))
    with pytest.raises(RunError, match="another version"):
        load_checkpoint(folder)


def test_saving_again_at_the_same_step_replaces_what_an_undone_run_left(tmp_path: Path) -> None:
    folder = save(tmp_path / "checkpoints")
    (folder / "ema.safetensors").write_text("of the undone run")
    assert save(tmp_path / "checkpoints") == folder
    assert not (folder / "ema.safetensors").exists()
    assert isinstance(load_checkpoint(folder), Checkpoint)
    shutil.rmtree(folder)
