"""``bertfast demo``: the whole way from text to a fine-tuned classifier, with its comparison and
its report.
"""

from __future__ import annotations

import csv
import json
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bertfast import __version__, processor
from bertfast.apps import corpus
from bertfast.apps.plot import plot
from bertfast.apps.report import runs_of, write_report
from bertfast.config import BertConfig
from bertfast.data.packing import Batches
from bertfast.data.store import TokenStore
from bertfast.errors import BertfastError
from bertfast.files import make_folder
from bertfast.model import BertForPreTraining
from bertfast.packed import PackedBatch
from bertfast.tokenization import SpecialIds, load_tokenizer, save_tokenizer, train_wordpiece
from bertfast.training.fill import MaskFiller
from bertfast.training.finetune import finetune
from bertfast.training.metrics import read_metrics
from bertfast.training.optimizer import build_optimizer, clip_at_next_step
from bertfast.training.pretrain import pretrain

MARKER = "demo.json"
VOCAB_SIZE = 3000
# Positions are learned one by one: so little text teaches a few of them well, and 128 hardly at
# all.
SEQ_LEN, BATCH_TOKENS = 32, 2048
PRETRAIN: dict[str, Any] = {
    "model": "bert-tiny",
    "steps": 3500,
    "warmup": 100,
    "lr": 2e-3,
    "checkpoint_every": 500,
    "log_every": 10,
}
PICTURE_EVERY = 15.0  # seconds, while it pretrains
# The same for the pretrained and the not-pretrained encoder; of 2e-4, 5e-4 and 1e-3 the last is the
# best for either.
FINETUNE = {"epochs": 10, "lr": 1e-3, "batch_size": 32, "max_length": 96}
# one run from random weights may end ten points from the next (docs/results.md): the mean is
# compared
RESTARTS = 3
FROZEN = {"epochs": 30, "lr": 1e-2, "batch_size": 32, "max_length": 96}
SENTENCES = (
    "Return a [MASK] of all the items.",
    "If the file does not exist, an exception is [MASK].",
    "This method is called [MASK] the connection is closed.",
    "The default [MASK] is None.",
    "Raise ValueError if the [MASK] is not valid.",
)
TIMED_BATCHES = 5
MIN_LABELS = 8


def run_demo(out: Path, seed: int = 0) -> dict[str, Any]:
    """Trains, fine-tunes, compares and reports; everything is in ``out`` afterwards, the report as
    ``report.html``.

    Args:
        out: folder to write; one that an earlier demo made is replaced, any other must not exist.
        seed: of everything that is drawn.

    Returns:
        What ``demo.json`` holds.

    Raises:
        BertfastError: an extra is not installed, or the folder is somebody else's.
    """
    try:
        import matplotlib  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError as error:
        raise BertfastError(
            f"{error.name} is not installed; the demo needs it: pip install 'bertfast[demo]'"
        ) from None
    if not 0 <= seed < 2**60:
        raise BertfastError(f"seed is {seed}; it must be a whole number from 0 to below 2^60")
    _claim(out)
    console = Console()
    started = time.monotonic()
    facts: dict[str, Any] = {
        "bertfast": __version__,
        "seed": seed,
        "machine": {
            "processor": processor.name(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
        },
    }
    (out / MARKER).write_text(json.dumps(facts), encoding="utf-8")

    console.rule("1  text that this Python ships")
    task, texts = _corpus(out, console, facts)
    console.rule("2  WordPiece vocabulary")
    tokenizer = train_wordpiece((line for text in texts for line in text.split("\n")), VOCAB_SIZE)
    save_tokenizer(tokenizer, out / "tokenizer")
    console.print(f"{tokenizer.get_vocab_size():,} entries")

    console.rule("3  pretraining: masked words and next sentences")
    run = out / "pretrained"
    facts["pretraining"] = _pretrain(out, run, seed, started, console)

    console.rule("4  fine-tuning: which part of the library is a docstring from?")
    facts["methods"] = _compare(out, run, task, seed, console)

    console.rule("5  a training step beside eager PyTorch")
    facts["steps"] = _time_steps(run, console)
    facts["fills"] = _fills(run)
    facts["seconds"] = time.monotonic() - started
    (out / MARKER).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")

    write_report(out / "report.html", facts)
    _show(console, out, facts)
    return facts


def _claim(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not (out / MARKER).is_file():
            raise BertfastError(
                f"{out}: exists and is no earlier demo's folder; choose another --out"
            )
        shutil.rmtree(out)
    make_folder(out)


def _corpus(out: Path, console: Console, facts: dict[str, Any]) -> tuple[corpus.Task, list[str]]:
    found = corpus.docstrings()
    task = corpus.make_task(found)
    if len(task.labels) < MIN_LABELS:
        raise BertfastError(
            f"this Python ships docstrings for {len(task.labels)} parts of its standard library, and the demo needs {MIN_LABELS}; "
            "its sources seem to be left out"
        )
    held_out = {item.file for item in task.dev}
    texts = list(corpus.pretraining_documents(found, held_out))
    (out / "corpus.txt").write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    for name, items in (("train", task.train), ("dev", task.dev)):
        with open(out / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows((item.text, item.part) for item in items)
    counts = {
        "megabytes": sum(len(text.encode()) for text in texts) / 1e6,
        "documents": len(texts),
        "labels": task.labels,
        "train": len(task.train),
        "dev": len(task.dev),
        "train_files": len({item.file for item in task.train}),
        "dev_files": len(held_out),
    }
    facts["corpus"] = counts
    console.print(
        f"{counts['megabytes']:.2f} MB in {counts['documents']} documents: the help topics, and the docstrings of every file but the "
        f"{counts['dev_files']} that the classifier is tested on"
    )
    return task, texts


def _pretrain(out: Path, run: Path, seed: int, started: float, console: Console) -> dict[str, Any]:
    """The run's settings, its curve and its last line; the losses are drawn as they fall.

    Args:
        started: when the demo began, by ``time.monotonic``.
    """
    picture = out / "pretraining.svg"
    drawn = started
    first: float | None = None

    def draw(line: dict[str, Any]) -> None:
        nonlocal drawn, first
        if first is not None and time.monotonic() - drawn < PICTURE_EVERY:
            return
        if line["step"] < 2 * PRETRAIN["log_every"]:  # a curve has two points at least
            return
        plot([run], picture)
        drawn = time.monotonic()
        if first is None:
            first = drawn - started
            said = f"first picture after {first:.0f} s, redrawn as it goes on: {picture}"
            console.print(escape(said), soft_wrap=True)

    result = pretrain(
        [str(out / "corpus.txt")],
        str(out / "tokenizer"),
        str(run),
        seq_len=SEQ_LEN,
        batch_tokens=BATCH_TOKENS,
        seed=seed,
        on_log=draw,
        **PRETRAIN,
    )
    plot([run], picture)
    console.print(
        f"{result.last['tokens']:,} tokens in {result.last['seconds']:.0f} s, "
        f"MLM accuracy {result.last['mlm_accuracy']:.3f}"
    )
    return {
        "settings": PRETRAIN,
        "curve": read_metrics(run),
        "last": result.last,
        "first_picture_seconds": first,
    }


def _compare(
    out: Path, run: Path, task: corpus.Task, seed: int, console: Console
) -> list[dict[str, Any]]:
    """Accuracy of each method on the held-out files, with a 95 % interval."""
    train, dev = str(out / "train.csv"), str(out / "dev.csv")
    rows = [_row("most frequent part", [_majority(task)], task, 0.0)]

    def timed(name: str, accuracies: Callable[[], list[float]]) -> None:
        start = time.monotonic()
        rows.append(_row(name, accuracies(), task, time.monotonic() - start))
        console.print(f"{name}: {rows[-1]['accuracy']:.3f}")

    timed("TF-IDF + logistic regression", lambda: [_tfidf(task)])
    encoders: tuple[tuple[str, str, int, dict[str, Any]], ...] = (
        ("frozen pretrained encoder", "frozen", 1, {"freeze_encoder": True, **FROZEN}),
        (
            "not pretrained, fine-tuned",
            "from-scratch",
            RESTARTS,
            {"from_scratch": True, **FINETUNE},
        ),
        ("pretrained, fine-tuned", "classifier", RESTARTS, FINETUNE),
    )
    for name, folder, runs, options in encoders:
        # The first run's model is the one that is kept under the plain name, whatever the others
        # reach.
        targets = [
            out / folder,
            *(out / "restarts" / f"{folder}-{number}" for number in range(1, runs)),
        ]
        timed(name, partial(_finetuned, run, train, dev, targets, seed * RESTARTS, options))
    return rows


def _finetuned(
    run: Path, train: str, dev: str, targets: list[Path], first_seed: int, options: dict[str, Any]
) -> list[float]:
    """The accuracy of a run into each folder, every one with a seed of its own."""
    return [
        finetune(str(run), train, dev, str(target), seed=first_seed + number, **options).accuracy
        for number, target in enumerate(targets)
    ]


def _row(name: str, accuracies: list[float], task: corpus.Task, seconds: float) -> dict[str, Any]:
    accuracy = statistics.mean(accuracies)
    low, high = wilson(accuracy, len(task.dev))
    return {
        "name": name,
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "runs": accuracies,
        "seconds": seconds,
    }


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % score interval of a share of ``count`` cases (Wilson, 1927)."""
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = (
        z * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5 / (1 + z * z / count)
    )
    return centre - half, centre + half


def _majority(task: corpus.Task) -> float:
    most = max(task.labels, key=lambda label: sum(item.part == label for item in task.train))
    return sum(item.part == most for item in task.dev) / len(task.dev)


def _tfidf(task: corpus.Task) -> float:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        LogisticRegression(C=10, max_iter=1000),
    )
    model.fit([item.text for item in task.train], [item.part for item in task.train])
    return float(model.score([item.text for item in task.dev], [item.part for item in task.dev]))


def _time_steps(run: Path, console: Console) -> dict[str, Any]:
    """Median seconds of forward, backward and update on the same batches: ours packed, transformers
    eager and padded.
    """
    tokenizer = load_tokenizer(run)
    config = BertConfig.from_json_file(run / "config.json")
    store = TokenStore.open(run / "tokens")
    batches = Batches(
        store, SpecialIds(tokenizer), config.vocab_size, SEQ_LEN, BATCH_TOKENS
    ).iterate()
    chosen = [next(batches)[1] for _ in range(TIMED_BATCHES + 1)]
    sides: dict[str, Callable[[PackedBatch], None]] = {}
    ours = BertForPreTraining(config).train()
    sides["bertfast, packed"] = _stepper(ours, lambda batch: ours(batch).loss)
    try:
        import transformers
    except ImportError:
        console.print(
            "transformers is not installed, so there is nothing to compare with (pip install 'bertfast[hf]')"
        )
    else:
        shape = transformers.BertConfig(**config.to_dict())
        shape._attn_implementation = "eager"
        theirs = transformers.BertForPreTraining(shape).train()
        sides["transformers, eager"] = _stepper(theirs, lambda batch: theirs(**_padded(batch)).loss)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number, batch in enumerate(chosen):  # in turn, so that a slower moment meets both
        for name, step in sides.items():
            start = time.perf_counter()
            step(batch)
            if number:  # the first warms up
                times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratio = (
        medians["transformers, eager"] / medians["bertfast, packed"] if len(medians) == 2 else None
    )
    for name, seconds in medians.items():
        console.print(f"{name}: {seconds * 1e3:.0f} ms")
    tokens = statistics.mean(batch.num_tokens for batch in chosen[1:])
    cells = statistics.mean(batch.num_sequences * SEQ_LEN for batch in chosen[1:])
    return {
        "medians": medians,
        "times": times,
        "ratio": ratio,
        "tokens": tokens,
        "fill_rate": tokens / cells,
    }


def _stepper(
    model: torch.nn.Module, loss: Callable[[PackedBatch], torch.Tensor]
) -> Callable[[PackedBatch], None]:
    optimizer = build_optimizer(model, 1e-4)

    def step(batch: PackedBatch) -> None:
        loss(batch).backward()
        clip_at_next_step(optimizer, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _padded(batch: PackedBatch) -> dict[str, torch.Tensor]:
    """The batch as a padded model takes it: to the longest sequence, labels -100 where nothing is
    predicted.
    """
    lengths = batch.cu_seqlens.diff().long()
    real = torch.arange(int(lengths.max())) < lengths[:, None]
    labels = torch.full_like(batch.input_ids, -100)
    assert batch.masked_positions is not None
    assert batch.masked_labels is not None
    assert batch.pair_labels is not None
    labels[batch.masked_positions] = batch.masked_labels

    def spread(values: torch.Tensor, fill: int) -> torch.Tensor:
        return torch.full(real.shape, fill).masked_scatter(real, values)

    return {
        "input_ids": spread(batch.input_ids, 0),
        "attention_mask": real.long(),
        "token_type_ids": spread(batch.segment_ids, 0),
        "labels": spread(labels, -100),
        "next_sentence_label": batch.pair_labels,
    }


def _fills(run: Path) -> list[dict[str, Any]]:
    filler = MaskFiller(run)
    result = []
    for sentence in SENTENCES:
        masks, _ = filler.fill(sentence, top=3)
        words = [(item.word, item.probability) for item in masks[0]]
        result.append(
            {
                "sentence": sentence,
                "filled": sentence.replace("[MASK]", words[0][0]),
                "words": words,
            }
        )
    return result


def _show(console: Console, out: Path, facts: dict[str, Any]) -> None:
    table = Table(
        title=f"held-out accuracy, {len(facts['corpus']['labels'])} parts, {facts['corpus']['dev']} docstrings"
    )
    for heading in ("method", "accuracy", "95 % interval", "runs", "seconds"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for row in facts["methods"]:
        interval = f"{row['low']:.3f} to {row['high']:.3f}"
        table.add_row(
            row["name"], f"{row['accuracy']:.3f}", interval, runs_of(row), f"{row['seconds']:.0f}"
        )
    console.print(table)
    table = Table(title="masks filled in by the pretrained encoder")
    table.add_column("sentence")
    table.add_column("likeliest words")
    for row in facts["fills"]:
        table.add_row(escape(row["sentence"]), escape(_words(row["words"])))
    console.print(table)
    if facts["steps"]["ratio"]:
        console.print(
            f"a training step takes {facts['steps']['ratio']:.1f} times less than transformers' eager one, padded"
        )
    console.print(escape(f"report: {out / 'report.html'}"))
    console.print(
        escape(f"model:  {out / 'classifier'}    (bertfast predict {out / 'classifier'} -)")
    )
    console.print(f"{facts['seconds']:.0f} s in all")


def _words(words: Sequence[tuple[str, float]]) -> str:
    return ", ".join(f"{word} {probability:.2f}" for word, probability in words)
