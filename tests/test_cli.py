"""The command line: its help, its options' forms, its exit codes, and the whole way from text to
words.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tiny import run_cli, sentences, write_model, write_table

import bertfast
from bertfast import kernels
from bertfast.model import BertForSequenceClassification

COMMANDS = (
    *(
        "doctor",
        "tune",
        "tokenizer",
        "prepare",
        "pretrain",
        "adapt",
        "finetune",
        "glue",
        "sentences",
        "evaluate",
        "predict",
        "fill",
        "embed",
        "features",
        "search",
        "rerank",
        "mine",
        "compare",
        "demo",
        "serve",
    ),
    *("app", "bench", "profile", "plan", "plot", "merge", "export", "push"),
)
BERTFAST = [sys.executable, "-m", "bertfast"]
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(Path(bertfast.__file__).parents[1]),
}


def bertfast_process(*args: object, **options: object) -> subprocess.CompletedProcess[str]:
    """``python -m bertfast ARGS`` in a process of its own."""
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [*BERTFAST, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
        env=ENVIRONMENT,
        **options,
    )


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with text and labelled data under the names of the help's examples; the working
    directory.
    """
    monkeypatch.chdir(tmp_path)
    texts = [text for text, _ in sentences(120)]
    documents = ["\n".join(texts[start : start + 6]) for start in range(0, 120, 6)]
    (tmp_path / "corpus.txt").write_text("\n\n".join(documents) + "\n")
    for number, name in enumerate(("train.tsv", "dev.tsv", "test.tsv")):
        write_table(tmp_path / name, sentences(24, number))
    return tmp_path


def example(
    command: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> str:
    """The first example in a command's help."""
    shown = run_cli(monkeypatch, capfd, command, "--help").out
    # Each on a line of its own, so that it can be copied.
    found = re.search(r"Example:\n((?: .*\bbertfast .*\n)+)\n", shown)
    assert found, shown
    return found[1].splitlines()[0].strip()


def test_help_lists_every_command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    done = run_cli(monkeypatch, capfd, "--help")
    assert done.code == 0
    assert re.findall(r"^  (\w+)  ", done.out, re.MULTILINE) == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_shows_an_example(
    command: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert f"bertfast {command}" in example(command, monkeypatch, capfd)


def test_help_does_not_import_torch() -> None:
    code = "import sys, bertfast.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT).returncode == 0


def test_version_is_printed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    done = run_cli(monkeypatch, capfd, "--version")
    assert (done.code, done.out) == (0, f"bertfast {bertfast.__version__}\n")


def test_the_examples_of_the_help_work_one_after_another(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    commands = {name: shlex.split(example(name, monkeypatch, capfd)) for name in COMMANDS}
    # Smaller than the example, which is of a size worth training; the last mention of an option
    # wins.
    extra = {
        "tokenizer": ["--vocab-size", "200"],
        "pretrain": [
            "--shape",
            "bert-tiny",
            "--steps",
            "4",
            "--warmup",
            "1",
            "--batch-tokens",
            "256",
        ],
        "finetune": ["--epochs", "1"],
    }
    outcomes = {}
    for name in ("tokenizer", "pretrain", "plot", "finetune", "evaluate", "fill", "embed"):
        outcomes[name] = run_cli(monkeypatch, capfd, *commands[name][1:], *extra.get(name, []))
        assert outcomes[name].code == 0, outcomes[name]
    assert set(json.loads(outcomes["evaluate"].out)) >= {"accuracy", "macro_f1", "examples"}
    assert len(outcomes["fill"].out.splitlines()) == 5
    assert outcomes["fill"].err == "bertfast: weights: the folder run\n"
    (place / "texts.tsv").write_text("sentence\na charming and affecting journey\n")
    done = bertfast_process(*commands["predict"][1:])
    assert done.returncode == 0, done.stderr
    header, row = (place / "predictions.csv").read_text().splitlines()
    assert dict(zip(header.split(","), row.split(","), strict=False))["label"] in ("bad", "good")


@pytest.mark.parametrize(
    "form",
    [
        ["--data", "a.txt", "b.txt"],
        ["--data", "a.txt", "--data", "b.txt"],
        ["--data=a.txt", "b.txt"],
        ["--data=a.txt", "--data=b.txt"],
    ],
)
def test_data_takes_several_files_in_every_form(
    form: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("apple apple apple\n")
    Path("b.txt").write_text("berry berry berry\n")
    for args in (["tokenizer", *form, "--vocab-size", "60", "--out", "tok"],):
        assert run_cli(monkeypatch, capfd, *args).code == 0
    assert {"apple", "berry"} <= set(Path("tok/vocab.txt").read_text().split())


def test_options_win_over_the_config_file_and_it_over_the_defaults(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_model(place / "tok")
    settings = {
        "data": "corpus.txt",
        "tokenizer": "tok",
        "model": "tok",
        "steps": 3,
        "seq-len": 20,
        "batch_tokens": 99,
    }
    Path("run.yaml").write_text(yaml.safe_dump(settings) + "lr: 1e-3\n")
    done = run_cli(
        monkeypatch, capfd, "pretrain", "--config", "run.yaml", "--out", "run", "--steps", 2
    )
    assert done.code == 0, done
    used = yaml.safe_load(Path("run/config.yaml").read_text())
    assert (used["steps"], used["seq_len"], used["batch_tokens"], used["lr"]) == (2, 20, 99, 1e-3)
    assert (used["data"], used["objective"], used["warmup"]) == (["corpus.txt"], "mlm+nsp", 0)
    # What a run writes down is a config file of the same run.
    again = run_cli(monkeypatch, capfd, "pretrain", "--config", "run/config.yaml", "--out", "again")
    assert again.code == 0
    assert yaml.safe_load(Path("again/config.yaml").read_text()) == {**used, "out": "again"}


def test_doctor_gives_each_op_and_dtype_a_backend_and_the_others_reasons(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    facts = json.loads(run_cli(monkeypatch, capfd, "doctor", "--json").out)
    parts = {"machine", "openmp", "versions", "missing", "instruction_sets", "products", "ops"}
    assert set(facts) == parts
    assert facts["versions"]["bertfast"] == bertfast.__version__
    cpu = {(row["op"], row["dtype"]): row for row in facts["ops"] if row["device"] == "cpu"}
    assert set(cpu) == {
        (op, dtype) for op in kernels.dispatch.OPS for dtype in ("float32", "bfloat16", "float16")
    }
    for row in facts["ops"]:
        assert {row["backend"], *row["reasons"]} == {"triton", "cpp", "reference"}
        assert all(row["reasons"].values())


def test_doctor_prints_tables(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shown = run_cli(monkeypatch, capfd, "doctor").out
    for word in ("linear_cross_entropy", "bfloat16", "processor", bertfast.__version__):
        assert word in shown


def test_doctor_says_why_a_forced_backend_cannot_run(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernels.dispatch, "NO_EXTENSION", "the extension is not built")
    with kernels.use_backend("cpp"):
        facts = json.loads(run_cli(monkeypatch, capfd, "doctor", "--json").out)
    row = next(row for row in facts["ops"] if row["device"] == "cpu")
    assert row["backend"] is None
    assert "the extension is not built" in row["reasons"]["cpp"]


def test_a_mistake_is_one_line_and_exit_code_2_in_a_process_of_its_own(place: Path) -> None:
    done = bertfast_process(
        "finetune", "nowhere", "--train", "train.tsv", "--dev", "dev.tsv", "--out", "out"
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_a_reader_that_leaves_is_no_error(place: Path) -> None:
    write_model(place / "model", BertForSequenceClassification)
    (place / "many.txt").write_text("the film was warm\n" * 5000)
    command = f"{shlex.join(BERTFAST)} predict model many.txt | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=ENVIRONMENT)
    assert json.loads(done.stdout)["text"] == "the film was warm"
    assert done.stderr == "bertfast: weights: the folder model\n"


@pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="no /dev/full here to stand for a full disk"
)
def test_a_full_disk_is_one_line(place: Path) -> None:
    write_model(place / "model", BertForSequenceClassification)
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*BERTFAST, "predict", "model", "train.tsv"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
    assert done.returncode == 2
    assert done.stderr.splitlines()[1:] == ["error: [Errno 28] No space left on device"]


def test_an_interrupt_leaves_no_folder_and_says_nothing_long(place: Path) -> None:
    write_model(place / "model")
    process = subprocess.Popen(
        [
            *BERTFAST,
            *shlex.split(
                "finetune model --train train.tsv --dev dev.tsv --out out --epochs 1000000"
            ),
        ],
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        # A shell's background job ignores interrupts, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 60
    while not list(place.glob(".out.*.tmp")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT, said
    assert "Traceback" not in said
    assert not list(place.glob("*out*"))


def test_the_help_names_every_registered_objective(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from bertfast.objectives import OBJECTIVES, Objective

    class Own(Objective):
        name, summary = "mlm+own", "and a thing of its own"

    monkeypatch.setitem(OBJECTIVES, Own.name, Own())
    text = " ".join(run_cli(monkeypatch, capfd, "pretrain", "--help").out.split())
    assert all(f"{name} ({objective.summary})" in text for name, objective in OBJECTIVES.items())


def test_no_help_waits_for_torch() -> None:
    """Every command's help in one process that has imported nothing else."""
    run = """
import contextlib, io, sys
from bertfast.cli.main import app
for arguments in ([], *([name] for name in app.commands)):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            app.main([*arguments, "--help"], "bertfast")
        except SystemExit as stopped:
            assert stopped.code == 0
    assert "Usage: " in out.getvalue()
    heavy = {"torch", "numpy", "tokenizers", "transformers"} & sys.modules.keys()
    assert not heavy, (arguments, heavy)
print(len(app.commands))
"""
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10
