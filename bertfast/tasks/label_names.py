"""What tasks over named labels write of them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from bertfast.config import EncoderConfig


def labels_file(config: EncoderConfig) -> dict[str, str]:
    """The text of ``labels.json``, by its name: the labels in the order of their numbers."""
    text = json.dumps(names_of(config), indent=2, ensure_ascii=False)
    return {"labels.json": f"{text}\n"}


def names_of(config: EncoderConfig) -> list[str]:
    """The labels in the order of their numbers."""
    return [config.id2label[number] for number in range(config.num_labels)]


def by_label(values: Sequence[float], config: EncoderConfig) -> dict[str, float]:
    """A value of each label, by the label's name."""
    return {config.id2label[number]: value for number, value in enumerate(values)}
