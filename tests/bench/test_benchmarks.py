"""The benchmarks run, check what they compare, and keep what they measure."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import front, page
from benchmarks.results import Results
from benchmarks.settings import Settings
from bertfast.bench import floors, lengths, steps, timing
from bertfast.config import BertConfig
from bertfast.errors import BertfastError
from support import REPOSITORY


def bench(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # pytest-benchmark measures nothing in a worker of xdist, which it knows by these variables.
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")
    }
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=REPOSITORY,
        env=clean | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_gpu_run_says_so_and_fails() -> None:
    done = bench("benchmarks", "gpu")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no CUDA GPU" in done.stderr


@pytest.mark.parametrize(
    "case", ["test_attention[no-dropout-float32-mixed]", "test_step[mixed-float32]"]
)
@pytest.mark.slow
def test_a_case_leaves_its_samples_and_its_ratios(case: str, tmp_path: Path) -> None:
    settings = Settings(device="cpu", quick=True, results=tmp_path)
    name, variant = case.rstrip("]").split("[")
    file = f"benchmarks/{name}.py"
    done = bench(
        "pytest",
        file,
        "-q",
        "-p",
        "no:xdist",
        "-k",
        " and ".join(variant.split("-")),
        **settings.environment(),
    )
    assert done.returncode == 0, done.stdout
    (record,) = page.load_results(tmp_path)
    assert record["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert record["cases"]
    for found in record["cases"]:
        ours = [side for side in found["sides"].values() if side["kind"] == "ours"]
        assert len(ours) == 1
        assert ours[0]["ratio"]["median"] == 1.0
        assert len(ours[0]["seconds"]) == 2
        assert all(error < 1e-3 for error in found["errors"].values())
        assert len(found["errors"]) >= 2
    lines = [line for op in page.TITLES for line in page.rows(record, op)]
    assert len(lines) == len(record["cases"])


def sides(values: dict[str, list[float]]) -> dict[str, timing.Samples]:
    kinds = {"ours": "ours", "floor": "floor"}
    return {
        name: timing.Samples(kinds.get(name, "peer"), seconds=seconds)
        for name, seconds in values.items()
    }


def test_ratios_are_taken_round_by_round() -> None:
    # The machine halves its speed midway; the ratio does not change.
    found = timing.summarize(sides({"ours": [1.0, 1.0, 2.0, 2.0], "peer": [3.0, 3.0, 6.0, 6.0]}))
    assert found["peer"]["ratio"]["median"] == 3.0
    assert found["peer"]["noisy"]
    assert not timing.summarize(sides({"ours": [1.0] * 4, "peer": [3.0] * 4}))["peer"]["noisy"]


def test_sides_that_compute_something_else_are_refused() -> None:
    def side(name: str, kind: str, value: float) -> timing.Side:
        return timing.Side(name, kind, lambda: None, lambda: (torch.tensor([value, 1.0]),))

    errors = timing.check_agreement([side("ours", "ours", 1.0), side("peer", "peer", 1.001)], 1e-2)
    assert 0 < errors["peer"] < 1e-2
    for wrong in (1.1, float("nan")):
        with pytest.raises(BertfastError, match="compute different things"):
            timing.check_agreement([side("ours", "ours", 1.0), side("peer", "peer", wrong)], 1e-2)


def test_the_reference_point_is_sixteen_sequences_of_mean_48_padded_to_128() -> None:
    point = lengths.Lengths("reference point", lengths.REFERENCE_POINT)
    assert (len(point.values), point.tokens, point.longest, point.fill) == (16, 16 * 48, 128, 0.375)


def test_the_wikitext_batch_follows_the_histogram() -> None:
    counts = json.loads(lengths.HISTOGRAM.read_text())["paragraphs"]
    total = sum(counts.values())
    mean = sum(int(length) * count for length, count in counts.items()) / total
    batch = lengths.wikitext(total)
    assert sorted(batch.values) == sorted(
        int(n) for n, count in counts.items() for _ in range(count)
    )
    assert lengths.wikitext(64).tokens / 64 == pytest.approx(mean, rel=0.05)


def test_useful_flops_count_what_the_model_multiplies() -> None:
    """torch's own counter, on the products of the reference path: forward of the packed encoder and
    head, times three.
    """
    from torch.utils.flop_counter import FlopCounterMode

    from bertfast import kernels
    from bertfast.model import BertForMaskedLM

    config = BertConfig.preset("bert-tiny", vocab_size=512)
    packed = lengths.full(8, 64)  # on the grid of sizes: nothing is padded
    batch = steps.make_batch(packed, config.vocab_size, "cpu")
    model = BertForMaskedLM(config).eval()
    with (
        kernels.use_backend("reference"),
        FlopCounterMode(display=False) as counter,
        torch.no_grad(),
    ):
        model(batch.packed)
    expected = 3 * counter.get_total_flops()
    assert floors.step_flops(config, packed, len(batch.packed.masked_labels)) == pytest.approx(
        expected, rel=0.02
    )


def test_flops_of_inference_count_what_the_encoder_multiplies() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from bertfast import BertModel, ModernBertModel, kernels
    from bertfast.config import ModernBertConfig

    packed = lengths.full(8, 64)
    for model in (
        BertModel(BertConfig.preset("bert-tiny"), add_pooling_layer=False),
        ModernBertModel(
            ModernBertConfig(
                hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96
            )
        ),
    ):
        batch = steps.make_batch(packed, model.config.vocab_size, "cpu").packed
        with (
            kernels.use_backend("reference"),
            FlopCounterMode(display=False) as counter,
            torch.no_grad(),
        ):
            model.eval()(batch)
        expected = counter.get_total_flops()
        assert floors.inference(model.config, packed, 4).flops == pytest.approx(expected, rel=0.01)


def test_the_page_of_figures_is_what_the_committed_json_gives() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.page_text(page.load_results())


@pytest.mark.slow
def test_a_run_that_is_stopped_keeps_its_cases_and_fails() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks", "cpu", "--quick", "--only", "test_dropout"],
        cwd=REPOSITORY,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "benchmarks: loading PyTorch\n"
    for line in process.stderr:
        if "rate" in line:  # of the first case, which has been measured
            break
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert "dropout" in out


def test_the_figures_of_the_readme_are_what_the_committed_json_gives() -> None:
    text = front.README.read_text(encoding="utf-8")
    figures = front.front_text(page.load_results())
    assert front.put_between(text, figures) == text
    assert len(re.findall(r"^- \*\*[\d.]+[x%]\*\* ", figures, re.MULTILINE)) == 3
    (plot,) = re.findall(r"^!\[.*\]\((.*)\)$", figures, re.MULTILINE)
    assert (REPOSITORY / plot).is_file()


def test_the_readmes_figures_follow_the_json() -> None:
    (record, *_) = page.load_results()
    figures = front.front_text([record])
    for case in record["cases"]:
        for side in case["sides"].values():
            if side["kind"] == "peer":
                side["ratio"]["median"] *= 2
    assert front.front_text([record]) != figures
    with pytest.raises(ValueError, match="no record"):
        front.front_text([record | {"cases": []}])


@pytest.mark.parametrize("text", ["", front.START, f"{front.END} {front.START}"])
def test_a_readme_without_its_marks_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="each once"):
        front.put_between(text, "figures")


def test_an_update_of_a_machine_that_has_no_record_begins_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "bertfast.bench.rates.measure", lambda device, names, quick: dict.fromkeys(names, 1.0)
    )
    machine = {"slug": "machine", "name": "machine", "device": "cpu"}
    results = Results(Settings(results=tmp_path, update=True), machine)
    results.add({"op": "dropout", "shape": "4 x 4", "dtype": "float32", "value": 1})
    (record,) = page.load_results(tmp_path)
    assert [found["value"] for found in record["cases"]] == [1]


def test_an_update_replaces_the_same_case_and_says_when(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "bertfast.bench.rates.measure",
        lambda device, names, quick: {name: next(measured[name]) for name in names},
    )
    measured = {"matrix float32": iter([1.0, 2.0, 3.0]), "copy": iter([1.0, 2.0, 1.0])}
    machine = {"slug": "machine", "name": "machine", "device": "cpu"}
    case = {"op": "dropout", "shape": "4 x 4", "dtype": "float32", "value": 1}
    first = Results(Settings(results=tmp_path), machine)
    first.add(dict(case))
    first.rates["matrix bfloat16"] = 5.0
    first.add(case | {"dtype": "bfloat16"})
    again = Results(Settings(results=tmp_path, update=True), machine)
    again.add(case | {"value": 2})
    again.finish()
    (record,) = page.load_results(tmp_path)
    assert [(found["dtype"], found["value"]) for found in record["cases"]] == [
        ("float32", 2),
        ("bfloat16", 1),
    ]
    assert record["cases"][0]["commit"] == again.commit
    assert "commit" not in record["cases"][1]
    assert record["rates"] == {"matrix float32": 1.0, "copy": 1.0, "matrix bfloat16": 5.0}
    assert record["cases"][0]["rates"] == {
        "matrix float32": 3.0,
        "copy": 2.0,
    }  # the better of before and after
