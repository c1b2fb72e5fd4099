"""``bertfast demo``: from text to a fine-tuned model, and what pretraining is worth at few labels
and at many.
"""

from __future__ import annotations

import json
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bertfast import __version__, processor
from bertfast.apps import corpus, gap
from bertfast.apps.corpus import PREPOSITIONS, Gap
from bertfast.apps.plot import plot
from bertfast.apps.report import draw_learning_curve, in_words, write_report
from bertfast.config import ModernBertConfig
from bertfast.data.packing import Batches
from bertfast.data.store import TokenStore
from bertfast.errors import BertfastError
from bertfast.files import make_folder
from bertfast.model import load
from bertfast.model.models import ForTokenClassification
from bertfast.packed import IGNORE_INDEX, PackedBatch
from bertfast.tokenization import SpecialIds, load_tokenizer, save_tokenizer, train_wordpiece
from bertfast.training.fill import MaskFiller
from bertfast.training.metrics import read_metrics
from bertfast.training.optimizer import build_optimizer, clip_at_next_step
from bertfast.training.pretrain import pretrain

MARKER = "demo.json"
VOCAB_SIZE = 4096
# Rotary positions: they need not be learned, which little text hardly does.
SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 128,
    "initializer_range": 0.05,
}
SEQ_LEN, BATCH_TOKENS = 64, 2048
PRETRAIN: dict[str, Any] = {
    "objective": "mlm",
    "steps": 900,
    "warmup": 60,
    "lr": 4e-3,
    "checkpoint_every": 450,
    "log_every": 10,
}
PICTURE_EVERY = 15.0  # seconds, while it pretrains
ALL = 1 << 30
# Labels, and for each number of them how often it is drawn anew and how long the encoders train.
# Both encoders have the same settings.
POINTS: dict[int, dict[str, int]] = {
    64: {"runs": 3, "steps": 60, "batch_size": 16},
    256: {"runs": 3, "steps": 60, "batch_size": 32},
    1024: {"runs": 2, "steps": 120, "batch_size": 32},
    ALL: {"runs": 1, "steps": 300, "batch_size": 64},
}
LR = 1e-3
METHODS = TFIDF, SCRATCH, PRETRAINED = (
    "TF-IDF + logistic regression",
    "encoder from random weights",
    "pretrained encoder",
)
# Of TF-IDF's n-grams of words and logistic regression's C the best on the dev side are taken.
NGRAMS, STRENGTHS = ((1, 2), (2, 2)), (1, 10)
SENTENCES = (
    "Return a [MASK] of all the items.",
    "Return a list [MASK] strings.",
    "It must [MASK] called before the file is closed.",
    "Raise ValueError [MASK] the value is not valid.",
    "The default value [MASK] None.",
)
SHOWN = 8  # held-out gaps in the report
TIMED_BATCHES = 5
MIN_LABELS = 2048  # more than the curve's other points have


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
    task = _corpus(out, console, facts)
    console.rule("2  WordPiece vocabulary")
    lines = (line for document in task.documents for line in document.paragraphs)
    tokenizer = train_wordpiece(lines, VOCAB_SIZE)
    save_tokenizer(tokenizer, out / "tokenizer")
    console.print(f"{tokenizer.get_vocab_size():,} entries")

    console.rule("3  pretraining: masked words")
    run = out / "pretrained"
    facts["pretraining"] = _pretrain(out, run, seed, started, console)

    console.rule("4  which preposition stood here? at few labels and at many")
    facts["labels"], facts["shown"] = _compare(out, run, task, seed, console)

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


def _corpus(out: Path, console: Console, facts: dict[str, Any]) -> corpus.Task:
    task = corpus.make_task(corpus.documents())
    if len(task.train) < MIN_LABELS:
        raise BertfastError(
            f"the text that this Python ships has {len(task.train)} gaps to train on, and the demo "
            f"needs {MIN_LABELS}; its sources seem to be left out"
        )
    texts = corpus.write_task(out, task)
    facts["corpus"] = {
        "megabytes": sum(len(text.encode()) for text in texts) / 1e6,
        "documents": len(task.documents),
        "held_out": len(task.held_out),
        "words": list(PREPOSITIONS),
        "train": len(task.train),
        "dev": len(task.dev),
        "test": len(task.test),
    }
    console.print(
        f"{facts['corpus']['megabytes']:.2f} MB in {len(task.documents)} documents: help topics, "
        f"docstrings and comments; {len(task.held_out)} other documents are held out"
    )
    return task


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

    shape = out / "shape.json"
    config = ModernBertConfig(vocab_size=VOCAB_SIZE, pad_token_id=0, **SHAPE)
    shape.write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")
    result = pretrain(
        [str(out / "corpus.txt")],
        str(out / "tokenizer"),
        str(run),
        shape=str(shape),
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
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Each method's accuracies at each number of labels, and what each said of the first held-out
    gaps after its last run.
    """
    tokenizer = load_tokenizer(run)
    test = gap.Gaps(task.test, tokenizer, PREPOSITIONS)
    answers = [item.word for item in task.test]
    most_runs = max(point["runs"] for point in POINTS.values())
    rows: list[dict[str, Any]] = []
    said: dict[str, list[str]] = {}
    models: dict[str, ForTokenClassification] = {}
    for most, point in POINTS.items():
        labels = min(most, len(task.train))
        now: list[dict[str, Any]] = [
            {"name": name, "labels": labels, "runs": [], "seconds": 0.0} for name in METHODS
        ]
        for number in range(point["runs"]):
            own_seed = seed * most_runs + number
            drawn = _draw(task.train, labels, own_seed)
            encoded = gap.Gaps(drawn, tokenizer, PREPOSITIONS)
            for row in now:
                name, start = row["name"], time.monotonic()
                if name == TFIDF:
                    said[name] = _tfidf(drawn, task.dev, task.test)
                else:
                    models[name] = gap.train(
                        gap.new_model(run, PREPOSITIONS, own_seed, from_scratch=name == SCRATCH),
                        encoded,
                        out / "runs" / f"{name}, {labels} labels, {number}",
                        steps=point["steps"],
                        batch_size=point["batch_size"],
                        lr=LR,
                        seed=own_seed,
                    )
                    said[name] = [PREPOSITIONS[word] for word in gap.predict(models[name], test)]
                row["seconds"] += time.monotonic() - start
                right = sum(
                    word == answer for word, answer in zip(said[name], answers, strict=True)
                )
                row["runs"].append(right / len(answers))
        rows += [{**row, "accuracy": statistics.mean(row["runs"])} for row in now]
        draw_learning_curve(out / "labels.svg", rows, 1 / len(PREPOSITIONS))
        shown = ", ".join(f"{row['name']} {row['accuracy']:.3f}" for row in rows[-len(now) :])
        console.print(f"{labels:,} labels: {shown}", soft_wrap=True)
    shutil.rmtree(out / "runs")
    kept = models[PRETRAINED]
    kept.save_pretrained(out / "gap")
    save_tokenizer(
        tokenizer, out / "gap", kept.config.max_length, SpecialIds(tokenizer), segments=False
    )
    examples = [
        {**asdict(item), **{name: said[name][number] for name in METHODS}}
        for number, item in enumerate(task.test[:SHOWN])
    ]
    return rows, examples


def _draw(gaps: Sequence[Gap], labels: int, seed: int) -> list[Gap]:
    """So many gaps, as many of each preposition, drawn by the seed."""
    kinds = len(PREPOSITIONS)
    chosen = np.random.default_rng(seed).permutation(len(gaps) // kinds)[: labels // kinds]
    return [gaps[row * kinds + kind] for row in chosen.tolist() for kind in range(kinds)]


def _tfidf(train: Sequence[Gap], dev: Sequence[Gap], test: Sequence[Gap]) -> list[str]:
    """What it says of the test side; the gap is a word of the n-grams."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    sides = [[item.text for item in side] for side in (train, dev, test)]
    words = [item.word for item in train]
    right = [item.word for item in dev]
    best, chosen = -1.0, []
    for ngrams in NGRAMS:
        vectorizer = TfidfVectorizer(
            ngram_range=ngrams,
            sublinear_tf=True,
            lowercase=False,
            token_pattern=r"\[MASK\]|\w+|[^\w\s]",
        ).fit(sides[0])
        seen, developed, held_out = (vectorizer.transform(side) for side in sides)
        for strength in STRENGTHS:
            model = OneVsRestClassifier(LogisticRegression(C=strength, solver="liblinear"))
            accuracy = float(model.fit(seen, words).score(developed, right))
            if accuracy > best:
                best, chosen = accuracy, model.predict(held_out).tolist()
    return chosen


def _time_steps(run: Path, console: Console) -> dict[str, Any]:
    """Median seconds of forward, backward and update on the same batches: ours packed, transformers
    eager and padded.
    """
    tokenizer, ours = load_tokenizer(run), load(run).train()
    store = TokenStore.open(run / "tokens")
    batches = Batches(
        store,
        SpecialIds(tokenizer),
        ours.config.vocab_size,
        SEQ_LEN,
        BATCH_TOKENS,
        PRETRAIN["objective"],
    ).iterate()
    chosen = [next(batches)[1] for _ in range(TIMED_BATCHES + 1)]
    sides: dict[str, Callable[[PackedBatch], None]] = {}
    sides["bertfast, packed"] = _stepper(ours, lambda batch: ours(batch).loss)
    try:
        import transformers
    except ImportError:
        console.print(
            "transformers is not installed, so there is nothing to compare with "
            "(pip install 'bertfast[hf]')"
        )
    else:
        # It warns of ids of special tokens that no loss reads, and draws a bar for each file.
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        theirs = transformers.AutoModelForMaskedLM.from_pretrained(
            run, attn_implementation="eager"
        ).train()
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
    cells = statistics.mean(batch.num_sequences * batch.max_seqlen for batch in chosen[1:])
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
    labels = torch.full_like(batch.input_ids, IGNORE_INDEX)
    assert batch.masked_positions is not None
    assert batch.masked_labels is not None
    labels[batch.masked_positions] = batch.masked_labels

    def spread(values: torch.Tensor, fill: int) -> torch.Tensor:
        return torch.full(real.shape, fill).masked_scatter(real, values)

    return {
        "input_ids": spread(batch.input_ids, 0),
        "attention_mask": real.long(),
        "labels": spread(labels, IGNORE_INDEX),
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
    labels = sorted({row["labels"] for row in facts["labels"]})
    table = Table(title=f"accuracy on {facts['corpus']['test']:,} held-out gaps, by labels")
    table.add_column("method")
    for number in labels:
        table.add_column(f"{number:,}", justify="right")
    for name in METHODS:
        own = {row["labels"]: row["accuracy"] for row in facts["labels"] if row["name"] == name}
        table.add_row(name, *(f"{own[number]:.3f}" for number in labels))
    console.print(table)
    console.print(in_words(facts))
    table = Table(title="masks filled in by the pretrained encoder")
    table.add_column("sentence")
    table.add_column("likeliest words")
    for row in facts["fills"]:
        table.add_row(escape(row["sentence"]), escape(_words(row["words"])))
    console.print(table)
    if facts["steps"]["ratio"]:
        console.print(
            f"a training step takes {facts['steps']['ratio']:.1f} times less than transformers' "
            f"eager one, padded"
        )
    console.print(escape(f"report: {out / 'report.html'}"))
    console.print(escape(f"model:  {out / 'gap'}    (transformers loads it)"))
    console.print(f"{facts['seconds']:.0f} s in all")


def _words(words: Sequence[tuple[str, float]]) -> str:
    return ", ".join(f"{word} {probability:.2f}" for word, probability in words)
