"""`bertfast bench` and `bertfast profile` measure on the user's lengths, and say when they cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bertfast.bench import command, profile, rates, sentence_embedding, timing
from bertfast.bench.case import Case, Setup
from bertfast.bench.floors import Floor
from bertfast.bench.lengths import Lengths
from bertfast.bench.ops import OPS
from bertfast.cli import main
from bertfast.config import BertConfig
from bertfast.errors import BertfastError


@pytest.fixture(autouse=True)
def quick_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    measure = rates.measure
    monkeypatch.setattr(rates, "measure", lambda device: measure(device, quick=True))


def small(dtype: torch.dtype = torch.float32) -> Setup:
    config = BertConfig.preset("bert-tiny", vocab_size=300, max_position_embeddings=64)
    return Setup(Lengths("mixed", (9, 5, 1, 3)), config, dtype, "cpu", compiled=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_every_op_is_compared_timed_and_set_beside_its_floor(op: str, dtype: torch.dtype) -> None:
    found = command.bench(small(dtype), [op], False, 0.02)
    assert len(found["cases"]) == len(OPS[op])
    for case in found["cases"]:
        kinds = [side["kind"] for side in case["sides"].values()]
        assert kinds.count("ours") == 1
        assert "peer" in kinds
        assert case["errors"], "no side was compared"
        assert case["floor"]["bytes"] > 0
        assert all(side["median"] > 0 for side in case["sides"].values())


def test_a_step_is_measured_against_transformers() -> None:
    pytest.importorskip("transformers")
    found = command.bench(small(), [], True, 0.02)
    (case,) = found["cases"]
    assert {name for name in case["sides"] if name.startswith("transformers")} == {
        "transformers eager",
        "transformers sdpa",
    }
    assert case["flops"] > 0


def test_sentence_embeddings_are_measured_against_sentence_transformers(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    text = tmp_path / "text.txt"
    text.write_text(" = A heading = \n\nw7 w8 w9\nw10\n", encoding="utf-8")
    sentence_embedding._random_model(small().config).save_pretrained(tmp_path / "model")
    cases = [
        command.embedding_cases(None, None)[0],
        command.embedding_cases(text, tmp_path / "model")[1],
    ]
    found = command.bench(small(), [], False, 0.02, None, cases)["cases"]
    # Of made-up words as many as the lengths say, [CLS] and [SEP] at least; of a text's [CLS] and
    # [SEP] count too.
    for case, tokens in zip(found, (9 + 5 + 2 + 3, 5 + 3), strict=True):
        assert set(case["sides"]) >= {
            "bertfast",
            "sentence-transformers",
            "sentence-transformers eager",
        }
        assert set(case["errors"]) == set(case["sides"]) - {"bertfast"}
        assert (case["tokens"], case["missing"]) == (tokens, {})
        assert 0 < case["fill"] < 1


def test_a_noisy_machine_is_said_to_be_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([1.0, 9.0] * 5000)
    monkeypatch.setattr(
        timing, "take_sample", lambda side, samples, device: samples.seconds.append(next(times))
    )  # fmt: skip
    sides = [
        timing.Side(name, kind, lambda: None, lambda: (torch.ones(1),))
        for name, kind in (("a", "ours"), ("b", "peer"))
    ]
    case = Case("dropout", "shape", "float32", sides, Floor(1.0, 1.0))
    command.show(case.run("cpu", 0.01) | {"rates": {"matrix float32": 1.0, "copy": 1.0}})
    assert "too noisy to conclude: the quartiles of" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no lengths"),
        ("[]", "holds no lengths"),
        ("12\nx\n", "'x'; it must hold a whole number a line"),
        ("[3, 0]", "length 2 is 0"),
        ("5\n-1", "length 2 is -1"),
        ("[1.5]", "length 1 is 1.5"),
        ("[true]", "length 1 is True"),
        ("4\n600", "the longest sequence has 600 tokens and bert-tiny takes 512"),
    ],
)
def test_bad_lengths_are_one_line_and_exit_code_2(
    text: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "lengths.txt"
    file.write_text(text)
    for name in ("bench", "profile"):
        monkeypatch.setattr(
            "sys.argv", ["bertfast", name, "--model", "bert-tiny", "--lengths", str(file)]
        )
        with pytest.raises(SystemExit) as stopped:
            main()
        error = capsys.readouterr().err
        assert stopped.value.code == 2
        assert error.count("\n") == 1
        assert message in error


def test_lengths_are_read_from_lines_and_from_json(tmp_path: Path) -> None:
    for text in ("7\n3\n\n12\n", "[7, 3, 12]"):
        (tmp_path / "lengths").write_text(text)
        assert command.read_lengths(tmp_path / "lengths").values == (7, 3, 12)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (
            lambda: command.bench(small(), ["softmax"], False, 1.0),
            "--op is 'softmax'; it must be one of attention",
        ),
        (
            lambda: command.make_setup("bert-huge", None, "float32"),
            "--model is 'bert-huge'; it must be one of",
        ),
        (
            lambda: command.make_setup("bert-tiny", None, "float64"),
            "--dtype is 'float64'; it must be one of float32",
        ),
        (
            lambda: command.make_setup("bert-tiny", Path("/no/such/file"), "float32"),
            "cannot be read",
        ),
        (
            lambda: command.bench(
                small(), [], False, 1.0, None, command.embedding_cases(Path("x"), None)
            ),
            "give both",
        ),
        (lambda: sentence_embedding.read_paragraphs(Path("/no/such/file"), 3), "no such file"),
        (
            lambda: profile.profile(small(), Path("/no/such/folder/trace.json")),
            "there is no folder /no/such/folder",
        ),
    ],
)
def test_wrong_options_are_named(run: Any, message: str) -> None:
    with pytest.raises(BertfastError, match=message):
        run()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_profile_gives_every_op_its_time_and_its_floor(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    found = profile.profile(small(dtype), tmp_path / "trace.json")
    ops = found["ops"]
    own = {name for name in ops if name not in (*profile.PLAIN, "other", "between the ops")}
    assert own | {"matrix products"} >= {
        "attention forward",
        "attention backward",
        "linear_cross_entropy",
        "optimizer",
    }
    assert {"layer norm", "gelu", "embedding", "gather_rows"} <= own
    assert sum(op["share"] for op in ops.values()) == pytest.approx(1.0)
    assert all(ops[name]["floor"] > 0 for name in own - {"dropout"})
    assert sum(op["seconds"] for op in ops.values()) == pytest.approx(
        found["profiled_seconds"], rel=0.2
    )
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def test_a_product_inside_the_loss_is_the_losss() -> None:
    class Event:
        def __init__(self, name: str, cpu_parent: Any = None) -> None:
            self.name, self.cpu_parent = name, cpu_parent

    loss = Event("GeneratedBackwardFor_bertfast_linear_cross_entropy_default")
    assert profile.op_of(Event("aten::mm", loss)) == "linear_cross_entropy"
    assert (
        profile.op_of(Event("aten::mm", Event("autograd::engine::evaluate_function: MmBackward0")))
        == "matrix products"
    )
    assert profile.op_of(Event("bertfast::attention_backward")) == "attention backward"
    assert (
        profile.op_of(Event("GeneratedBackwardFor_bertfast_attention_default"))
        == "attention forward"
    )
    assert profile.op_of(Event("aten::copy_", Event("Optimizer.step#AdamW.step"))) == "optimizer"
    assert profile.op_of(Event("aten::sort")) == "other"
