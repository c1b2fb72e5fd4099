"""Pictures show the labels and the numbers, whatever the labels hold, the same every time."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from bertfast.scoring import Calibration, confusion, pictures

pytest.importorskip("matplotlib")


def test_an_evaluation_is_drawn_the_same_every_time() -> None:
    names = ["<b>", "$x$", "c" * 200]
    chosen = np.array([0, 1, 2, 2])
    report = {
        "confusion": confusion(names, [0, 1, 1, 2], chosen),
        "calibration": Calibration([0.2, 0.9, 0.9, 1.0], [0, 1, 0, 1]).report(),
    }
    drawn = pictures(report)
    assert drawn == pictures(report)
    assert drawn.keys() == {"confusion.svg", "reliability.svg"}
    for text in drawn.values():
        assert ElementTree.fromstring(text).tag.endswith("svg")
    assert "<b>" not in drawn["confusion.svg"]


def test_what_was_not_reported_is_not_drawn() -> None:
    assert pictures({}) == {}
    names = [str(number) for number in range(200)]
    assert pictures({"confusion": confusion(names, [0, 1], [0, 1])}) == {}
