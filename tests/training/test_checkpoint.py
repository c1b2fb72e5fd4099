"""Checkpoints: whole or not there, and what is said of one that is damaged."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bertfast.errors import BertfastError
from bertfast.training import checkpoint
from bertfast.training.checkpoint import (
    STATE_SUM,
    STATE_TENSORS,
    STATE_VALUES,
    checkpoints,
    clean,
    load_checkpoint,
    optimizer_state,
    restore_optimizer,
    resume_from,
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
@pytest.mark.parametrize("summed", [True, False])
def test_foreign_values_are_named(summed: bool, values: str, tmp_path: Path) -> None:
    folder = save(tmp_path, 5)
    (folder / STATE_VALUES).write_text(values)
    if not summed:
        (folder / STATE_SUM).unlink()
    with pytest.raises(BertfastError, match=rf"{STATE_VALUES}: is (damaged|no training state)"):
        load_checkpoint(folder)


def flip_bit(path: Path, bit: int) -> None:
    """Changes one bit of a file, in a copy of its own where it was a link."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.unlink()
    path.write_bytes(content)


def test_a_flipped_bit_anywhere_is_noticed(tmp_path: Path) -> None:
    """Sixty random bits of every file, and every fourth of the checksums' own."""
    folder, draw, flips = save(tmp_path, 5), random.Random(0), 0
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        bits = range(8 * len(whole))
        for bit in bits[::4] if path.name == STATE_SUM else draw.choices(bits, k=60):
            flip_bit(path, bit)
            with pytest.raises(BertfastError, match=r"is damaged|is missing"):
                load_checkpoint(folder)
            path.write_bytes(whole)
            flips += 1
    assert flips > 400
    assert load_checkpoint(folder).values["step"] == 5


@pytest.mark.parametrize("name", ["config.json", "part/model.safetensors", STATE_SUM, STATE_VALUES])
def test_a_missing_file_is_noticed(name: str, tmp_path: Path) -> None:
    folder = save(tmp_path, 5)
    (folder / name).unlink()
    with pytest.raises(BertfastError, match=Path(name).stem):
        load_checkpoint(folder)


def test_a_resume_goes_back_to_the_last_whole_checkpoint(tmp_path: Path, capsys: Any) -> None:
    older, newest = save(tmp_path, 5), save(tmp_path, 10)
    flip_bit(newest / "part" / "model.safetensors", 1000)
    found = resume_from(tmp_path)
    assert found is not None
    assert (found[0], found[1].values["step"]) == (older, 5)
    said = capsys.readouterr().err
    assert f"{newest / 'part' / 'model.safetensors'}: is damaged" in said
    assert f"going back to the whole checkpoint {older}" in said
    # The run's own files are the whole checkpoint's, and the damaged one is kept under its name.
    assert torch.equal(
        load_file(tmp_path / "part" / "model.safetensors")["v"], torch.full((4, 4), 7.0)
    )
    assert checkpoints(tmp_path) == [older]
    assert newest.with_name("step-00000010.damaged").is_dir()


def test_with_no_whole_checkpoint_nothing_is_changed(tmp_path: Path) -> None:
    folders = [save(tmp_path, 5), save(tmp_path, 10)]
    for folder in folders:
        flip_bit(folder / STATE_TENSORS, 99)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(BertfastError, match="no whole checkpoint is left") as error:
        resume_from(tmp_path)
    assert all(str(folder / STATE_TENSORS) in str(error.value) for folder in folders)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_checkpoint_of_a_release_without_checksums_is_taken(tmp_path: Path, capsys: Any) -> None:
    folder = save(tmp_path, 5)
    (folder / STATE_SUM).unlink()
    (folder / STATE_VALUES).write_text(json.dumps({"step": 5, "tokens": 50}))
    assert load_checkpoint(folder).values == {"step": 5, "tokens": 50}
    assert "without checksums" in capsys.readouterr().err


# Saves checkpoints without a pause, in a process that is forked from one with torch in it: a kill
# always lands inside the writing.
SAVE_FOREVER = """
import os, sys
from pathlib import Path
import torch
from bertfast.training.checkpoint import checkpoints, clean, save_checkpoint
run = Path(sys.argv[1])
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        print("child", os.getpid(), flush=True)
        clean(run)
        found = checkpoints(run)
        step = int(found[-1].name[5:]) if found else 0
        while True:
            step += 1
            tensor = torch.full((100_000,), float(step))
            weights = {"": {"w": tensor}, "part": {"v": tensor + 2}}
            moments, values = {"m.w": tensor + 1}, {"tokens": 10 * step}
            save_checkpoint(run, step, {"config.json": "{}"}, weights, moments, values)
            print(step, flush=True)
    os.waitpid(child, 0)
    print("dead", flush=True)
"""


def test_kills_inside_the_writing_leave_whole_checkpoints(tmp_path: Path) -> None:
    draw, halves = random.Random(0), 0
    with subprocess.Popen(
        [sys.executable, "-c", SAVE_FOREVER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        try:
            for _ in range(30):
                parent.stdin.write("next\n")
                words = parent.stdout.readline().split()
                assert words[0] == "child"
                reported = [
                    int(parent.stdout.readline().split()[0])
                ]  # one whole checkpoint at least
                time.sleep(draw.uniform(0, 0.03))
                os.kill(int(words[1]), signal.SIGKILL)
                while (line := parent.stdout.readline()) != "dead\n":
                    reported.append(int(line.split()[0]))
                halves += any(path.name.endswith(".tmp") for path in tmp_path.rglob("*"))
                found = checkpoints(tmp_path)
                for folder in found:
                    state = load_checkpoint(folder)
                    value = float(state.values["step"])
                    assert torch.equal(state.weights[""]["w"], torch.full((100_000,), value))
                assert int(found[-1].name[5:]) >= reported[-1]
                assert load_file(tmp_path / "model.safetensors")["w"][0] >= reported[-1]
        finally:
            parent.stdin.close()
            parent.kill()
    assert halves >= 10  # else the kills did not land in the writing
    clean(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]


def named(model: torch.nn.Module) -> dict[torch.Tensor, str]:
    return {parameter: name for name, parameter in model.named_parameters()}


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "ours": lambda model: build_optimizer(model, 1e-2),
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-2),
    "amsgrad": lambda model: torch.optim.Adam(model.parameters(), lr=1e-2, amsgrad=True),
    "SGD": lambda model: torch.optim.SGD(model.parameters(), lr=1e-2),
    "momentum": lambda model: torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9),
    "NAdam": lambda model: torch.optim.NAdam(model.parameters(), lr=1e-2),
    "ASGD": lambda model: torch.optim.ASGD(model.parameters(), lr=1e-2),
    "Adafactor": lambda model: torch.optim.Adafactor(model.parameters(), lr=1e-2),
    "Rprop": lambda model: torch.optim.Rprop(model.parameters(), lr=1e-2),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_optimizer_goes_on_to_the_same_weights(kind: str) -> None:
    def trained(
        steps: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer, start: int = 0
    ) -> None:
        for step in range(start, start + steps):
            model(torch.full((2, 3), step + 1.0)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    torch.manual_seed(0)
    model = torch.nn.Linear(3, 3)
    optimizer = OPTIMIZERS[kind](model)
    trained(3, model, optimizer)
    names = [name for name, _ in model.named_parameters()]
    tensors, values = optimizer_state(optimizer, named(model))
    if kind in ("ours", "AdamW"):
        assert set(tensors) == {
            f"{part}.{name}" for part in ("step", "exp_avg", "exp_avg_sq") for name in names
        }

    other = torch.nn.Linear(3, 3)
    other.load_state_dict(model.state_dict())
    restored = OPTIMIZERS[kind](other)
    restore_optimizer(
        restored,
        named(other),
        {name: tensor.clone() for name, tensor in tensors.items()},
        json.loads(json.dumps(values)),
    )
    trained(2, model, optimizer, 3)
    trained(2, other, restored, 3)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_another_models_state_is_refused() -> None:
    model = torch.nn.Linear(3, 3)
    with pytest.raises(BertfastError, match="belongs to another model"):
        restore_optimizer(build_optimizer(model, 1e-2), named(model), {})
    tensors, values = optimizer_state(build_optimizer(model, 1e-2), named(model))
    with pytest.raises(BertfastError, match="of the optimizer AdamW; the run has SGD"):
        restore_optimizer(torch.optim.SGD(model.parameters()), named(model), tensors, values)
