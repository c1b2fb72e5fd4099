"""``python -m benchmarks.sentence_training``: an epoch of training a sentence encoder, beside the
Trainer of sentence-transformers.

Both start from one folder and train on the same rows with the same loss, rate and batch size. They
take turns, each in a process of its own, for each seed. The JSON has every run's seconds of
training, and Spearman's correlation on the dev file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

LOSSES = {
    "cosent": "CoSENTLoss",
    "cosine": "CosineSimilarityLoss",
    "multiple-negatives": "MultipleNegativesRankingLoss",
    "softmax": "SoftmaxLoss",
}
SIDES = ("bertfast", "sentence-transformers")


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="folder of the encoder that both start from")
    parser.add_argument("train", help="rows of texts; see bertfast.data.text_rows")
    parser.add_argument("dev", help="pairs with a score")
    parser.add_argument("--loss", choices=LOSSES, default="cosent")
    parser.add_argument("--columns", nargs="*", default=[], help="of the texts in both files")
    parser.add_argument("--label", help="column of the labels of the training rows")
    parser.add_argument("--dev-label", help="column of the scores")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-5)
    parser.add_argument("--rows", type=int, help="of the training data, the first ones; all")
    parser.add_argument("--threads", type=int, help="default: PyTorch's")
    parser.add_argument("--out", type=Path, help="file of JSON to write")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side is not None:
        print(json.dumps(_run(options)))
        return 0
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for seed in range(options.seeds):
        for side in SIDES if seed % 2 == 0 else reversed(SIDES):
            runs[side].append(_in_process(side, seed))
            print(f"seed {seed}, {side}: {runs[side][-1]}", file=sys.stderr)
    seconds = {side: median(run["seconds"] for run in found) for side, found in runs.items()}
    found = {
        "options": {name: value for name, value in vars(options).items() if name != "out"},
        "runs": runs,
        "times_faster": seconds[SIDES[1]] / seconds[SIDES[0]],
    }
    for side, each in runs.items():
        scores = [run["spearman"] for run in each]
        spread = stdev(scores) if len(scores) > 1 else 0.0
        print(f"{side:<24} {seconds[side]:8.1f} s  Spearman {mean(scores):.4f} ± {spread:.4f}")
    print(f"{found['times_faster']:.2f} times as fast")
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=2, default=str) + "\n")
    return 0


def _in_process(side: str, seed: int) -> dict[str, float]:
    """What one side's run says."""
    command = [sys.executable, "-m", "benchmarks.sentence_training", *sys.argv[1:]]
    done = subprocess.run(
        [*command, "--side", side, "--seed", str(seed)], stdout=subprocess.PIPE, check=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _run(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of training, and Spearman's correlation after it."""
    import torch

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        side = _ours if options.side == SIDES[0] else _theirs
        seconds, trained = side(options, Path(folder))
        from bertfast.training.sentence_evaluation import evaluate_sentences

        scores = evaluate_sentences(
            trained, options.dev, options.columns, options.dev_label or options.label, device="cpu"
        )
    return {"seconds": seconds, "spearman": scores["spearman"]}


def _rows(options: argparse.Namespace) -> Any:
    from bertfast.data.text_rows import read_text_rows

    return read_text_rows(options.train, options.columns, options.label)


def _ours(options: argparse.Namespace, folder: Path) -> tuple[float, Path]:
    from bertfast.training.sentences import train_sentences

    rows, file = _rows(options), folder / "train.jsonl"
    with open(file, "w", encoding="utf-8") as stream:
        for row in rows.rows[: options.rows]:
            texts = {f"text{number}": text for number, text in enumerate(row.texts)}
            stream.write(
                json.dumps(texts | ({} if rows.label is None else {"label": row.label})) + "\n"
            )
    train_sentences(
        options.model,
        file,
        options.loss,
        folder / "out",
        batch_size=options.batch_size,
        lr=options.lr,
        weight_decay=0.0,
        seed=options.seed,
        device="cpu",
    )
    # From the first batch to the last update, as the other side's train_runtime counts.
    seconds: float = json.loads((folder / "out" / "metrics.json").read_text())["seconds"]
    return seconds, folder / "out"


def _theirs(options: argparse.Namespace, folder: Path) -> tuple[float, Path]:
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
        losses,
    )

    rows = _rows(options)
    texts = zip(*(row.texts for row in rows.rows), strict=True)
    columns: dict[str, Any] = {f"text{number}": list(each) for number, each in enumerate(texts)}
    if options.loss == "softmax":
        words = rows.words()
        names = sorted(set(words))
        columns["label"] = [names.index(word) for word in words]
    elif rows.label is not None:
        columns["label"] = rows.scores()
    data = Dataset.from_dict(columns)
    if options.rows is not None:
        data = data.select(range(options.rows))
    model = SentenceTransformer(options.model, device="cpu")
    more = (
        (model.get_embedding_dimension(), len(set(columns["label"])))
        if options.loss == "softmax"
        else ()
    )
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder / "run"),
        num_train_epochs=1,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.lr,
        warmup_ratio=0.1,
        seed=options.seed,
        use_cpu=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=data,
        loss=getattr(losses, LOSSES[options.loss])(model, *more),
    )
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    model.save_pretrained(str(folder / "out"))
    return seconds, folder / "out"


if __name__ == "__main__":
    sys.exit(main())
