"""GLUE's tasks from files in each of its layouts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import run_cli, sentences, write_model

from bertfast.apps import glue as app
from bertfast.data.glue import TASKS, find_folder, find_task, read_rows
from bertfast.errors import BertfastError
from support import REPOSITORY

# The first line of the training, the dev and the test files that GLUE publishes; CoLA's first two
# have none.
PARSES = "sentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse"
MNLI = f"index\tpromptID\tpairID\tgenre\t{PARSES}\tsentence1\tsentence2"
FIVE = "label1\tlabel2\tlabel3\tlabel4\tlabel5"
STS = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2"
PAIR = "index\tsentence1\tsentence2"
LAYOUTS = {
    "CoLA": ("", "", "index\tsentence"),
    "SST-2": ("sentence\tlabel", "sentence\tlabel", "index\tsentence"),
    "MRPC": (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        "\ufeffindex\t#1 ID\t#2 ID\t#1 String\t#2 String",
    ),
    "STS-B": (f"{STS}\tscore", f"{STS}\tscore", STS),
    "QQP": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        "id\tquestion1\tquestion2",
    ),
    "MNLI": (f"{MNLI}\tlabel1\tgold_label", f"{MNLI}\t{FIVE}\tgold_label", MNLI),
    "QNLI": (
        "index\tquestion\tsentence\tlabel",
        "index\tquestion\tsentence\tlabel",
        "index\tquestion\tsentence",
    ),
    "RTE": (f"{PAIR}\tlabel", f"{PAIR}\tlabel", PAIR),
    "WNLI": (f"{PAIR}\tlabel", f"{PAIR}\tlabel", PAIR),
}


def write_lines(path: Path, name: str, header: str, rows: int, seed: int) -> None:
    """Made-up rows under a header; each label of the task comes up."""
    task = TASKS[name]
    names = (header.lstrip("\ufeff") or "\t".join(task.header)).split("\t")
    lines = [header] if header else []
    texts = sentences(2 * rows, seed)
    for number in range(rows):
        label = task.labels[number % len(task.labels)] if task.labels else f"{number % 5}.25"
        known = {
            **dict(zip(task.texts, (texts[2 * number][0], texts[2 * number + 1][0]), strict=False)),
            task.label: label,
            "index": str(number),
            "id": str(number + 100),
        }
        lines.append("\t".join(known.get(column, '"x') for column in names))
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_glue(folder: Path, names: tuple[str, ...] = tuple(LAYOUTS), rows: int = 12) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
        train, dev, test = LAYOUTS[name]
        write_lines(folder / name / "train.tsv", name, train, rows, 1)
        for dev_file, test_file in TASKS[name].parts.values():
            write_lines(folder / name / dev_file, name, dev, rows, 2)
            write_lines(folder / name / test_file, name, test, 5, 3)
    return folder


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_is_read(name: str, tmp_path: Path) -> None:
    task = find_task(name.lower().replace("-", "_"))
    folder = find_folder(write_glue(tmp_path, (name,)), task)
    assert folder == tmp_path / name
    rows = list(read_rows(folder / "train.tsv", task, labelled=True))
    assert len(rows) == 12
    assert {row.label for row in rows} >= set(task.labels)
    assert rows[0].text == sentences(2, 1)[0][0]
    assert rows[0].pair == (sentences(2, 1)[1][0] if len(task.texts) > 1 else None)
    for _, test in task.parts.values():
        asked = list(read_rows(folder / test, task, labelled=False))
        first = 100 if name == "QQP" else 0
        assert [row.number for row in asked] == [str(first + number) for number in range(5)]


def test_a_broken_line_is_passed_over_in_qqp_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_glue(tmp_path, ("QQP", "RTE"))
    for name in ("QQP", "RTE"):
        with open(tmp_path / name / "train.tsv", "a") as stream:
            stream.write("1\tbroken\n")
    assert len(list(read_rows(tmp_path / "QQP/train.tsv", TASKS["QQP"], labelled=True))) == 12
    assert "1 lines with too few fields" in capsys.readouterr().err
    with pytest.raises(BertfastError, match=r"train.tsv, line 14: has 2 fields"):
        list(read_rows(tmp_path / "RTE/train.tsv", TASKS["RTE"], labelled=True))


def test_glue_s_own_sst2_is_read() -> None:
    folder = REPOSITORY.parent / "shared" / "data" / "sst2_glue"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/sst2_glue")
    rows = list(read_rows(folder / "train.tsv", TASKS["SST-2"], labelled=True))
    assert len(rows) == 67349
    assert len(list(read_rows(folder / "dev.tsv", TASKS["SST-2"], labelled=True))) == 872


@pytest.mark.slow_unless(lambda names: names == ("STS-B",))
@pytest.mark.parametrize("names", [("STS-B",), tuple(LAYOUTS)], ids=["one", "all"])
def test_the_command_makes_models_scores_and_submissions(
    names: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = write_model(tmp_path / "model", num_hidden_layers=1)
    data = write_glue(tmp_path / "data", names)
    (data / "diagnostic").mkdir()
    write_lines(data / "diagnostic/diagnostic.tsv", "MNLI", PAIR, 7, 4)
    done = run_cli(
        monkeypatch,
        capfd,
        *("glue", "--model", model, "--data", data, "--out", tmp_path / "out"),
        *("--epochs", 1, "--batch-size", 4, "--lr", "1e-3", "5e-3"),
    )
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "out/scores.json").read_text())
    assert list(found["tasks"]) == list(names)
    for name, scored in found["tasks"].items():
        parts = TASKS[name].parts
        assert list(scored["scores"]) == [
            f"{s}{part}" for part in parts for s in TASKS[name].scores
        ]
        assert set(scored["each"]) == {"0.001", "0.005"}
        assert f"{scored['rate']:g}" in scored["each"]
        assert (tmp_path / "out" / name / "config.json").is_file()
        assert f"| {name} | " in done.out
    written = {path.name for path in (tmp_path / "out/submission").iterdir()}
    of_tasks = {f"{name}{part}.tsv" for name in names for part in TASKS[name].parts}
    assert written == of_tasks | ({"AX.tsv"} if "MNLI" in names else set())
    for path in (tmp_path / "out/submission").iterdir():
        head, *lines = path.read_text().splitlines()
        task = find_task(path.stem.removesuffix("-m").removesuffix("-mm").replace("AX", "MNLI"))
        assert head == "index\tprediction"
        assert len(lines) == (7 if path.stem == "AX" else 5)
        for line in lines:
            _, said = line.split("\t")
            assert said in task.labels if task.labels else 0 <= float(said) <= 5
    assert ("average" in found) == (len(names) == len(LAYOUTS))
    assert not list(tmp_path.glob(".out*"))


def test_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_model(tmp_path / "model", num_hidden_layers=1)
    data, made = write_glue(tmp_path / "data", ("SST-2",)), []
    tune = app.finetune

    def stopped(**options: object) -> object:
        made.append(options["lr"])
        if len(made) == 2:
            raise KeyboardInterrupt
        return tune(**options)

    monkeypatch.setattr(app, "finetune", stopped)
    options = {"rates": (1e-3, 2e-3), "epochs": 1}
    with pytest.raises(KeyboardInterrupt):
        app.glue(str(model), data, tmp_path / "out", **options)
    with pytest.raises(BertfastError, match="--resume"):
        app.glue(str(model), data, tmp_path / "out", **options)
    (tmp_path / ".out.glue/scores.json").write_text('{"settings": {}, "tasks": {}}')
    with pytest.raises(BertfastError, match="other settings"):
        app.glue(str(model), data, tmp_path / "out", resume=True, **options)
    (tmp_path / ".out.glue/scores.json").unlink()
    app.glue(str(model), data, tmp_path / "out", resume=True, **options)
    assert made == [1e-3, 2e-3, 2e-3]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--tasks", "SST-3"], "'SST-3'"),
        (["--tasks", "RTE"], "no folder RTE"),
        (["--tasks", "RTE", "--data", "nowhere"], "nowhere: is no folder"),
        (["--lr", "0.1", "0.1"], "lr is"),
        (["--lr", "nan"], "lr"),
        (["--epochs", "0"], "epochs"),
        (["--max-length", "900"], "max-length is 900"),
    ],
)
def test_what_cannot_be_run_is_one_line_and_leaves_nothing(
    options: list[str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    data = write_glue(tmp_path / "data", ("SST-2", "WNLI"), rows=4)
    model = write_model(tmp_path / "model", num_hidden_layers=1)
    given = ["--model", model, "--data", data, "--out", tmp_path / "out"]
    done = run_cli(monkeypatch, capfd, "glue", *given, *options)
    assert (done.code, done.out) == (2, "")
    assert [named in line for line in done.errors] == [True], done.err
    assert {path.name for path in tmp_path.iterdir()} == {"data", "model"}


def test_bad_labels_are_named_before_anything_is_trained(tmp_path: Path) -> None:
    data = write_glue(tmp_path / "data", ("SST-2", "STS-B"), rows=4)
    with open(data / "STS-B/dev.tsv", "a") as stream:
        stream.write("\t".join(["x"] * 9 + ["nan"]) + "\n")
    model = write_model(tmp_path / "model", num_hidden_layers=1)
    with pytest.raises(BertfastError, match=r"dev.tsv, line 6: the score is 'nan'"):
        app.glue(str(model), data, tmp_path / "out")
    assert not list(tmp_path.glob(".out*"))
