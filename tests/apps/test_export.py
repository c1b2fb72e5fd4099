"""Models for other runtimes: their outputs are ours, whatever the batch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from family import small
from tiny import run_cli

from bertfast import config, load
from bertfast.apps import export
from bertfast.apps.export import export_model
from bertfast.errors import BertfastError
from bertfast.model import member_class

pytest.importorskip("transformers")


def write(folder: Path, config_class: type, head: str) -> Path:
    """A model of random weights."""
    torch.manual_seed(7)
    member_class(small(config_class), head)(small(config_class)).save_pretrained(folder)
    (folder / "labels.json").write_text("[]")
    return folder


def test_a_program_of_torch_says_what_ours_says_of_any_batch(tmp_path, monkeypatch, capfd):
    source = write(tmp_path / "model", config.BertConfig, "ForSequenceClassification")
    out = tmp_path / "out"
    done = run_cli(monkeypatch, capfd, "export", str(source), "--to", "torch", "--out", str(out))
    assert done.code == 0, done.err
    assert "largest difference from bertfast's outputs" in done.err
    assert {path.name for path in out.iterdir()} == {"model.pt2", "config.json", "labels.json"}
    program = torch.export.load(out / "model.pt2").module()
    ids = torch.randint(5, 30, (7, 11))
    mask = torch.ones_like(ids)
    mask[3, 4:] = 0
    segments = torch.zeros_like(ids)
    with torch.no_grad():
        (logits,) = program(ids, mask, segments)
        wanted = load(source).eval()(ids, mask, segments).logits
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "openvino"])
@pytest.mark.parametrize(
    ("config_class", "head"),
    [
        (config.BertConfig, "ForQuestionAnswering"),
        (config.BertConfig, "ForMultipleChoice"),
        (config.RobertaConfig, "ForMaskedLM"),
        (config.DebertaV2Config, "ForTokenClassification"),
        (config.ModernBertConfig, "ForSequenceClassification"),
        (config.MPNetConfig, "Model"),
    ],
    ids=lambda x: x if isinstance(x, str) else x.model_type,
)
def test_other_runtimes_say_the_same(config_class, head, to, tmp_path):
    for name in export.NEEDS[to]:
        pytest.importorskip(name)
    source = write(tmp_path / "model", config_class, head)
    assert export_model(source, to, tmp_path / "out") <= export.TOLERANCE


def test_outputs_that_are_not_ours_leave_nothing(tmp_path, monkeypatch):
    source = write(tmp_path / "model", config.BertConfig, "ForSequenceClassification")
    ours = export._our_outputs

    def others(folder):
        run = ours(folder)
        return lambda inputs: {name: x + 0.01 for name, x in run(inputs).items()}

    monkeypatch.setattr(export, "_our_outputs", others)
    with pytest.raises(BertfastError, match="its outputs differ from ours by 1.0e-02"):
        export_model(source, "torch", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--to", "tensorrt"], "to is 'tensorrt'; it must be one of torch, onnx, openvino"),
        (["--out", "."], "exists already; choose another --out"),
    ],
)
def test_wrong_options_are_one_line(change, message, tmp_path, monkeypatch, capfd):
    source = write(tmp_path / "model", config.BertConfig, "ForSequenceClassification")
    given = {"--to": "torch", "--out": str(tmp_path / "out"), change[0]: change[1]}
    arguments = [word for pair in given.items() for word in pair]
    monkeypatch.chdir(source)
    done = run_cli(monkeypatch, capfd, "export", str(source), *arguments)
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "out").exists()


def test_a_missing_package_and_an_unknown_class_are_named(tmp_path):
    with pytest.raises(BertfastError, match="exporting to onnx needs no-such: pip install no-such"):
        export.require(("transformers", "no_such"), "onnx")
    source = write(tmp_path / "model", config.BertConfig, "ForSequenceClassification")
    settings = json.loads((source / "config.json").read_text())
    settings["architectures"] = ["BertForNothing"]
    (source / "config.json").write_text(json.dumps(settings))
    with pytest.raises(BertfastError, match="transformers has no BertForNothing"):
        export_model(source, "torch", tmp_path / "out")
