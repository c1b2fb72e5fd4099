"""metrics.jsonl and the progress bar."""

from __future__ import annotations

from pathlib import Path

import pytest

from bertfast.errors import BertfastError
from bertfast.progress import LiveBar
from bertfast.training.metrics import FILE, MetricsLog, read_metrics


def test_lines_come_back_as_they_were_written(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.write(10, {"loss": 2.5, "epoch": 0})
    log.write(20, {"loss": 1.25, "epoch": 1})
    assert read_metrics(tmp_path) == [
        {"step": 10, "loss": 2.5, "epoch": 0},
        {"step": 20, "loss": 1.25, "epoch": 1},
    ]
    log.close()


def test_steps_that_will_be_run_again_are_dropped(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    for step in (10, 20, 30):
        log.write(step, {"loss": 1.0})
    log.close()
    with open(tmp_path / FILE, "a") as file:
        file.write('{"step": 40, "lo')  # what a kill leaves
    log = MetricsLog(tmp_path, start_step=20)
    log.write(30, {"loss": 7.0})
    log.close()
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [
        (10, 1.0),
        (20, 1.0),
        (30, 7.0),
    ]


@pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="no /dev/full here to stand for a full disk"
)
def test_a_full_disk_is_a_clear_error(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.file.close()
    log.file = open("/dev/full", "a")  # noqa: SIM115
    with pytest.raises(BertfastError, match="No space left on device"):
        log.write(1, {"loss": 1.0})


def test_without_a_terminal_the_last_step_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with LiveBar(3, label="pretrain") as bar:
        for step in (1, 2, 3):
            bar.advance(step, f"loss {step}")
    assert capsys.readouterr().err == "pretrain: step 3/3  loss 3\n"
