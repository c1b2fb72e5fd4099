"""What needs no POSIX and no Triton runs where there is none; each process here lacks them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from tiny import sentences, write_model, write_table

from support import REPOSITORY

PLACES = {
    "windows": "import elsewhere; elsewhere.as_windows()",
    "without triton": "import elsewhere; elsewhere.without('triton')",
}
EVERY_MODULE = """
import importlib, pkgutil, bertfast, bertfast.kernels
for package in (bertfast, bertfast.kernels):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if found.name.rsplit(".", 1)[-1] not in ("__main__", "_C"):
            importlib.import_module(found.name)
for name in bertfast.__all__:
    getattr(bertfast, name)
"""

# Checkpoints, a resume under the run's lock, task data, and both ways to use a model.
WHOLE_WAY = """
import os, sys
os.chdir(sys.argv[1])
import bertfast
from bertfast.training.predict import Classifier

options = {"model": "model", "objective": "mlm", "batch_tokens": 128, "seq_len": 24}
for resume in (False, True):
    bertfast.pretrain(
        ["corpus.txt"], "model", "run", **options, steps=4, checkpoint_every=2, resume=resume
    )
bertfast.finetune("run", "train.tsv", "train.tsv", "classifier", epochs=1)
texts = ["the film was warm", "the film was odd"]
labels = Classifier("classifier").predict(texts)
vectors = bertfast.SentenceEncoder.from_pretrained("run").encode(texts)
print(f"{len(labels)} predictions, {len(vectors)} vectors")
"""


def there(place: str, program: str, *args: object) -> subprocess.CompletedProcess[str]:
    """Runs a Python program as if on that system."""
    paths = [str(REPOSITORY), str(REPOSITORY / "tests")]
    environment = {
        name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"
    } | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(
        [sys.executable, "-c", f"{PLACES[place]}\n{program}", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )


def command(place: str, *args: object) -> subprocess.CompletedProcess[str]:
    """``bertfast ARGS`` as if on that system."""
    return there(place, "from bertfast.cli import main; main()", *args)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.slow_unless(lambda place: place == "windows")
def test_every_module_and_public_name_imports(place: str) -> None:
    done = there(place, EVERY_MODULE)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.slow
def test_doctor_runs(place: str) -> None:
    done = command(place, "doctor")
    assert done.returncode == 0, done.stderr
    assert "which backend each op takes" in done.stdout


NO_GPU = "triton is not installed, and only a GPU needs it"
NEEDED = "triton is not installed (pip install 'bertfast[gpu]')"


@pytest.mark.slow
def test_doctor_says_that_a_cpu_needs_no_triton_and_how_a_gpu_has_it() -> None:
    facts = json.loads(command("without triton", "doctor", "--json").stdout)
    assert facts["versions"]["triton"] is None
    assert {row["reasons"]["triton"] for row in facts["ops"] if row["device"] == "cpu"} == {NO_GPU}
    program = """
import torch
torch.cuda.is_available = lambda: True
torch.cuda.get_device_name = lambda: "a GPU"
from bertfast.apps import doctor
facts = doctor.report()
print(facts["missing"]["triton"])
print({row["reasons"]["triton"] for row in facts["ops"] if row["device"] == "cuda"})
"""
    shown = there("without triton", program)
    assert shown.returncode == 0, shown.stderr
    said, reasons = shown.stdout.splitlines()
    assert said == "pip install 'bertfast[gpu]', for the kernels on the GPU"
    assert reasons == repr({NEEDED})


@pytest.mark.slow
def test_what_else_is_not_installed_is_named_with_its_extra() -> None:
    program = "import elsewhere; elsewhere.without('transformers', 'tensorboard')\n"
    done = there("without triton", program + "from bertfast.cli import main; main()", "doctor")
    assert done.returncode == 0, done.stderr
    for extra in ("hf", "train"):
        assert f"'bertfast[{extra}]'" in done.stdout


def test_core_dependencies_bring_neither_triton_nor_cuda() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert not any("triton" in line or "nvidia" in line for line in project["dependencies"])


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.slow
def test_a_model_is_pretrained_resumed_fine_tuned_and_used(place: str, tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    write_table(tmp_path / "train.tsv", sentences(24))
    lines = [text for text, _ in sentences(60)]
    (tmp_path / "corpus.txt").write_text("\n\n".join(lines) + "\n")
    done = there(place, WHOLE_WAY, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "2 predictions, 2 vectors"


@pytest.mark.slow
def test_where_no_process_can_be_halted_bench_beside_says_so() -> None:
    done = command("windows", "bench", "--beside", "--shape", "bert-tiny", "--seconds", "0.01")
    assert done.returncode == 2
    assert "this system cannot" in done.stderr.splitlines()[-1]
