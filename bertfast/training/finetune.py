"""Fine-tuning for classification: labelled texts and a pretrained encoder in, a classifier with all
it needs out.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from bertfast import openmp
from bertfast.config import EncoderConfig
from bertfast.data import tasks
from bertfast.data.tokenizer import SpecialIds, save_tokenizer
from bertfast.errors import BertfastError
from bertfast.hub import (
    check_tokenizer_fits,
    load_config,
    load_tokenizer,
    load_weights,
    save_pretrained,
)
from bertfast.model import member_class
from bertfast.model.models import ForSequenceClassification
from bertfast.packed import PackedBatch

from . import card
from .evaluate import Scores, score
from .memory import keep_freed_memory
from .metrics import LiveBar
from .optimizer import build_optimizer, clip_at_next_step, linear_schedule, set_rate
from .options import takes_fields_of
from .precision import PRECISIONS, Masters
from .seeds import dropout_seed

TASKS = ("classification",)
WARMUP_SHARE = 0.1  # of the updates. Devlin et al., "BERT", appendix A.3
EVAL_TOKENS = 16384  # of a batch without gradients


@dataclass(frozen=True)
class FinetuneConfig:
    """One fine-tuning run.

    Attributes:
        model: folder of a pretrained model in Hugging Face's format, its tokenizer beside it.
        train, dev: files with a header (see `bertfast.data.tasks`).
        out: folder of the result; it must not exist.
        task: "classification".
        text_column, pair_column, label_column: None for the defaults.
        freeze_encoder: train the classifier alone, on the encoder's pooled output; with a pooler
            that the model lacked, train that too.
        from_scratch: keep the model's shape and tokenizer but none of its weights.
        epochs: passes over the training data.
        lr: peak learning rate; None is 5e-5, or 1e-2 when the encoder is frozen.
        batch_size: examples of an update.
        max_length: tokens of an example at most, in training and in later predictions; None is the
            model's positions.
        precision: "fp32", or "bf16" with float32 master weights.
        seed: of the new weights, the order and the dropout.
    """

    model: str
    train: str
    dev: str
    out: str
    task: str = "classification"
    text_column: str | None = None
    pair_column: str | None = None
    label_column: str | None = None
    freeze_encoder: bool = False
    from_scratch: bool = False
    epochs: int = 3
    lr: float | None = None
    batch_size: int = 32
    max_length: int | None = None
    precision: str = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise BertfastError(f"task is {self.task!r}; it must be one of {', '.join(TASKS)}")
        for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
                raise BertfastError(
                    f"{name.replace('_', '-')} is {value!r}; it must be a whole number of at least {least}, below 2^63"
                )
        if self.lr is None:
            object.__setattr__(self, "lr", 1e-2 if self.freeze_encoder else 5e-5)
        if not (isinstance(self.lr, (int, float)) and 0 < self.lr < math.inf):
            raise BertfastError(f"lr is {self.lr!r}; it must be a number above 0")
        if self.max_length is not None and (
            not isinstance(self.max_length, int) or self.max_length < 4
        ):
            raise BertfastError(
                f"max-length is {self.max_length!r}; it must be a whole number of at least 4"
            )
        if self.precision not in PRECISIONS:
            raise BertfastError(
                f"precision is {self.precision!r}; it must be one of {', '.join(PRECISIONS)}"
            )
        if self.freeze_encoder and self.from_scratch:
            raise BertfastError(
                "freeze-encoder and from-scratch together would train a classifier on a random encoder"
            )


@dataclass(frozen=True)
class FinetuneResult:
    """The folder that was made, the best epoch's dev scores, and every epoch's numbers."""

    out: Path
    accuracy: float
    macro_f1: float
    best_epoch: int
    history: list[dict[str, Any]]


@takes_fields_of(FinetuneConfig)
def finetune(
    model: str | Path, train: str | Path, dev: str | Path, out: str | Path, **options: Any
) -> FinetuneResult:
    """Fine-tunes a classifier; the command ``bertfast finetune`` as a function.

    Args:
        model: folder of a pretrained model.
        train, dev: labelled files.
        out: folder of the result.
        options: the other fields of `FinetuneConfig`.

    Raises:
        BertfastError: an option, a file or a folder cannot be used, or the loss became NaN; nothing
            is left behind.
    """
    config = FinetuneConfig(
        model=str(model), train=str(train), dev=str(dev), out=str(out), **options
    )
    target = Path(config.out).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BertfastError(f"{config.out}: exists already; choose another --out")
    columns = (config.text_column, config.pair_column, config.label_column)
    train_examples = tasks.read_task(config.train, *columns)
    dev_examples = tasks.read_task(config.dev, *columns)
    labels = tasks.label_names(train_examples, config.train)
    shape = replace(
        load_config(config.model).with_labels(labels), problem_type="single_label_classification"
    )
    tokenizer = load_tokenizer(config.model)
    check_tokenizer_fits(tokenizer, shape, f"{config.model}: the tokenizer")
    special = SpecialIds(tokenizer, config.model)
    max_length = config.max_length or shape.max_length
    if max_length > shape.max_length:
        raise BertfastError(
            f"max-length is {max_length} and the model has {shape.max_length} positions"
        )
    train_data = _Data(train_examples, tokenizer, shape, max_length, config.train)
    dev_data = _Data(dev_examples, tokenizer, shape, max_length, config.dev)

    torch.manual_seed(config.seed)
    classifier = member_class(shape, "ForSequenceClassification")(shape)
    assert isinstance(classifier, ForSequenceClassification)
    if not config.from_scratch:
        new = load_weights(classifier, config.model, new_head_ok=True)
        if new:
            print(
                f"bertfast: {config.model} does not have {', '.join(new)}; trained from random weights",
                file=sys.stderr,
            )
        if config.freeze_encoder:
            # A random pooler that stayed as it is would blur what the encoder knows.
            classifier.base.requires_grad_(False)
            for name in new:
                classifier.get_parameter(name).requires_grad_(True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with _new_folder(target) as folder:
        started = time.monotonic()
        history, best, weights = _train(config, classifier.to(device), train_data, dev_data, device)
        seconds = time.monotonic() - started
        classifier.float().load_state_dict(weights)
        summary = _summary(config, train_data, dev_data, max_length, history, best, seconds)
        _fill_folder(folder, classifier, tokenizer, special, config, summary, max_length)
    return FinetuneResult(
        Path(config.out), best["dev_accuracy"], best["dev_macro_f1"], best["epoch"], history
    )


def _summary(
    config: FinetuneConfig,
    train_data: _Data,
    dev_data: _Data,
    max_length: int,
    history: list[dict[str, Any]],
    best: dict[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """What metrics.json holds."""
    return {
        "best_epoch": best["epoch"],
        "dev_accuracy": best["dev_accuracy"],
        "dev_macro_f1": best["dev_macro_f1"],
        "seconds": seconds,
        "train_examples": len(train_data),
        "dev_examples": len(dev_data),
        "truncated": {
            "train": train_data.truncated,
            "dev": dev_data.truncated,
            "max_length": max_length,
        },
        "settings": asdict(config),
        "epochs": history,
    }


class _Data:
    """Encoded examples and their label numbers."""

    def __init__(
        self,
        examples: Sequence[tasks.Example],
        tokenizer: Tokenizer,
        shape: EncoderConfig,
        max_length: int,
        source: str,
    ) -> None:
        self.labels = tasks.encode_labels(examples, shape.label2id, source)
        texts, pairs = (
            [example.text for example in examples],
            [example.pair for example in examples],
        )
        self.inputs = tasks.encode(tokenizer, texts, pairs, max_length)
        self.truncated = sum(item.truncated for item in self.inputs)
        if self.truncated:
            print(
                f"bertfast: {source}: {self.truncated} of {len(self)} inputs were longer than {max_length} tokens and were cut",
                file=sys.stderr,
            )

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, rows: Sequence[int]) -> PackedBatch:
        """These rows, packed."""
        return PackedBatch.from_sequences(
            [self.inputs[row].ids for row in rows],
            [self.inputs[row].segments for row in rows],
            [self.labels[row] for row in rows],
        )


def batches_by_tokens(inputs: Sequence[tasks.Encoded], tokens: int) -> list[list[int]]:
    """Rows in order, cut into batches of ``tokens`` tokens at most (one row at least)."""
    result: list[list[int]] = [[]]
    total = 0
    for row, item in enumerate(inputs):
        if result[-1] and total + len(item.ids) > tokens:
            result.append([])
            total = 0
        result[-1].append(row)
        total += len(item.ids)
    return result


def _train(
    config: FinetuneConfig,
    model: ForSequenceClassification,
    train: _Data,
    dev: _Data,
    device: torch.device,
) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Tensor]]:
    """Every epoch's numbers, the best one's, and its weights in float32."""
    keep_freed_memory()
    if device.type == "cpu":
        openmp.warn_if_late(torch.get_num_threads())
    masters = Masters(model, config.precision)
    firsts: Tensor | None = None
    dev_firsts: Tensor | None = None
    if config.freeze_encoder:
        # The encoder never changes, so its outputs are computed once; without dropout, as at
        # prediction.
        firsts, dev_firsts = (_first_states(model, data, device) for data in (train, dev))
    assert config.lr is not None
    optimizer = build_optimizer(masters, config.lr)
    per_epoch = -(-len(train) // config.batch_size)
    total = per_epoch * config.epochs
    warmup = max(1, round(WARMUP_SHARE * total))
    history: list[dict[str, Any]] = []
    best: dict[str, Any] = {}
    best_weights: dict[str, Tensor] = {}
    with LiveBar(total, label="finetune") as bar:
        for epoch in range(1, config.epochs + 1):
            order = np.random.default_rng([config.seed, epoch]).permutation(len(train))
            model.train()
            losses = 0.0
            for index in range(per_epoch):
                step = (epoch - 1) * per_epoch + index
                rows = order[index * config.batch_size : (index + 1) * config.batch_size].tolist()
                seed = dropout_seed(config.seed, step, 0)
                if firsts is None:
                    loss = model(train.batch(rows).to(device), seed=seed).loss
                else:
                    labels = torch.tensor([train.labels[row] for row in rows], device=device)
                    logits = model.classify(firsts[rows], torch.tensor([seed], device=device))
                    loss = torch.nn.functional.cross_entropy(logits.float(), labels)
                loss.backward()
                clip_at_next_step(optimizer, 1.0)
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise BertfastError(
                        f"step {step + 1}: the loss is {value}; stopped, nothing was saved. A lower --lr may help"
                    )
                set_rate(optimizer, config.lr * linear_schedule(step, warmup, total))
                optimizer.step()
                optimizer.zero_grad()
                losses += value
                bar.advance(step + 1, f"epoch {epoch}  loss {value:.3f}")
            scores = _score(model, dev, dev_firsts, device)
            line = {
                "epoch": epoch,
                "train_loss": losses / per_epoch,
                "dev_accuracy": scores.accuracy,
                "dev_macro_f1": scores.macro_f1,
            }
            history.append(line)
            if not best or line["dev_accuracy"] > best["dev_accuracy"]:
                best = line
                best_weights = {
                    name: tensor.detach().cpu().clone()
                    for name, tensor in model.state_dict().items()
                }
                best_weights |= {
                    name: tensor.cpu().clone() for name, tensor in masters.named().items()
                }
    return history, best, {name: tensor.float() for name, tensor in best_weights.items()}


@torch.no_grad()
def _first_states(model: ForSequenceClassification, data: _Data, device: torch.device) -> Tensor:
    """(sequences, hidden): what the encoder gives the head."""
    model.eval()
    outputs = []
    for rows in batches_by_tokens(data.inputs, EVAL_TOKENS):
        batch = data.batch(rows).to(device)
        outputs.append(model.features(model.base.encode(batch, every_row=model.reads_every_row)))
    return torch.cat(outputs)


def _score(
    model: ForSequenceClassification, dev: _Data, firsts: Tensor | None, device: torch.device
) -> Scores:
    model.eval()
    if firsts is not None:
        logits = model.classify(firsts)
    else:
        parts = [
            model(dev.batch(rows).to(device)).logits
            for rows in batches_by_tokens(dev.inputs, EVAL_TOKENS)
        ]
        logits = torch.cat(parts)
    return score(logits.argmax(-1).tolist(), dev.labels, model.config.num_labels)


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill that becomes ``target`` at the end: that is there whole or not at all.

    It is made at once, so that a place that cannot be written to is found before the training and
    not after it.
    """
    folder = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        yield folder
        if target.is_dir():
            target.rmdir()
        os.replace(folder, target)
    except OSError as error:
        raise BertfastError(f"{target}: cannot be written ({error})") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fill_folder(
    folder: Path,
    model: ForSequenceClassification,
    tokenizer: Tokenizer,
    special: SpecialIds,
    config: FinetuneConfig,
    summary: dict[str, Any],
    max_length: int,
) -> None:
    save_pretrained(model, folder)
    save_tokenizer(
        tokenizer, folder, max_length, special, segments=model.config.type_vocab_size > 1
    )
    names = list(model.config.id2label.values())
    texts = {
        "labels.json": json.dumps(names, indent=2, ensure_ascii=False) + "\n",
        "metrics.json": json.dumps(summary, indent=2) + "\n",
        card.FILE: card.classifier_card(config, summary, names),
        "predict.py": PREDICT_SCRIPT,
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


PREDICT_SCRIPT = '''"""Labels texts with the model in this folder: python predict.py "some text" "another"."""

import sys
from pathlib import Path

from bertfast.escape import one_line
from bertfast.training.predict import Classifier

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for text, prediction in zip(sys.argv[1:], Classifier(Path(__file__).parent).predict(sys.argv[1:])):
        label, shown = one_line(prediction.label), one_line(text)
        print(f"{label}\\t{prediction.probabilities[prediction.label]:.3f}\\t{shown}")
'''
