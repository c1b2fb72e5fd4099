"""Learning curves: what is drawn, and what is refused."""

import json
import re
from xml.etree import ElementTree

import pytest
from tiny import run_cli


def run(folder, lines):
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_each_loss_and_accuracy_of_each_run_is_a_line(tmp_path, monkeypatch, capfd):
    pytest.importorskip("matplotlib", reason="matplotlib is an extra: pip install 'bertfast[demo]'")
    values = {
        "loss": 60.0,
        "mlm_loss": 5.0,
        "mlm_accuracy": 0.2,
        "rtd_loss": 1.1,
        "rtd_accuracy": 0.9,
    }
    first = run(tmp_path / "first", [{"step": n, "tokens": 100 * n, **values} for n in (1, 2, 3)])
    second = run(
        tmp_path / "second",
        [{"step": 1, "tokens": 9, "loss": 7.0, "mlm_loss": 7.0, "mlm_accuracy": 0.0}],
    )
    out = tmp_path / "curves.svg"
    done = run_cli(monkeypatch, capfd, "plot", first, second, "--out", out)
    assert (done.code, done.out.strip()) == (0, str(out))
    drawn = re.findall("<!-- (.*?) -->", out.read_text())
    for label in (
        "first: masked words",
        "first: replaced tokens",
        "second: masked words",
        "tokens",
        "accuracy",
    ):
        assert label in drawn
    assert "second: replaced tokens" not in drawn


@pytest.mark.parametrize("name", [r"$\undefined$", "<script>--><b>", "a\n\x01\u202eb", "a$b$"])
def test_the_name_of_a_run_is_shown_and_never_read(name, tmp_path, monkeypatch, capfd):
    pytest.importorskip("matplotlib", reason="matplotlib is an extra: pip install 'bertfast[demo]'")
    lines = [{"step": n, "tokens": n, "loss": 1.0, "mlm_loss": 1.0} for n in (1, 2)]
    runs = [run(tmp_path / folder, lines) for folder in (name, "plain")]
    out = tmp_path / "curves.svg"
    done = run_cli(monkeypatch, capfd, "plot", *runs, "--out", out)
    assert done.code == 0, done.err
    tags = {element.tag.rpartition("}")[2] for element in ElementTree.parse(out).iter()}
    assert tags.isdisjoint({"script", "b"})
    assert "plain: masked words" in out.read_text()


@pytest.mark.parametrize(
    ("lines", "out", "named"),
    [
        (None, "c.svg", "is no pretraining run"),
        ([], "c.svg", "holds no logged step yet"),
        ([{"step": 1}], "c.svg", "holds no logged step yet"),
        ([{"step": 1, "tokens": 1, "loss": 1.0}], "c.txt", "must end in .svg"),
        ([{"step": 1, "tokens": 1, "loss": 1.0}], "no/such/c.svg", "cannot be written"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(tmp_path, monkeypatch, capfd, lines, out, named):
    folder = tmp_path / "run"
    if lines is not None:
        run(folder, lines)
    done = run_cli(monkeypatch, capfd, "plot", folder, "--out", tmp_path / out)
    assert done.code == 2
    assert len(done.errors) == 1
    assert named in done.errors[0]
