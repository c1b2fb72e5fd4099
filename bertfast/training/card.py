"""The cards of pretrained and of fine-tuned models."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertfast.card import model_card
from bertfast.data.readers import suffix_of
from bertfast.escape import markdown, one_line

if TYPE_CHECKING:
    from bertfast.tasks import Task

    from .config import PretrainConfig
    from .finetune import FinetuneConfig

NAMED = 100  # labels that a card lists
# By which `datasets` reads a file; else "json".
BUILDERS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    **dict.fromkeys((".arrow", ".feather", ".ipc", ""), "arrow"),
}
_CACHED = re.compile(r"models--(.+)")


# What the Hub calls our scores; any other is called what we call it.
HUB_METRICS = {
    "macro_f1": "f1",
    "micro_f1": "f1",
    "mcc": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
}


def task_card(
    config: FinetuneConfig, task: Task, summary: dict[str, Any], labels: Iterable[str]
) -> str:
    """The card of a fine-tuned model.

    Args:
        config: of the run.
        task: of the model.
        summary: what its ``metrics.json`` holds.
        labels: the names of the model's outputs.
    """
    from huggingface_hub import EvalResult

    labels, scores = list(labels), task.scores
    file = config.dev or config.train
    kind = task.pipeline or "other"
    dataset: dict[str, Any] = {
        "task_type": kind,
        "task_name": kind.replace("-", " ").title(),
        "dataset_type": BUILDERS.get(suffix_of(Path(file)), "json"),
        "dataset_name": one_line(Path(file).name),
        "dataset_split": "validation" if config.dev else "train",
    }
    metadata = {
        "model_name": _name(config.out),
        "base_model": None if config.from_scratch else base_model(config.model),
        "pipeline_tag": task.pipeline,
        "library_name": "transformers" if config.adapter is None else "peft",
        "metrics": list(dict.fromkeys(HUB_METRICS.get(name, name) for name in scores)),
        "eval_results": [
            EvalResult(
                **dataset,
                metric_type=HUB_METRICS.get(name, name),
                metric_name=words[:1].upper() + words[1:],
                metric_value=round(summary[f"dev_{name}"], 6),
                metric_args=_interval(summary, name),
            )
            for name, words in scores.items()
        ],
    }
    titles = ["epoch", "train loss", *(f"dev {words}" for words in scores.values())]
    rows = [
        [
            str(line["epoch"]),
            f"{line['train_loss']:.4f}",
            *(f"{line[f'dev_{name}']:.4f}" for name in scores),
        ]
        for line in summary["epochs"]
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in [titles, ["---"] * len(titles), *rows])
    names = ", ".join(map(markdown, labels[:NAMED]))
    more = f" and {len(labels) - NAMED} more" if len(labels) > NAMED else ""
    how = "the head alone, the encoder frozen" if config.freeze_encoder else "end to end"
    if config.adapter is not None:
        how = f"the head and a {config.adapter} adapter, which the folder holds alone"
    start = markdown(base_model(config.model))
    start = f"the shape of {start}, with random weights" if config.from_scratch else start
    pair = f" and {markdown(config.pair_column)}" if config.pair_column else ""
    text = markdown(config.text_column) if config.text_column else "`sentence` or `text`"
    cut = summary["truncated"]
    first = (config.metric_for_best and markdown(config.metric_for_best)) or next(
        iter(scores.values())
    )
    dev = {name: summary[f"dev_{name}"] for name in scores}
    script, call = task.usage
    pipeline = f"""
    from transformers import pipeline
    pipeline("{task.pipeline}", ".")({call})
"""
    kind_of_task = f"{task.name} ({task.summary or 'a task of its own'})"
    return model_card(
        metadata,
        f"""# {markdown(_name(config.out))}

A model for {kind_of_task} with {len(labels)} output(s) ({names}{more}),
trained with bertfast {how}, starting from {start}.

- training data: {markdown(Path(config.train).name)}, {summary["train_examples"]} examples
- dev data: {_part(config)}{markdown(Path(file).name)}, {summary["dev_examples"]} examples
- columns: text {text}{pair}, label {markdown(config.label_column or "label")}
- epochs, batch size, peak rate: {config.epochs}, {config.batch_size}, {config.lr:g}
- precision, seed: {config.precision}, {config.seed}
- inputs cut at {cut["max_length"]} tokens: train {cut["train"]}, dev {cut["dev"]}
- best epoch by dev {first}: {summary["best_epoch"]}
- dev {", ".join(task.said(dev, summary["intervals"]))}
{_more(summary, scores)}
{table}

The best epoch was chosen on the dev data, so its dev scores are a little optimistic.

## Use

    python predict.py {script}
    bertfast predict . texts.tsv
{pipeline if task.pipeline and call and config.adapter is None else ""}""",
    )


def _interval(summary: dict[str, Any], name: str) -> dict[str, Any] | None:
    """The interval of a score, and how it was made."""
    if name not in summary["intervals"]:
        return None
    low, high = summary["intervals"][name]
    return {
        "interval": [round(low, 6), round(high, 6)],
        "level": summary["level"],
        "bootstrap_resamples": summary["resamples"],
    }


def _part(config: FinetuneConfig) -> str:
    """Which part of the file the dev data is."""
    if config.dev is not None:
        return ""
    if config.dev_split is not None:
        return f"{config.dev_split:.0%} of "
    return f"fold {config.fold} of {config.folds} of "


def _more(summary: dict[str, Any], scores: dict[str, str]) -> str:
    """Lines on the intervals, the temperature, and the runs beside this one."""
    lines = []
    if summary["intervals"]:
        lines.append(
            f"In brackets are {summary['level']:.0%} bootstrap intervals over the dev examples."
        )
    if (calibration := summary.get("calibration")) and calibration["temperature"] != 1:
        lines.append(
            f"The logits are divided by the temperature {calibration['temperature']:.3f}, fitted "
            f"on the dev data: the calibration error fell from {calibration['ece_before']:.4f} to "
            f"{calibration['ece']:.4f} there."
        )
    if runs := summary.get("runs"):
        each = ", ".join(
            f"{words} {runs['scores'][name]['mean']:.4f} ± {runs['scores'][name]['spread']:.4f}"
            for name, words in scores.items()
        )
        count = len(next(iter(runs["scores"].values()))["each"])
        lines.append(
            f"Over {count} {runs['by']}s, the mean and the standard deviation: {each}. This is the "
            f"model of {runs['chosen']}, the best one on its dev data."
        )
        lines += [f"{name} failed: {markdown(why)}." for name, why in runs["failed"].items()]
    return "".join(f"\n{line}\n" for line in lines)


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
        "base_model": None if config.model is None else base_model(config.model),
        "pipeline_tag": "fill-mask" if fills or architecture.endswith("ForMaskedLM") else None,
    }
    if config.model is None:
        start = f"random weights in the shape of {markdown(Path(config.start).name)}"
    else:
        start = markdown(base_model(config.model))
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
    """The name of the model that training started from.

    It is its id on the Hub, where the path is one or lies in the Hub's cache, or else its folder's
    name.
    """
    path = Path(model)
    for part in path.parts:
        if found := _CACHED.fullmatch(part):
            return one_line(found[1].replace("--", "/"))
    return _name(model) if path.exists() else one_line(model)


def _name(folder: str | Path) -> str:
    return one_line(Path(folder).absolute().name) or "model"
