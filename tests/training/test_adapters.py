"""Fine-tuning with an adapter: what trains, what the folder holds, and what other tools read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import run_cli, sentences, write_model, write_table

import bertfast
from bertfast.errors import BertfastError
from bertfast.hub.merge import merge_adapter
from bertfast.model import load
from bertfast.model.adapters import ADAPTERS
from bertfast.training.predict import Predictor

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
TEXTS = ["the film was bright and the cast was long", "the score was dull and the story was long"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    write_model(folder / "model")
    write_table(folder / "train.tsv", sentences(160, seed=1))
    write_table(folder / "dev.tsv", sentences(60, seed=2))
    return folder


def _tune(place: Path, out: str, **options: Any) -> Path:
    settings = {"epochs": 5, "lr": 1e-2, "batch_size": 8, "adapter": "lora", **options}
    files = (str(place / name) for name in ("model", "train.tsv", "dev.tsv", out))
    return bertfast.finetune(*files, **settings).out


@pytest.fixture(scope="module", params=ADAPTERS)
def tuned(request: pytest.FixtureRequest, place: Path) -> Path:
    return _tune(place, request.param, adapter=request.param, adapter_targets="all-linear")


def _logits(model: Any, folder: Path) -> torch.Tensor:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return model.eval()(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits


def test_an_adapter_learns_and_its_folder_holds_it_and_the_head_alone(tuned, place):
    names = {path.name for path in tuned.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "adapted_config.json"} <= names
    assert not {"config.json", "model.safetensors"} & names
    metrics = json.loads((tuned / "metrics.json").read_text())
    losses = [epoch["train_loss"] for epoch in metrics["epochs"]]
    assert losses[-1] < losses[0]
    # (IA)3 scales what an encoder knows, and this one's weights are random.
    assert metrics["dev_accuracy"] > (0.3 if tuned.name == "ia3" else 0.85)
    stored = load_file(tuned / "adapter_model.safetensors")
    whole = load_file(place / "model" / "model.safetensors")
    assert "base_model.model.classifier.weight" in stored
    assert sum(x.numel() for x in stored.values()) < sum(x.numel() for x in whole.values()) / 2


def test_peft_and_transformers_give_the_same_logits(tuned, place):
    base = transformers.AutoModelForSequenceClassification.from_pretrained(place / "model")
    theirs = _logits(peft.PeftModel.from_pretrained(base, str(tuned)), tuned)
    torch.testing.assert_close(_logits(load(tuned), tuned), theirs, atol=1e-5, rtol=1e-5)


def test_a_merged_folder_is_a_whole_model_for_transformers(tuned, tmp_path):
    merge_adapter(tuned, tmp_path / "whole")
    pipe = transformers.pipeline("text-classification", str(tmp_path / "whole"))
    ours = Predictor(tuned)
    examples = [bertfast.data.labelled.Example(n, text) for n, text in enumerate(TEXTS)]
    for said, prediction in zip(pipe(TEXTS), ours.predict(examples), strict=True):
        assert said["label"] == prediction["label"]
        assert said["score"] == pytest.approx(prediction["probabilities"][said["label"]], abs=1e-5)


def test_nothing_but_the_adapter_and_the_head_has_changed(tuned, place):
    merged, base = load(tuned), load(place / "model").base.state_dict()
    changed = {
        name.rpartition(".")[0].rpartition(".")[2]
        for name, tensor in merged.base.state_dict().items()
        if not torch.equal(tensor, base[name])
    }
    assert changed  # with "all-linear", or the modules of (IA)3
    assert changed <= {"query", "key", "value", "dense"}


def test_dropout_before_the_factors_is_counted_so_that_a_resume_is_exact(place, monkeypatch):
    options = {"adapter_dropout": 0.3, "epochs": 2}
    whole = load_file(_tune(place, "straight", **options) / "adapter_model.safetensors")
    from bertfast.training.trainer import Trainer

    once = Trainer._save
    saved = []

    def stop_after_the_first(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        result = once(self, *args, **kwargs)
        saved.append(1)
        if len(saved) == 1:
            raise BertfastError("stopped here")
        return result

    monkeypatch.setattr(Trainer, "_save", stop_after_the_first)
    with pytest.raises(BertfastError, match="stopped here"):
        _tune(place, "resumed", **options)
    torch.manual_seed(99)
    resumed = load_file(
        _tune(place, "resumed", resume=True, **options) / "adapter_model.safetensors"
    )
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"adapter": "prefix"}, "adapter is 'prefix'; it must be one of lora, dora, ia3"),
        ({"adapter_rank": 0}, "adapter-rank is 0"),
        ({"adapter_dropout": 1.0}, "adapter-dropout is 1.0"),
        ({"adapter_targets": "nothing"}, "names 'nothing', and no linear layer of"),
        ({"freeze_encoder": True}, "adapter and freeze-encoder exclude each other"),
        ({"from_scratch": True}, "adapter and from-scratch exclude each other"),
    ],
)
def test_what_cannot_be_is_one_line(place, options, said):
    with pytest.raises(BertfastError, match="^[^\n]*" + said + "[^\n]*$"):
        _tune(place, "refused", **options)
    assert not (place / "refused").exists()


def _lose_a_weight(stored: dict[str, torch.Tensor]) -> None:
    del stored[next(name for name in sorted(stored) if "lora" in name)]


def _add_a_weight(stored: dict[str, torch.Tensor]) -> None:
    stored["base_model.model.bert.nothing.lora_A.weight"] = torch.zeros(8, 32)


def _bend_a_weight(stored: dict[str, torch.Tensor]) -> None:
    stored[next(name for name in sorted(stored) if "lora" in name)] = torch.zeros(3, 5)


@pytest.mark.parametrize("damage", [_lose_a_weight, _add_a_weight, _bend_a_weight])
def test_a_damaged_adapter_is_one_line_on_the_command_line(
    place, tmp_path, damage, monkeypatch, capfd
):
    folder = place / "damaged"
    if not folder.exists():
        _tune(place, "damaged")
    whole = (folder / "adapter_model.safetensors").read_bytes()
    stored = load_file(folder / "adapter_model.safetensors")
    damage(stored)
    save_file(stored, folder / "adapter_model.safetensors")
    outcome = run_cli(monkeypatch, capfd, "merge", folder, "--out", tmp_path / "whole")
    (folder / "adapter_model.safetensors").write_bytes(whole)
    assert outcome.code == 2
    assert len(outcome.errors) == 1
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "whole").exists()


def test_a_whole_model_is_no_adapter(place, tmp_path, monkeypatch, capfd):
    outcome = run_cli(monkeypatch, capfd, "merge", place / "model", "--out", tmp_path / "whole")
    assert outcome.code == 2
    assert "holds a whole model" in outcome.errors[0]
    folder = place / "lone"
    if not folder.exists():
        _tune(place, "lone")
    files = (str(place / name) for name in ("train.tsv", "dev.tsv"))
    with pytest.raises(BertfastError, match="holds an adapter alone; write the whole model with"):
        bertfast.finetune(str(folder), *files, str(tmp_path / "out"))
