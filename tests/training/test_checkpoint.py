"""Checkpoints: whole or not there, and what is said of one that is damaged."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bertfast.errors import BertfastError
from bertfast.training import checkpoint
from bertfast.training.checkpoint import (
    STATE_TENSORS,
    STATE_VALUES,
    checkpoints,
    clean,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from bertfast.training.optimizer import build_optimizer

FILES = {"config.json": "{}"}


def save(run: Path, step: int, value: float | None = None) -> Path:
    tensor = torch.full((4, 4), float(step if value is None else value))
    return save_checkpoint(
        run,
        step,
        FILES,
        {"": {"w": tensor}, "part": {"v": tensor + 2}},
        {"exp_avg.w": tensor + 1},
        {"tokens": 10 * step},
    )


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    state = load_checkpoint(save(tmp_path, 7))
    assert state.values == {"step": 7, "tokens": 70}
    assert torch.equal(state.weights[""]["w"], torch.full((4, 4), 7.0))
    assert torch.equal(state.weights["part"]["v"], torch.full((4, 4), 9.0))
    assert torch.equal(state.moments["exp_avg.w"], torch.full((4, 4), 8.0))


def test_the_run_shows_the_newest_and_keeps_the_last_two(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save(tmp_path, step)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000010", "step-00000015"]
    assert torch.equal(load_file(tmp_path / "model.safetensors")["w"], torch.full((4, 4), 15.0))


def test_a_step_saved_again_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 5)
    folder = save(tmp_path, 5, value=9.0)
    assert torch.equal(load_checkpoint(folder).weights[""]["w"], torch.full((4, 4), 9.0))


@pytest.mark.parametrize("stage", ["save_file", "_flush", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_at_any_stage_leaves_the_last_checkpoint(
    stage: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 5)
    shown = (tmp_path / "model.safetensors").read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise error

    where = os if stage == "replace" else checkpoint
    with monkeypatch.context() as patched:
        patched.setattr(where, stage, fail)
        if isinstance(error, OSError):
            with pytest.raises(
                BertfastError, match=r"No space left on device.*earlier checkpoints are untouched"
            ):
                save(tmp_path, 10)
        else:
            with pytest.raises(KeyboardInterrupt):
                save(tmp_path, 10)
    clean(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]
    assert (tmp_path / "model.safetensors").read_bytes() == shown
    assert load_checkpoint(checkpoints(tmp_path)[-1]).values["step"] == 5


def test_clean_removes_only_what_a_kill_left(tmp_path: Path) -> None:
    folder = save(tmp_path, 5)
    shutil.copytree(folder, folder.with_name(".step-00000010.tmp"))
    (tmp_path / ".model.safetensors.tmp").write_bytes(b"half")
    clean(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoints",
        "model.safetensors",
        "part",
    ]
    assert checkpoints(tmp_path) == [folder]


@pytest.mark.parametrize("name", ["model.safetensors", STATE_TENSORS, STATE_VALUES])
@pytest.mark.parametrize("keep", [0, 0.5])
def test_a_truncated_file_is_named(name: str, keep: float, tmp_path: Path) -> None:
    path = save(tmp_path, 5) / name
    whole = path.read_bytes()
    path.unlink()  # the run's own model.safetensors is a link to it
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(BertfastError, match=name):
        load_checkpoint(path.parent)


@pytest.mark.parametrize("values", ["[]", '{"tokens": 1}', '{"step": null}', "\x00"])
def test_foreign_values_are_named(values: str, tmp_path: Path) -> None:
    folder = save(tmp_path, 5)
    (folder / STATE_VALUES).write_text(values)
    with pytest.raises(
        BertfastError, match=r"is no training state.*to resume from the checkpoint before it"
    ):
        load_checkpoint(folder)


def test_the_optimizer_goes_on_to_the_same_weights() -> None:
    def trained(
        steps: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer, start: int = 0
    ) -> None:
        for step in range(start, start + steps):
            model(torch.full((2, 3), step + 1.0)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    torch.manual_seed(0)
    model = torch.nn.Linear(3, 3)
    optimizer = build_optimizer(model, 1e-2)
    trained(3, model, optimizer)
    names = [name for name, _ in model.named_parameters()]
    tensors = optimizer_tensors(optimizer, names, model.parameters())
    assert set(tensors) == {
        f"{kind}.{name}" for kind in ("step", "exp_avg", "exp_avg_sq") for name in names
    }

    other = torch.nn.Linear(3, 3)
    other.load_state_dict(model.state_dict())
    restored = build_optimizer(other, 1e-2)
    restore_optimizer(
        restored,
        names,
        other.parameters(),
        {name: tensor.clone() for name, tensor in tensors.items()},
    )
    trained(2, model, optimizer, 3)
    trained(2, other, restored, 3)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_another_models_state_is_refused() -> None:
    model = torch.nn.Linear(3, 3)
    with pytest.raises(BertfastError, match="belongs to another model"):
        restore_optimizer(build_optimizer(model, 1e-2), ["weight", "bias"], model.parameters(), {})
