"""`bertfast bench` and `bertfast profile` measure on the user's lengths, and say when they
cannot.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import run_cli

from bertfast import openmp
from bertfast.bench import beside, command, options, profile, rates, sentence_embedding, timing
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
    monkeypatch.setattr(rates, "measure", lambda device, names: measure(device, names, quick=True))


def small(dtype: torch.dtype = torch.float32) -> Setup:
    config = BertConfig.preset("bert-tiny", vocab_size=300, max_position_embeddings=64)
    return Setup(Lengths("mixed", (9, 5, 1, 3)), config, dtype, "cpu", compiled=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.slow_unless(lambda op, dtype: op == "bias_gelu" and dtype == torch.float32)
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


@pytest.mark.slow
def test_a_rate_is_measured_once_and_only_where_a_case_is_set_beside_it() -> None:
    said: list[str] = []
    ops = ["dropout", "linear_cross_entropy", "dropout"]
    found = command.bench(small(torch.bfloat16), ops, False, 0.01, say=said.append)
    assert list(found["rates"]) == ["copy", "matrix bfloat16"]
    assert sum("rate, copy" in line for line in said) == 1
    assert "case 1 of" in said[0]
    assert said[1] == "making F.dropout"
    assert "rate" in "".join(said[1:])


def test_a_rate_ends_in_time_whatever_a_product_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(rates.time, "perf_counter", lambda: now[0])

    def product_of(seconds_per_flop: float) -> Any:
        def product(a: torch.Tensor, b: torch.Tensor, **_: Any) -> None:
            columns = b.shape[1] if b.is_contiguous() else b.shape[0]  # `linear` gets it turned
            now[0] += 2 * a.numel() * columns * seconds_per_flop

        return product

    # A thousandth of what one core does: the smallest product alone takes 0.3 s, a large one 170 s.
    monkeypatch.setattr(torch, "mm", product_of(1e-8))
    monkeypatch.setattr(rates.kernels, "linear", product_of(1e-8))
    found = rates.matrix_rate("cpu", torch.bfloat16)
    assert found == pytest.approx(1e8)
    assert now[0] < 2 * rates.SECONDS
    # One way is fast: it is measured at full size, the slow one is left after the small product.
    start = now[0]
    monkeypatch.setattr(rates.kernels, "linear", product_of(1e-12))
    assert rates.matrix_rate("cpu", torch.bfloat16) == pytest.approx(1e12)
    assert now[0] - start < 2 * rates.SECONDS


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_amid_the_timing_keeps_the_whole_rounds(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, taken, shown = timing.take_sample, [], []

    def sample(side: Any, samples: Any, device: str) -> None:
        take(side, samples, device)
        taken.append(side.name)
        if len(taken) == 12:  # of 2 sides, after one trial each
            signal.raise_signal(number)

    monkeypatch.setattr(timing, "take_sample", sample)
    sides = [
        timing.Side(name, kind, lambda: time.sleep(1e-4), lambda: (torch.ones(1),))
        for name, kind in (("a", "ours"), ("b", "peer"))
    ]
    case = Case("dropout", "shape", "float32", sides, Floor(1.0, 1.0))
    found = command.bench(small(), [], False, 5.0, shown.append, [lambda _: case, lambda _: case])
    assert found["stopped"] == number
    (record,) = found["cases"]
    assert [len(side["seconds"]) for side in record["sides"].values()] == [5, 5]
    assert [case["op"] for case in shown] == ["dropout"]
    assert found["rates"] == {}
    command.show(shown[0])  # without the rate that was not measured any more


def test_a_stop_amid_a_rate_keeps_the_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "measure", lambda *_: signal.raise_signal(signal.SIGTERM))
    shown: list[dict[str, Any]] = []
    found = command.bench(small(), ["dropout"], False, 0.01, shown.append)
    assert (found["stopped"], len(found["cases"]), len(shown)) == (signal.SIGTERM, 1, 1)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("form", ["table", "json"])
@pytest.mark.slow_unless(lambda form: form == "json")
def test_the_command_says_what_it_does_and_a_stop_leaves_its_results(form: str) -> None:
    command_line = [sys.executable, "-m", "bertfast", "bench", "--shape", "bert-tiny"]
    command_line += ["--op", "dropout", "--op", "attention", "--no-compiled", "--seconds", "600"]
    process = subprocess.Popen(
        command_line + (["--json"] if form == "json" else []),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if "rounds are timed" in line:
            break
    process.send_signal(signal.SIGTERM)
    out, rest = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert said[0] == "bertfast bench: loading PyTorch\n"
    assert not any("rate" in line for line in said)
    assert "stopped; 1 of" in rest
    if form == "json":
        assert len(json.loads(out)["cases"]) == 1
    else:
        assert "dropout" in out


def test_a_step_is_measured_against_transformers() -> None:
    pytest.importorskip("transformers")
    found = command.bench(small(), [], True, 0.02)
    (case,) = found["cases"]
    assert {name for name in case["sides"] if name.startswith("transformers")} == {
        "transformers eager",
        "transformers sdpa",
    }
    assert case["flops"] > 0


@pytest.mark.slow
def test_sentence_embeddings_are_measured_against_sentence_transformers(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    text = tmp_path / "text.txt"
    text.write_text(" = A heading = \n\nw7 w8 w9\nw10\n", encoding="utf-8")
    sentence_embedding.random_model(small().config).save_pretrained(tmp_path / "model")
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
            "sys.argv", ["bertfast", name, "--shape", "bert-tiny", "--lengths", str(file)]
        )
        with pytest.raises(SystemExit) as stopped:
            main()
        error = capsys.readouterr().err
        assert stopped.value.code == 2
        assert error.count("\n") == 1
        assert message in error


def test_the_options_are_checked_without_pytorch() -> None:
    program = "import sys; from bertfast.bench import options; "
    program += (
        "options.check('bert-tiny', None, 'float32', ops=['embed']); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_the_ops_that_may_be_named_are_those_there_are() -> None:
    assert list(options.OPS) == list(OPS)


def test_lengths_are_read_from_lines_and_from_json(tmp_path: Path) -> None:
    for text in ("7\n3\n\n12\n", "[7, 3, 12]"):
        (tmp_path / "lengths").write_text(text)
        assert options.read_lengths(tmp_path / "lengths").values == (7, 3, 12)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (
            lambda: command.bench(small(), ["softmax"], False, 1.0),
            "--op is 'softmax'; it must be one of attention",
        ),
        (
            lambda: command.make_setup("bert-huge", None, "float32"),
            "--shape is 'bert-huge'; it must be one of",
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
            "--text needs --model",
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


@pytest.mark.slow
def test_a_step_is_measured_beside_other_work_under_each_way_to_wait(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(beside, "ROUNDS", 1)
    monkeypatch.setattr(beside, "SETTLING", 0.0)
    monkeypatch.setattr(
        openmp, "PREPARED", openmp.Prepared("", True, {}, {"OMP_WAIT_POLICY": "active"})
    )
    said: list[str] = []
    found = json.loads(json.dumps(beside.measure(small(), 0.05, said.append)))
    names = ["default", "bertfast", "passive", "yours"]
    assert list(found["waiting"]) == names
    assert [text.split(", ")[1] for text in said] == names * 2  # a start and a round each
    assert found["waiting"]["yours"]["environment"] == {"OMP_WAIT_POLICY": "active"}
    ours = openmp.variables_to_set({}, openmp.pressure_file({}))
    assert found["waiting"]["bertfast"]["environment"] == ours
    for way in found["waiting"].values():
        for situation in beside.SITUATIONS:
            assert way[situation]["steps_per_second"]["median"] > 0
            assert way[situation]["cpu_seconds_per_step"]["median"] > 0
        assert way["alone"]["of_quiet"]["median"] == 1
    beside.show(found)
    shown = capsys.readouterr().out
    assert all(name in shown for name in names)
    assert "OMP_WAIT_POLICY=active" in shown


@pytest.mark.slow
def test_the_command_prints_the_table_or_json_and_a_stop_by_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "lengths.txt").write_text("9\n5\n1\n3\n", encoding="utf-8")
    kept: list[dict[str, Any]] = []
    measure = beside.measure

    def keep(*args: Any) -> dict[str, Any]:
        kept.append(measure(*args))
        return kept[0]

    def stopped_after_a_round(*_: Any) -> dict[str, Any]:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        return kept[0]

    monkeypatch.setattr(beside, "ROUNDS", 1)
    monkeypatch.setattr(beside, "SETTLING", 0.0)
    monkeypatch.setattr(beside, "policies", lambda: {"default": {}, "passive": {}})
    monkeypatch.setattr(beside, "measure", keep)
    lengths = ["--shape", "bert-tiny", "--lengths", str(tmp_path / "lengths.txt")]
    lengths += ["--seconds", "0.05"]
    shown = run_cli(monkeypatch, capfd, "bench", "--beside", *lengths)
    assert shown.code == 0
    assert "2 layers of 128" in shown.out
    assert "passive" in shown.out
    assert "starting two trainings, passive" in shown.err
    monkeypatch.setattr(beside, "measure", stopped_after_a_round)
    shown = run_cli(monkeypatch, capfd, "bench", "--beside", "--json", *lengths)
    assert shown.code == 128 + signal.SIGTERM
    found = json.loads(shown.out)
    assert found["stopped"] == signal.SIGTERM
    assert found["waiting"] == kept[0]["waiting"]


@pytest.mark.slow
def test_a_stop_beside_other_work_keeps_whole_rounds_and_ends_each_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[beside.Training] = []
    start = beside.Training.__init__

    def note(training: beside.Training, *args: Any) -> None:
        start(training, *args)
        started.append(training)

    def say(text: str) -> None:
        if text.startswith("round 2 of 3, passive"):
            raise KeyboardInterrupt

    monkeypatch.setattr(beside, "SETTLING", 0.0)
    monkeypatch.setattr(beside.Training, "__init__", note)
    monkeypatch.setattr(beside, "policies", lambda: {"default": {}, "passive": {}})
    found = beside.measure(small(), 0.03, say)
    assert found["rounds"] == 1
    assert set(found["waiting"]) == {"default", "passive"}
    assert len(started) == 4
    assert all(training.process.poll() is not None for training in started)


@pytest.mark.slow
def test_a_training_beside_that_ends_is_named_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Setup, "dtype_name", "complex3")
    with pytest.raises(BertfastError, match=r"ended with code 1: .*complex3"):
        beside.measure(small(), 0.05)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--step"], "leave out --op, --step and --embedding"),
        (["--op", "attention"], "leave out --op, --step and --embedding"),
        (["--embedding"], "leave out --op, --step and --embedding"),
        (["--shape", "bert-nano"], "'bert-nano'"),
        (["--dtype", "int8"], "'int8'"),
        (["--lengths", "nowhere.txt"], "nowhere.txt"),
        (["--seconds", "0"], "--seconds"),
    ],
)
def test_beside_refuses_what_it_cannot_do_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    named: str,
) -> None:
    stopped = run_cli(monkeypatch, capfd, "bench", "--beside", *arguments)
    assert stopped.code == 2
    assert stopped.out == ""
    *progress, error = stopped.err.splitlines()
    assert all(line.startswith("bertfast bench: ") for line in progress)
    assert error.startswith("error: ")
    assert named in error
