"""Options in files, under Hugging Face's names, and in the places that people look for them."""

from __future__ import annotations

import importlib
import json
from dataclasses import MISSING, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
import yaml
from tiny import run_cli

from bertfast.cli import app, spellings
from bertfast.cli.command import Command
from support import REPOSITORY

COMMANDS = {name: command for name, command in app.commands.items() if isinstance(command, Command)}
DATA = ["--data", "a.txt", "--tokenizer", "tok", "--out", "run"]
RUN_MODEL = (
    *("evaluate", "predict", "fill", "embed", "serve", "app"),
    *("pretrain", "finetune", "bench", "profile"),
)


def parsed(command: str, *args: str) -> dict[str, Any]:
    """The options as the command gets them."""
    return COMMANDS[command].make_context(command, list(args)).params


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Runs a command with ``--print-config``; returns what that printed."""

    def run(*args: object) -> dict[str, Any]:
        done = run_cli(monkeypatch, capfd, *args, "--print-config")
        assert done.code == 0, done
        found = yaml.safe_load(done.out)
        assert isinstance(found, dict)
        return found

    return run


def test_every_command_takes_config_and_print_config() -> None:
    assert list(COMMANDS) == list(app.commands)
    for command in COMMANDS.values():
        names = {name for parameter in command.params for name in parameter.opts}
        assert {"--config", "--print-config"} <= names


@pytest.mark.parametrize("command", RUN_MODEL)
def test_every_command_that_runs_a_model_takes_device_and_precision(command: str) -> None:
    names = {name for parameter in COMMANDS[command].params for name in parameter.opts}
    assert {"--device", "--precision"} <= names


def test_the_defaults_are_those_of_the_functions() -> None:
    from bertfast.training.config import PretrainConfig
    from bertfast.training.finetune import FinetuneConfig

    for command, config in (("pretrain", PretrainConfig), ("finetune", FinetuneConfig)):
        params = parsed(command, "--print-config")
        for field in fields(config):  # type: ignore[arg-type]
            if field.default is not MISSING:
                # An option that may be given several times has no None.
                nothing = params[field.name] == () and field.default is None
                assert nothing or params[field.name] == field.default, field.name


@pytest.mark.parametrize("command", COMMANDS)
def test_print_config_needs_nothing_and_is_a_config_file(
    command: str, printed: Any, tmp_path: Path
) -> None:
    first = printed(command)
    assert "config" not in first
    (tmp_path / "options.yaml").write_text(yaml.safe_dump(first))
    assert printed(command, "--config", tmp_path / "options.yaml") == first


@pytest.mark.parametrize("kind", ["yaml", "json", "toml"])
def test_a_file_of_each_kind_sets_options_and_flags_win(
    kind: str, printed: Any, tmp_path: Path
) -> None:
    values = {"data": ["a.txt", "b.txt"], "learning-rate": 1e-3, "steps": 7, "resume": True}
    text = {
        "yaml": yaml.safe_dump(values),
        "json": json.dumps(values),
        "toml": 'data = ["a.txt", "b.txt"]\n"learning-rate" = 1e-3\nsteps = 7\nresume = true\n',
    }
    file = tmp_path / f"options.{kind}"
    file.write_text(text[kind])
    found = printed("pretrain", "--steps", 9, "--config", file)
    assert found["data"] == ["a.txt", "b.txt"]
    assert (found["lr"], found["steps"], found["resume"]) == (1e-3, 9, True)


def test_null_leaves_an_option_as_it_is(printed: Any, tmp_path: Path) -> None:
    (tmp_path / "options.yaml").write_text("steps: null\nwarmup:\n")
    found = printed("pretrain", "--config", tmp_path / "options.yaml")
    assert (found["steps"], found["warmup"]) == (10_000, None)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("o.yaml", "epoch: 3\n", "no such option: epoch; the nearest is epochs"),
        ("o.yaml", "print_config: true\n", "no such option: print_config"),
        ("o.yaml", "epochs: '3'\n", "epochs is '3'; it must be a whole number"),
        ("o.yaml", "from-scratch: 'no'\n", "from-scratch is 'no'; it must be true or false"),
        ("o.yaml", "lr: true\n", "lr is True; it must be a number"),
        ("o.yaml", "train: [a, b]\n", "train is ['a', 'b']; it must be text"),
        ("o.yaml", "text\n", "must hold a mapping"),
        ("o.json", "{", "cannot be read as JSON"),
        ("o.toml", "epochs 3", "cannot be read as TOML"),
        ("gone.yaml", None, "no such file"),
    ],
)
def test_a_wrong_file_is_one_line(
    name: str,
    text: str | None,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    done = run_cli(monkeypatch, capfd, "finetune", "--config", tmp_path / name)
    assert (done.code, len(done.errors)) == (2, 1)
    assert f"{name}: " in done.errors[0]
    assert said in done.errors[0]


@pytest.mark.parametrize(
    ("command", "theirs", "ours"),
    [
        ("pretrain", "--learning_rate 0.5", {"lr": 0.5}),
        ("pretrain", "--learning-rate=0.5", {"lr": 0.5}),
        ("pretrain", "--max_steps 5 --warmup_steps 2", {"steps": 5, "warmup": 2}),
        ("pretrain", "--save_steps 5 --logging_steps 2", {"checkpoint_every": 5, "log_every": 2}),
        ("pretrain", "--gradient_accumulation_steps 4", {"accumulation": 4}),
        ("pretrain", "--max_grad_norm 2 --weight_decay 0", {"clip_norm": 2, "weight_decay": 0}),
        ("pretrain", "--train_file b.txt c.txt", {"data": ("a.txt", "b.txt", "c.txt")}),
        ("pretrain", "--config_name bert-tiny", {"shape": "bert-tiny"}),
        ("pretrain", "--model_name_or_path m --model_revision v2", {"model": "m"}),
        ("pretrain", "--tokenizer_name t --output_dir o", {"tokenizer": "t", "out": "o"}),
        ("pretrain", "--max_seq_length 64 --bf16", {"seq_len": 64, "precision": "bf16"}),
        ("pretrain", "--warmup_ratio 0.1", {"warmup_ratio": 0.1}),
        ("pretrain", "--adam_beta2 0.98", {"adam_beta1": 0.9, "adam_beta2": 0.98}),
    ],
)
def test_hugging_faces_names_are_ours(command: str, theirs: str, ours: dict[str, Any]) -> None:
    found = parsed(command, *DATA, *theirs.split())
    assert {name: found[name] for name in ours} == ours


def test_finetune_takes_a_command_line_of_transformers() -> None:
    found = parsed(
        "finetune",
        *[
            "--model_name_or_path",
            "bert-base-uncased",
            "--train_file",
            "a.tsv",
            "--validation_file",
            "b.tsv",
        ],
        *[
            "--num_train_epochs",
            "4",
            "--per_device_train_batch_size",
            "8",
            "--learning_rate",
            "2e-5",
        ],
        *["--max_seq_length", "96", "--output_dir", "out", "--seed", "3"],
    )
    assert (found["model"], found["train"], found["dev"]) == ("bert-base-uncased", "a.tsv", "b.tsv")
    assert (found["epochs"], found["batch_size"], found["lr"]) == (4, 8, 2e-5)
    assert (found["max_length"], found["out"], found["seed"]) == (96, "out", 3)


def test_finetune_takes_the_updates_options_of_transformers() -> None:
    files = ("m", "--train", "a.tsv", "--dev", "b.tsv", "--out", "o")
    theirs = {
        "--weight_decay": ("weight_decay", 0.1),
        "--warmup_ratio": ("warmup_ratio", 0.06),
        "--warmup_steps": ("warmup", 100),
        "--gradient_accumulation_steps": ("accumulation", 4),
        "--max_grad_norm": ("clip_norm", 0.5),
        "--adam_beta1": ("adam_beta1", 0.8),
        "--adam_beta2": ("adam_beta2", 0.98),
        "--adam_epsilon": ("adam_epsilon", 1e-8),
        "--logging_steps": ("log_every", 50),
    }
    given = [text for name, (_, value) in theirs.items() for text in (name, str(value))]
    found = parsed("finetune", *files, *given)
    assert {name: found[name] for name, _ in theirs.values()} == dict(theirs.values())


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("report_to: []\n", ()),
        ("report_to: [none]\n", ("none",)),
        ("report_to: null\n", None),
        ("", None),
    ],
)
def test_no_trackers_in_a_file_are_none_and_nothing_is_the_default(
    text: str,
    given: tuple[str, ...] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    module = importlib.import_module("bertfast.training.pretrain")
    found: dict[str, Any] = {}

    def run(**options: Any) -> Any:
        found.update(options)
        return SimpleNamespace(out="o", steps=0, last={})

    monkeypatch.setattr(module, "pretrain", run)
    (tmp_path / "options.yaml").write_text(text + "steps: 5\n")
    for file in ("options.yaml", "again.yaml"):
        arguments = ("pretrain", *DATA, "--config", tmp_path / file)
        assert run_cli(monkeypatch, capfd, *arguments).code == 0
        assert found["report_to"] == given
        printed = run_cli(monkeypatch, capfd, *arguments, "--print-config").out
        (tmp_path / "again.yaml").write_text(printed)


def test_the_model_may_be_an_option_beside_other_arguments() -> None:
    for args in (["m", "f.txt"], ["--model", "m", "f.txt"], ["f.txt", "--model=m"]):
        found = parsed("predict", *args)
        assert (found["model"], found["file"]) == ("m", "f.txt")


def test_what_stands_behind_two_dashes_is_left_alone() -> None:
    found = parsed("fill", "m", "--", "--learning_rate [MASK]")
    assert found["text"] == "--learning_rate [MASK]"


def test_help_shows_our_names_alone() -> None:
    for command in COMMANDS.values():
        text = command.get_help(command.make_context("x", ["--print-config"]))
        theirs = {"learning-rate", "output-dir", "num-train-epochs", "train-file"}
        assert not any(name in text or name.replace("-", "_") in text for name in theirs)


def test_the_page_lists_every_pair() -> None:
    page = (REPOSITORY / "docs/reference/command-line.md").read_text("utf-8")
    tables = [table for name, table in vars(spellings).items() if name.isupper() and table]
    assert len(tables) > 3
    for theirs, ours in (pair for table in tables for pair in table.items()):
        rows = [line for line in page.splitlines() if f"`--{theirs.replace('-', '_')}`" in line]
        assert any(f"`--{ours}`" in row for row in rows), (theirs, ours)


def test_every_spelling_is_of_some_command() -> None:
    known = {name for command in COMMANDS.values() for name in command.spellings}
    assert set(spellings.SPELLINGS) <= known


def test_a_share_of_warm_up_and_a_number_exclude_each_other(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    done = run_cli(monkeypatch, capfd, "pretrain", *DATA, "--warmup", 3, "--warmup_ratio", 0.1)
    assert (done.code, len(done.errors)) == (2, 1)


def test_an_option_that_is_none_is_a_usage_error() -> None:
    with pytest.raises(click.NoSuchOption):
        parsed("doctor", "--learning_rate", "3")
