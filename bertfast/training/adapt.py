"""Continued pretraining on own text, before fine-tuning.

Source: Gururangan et al. (2020), "Don't Stop Pretraining": domain- and task-adaptive pretraining.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bertfast.config import ElectraConfig
from bertfast.errors import BertfastError
from bertfast.model import load_config
from bertfast.resolve import resolve

from .held_out import LOSS, read_evaluations
from .pretrain import PretrainResult, pretrain

VALID_SPLIT = 0.05


def adapt(
    model: str | Path, data: tuple[str, ...] | list[str], out: str, **options: Any
) -> tuple[PretrainResult, float]:
    """Trains a model on with its own tokenizer, and holds the loss on held-out text against that of
    the start.

    Args:
        model: folder or Hub id.
        data: files of text.
        out: folder of the run, as `pretrain` makes it.
        options: as of `pretrain`. The objective is masked-token prediction unless it says otherwise
            (for ELECTRA replaced tokens). A twentieth of the documents is held out unless ``valid``
            or ``valid_split`` says otherwise.

    Returns:
        The run, and the held-out loss at its start.

    Raises:
        BertfastError: as of `pretrain`, or the held-out loss did not fall; the run is kept.
    """
    if options.get("objective") is None:
        config = load_config(resolve(model, options.get("revision")).folder)
        options["objective"] = "rtd" if isinstance(config, ElectraConfig) else "mlm"
    if not options.get("valid") and options.get("valid_split") is None:
        options["valid_split"] = VALID_SPLIT
    result = pretrain(data, None, out, model=str(model), **options)
    start = read_evaluations(result.out)[0][LOSS]
    if not result.best[LOSS] < start:
        raise BertfastError(
            f"{out}: the held-out loss did not fall: {start:.4f} at the start, "
            f"{result.best[LOSS]:.4f} at best; a lower --lr or more --data may help"
        )
    return result, start
