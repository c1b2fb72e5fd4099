"""The cards of pretrained and of fine-tuned models."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertfast.card import model_card
from bertfast.escape import markdown, one_line

if TYPE_CHECKING:
    from .config import PretrainConfig
    from .finetune import FinetuneConfig

NAMED = 100  # labels that a card lists
BUILDERS = {".csv": "csv", ".tsv": "csv"}  # by which `datasets` reads a file; else "json"
_CACHED = re.compile(r"models--(.+)")


def classifier_card(config: FinetuneConfig, summary: dict[str, Any], labels: Sequence[str]) -> str:
    """The card of a fine-tuned classifier.

    Args:
        config: of the run.
        summary: what its ``metrics.json`` holds.
        labels: the classes' names.
    """
    from huggingface_hub import EvalResult

    data = Path(config.dev.removesuffix(".gz"))
    dataset: dict[str, Any] = {
        "task_type": "text-classification",
        "task_name": "Text Classification",
        "dataset_type": BUILDERS.get(data.suffix.lower(), "json"),
        "dataset_name": one_line(Path(config.dev).name),
        "dataset_split": "validation",
    }
    metadata = {
        "model_name": _name(config.out),
        "base_model": None if config.from_scratch else base_model(config.model),
        "pipeline_tag": "text-classification",
        "metrics": ["accuracy", "f1"],
        "eval_results": [
            EvalResult(
                **dataset,
                metric_type="accuracy",
                metric_name="Accuracy",
                metric_value=round(summary["dev_accuracy"], 6),
            ),
            EvalResult(
                **dataset,
                metric_type="f1",
                metric_name="Macro F1",
                metric_value=round(summary["dev_macro_f1"], 6),
            ),
        ],
    }
    epochs = "\n".join(
        f"| {line['epoch']} | {line['train_loss']:.4f} | {line['dev_accuracy']:.4f} | {line['dev_macro_f1']:.4f} |"
        for line in summary["epochs"]
    )
    names = ", ".join(map(markdown, labels[:NAMED]))
    more = f" and {len(labels) - NAMED} more" if len(labels) > NAMED else ""
    how = "the classifier alone, the encoder frozen" if config.freeze_encoder else "end to end"
    start = markdown(base_model(config.model))
    start = f"the shape of {start}, with random weights" if config.from_scratch else start
    pair = f" and {markdown(config.pair_column)}" if config.pair_column else ""
    text = markdown(config.text_column) if config.text_column else "`sentence` or `text`"
    cut = summary["truncated"]
    return model_card(
        metadata,
        f"""# {markdown(_name(config.out))}

A text classifier of {len(labels)} labels ({names}{more}), trained with bertfast {how}, starting from {start}.

- training data: {markdown(Path(config.train).name)}, {summary["train_examples"]} examples
- dev data: {markdown(Path(config.dev).name)}, {summary["dev_examples"]} examples
- columns: text {text}{pair}, label {markdown(config.label_column or "label")}
- epochs, batch size, peak rate: {config.epochs}, {config.batch_size}, {config.lr:g}
- precision, seed: {config.precision}, {config.seed}
- inputs cut at {cut["max_length"]} tokens: train {cut["train"]}, dev {cut["dev"]}
- best epoch by dev accuracy: {summary["best_epoch"]}
- dev accuracy, macro F1: {summary["dev_accuracy"]:.4f}, {summary["dev_macro_f1"]:.4f}

| epoch | train loss | dev accuracy | dev macro F1 |
| --- | --- | --- | --- |
{epochs}

The best epoch was chosen on the dev data, so its dev scores are a little optimistic.

## Use

    python predict.py "some text"
    bertfast predict . texts.tsv

    from transformers import pipeline
    pipeline("text-classification", ".")("some text")
""",
    )


def pretraining_card(
    config: PretrainConfig, name: str, architecture: str, steps: int, last: dict[str, Any]
) -> str:
    """The card of a pretrained model.

    Args:
        config: of the run.
        name: of the model's folder.
        architecture: the class that its ``config.json`` names.
        steps: updates done.
        last: the last logged numbers.
    """
    fills = architecture.endswith(("ForMaskedLM", "ForPreTraining")) and config.objective != "rtd"
    metadata = {
        "model_name": one_line(name),
        "base_model": None if config.starts_random else base_model(config.model),
        "pipeline_tag": "fill-mask" if fills or architecture.endswith("ForMaskedLM") else None,
    }
    start = markdown(Path(config.model).name if config.starts_random else base_model(config.model))
    start = f"random weights in the shape of {start}" if config.starts_random else start
    numbers = "".join(
        f"- {name.replace('_', ' ')}: {value:.4f}\n"
        for name, value in last.items()
        if name.endswith(("loss", "accuracy"))
    )
    files = ", ".join(markdown(Path(path).name) for path in config.data)
    return model_card(
        metadata,
        f"""# {markdown(name)}

A {architecture} pretrained with bertfast, starting from {start}.

- objective, masking: {markdown(config.objective)}, {config.masking}, {config.mask_unit}
- training text: {files}
- updates, tokens seen: {steps}, {last.get("tokens", 0)}
- tokens of a batch and of a sequence at most: {config.batch_tokens}, {config.seq_len}
- peak rate, warm-up, weight decay: {config.lr:g}, {config.warmup}, {config.weight_decay:g}
- precision, seed: {config.precision}, {config.seed}

The last logged numbers, on the training text:

{numbers}""",
    )


def base_model(model: str) -> str:
    """The name of the model that training started from: its id on the Hub, where the path is one or
    lies in the Hub's cache, or else its folder's name.
    """
    path = Path(model)
    for part in path.parts:
        if found := _CACHED.fullmatch(part):
            return one_line(found[1].replace("--", "/"))
    return _name(model) if path.exists() else one_line(model)


def _name(folder: str | Path) -> str:
    return one_line(Path(folder).absolute().name) or "model"
