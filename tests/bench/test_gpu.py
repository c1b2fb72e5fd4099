"""`make gpu`: parts that outlive what becomes of them, and results that one command takes in."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import page, settings
from benchmarks.gpu import check, parts, records, step, tune, worker
from benchmarks.gpu.items import AGAIN, PARTS, TUNING, Item, Missing, Part, Stage
from benchmarks.gpu.journal import FIELDS, LARGEST, SCHEMA, Journal
from benchmarks.results import sources
from benchmarks.settings import Settings
from bertfast.bench import rates, timing
from bertfast.bench.case import within
from bertfast.bench.lengths import wikitext
from bertfast.bench.ops import attention
from bertfast.config import CONFIGS
from bertfast.errors import BertfastError
from bertfast.kernels import dispatch, tuning
from bertfast.machine import commit
from support import REPOSITORY

# --- what becomes of a part ---

# A worker in a few lines: it begins the items that are named to it, in order, and does as told.
WORKER = """
import json, os, signal, sys
path, share, acts = sys.argv[1], sys.argv[2], sys.argv[3:]
seen = open(path).read() if os.path.exists(path) else ""
def write(what, **values):
    with open(path, "a") as file:
        file.write(json.dumps({"what": what, **values}) + "\\n")
if not acts:
    sys.exit(1)
for act in acts:
    if json.dumps(act) in seen:
        continue
    write("begin", item=act, process=os.getpid())
    write("rates", rates={act: 1.0}, state={})
    if act == "killed":
        with open(path, "a") as file:
            file.write('{"what": "ra')
        os.kill(os.getpid(), signal.SIGKILL)
    if act == "spoils":
        write("end", item=act, state="done", why="", seconds=0.0)
        sys.exit(75)
    if act == "hangs":
        import time
        time.sleep(60)
    write("end", item=act, state="done", why="", seconds=0.0)
"""


@pytest.fixture
def acted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Runs parts whose workers act: a list of acts a part; gives what was clean, and the journals'
    lines.
    """

    def run(*acts: list[str]) -> tuple[bool, list[list[dict[str, Any]]]]:
        made = [
            Part(number, f"part{number}", "acts", (Stage(1, 1.0),))
            for number in range(1, 1 + len(acts))
        ]
        start = parts.Share.__init__

        def share(self: Any, arguments: list[Any], *rest: Any) -> None:
            start(self, arguments, *rest)

        def begin(self: Any) -> Any:
            number, place = int(self.command[3]), str(self.journal.path)
            self.known = len(self.journal.begun())
            program = [sys.executable, "-c", WORKER, place, "0", *acts[number - 1]]
            return subprocess.Popen(program, start_new_session=True)

        monkeypatch.setattr(parts.Share, "_start", begin)
        monkeypatch.setattr(parts, "POLL", 0.01)
        clean = parts.run_parts(made, Settings("cpu", True, results=tmp_path))
        return clean, [Journal(part.path(tmp_path)).lines() for part in made]

    return run


def ends(lines: list[dict[str, Any]]) -> dict[str, str]:
    return {line["item"]: line["state"] for line in lines if line["what"] == "end"}


def test_a_part_that_is_killed_or_raises_keeps_its_results_and_the_next_ones_run(
    acted: Callable[..., Any],
) -> None:
    clean, (first, second, third) = acted(
        ["before", "killed", "spoils", "after"], [], ["one", "two"]
    )
    assert not clean
    assert ends(first) == {"before": "done", "killed": "failed", "spoils": "done", "after": "done"}
    measured = [name for line in first if line["what"] == "rates" for name in line["rates"]]
    assert measured == ["before", "killed", "spoils", "after"]
    assert [line["ended"] for line in second] == ["a process ended with code 1", "done"]
    assert ends(third) == {"one": "done", "two": "done"}


def test_a_part_ends_when_its_time_is_up_with_no_process_left(
    acted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "SECONDS", 1.0)
    monkeypatch.setattr(parts, "MARGIN", 0.5)
    started = time.monotonic()
    clean, ((*lines, _), after) = acted(["before", "hangs", "never"], ["one"])
    assert time.monotonic() - started < 10
    assert not clean
    assert ends(lines) == {"before": "done", "hangs": "failed"}
    process = next(line["process"] for line in lines if line.get("item") == "hangs")
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    assert ends(after) == {"one": "done"}


def test_a_run_begins_with_nothing_of_an_earlier_one(
    acted: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "1-part1.jsonl").write_text("an earlier run's\n")
    clean, (lines,) = acted(["one"])
    assert clean
    assert [line["item"] for line in lines if line["what"] == "begin"] == ["one"]


def test_the_parts_take_eight_minutes_at_most() -> None:
    assert parts.SECONDS + parts.MARGIN <= 480
    assert [part.number for part in PARTS] == [1, 2, 3, 4]
    for part in PARTS:
        assert [stage.share for stage in part.stages] == sorted(s.share for s in part.stages)
        assert part.stages[-1].share == 1.0
    assert max(stage.workers for stage in PARTS[3].stages) == 16


def test_a_journal_outlives_a_writer_that_is_cut_off(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.write("rates", rates={"copy": 1.23456789}, state={})
    with journal.path.open("a") as file:
        file.write('{"what": "rates", "ra')
    assert journal.lines() == [{"what": "rates", "rates": {"copy": 1.23457}, "state": {}}]
    journal.mend()
    journal.write("part", ended="done")
    assert [line["what"] for line in journal.lines()] == ["rates", "part"]
    for damaged in ("nothing\n", "[]\n", '{"what": "part"}\n', '{"what": "else"}\n'):
        journal.path.write_text(damaged)
        with pytest.raises(ValueError, match="line 1"):
            journal.lines()


def test_a_journal_never_grows_beyond_what_is_brought_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert LARGEST == 16 * 2**20
    assert len({part.path(tmp_path) for part in PARTS} | {tmp_path / TUNING}) <= 8
    monkeypatch.setattr("benchmarks.gpu.journal.LARGEST", 100)
    journal = Journal(tmp_path / "journal")
    for _ in range(9):
        journal.write("part", ended="a few words")
    assert 50 < journal.path.stat().st_size <= 100
    assert journal.lines()


def test_a_worker_writes_what_becomes_of_each_item(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def item(name: str, error: Exception | None = None, **options: Any) -> Item:
        def run(journal: Journal) -> None:
            ran.append(name)
            if error is not None:
                raise error

        return Item(name, run, **options)

    items = [
        item("fine"),
        item("raises", RuntimeError("a\nreason")),
        item("absent", Missing("no such tool")),
        item("apart", fresh=True),
        item("last"),
    ]
    journal, later = Journal(tmp_path / "journal"), time.time() + 100
    assert worker.run(items, journal, later) == AGAIN
    assert ran == ["fine", "raises", "absent"]
    assert worker.run(items, journal, later) == AGAIN, "what needs a process of its own is alone"
    assert worker.run(items, journal, time.time()) == 0
    assert ran == ["fine", "raises", "absent", "apart"]
    states = {
        line["item"]: (line["state"], line["why"])
        for line in journal.lines()
        if line["what"] == "end"
    }
    assert states == {
        "fine": ("done", ""),
        "raises": ("failed", "RuntimeError: a reason"),
        "absent": ("missing", "no such tool"),
        "apart": ("done", ""),
        "last": ("late", "no time was left"),
    }


# --- what the parts hold ---


def test_every_op_member_and_objective_is_checked() -> None:
    names = [item.name for item in check.items(Settings("cuda"))]
    assert len(set(names)) == len(names)
    for dtype in ("bfloat16", "float32", "float16"):
        for op in dispatch.OPS:
            assert any(name.startswith(op) and name.endswith(dtype) for name in names), (op, dtype)
    for member in CONFIGS:
        assert f"step of {member}, bfloat16" in names
        assert {f"capture of {member}, mlm", f"capture of {member}, distill"} <= set(names)
    assert {
        "capture of bert, pairs",
        "capture of albert, pairs",
        "capture of electra, rtd",
        "compute-sanitizer",
    } <= set(names)
    for member in CONFIGS:
        config = check.config_of(member, quick=False)
        assert config.hidden_size >= 768
        assert config.hidden_dropout_prob == 0.1


def test_the_step_is_measured_at_16k_and_64k_tokens_of_three_models() -> None:
    found = {(shape.preset, round(shape.lengths.tokens, -4)) for shape in step.shapes(False)}
    presets = ("bert-base", "bert-large", "modernbert-base")
    assert found >= {(preset, size) for preset in presets for size in (20_000, 70_000)}
    items = step.items(Settings("cuda"))
    for shape in step.shapes(False):
        name = f"{shape.preset}, {shape.lengths.name}"
        own = [item for item in items if name in item.name]
        assert [item.stage for item in own if "ours" in item.name] == [0, 0]
        assert any("compiled, bfloat16 weights" in item.name and item.stage == 2 for item in own)
    assert [item.stage for item in tune.items(Settings("cuda")) if "ours" in item.name] == [2] * 10


def test_attention_is_measured_at_64_to_1024_tokens_and_mixed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(settings, "CURRENT", Settings("cuda"))
    batches, *_ = settings._shapes()
    assert [batch.values[0] for batch in batches[1:]] == [64, 128, 256, 512, 1024]
    assert {batch.tokens for batch in batches[1:]} == {65536}
    assert batches[0] == wikitext(512)


@pytest.mark.parametrize("name", ["FlashAttention-2 varlen, packed", "efficient varlen, packed"])
def test_pytorchs_own_packed_attention_has_these_arguments_and_a_backward(name: str) -> None:
    forward, drops, absent = attention.PACKED[name]
    assert drops
    assert not absent()
    shape, bounds = (12, 2, 16), torch.zeros(3, dtype=torch.int32, device="meta")
    inputs = [
        torch.empty(shape, dtype=torch.bfloat16, device="meta", requires_grad=True)
        for _ in range(3)
    ]
    out = forward(bounds, 7, 0.1, *inputs)
    assert out.shape == shape
    gradients = torch.autograd.grad(out, inputs, torch.empty_like(out))
    assert [x.shape for x in gradients] == [shape] * 3


def test_an_op_of_another_schema_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"without other, with .*exponent"):
        attention.by_name(torch.ops.aten.pow.Tensor_Scalar, self=torch.ones(1), other=2)


# --- timing on a GPU, which stands here as a list of what it was asked ---


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A GPU whose clock is a millisecond a call."""
    did: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            self.at = 0

        def record(self) -> None:
            self.at = len(did)

        def synchronize(self) -> None:
            did.append("wait")

        def elapsed_time(self, other: Event) -> float:
            return float(other.at - self.at)

    @contextmanager
    def graph(graph: object, stream: object) -> Iterator[None]:
        did.append("begin")
        yield
        if "impossible" in did:
            raise RuntimeError("operation not permitted\nwhen stream is capturing")

    stream = SimpleNamespace(wait_stream=lambda other: None)
    state = SimpleNamespace(
        clone_state=lambda: "state",
        graphsafe_set_state=lambda state: did.append("mended"),
    )
    cuda = torch.cuda
    monkeypatch.setattr(cuda, "Event", Event)
    monkeypatch.setattr(cuda, "Stream", lambda: stream)
    monkeypatch.setattr(cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(cuda, "stream", lambda stream: within_nothing())
    monkeypatch.setattr(cuda, "synchronize", lambda: None)
    monkeypatch.setattr(cuda, "current_device", lambda: 0)
    monkeypatch.setattr(cuda, "default_generators", [state])
    monkeypatch.setattr(cuda, "graph", graph)
    monkeypatch.setattr(
        cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: did.append("replay"))
    )
    monkeypatch.setattr(timing, "peak_bytes", lambda run, device: 5)
    return did


@contextmanager
def within_nothing() -> Iterator[None]:
    yield


def test_a_side_is_timed_by_the_replays_of_its_graph(stand_in: list[str]) -> None:
    side = timing.Side("ours", "ours", lambda: stand_in.append("run"))
    samples, rounds = timing.prepare([side], "cuda", 0.0, quick=True)
    timing.race([side], samples, rounds, "cuda")
    found = samples["ours"]
    assert stand_in[: 1 + timing.WARMUP] == ["run"] * (1 + timing.WARMUP)
    assert found.timed == timing.GRAPH
    assert found.seconds == [1e-3, 1e-3]
    assert stand_in[-4:] == ["replay", "wait"] * 2


def test_a_side_that_cannot_be_recorded_is_launched_and_says_why(stand_in: list[str]) -> None:
    def run() -> None:
        stand_in.append("impossible")

    side = timing.Side("ours", "ours", run)
    samples, rounds = timing.prepare([side], "cuda", 0.0, quick=True)
    timing.race([side], samples, rounds, "cuda")
    assert "mended" in stand_in
    assert samples["ours"].timed == ("launches: operation not permitted when stream is capturing")
    assert stand_in[-4:] == ["impossible", "wait"] * 2


def test_forward_and_backward_are_timed_apart() -> None:
    x = torch.ones(3, requires_grad=True)
    entered: list[str] = []

    @contextmanager
    def context() -> Iterator[None]:
        entered.append("in")
        yield

    call = within(context, attention.differentiated(torch.exp, (x,), (torch.ones(3),)))
    assert entered == []
    out, gradient = call()
    assert torch.equal(out, gradient)
    side = timing.Side("ours", "ours", call)
    samples, rounds = timing.prepare([side], "cpu", 0.0, quick=True, apart=True)
    timing.race([side], samples, rounds, "cpu")
    found = timing.summarize(samples)["ours"]
    assert len(found["forward"]["seconds"]) == len(found["backward"]["seconds"]) == 2
    assert found["timed"] == found["forward"]["timed"] == timing.CALLS
    assert len(entered) > 6


def test_the_matrix_rate_of_a_gpu_is_sustained(
    stand_in: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    draw = torch.randn

    def product(a: Any, b: Any, out: Any) -> None:
        stand_in.append("product")

    def state() -> dict[str, float]:
        asked.append(len(stand_in))
        return {"clocks.sm": 1.0}

    monkeypatch.setattr(torch, "mm", product)
    monkeypatch.setattr(torch, "randn", lambda *shape, device: draw(*shape))
    monkeypatch.setattr(torch, "empty", lambda *shape, device, dtype: draw(*shape))
    monkeypatch.setattr(rates, "gpu_state", state)
    rate, found = rates.sustained((4, 5, 6), torch.float32)
    assert rate == pytest.approx(2 * 4 * 5 * 6 / 1e-3)
    assert found == {"clocks.sm": 1.0}
    (number,) = asked
    assert stand_in[:number].count("product") > 1000 * rates.SUSTAINED
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "")
    assert rates.gpu_state() == {}


# --- results ---

MACHINE = {
    "device": "cuda", "processor": "a processor", "threads": 16, "instructions": [],
    "system": "Linux", "gpu": "NVIDIA H200", "capability": "9.0", "name": "NVIDIA H200",
    "slug": "nvidia-h200",
}  # fmt: skip
TUNED = "adamw.update"


def case(**values: Any) -> dict[str, Any]:
    floor = {"flops": 1e12, "bytes": 1e9}
    return {
        "op": "step", "shape": "wikitext, 128 paragraphs, bert-base", "dtype": "bfloat16",
        "flops": 1e12, "floor": floor, "fill": 0.2, "tokens": 15570, "masked": 2336,
        "model": "12 layers of 768", **values
    }  # fmt: skip


def side(name: str, kind: str, seconds: float, **values: Any) -> dict[str, Any]:
    return {
        "case": case(), "name": name, "kind": kind, "calls": 1, "seconds": [seconds] * 3,
        "part_seconds": [], "peak_bytes": 2**30, "timed": timing.GRAPH, "error": None, **values
    }  # fmt: skip


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as a GPU machine leaves it, where the third part was killed and the fourth raised a
    kernel's speed; `kernels/configs` is a copy.
    """
    folder, configs = tmp_path / "left", tmp_path / "configs"
    folder.mkdir()
    shutil.copytree(records.CONFIGS, configs)
    monkeypatch.setattr(records, "CONFIGS", configs)
    journals = [Journal(part.path(folder)) for part in PARTS]
    for part, journal in zip(PARTS, journals, strict=True):
        journal.write(
            "machine", schema=SCHEMA, part=part.number, machine=MACHINE, date="2026-01-02",
            versions={"torch": "2.11.0"}, commit="unknown", sources=sources(), quick=False,
        )  # fmt: skip
    first, second, third, fourth = journals
    first.write("check", item="dropout 1, bfloat16", passed=True, error=0.001, bound=0.02)
    first.write("check", item="embed 1, bfloat16", passed=False, error=0.5, bound=0.02)
    first.write("end", item="capture of bert, mlm", state="failed", why="no graph", seconds=1.0)
    second.write(
        "rates",
        rates={"matrix bfloat16": 7e14, "copy": 4e12},
        state=dict.fromkeys(rates.STATE, 100.0),
    )
    second.write("side", **side("bertfast, CUDA graph", "ours", 0.02))
    second.write("side", **side("transformers sdpa", "peer", 0.05, error=0.01, timed="launches: x"))
    second.write("side", case=case(), name="transformers eager", missing="OutOfMemoryError")
    rows = [{"kernel": "gemm", "calls": 90.0, "seconds": 0.01, "share": 0.5}]
    second.write("profile", name="bert-base, wikitext", kernels=rows)
    third.write("begin", item="test_attention", process=3)
    usual = tuning.shipped(90)[TUNED]["half"]
    fourth.write(
        "tuned", kernel=TUNED, key="half", options=dict(usual) | {"num_warps": 2},
        usual=dict(usual), seconds=0.001, usual_seconds=0.002, tried=9, left_out=3,
        source=tuning.source(TUNED),
    )  # fmt: skip
    tuned_case = case(tuned=True)
    fourth.write("side", **side("bertfast, CUDA graph", "ours", 0.016) | {"case": tuned_case})
    for journal in (first, second, fourth):
        journal.write("part", ended="done")
    return folder


def test_one_command_takes_the_results_in(left: Path, tmp_path: Path) -> None:
    target = records.import_folder(left, tmp_path / "results")
    (record,) = page.load_results(tmp_path / "results")
    assert target.name == "nvidia-h200.json"
    assert record["commit"] == commit()
    text = page.page_text([record])
    for said in (
        "1 checks passed, 2 failed.",
        "- embed 1, bfloat16: error 5.00e-01, bound 2e-02",
        "- capture of bert, mlm: no graph",
        "- part 3 was cut short: it was killed",
        "- test_attention: it was killed",
        "transformers sdpa (launched) 2.50x",
        "7% of the matrix rate; 778,500 tokens/s",
        "step: transformers eager, in 1 case: OutOfMemoryError",
        "100 of 100 MHz",
        "| `gemm` | 90 | 10 | 50.0% |",
        "| wikitext, 128 paragraphs, bert-base | 20 | 16 | 973,125 |",
        f"- `{TUNED}` half: {{'BLOCK'",
    ):
        assert said in text
    file = records.CONFIGS / "sm_90.json"
    assert json.loads(file.read_text())[TUNED]["half"]["num_warps"] == 2
    before = (REPOSITORY / "kernels" / "configs" / "sm_90.json").read_text().splitlines()
    assert sum(a != b for a, b in zip(file.read_text().splitlines(), before, strict=True)) == 1


def changed(left: Path, part: int, what: str, **values: Any) -> None:
    """Every such line of a part with other values."""
    journal = Journal(PARTS[part - 1].path(left))
    lines = [line | (values if line["what"] == what else {}) for line in journal.lines()]
    journal.path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


REFUSED: dict[str, Callable[[Path], Any]] = {
    "holds a try of tiny shapes": lambda left: [
        changed(left, number, "machine", quick=True) for number in (1, 2, 3, 4)
    ],
    "measures nothing": lambda left: [
        changed(left, number, "machine", machine=MACHINE | {"device": "cpu"})
        for number in (1, 2, 3, 4)
    ],
    "is of form 0": lambda left: changed(left, 1, "machine", schema=0),
    "another part's": lambda left: changed(left, 2, "machine", versions={"torch": "2.13"}),
    "is of other code": lambda left: [
        changed(left, number, "machine", sources="0" * 16) for number in (1, 2, 3, 4)
    ],
    "is of commit 123456789abc": lambda left: [
        changed(left, number, "machine", commit="123456789abc") for number in (1, 2, 3, 4)
    ],
    "its machine's name is": lambda left: [
        changed(left, number, "machine", machine=MACHINE | {"slug": "../../page"})
        for number in (1, 2, 3, 4)
    ],
    "fit no shipped ones": lambda left: changed(left, 4, "tuned", options={"BLOCK": 2}),
    "tuned another": lambda left: changed(left, 4, "tuned", source="0" * 16),
    "line 2 is none of a journal's": lambda left: (
        PARTS[1]
        .path(left)
        .write_text(PARTS[1].path(left).read_text().replace('"rates"', '"rates', 1))
    ),
    "1-check.jsonl: is damaged": lambda left: changed(left, 1, "check", error="large"),
    "a case is damaged": lambda left: changed(
        left, 2, "side", case={name: x for name, x in case().items() if name != "tokens"}
    ),
    "holds no results of": lambda left: [part.path(left).unlink() for part in PARTS],
}


@pytest.mark.parametrize("message", REFUSED)
def test_results_that_cannot_be_taken_are_refused_and_nothing_is_written(
    message: str, left: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    REFUSED[message](left)
    before = {path: path.read_bytes() for path in records.CONFIGS.iterdir()}
    with pytest.raises(BertfastError, match=message) as refused:
        records.import_folder(left, tmp_path / "results")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "results").exists()
    assert {path: path.read_bytes() for path in records.CONFIGS.iterdir()} == before


def test_a_refusal_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks", "import", str(tmp_path / "nowhere")])
    assert command.main() == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "holds no results of `make gpu`" in said.err
    assert said.out == ""


def test_every_line_of_a_journal_has_a_place_in_the_record(left: Path) -> None:
    record = records.read([part.path(left) for part in PARTS])
    assert record["checks"]["passed"] == 1
    assert record["parts"] == {"1": "done", "2": "done", "3": "it was killed", "4": "done"}
    assert set(FIELDS) >= {"machine", "check", "side", "case", "rates", "profile", "tuned", "part"}


# --- the whole of it, on the CPU ---


def gpu(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", "gpu", "--quick", *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "only", "wanted"),
    [
        (1, "", {"step of modernbert, bfloat16", "capture of electra, rtd"}),
        (2, "", {"bert-tiny, mixed: ours", "profile: bert-tiny, mixed"}),
        (3, "", {"test_attention_cudnn[dropout]", "test_padding[float32-pack]"}),
        (4, "", {"tuning attention", "bert-tiny, mixed: ours"}),
    ],
)
def test_a_part_runs_whole_on_the_cpu_with_tiny_shapes(
    part: int, only: str, wanted: set[str], tmp_path: Path
) -> None:
    done = gpu("--part", str(part), "--results", str(tmp_path))
    lines = Journal(PARTS[part - 1].path(tmp_path)).lines()
    states = {line["item"]: (line["state"], line["why"]) for line in lines if line["what"] == "end"}
    assert wanted <= states.keys()
    failed = {name: why for name, (state, why) in states.items() if state in ("failed", "late")}
    assert not failed, done.stderr
    assert done.returncode == 0, done.stderr
    assert all(line["passed"] for line in lines if line["what"] == "check")


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_one_item(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks", "gpu", "--quick", "--part", "3", "--only", "dropout",
         "--results", str(tmp_path)],
        cwd=REPOSITORY,
    )  # fmt: skip
    journal = Journal(PARTS[2].path(tmp_path))
    killed = None
    while process.poll() is None and killed is None:
        time.sleep(0.05)
        open_items = [x for x in journal.begun().values() if x["what"] == "begin"]
        if len(journal.begun()) > 1 and open_items:
            killed = open_items[0]
            os.kill(killed["process"], signal.SIGKILL)
    assert process.wait() == 1
    assert killed is not None
    states = {line["item"]: line["state"] for line in journal.lines() if line["what"] == "end"}
    assert states.pop(killed["item"]) == "failed"
    assert len(states) > 2
    assert set(states.values()) == {"done"}
