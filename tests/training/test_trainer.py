"""The trainer with what a user brings: optimizers, schedules, callbacks, batches and outputs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import write_model

import bertfast
from bertfast import BertConfig, BertForMaskedLM, Callback, PackedBatch, Trainer
from bertfast.errors import BertfastError
from bertfast.seeds import step_seed
from bertfast.training.checkpoint import checkpoints
from bertfast.training.metrics import read_metrics
from bertfast.training.prefetch import ahead

SHAPE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def model() -> BertForMaskedLM:
    torch.manual_seed(0)
    return BertForMaskedLM(BertConfig(vocab_size=40, intermediate_size=64, **SHAPE))


def batches(count: int = 5) -> list[PackedBatch]:
    generator, made = torch.Generator().manual_seed(0), []
    for number in range(count):
        rows = torch.randint(4, 40, (4, 6 + number), generator=generator)
        batch = PackedBatch.from_sequences(rows.tolist())
        batch.masked_positions = torch.arange(1, batch.num_tokens, 5)
        batch.masked_labels = batch.input_ids[batch.masked_positions]
        batch.input_ids[batch.masked_positions] = 1
        made.append(batch)
    return made


def trainer(out: Path, **options: Any) -> Trainer:
    settings = {"steps": 8, "log_every": 1, "checkpoint_every": 3, "lr": 1e-3, **options}
    net = settings.pop("model", None) or model()
    if "optimizer" in settings and settings["optimizer"] in OPTIMIZERS:
        settings["optimizer"] = OPTIMIZERS[settings["optimizer"]](net.parameters())
    return Trainer(net, settings.pop("batches", batches()), out=out, **settings)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW": lambda weights: torch.optim.AdamW(weights, lr=1e-3),
    "SGD": lambda weights: torch.optim.SGD(weights, lr=1e-1, momentum=0.9),
    "RMSprop": lambda weights: torch.optim.RMSprop(weights, lr=1e-3, centered=True),
    "Adagrad": lambda weights: torch.optim.Adagrad(weights, lr=1e-2),
}


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(out)]


def assert_same_run(one: Path, other: Path) -> None:
    assert losses(one) == losses(other)
    a, b = (load_file(path / "model.safetensors") for path in (one, other))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, trainer: Trainer, step: int) -> None:
        if step == self.step:
            raise ValueError("enough")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, None])
def test_every_optimizer_resumes_bit_for_bit(
    optimizer: str | None, precision: str, tmp_path: Path
) -> None:
    options = {"optimizer": optimizer, "precision": precision, "accumulation": 2}
    trainer(tmp_path / "whole", **options).train()
    with pytest.raises(BertfastError, match="enough"):
        trainer(tmp_path / "parts", callbacks=[StopAt(5)], **options).train()
    assert trainer(tmp_path / "parts", **options).train(resume=True).steps == 8
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert {x.dtype for x in load_file(tmp_path / "whole" / "model.safetensors").values()} == {
        torch.float32
    }


def test_an_own_adamw_trains_as_pytorch_alone_does(tmp_path: Path) -> None:
    """Its clipping, its schedule and its steps: the loop written out."""
    net = model().train()
    optimizer = OPTIMIZERS["AdamW"](net.parameters())
    for step, batch in enumerate(batches()):
        net(batch, seed=step_seed(0, step, 0)).loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1)
        optimizer.param_groups[0]["lr"] = 1e-3 / (step + 1)
        optimizer.step()
        optimizer.zero_grad()
    other = model()
    trainer(
        tmp_path,
        model=other,
        optimizer="AdamW",
        steps=5,
        clip_norm=0.1,
        schedule=lambda step: 1 / (step + 1),
    ).train()
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("count", [1, 3])
def test_batches_made_ahead_are_the_same(count: int, tmp_path: Path) -> None:
    trainer(tmp_path / "due", prefetch=0).train()
    trainer(tmp_path / "ahead", prefetch=count).train()
    assert_same_run(tmp_path / "due", tmp_path / "ahead")


def test_the_worker_makes_a_bounded_number_ahead_and_ends() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    with ahead(items(), 3) as taken:
        assert next(taken) == 0
        time.sleep(0.3)
        assert len(made) <= 1 + 3 + 1
        assert [next(taken) for _ in range(9)] == list(range(1, 10))
    assert not [thread for thread in threading.enumerate() if thread.name == "bertfast-batches"]


def test_a_worker_that_is_killed_is_one_error_and_no_hang() -> None:
    """The thread ends where it stands, twice over, so that it cannot say why."""
    import ctypes

    def items() -> Iterator[int]:
        yield from range(100)

    kill = ctypes.pythonapi.PyThreadState_SetAsyncExc
    with ahead(items(), 1) as taken:
        next(taken)
        (worker,) = (t for t in threading.enumerate() if t.name == "bertfast-batches")
        while worker.is_alive():
            kill(ctypes.c_ulong(worker.ident or 0), ctypes.py_object(SystemExit))
            time.sleep(0.01)
        with pytest.raises(BertfastError, match=r"that makes the batches is gone|SystemExit"):
            list(taken)


def test_the_worker_takes_no_processor_but_its_own() -> None:
    from bertfast.kernels.threads import num_threads

    own = torch.get_num_threads()
    try:
        torch.set_num_threads(2)

        def items() -> Iterator[int]:
            while True:
                yield num_threads()

        with ahead(items(), 1) as taken:
            assert next(taken) == 1
            assert (num_threads(), torch.get_num_threads()) == (2, 2)
            later: list[int] = []
            other = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
            other.start()
            other.join()
            assert later == [2]
        assert (num_threads(), torch.get_num_threads()) == (2, 2)
    finally:
        torch.set_num_threads(own)


class Failing:
    def iterate(self, start: int = 0) -> Iterator[tuple[int, PackedBatch]]:
        made = batches()
        for number in range(start, 4):
            yield 0, made[number]
        raise self.error

    def __init__(self, error: BaseException) -> None:
        self.error = error


@pytest.mark.parametrize("error", [ValueError("bad row"), SystemExit(3), BertfastError("bad row")])
def test_a_worker_that_dies_is_one_error(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(BertfastError, match=r"bad row|SystemExit"):
        trainer(tmp_path, batches=Failing(error), steps=9).train()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000003"]


@pytest.mark.parametrize("hook", ["on_step", "on_log", "on_checkpoint", "on_evaluate"])
def test_a_callback_that_raises_is_one_error_and_keeps_the_checkpoint(
    hook: str, tmp_path: Path
) -> None:
    calls: list[None] = []

    def fail(*_: Any) -> None:
        calls.append(None)
        if len(calls) > 2:
            raise RuntimeError("no such host")

    bad = type("Tracker", (Callback,), {hook: fail})()
    options = {"evaluate": lambda net: {"score": 1.0}, "evaluate_every": 2, "checkpoint_every": 1}
    with pytest.raises(
        BertfastError, match=rf"callback Tracker failed in {hook} \(RuntimeError"
    ) as e:
        trainer(tmp_path / "run", callbacks=[bad], **options).train()
    assert str(checkpoints(tmp_path / "run")[-1]) in str(e.value)
    trainer(tmp_path / "run", **options).train(resume=True)
    trainer(tmp_path / "whole", **options).train()
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_callbacks_are_told_of_a_start_unless_all_updates_are_made(tmp_path: Path) -> None:
    told: list[int] = []

    class Note(Callback):
        def on_start(self, trainer: Trainer, step: int) -> None:
            told.append(step)

    for steps, resume in ((4, False), (6, True), (6, True)):
        trainer(tmp_path, callbacks=[Note()], steps=steps).train(resume=resume)
    assert told == [0, 4]


def test_the_last_and_the_best_checkpoints_are_kept(tmp_path: Path) -> None:
    scores = iter([0.1, 0.9, 0.2, 0.3, 0.9, 0.4, 0.5, 0.6])
    result = trainer(
        tmp_path,
        evaluate=lambda net: {"score": next(scores), "training": float(net.training)},
        evaluate_every=1,
        best="score",
        checkpoint_every=1,
        keep=3,
    ).train()
    assert result.best == {"step": 2, "score": 0.9, "training": 0.0}
    names = [path.name for path in checkpoints(tmp_path)]
    assert names == [f"step-{step:08d}" for step in (2, 6, 7, 8)]


def test_nan_is_refused_a_step_late_with_its_own_step(tmp_path: Path) -> None:
    made = batches()

    class Poisoned(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = model(), 0

        def forward(self, batch: PackedBatch, *, seed: Any) -> dict[str, Any]:
            self.calls += 1
            loss = self.inner(batch, seed=seed).loss
            return {"loss": loss * float("nan") if self.calls == 5 else loss}

    net = Poisoned()
    with pytest.raises(BertfastError, match=r"step 5: the loss is nan.*step-00000003"):
        trainer(tmp_path, model=net, batches=made, steps=20, log_every=100).train()
    assert net.calls == 6


def test_what_no_model_saves_is_resumed_too(tmp_path: Path) -> None:
    """The head of a module of which the encoder alone is saved as a model."""

    def made() -> torch.nn.Module:
        class Headed(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner, self.scale = model(), torch.nn.Linear(1, 1)

            def forward(self, batch: PackedBatch, *, seed: Any) -> dict[str, Any]:
                loss = self.inner(batch, seed=seed).loss
                return {"loss": self.scale(loss.view(1, 1)).square().sum()}

        net = Headed()
        with torch.no_grad():
            net.scale.weight.fill_(1.0)
            net.scale.bias.fill_(0.0)
        return net

    def run(out: Path, resume: bool = False, **options: Any) -> None:
        net: Any = made()
        trainer(out, model=net, models={"": net.inner}, **options).train(resume)

    run(tmp_path / "whole")
    with pytest.raises(BertfastError, match="enough"):
        run(tmp_path / "parts", callbacks=[StopAt(5)])
    run(tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_save_pretrained_in_bfloat16_training_saves_the_masters(tmp_path: Path) -> None:
    class Saves(Callback):
        def on_checkpoint(self, trainer: Trainer, folder: Path) -> None:
            trainer.model.save_pretrained(tmp_path / "saved")  # type: ignore[operator]
            saved, kept = (
                load_file(path / "model.safetensors") for path in (tmp_path / "saved", folder)
            )
            assert {x.dtype for x in saved.values()} == {torch.float32}
            assert all(torch.equal(saved[name], kept[name]) for name in kept)

    net = model()
    trainer(tmp_path / "run", model=net, precision="bf16", callbacks=[Saves()]).train()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1.0)
    net.save_pretrained(tmp_path / "changed")
    saved = load_file(tmp_path / "changed" / "model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in net.state_dict().items())


def test_a_folder_with_checkpoints_is_not_overwritten(tmp_path: Path) -> None:
    trainer(tmp_path).train()
    with pytest.raises(BertfastError, match="has checkpoints already"):
        trainer(tmp_path).train()


def test_an_objective_that_is_not_registered_is_one_error(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    with pytest.raises(
        BertfastError, match=r"objective is 'mine'; it must be one of mlm, mlm\+nsp"
    ):
        bertfast.pretrain(["x"], str(tmp_path / "model"), str(tmp_path / "run"), objective="mine")


def test_a_name_is_registered_once() -> None:
    with pytest.raises(BertfastError, match="an objective named 'mlm' already"):

        @bertfast.register_objective
        class Other(bertfast.Objective):
            name = "mlm"
