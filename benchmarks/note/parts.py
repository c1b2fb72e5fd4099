"""The parts of the note: each measures one thing, and returns it as JSON."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from bertfast.apps.compare.page import MEANS
from bertfast.apps.compare.run import compare
from bertfast.data.columns import NONE
from bertfast.data.readers import read_documents
from bertfast.files import read_json, whole_folder, write_text
from bertfast.model import load
from bertfast.packed import PackedBatch
from bertfast.scoring import correlations, intervals, mean_of, scores_of, sums_of
from bertfast.tasks import TASKS
from bertfast.tasks.token_classification import count, measures
from bertfast.tokenization import SpecialIds, load_tokenizer, save_tokenizer, train_wordpiece
from bertfast.training.checkpoint import checkpoints
from bertfast.training.metrics import read_metrics
from bertfast.training.pretrain import pretrain

from .settings import MEMBERS, SHAPE, VARIANTS, Amount, Data

# Words of closed classes; any other word in letters is counted as one with content.
CLASSES = {
    "determiner": "the a an this that these those each every some any no all both",
    "preposition": "of in to for with on at by from into upon over under after before about "
    "through between against without within among",
    "pronoun": "i you he she it we they me him her us them my your his its our their who whom "
    "which what himself herself itself myself",
    "auxiliary": "is was are were be been being am has have had do does did will would shall "
    "should may might must can could",
    "conjunction": "and or but nor if because though although while when than as so",
}
CLASS_OF = {word: kind for kind, words in CLASSES.items() for word in words.split()}
CONTENT, PUNCTUATION = "content word", "punctuation"
SIDES = ("both", "left", "right")
AT_ONCE = 64


class Note:
    """What the parts share.

    Args:
        out: folder of models, sheets and results.
        data: the files.
        amount: how much is done.
    """

    def __init__(self, out: Path, data: Data, amount: Amount) -> None:
        self.out, self.data, self.amount = out, data, amount

    @property
    def tokenizer(self) -> Path:
        """The folder of a WordPiece tokenizer trained on the text."""
        folder = self.out / "tokenizer"
        if not folder.is_dir():
            lines = (line for document in self.documents() for line in document)
            trained = train_wordpiece(lines, SHAPE["vocab_size"])
            with whole_folder(folder) as draft:
                save_tokenizer(trained, draft)
        return folder

    def documents(self) -> Any:
        """The text's documents."""
        return read_documents([str(self.data.text)], "text")

    @property
    def little_text(self) -> Path:
        """The first part of the text, which runs read several times."""
        path = self.out / "little.txt"
        if not path.is_file():
            opened = gzip.open if self.data.text.suffix == ".gz" else open
            with opened(self.data.text, "rt", encoding="utf-8") as file:  # type: ignore[operator]
                write_text(path, file.read(self.amount.variant_characters))
        return path

    def pretrained(
        self,
        name: str,
        text: Path,
        steps: int,
        on_log: Callable[[Path], None] | None,
        member: str = "bert",
        **options: Any,
    ) -> Path:
        """The folder of a run, which is made unless it is there and whole."""
        folder = self.out / "models" / name.replace(" ", "-").replace(",", "")
        folder.parent.mkdir(parents=True, exist_ok=True)
        shape = self.out / f"{member}.json"
        write_text(shape, json.dumps(MEMBERS[member]) + "\n")
        every = max(1, steps // self.amount.checkpoints)
        pretrain(
            [str(text)],
            str(self.tokenizer),
            str(folder),
            resume=(folder / "config.yaml").is_file(),
            on_log=None if on_log is None else lambda _: on_log(folder),
            shape=str(shape),
            steps=steps,
            seq_len=self.amount.seq_len,
            batch_tokens=self.amount.batch_tokens,
            lr=1e-3,
            checkpoint_every=every,
            log_every=max(1, every // 20),
            report_to=(),
            **options,
        )
        return folder

    def long_run(self) -> dict[int, Path]:
        """The long run's model after each of some numbers of updates."""
        snapshots = self.out / "snapshots"

        def keep(folder: Path) -> None:
            for found in checkpoints(folder):
                if not (snapshots / found.name).is_dir():
                    with whole_folder(snapshots / found.name) as draft:
                        for file in found.iterdir():
                            if not file.name.startswith("training_state"):
                                shutil.copyfile(file, draft / file.name)

        run = self.pretrained("long", self.data.text, self.amount.steps, keep, objective="mlm")
        keep(run)
        return {int(folder.name.split("-")[1]): folder for folder in sorted(snapshots.iterdir())}

    def scored(self, name: str, models: dict[str, Path], **sheet: Any) -> list[dict[str, Any]]:
        """The means of a sheet on the labelled texts."""
        values = {
            "title": name,
            "data": {
                "train": str(self.data.train),
                "dev_split": 0.02,
                "test": str(self.data.test),
                "task": "classification",
            },
            "models": {key: str(folder) for key, folder in models.items()},
            "labels": [self.amount.most],
            "seeds": self.amount.seeds,
            "settings": {
                "epochs": self.amount.epochs,
                "max_length": min(64, self.amount.seq_len),
                "lr": 2e-4,
            },
            "least_updates": self.amount.least_updates,
            **sheet,
        }
        folder = self.out / "sheets"
        folder.mkdir(exist_ok=True)
        write_text(folder / f"{name}.yaml", yaml.safe_dump(values, sort_keys=False))
        compare(folder / f"{name}.yaml", folder / name, jobs=1)
        return read_json(folder / name / MEANS)


def tokens(note: Note) -> dict[str, Any]:
    """The score after fine-tuning, against the tokens of pretraining."""
    models = {f"{step} updates": folder for step, folder in note.long_run().items()}
    first = next(iter(models))
    means = note.scored("tokens", models)
    means += note.scored("tokens-random", {first: models[first]}, ways=["random"])
    lines = read_metrics(note.out / "models" / "long")
    read = {f"{line['step']} updates": line["tokens"] for line in lines}
    return {
        "points": [{"tokens": read.get(row["row"], 0), **_main(row)} for row in means],
    }


def labels(note: Note) -> dict[str, Any]:
    """Whole, frozen and from random weights, and words alone, against the number of labels."""
    last = list(note.long_run().values())[-1]
    means = note.scored(
        "labels",
        {"encoder": last},
        labels=list(note.amount.labels),
        ways=["whole", "frozen", "random"],
        baselines=["most-frequent", "tfidf"],
    )
    return {"points": [{"row": row["row"], "labels": row["labels"], **_main(row)} for row in means]}


def variants(note: Note) -> dict[str, Any]:
    """The score after fine-tuning of runs that differ in one thing."""
    steps = note.amount.variant_steps
    models = {
        name: note.pretrained(name, note.little_text, steps, None, **options)
        for name, options in VARIANTS.items()
    }
    means = note.scored("variants", models, compare_with=next(iter(VARIANTS)))
    return {"points": [{"row": row["row"], **_main(row)} for row in means]}


def _main(row: dict[str, Any]) -> dict[str, Any]:
    """The first score of a row."""
    score = next(iter(row["scores"].values()))
    return {name: score[name] for name in ("mean", "interval", "values", "words")}


@torch.no_grad()
def context(note: Note) -> dict[str, Any]:
    """How often a hidden word is guessed from both sides, from the left and from the right alone,
    by its class. The words of the other side are left out, as no training has seen.
    """
    folder = list(note.long_run().values())[-1]
    model, words = load(folder).eval(), load_tokenizer(folder)
    special = SpecialIds(words)
    rng = np.random.default_rng(0)
    room = note.amount.seq_len - special.single.added
    rows: list[tuple[list[int], int, str]] = []
    for document in read_documents([str(note.data.held_out)], "text"):
        for line in document:
            found = words.encode(line, add_special_tokens=False)
            ids = found.ids[:room]
            whole = [
                place
                for place in range(4, len(ids) - 4)
                if found.word_ids[place - 1] != found.word_ids[place] != found.word_ids[place + 1]
            ]
            if whole:
                place = int(rng.choice(whole))
                rows.append((ids, place, words.id_to_token(ids[place])))
    chosen = [rows[row] for row in rng.permutation(len(rows))[: note.amount.words]]
    right = {side: np.zeros(len(chosen)) for side in SIDES}
    for start in range(0, len(chosen), AT_ONCE):
        part = chosen[start : start + AT_ONCE]
        for side in SIDES:
            inputs = []
            for ids, place, _ in part:
                kept = [*ids[:place], special.mask, *ids[place + 1 :]]
                kept = {"both": kept, "left": kept[: place + 1], "right": kept[place:]}[side]
                inputs.append([index for piece in special.single.around(kept) for index in piece])
            batch = PackedBatch.from_sequences(inputs)
            hidden = model.base(batch).last_hidden_state[batch.input_ids == special.mask]
            guessed = model.word_logits(hidden).argmax(-1).tolist()
            right[side][start : start + len(part)] = [
                guess == ids[place] for guess, (ids, place, _) in zip(guessed, part, strict=True)
            ]
    kinds = np.array([_kind(word) for _, _, word in chosen])
    points = []
    for kind in ("all words", *CLASSES, CONTENT, PUNCTUATION):
        own = np.full(len(kinds), True) if kind == "all words" else kinds == kind
        if own.sum() < 2:
            continue
        scorer = mean_of({side: right[side][own] for side in SIDES})
        values, ends = scores_of(scorer, int(own.sum())), intervals(scorer, int(own.sum()))
        points.append(
            {
                "class": kind,
                "words": int(own.sum()),
                **{s: {"mean": float(values[s]), "interval": ends[s].tolist()} for s in SIDES},
            }
        )
    return {"points": points}


def _kind(word: str) -> str:
    return CLASS_OF.get(word, CONTENT if word[:1].isalnum() else PUNCTUATION)


def probes(note: Note) -> dict[str, Any]:
    """What a linear model reads off each layer: entities, parts of speech; and the similarity of
    sentences by the cosine of its means, which learns nothing.
    """
    folder = list(note.long_run().values())[-1]
    model, words = load(folder).eval(), load_tokenizer(folder)
    limit = note.amount.probed
    found: dict[str, Any] = {"similarity": _similarity(model, words, note.data.pairs, limit)}
    tagged = {
        "entities": (note.data.entities, note.data.entities_test, "conll"),
        "parts of speech": (note.data.tags, note.data.tags_test, "auto"),
    }
    for name, (train, test, scheme) in tagged.items():
        if train is not None and test is not None:
            found[name] = _tags(model, words, (train, test), scheme, limit)
    return {"points": found}


@torch.no_grad()
def _layers(model: Any, rows: Sequence[Sequence[int]]) -> list[list[np.ndarray]]:
    """(tokens, hidden) of each row, for each layer, the embeddings' first."""
    found: list[list[np.ndarray]] = []
    for start in range(0, len(rows), AT_ONCE):
        batch = PackedBatch.from_sequences(rows[start : start + AT_ONCE])
        states = model.base(batch, output_hidden_states=True).hidden_states
        ends = batch.cu_seqlens[1:-1].tolist()
        for layer, state in enumerate(states):
            parts = np.split(state.float().numpy(), ends)
            found.append([]) if layer == len(found) else None
            found[layer] += parts
    return found


def _similarity(model: Any, words: Any, path: Path, limit: int) -> list[dict[str, Any]]:
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()][:limit]
    frame = SpecialIds(words).single
    room = model.config.max_length - frame.added

    def inputs(column: int) -> list[list[int]]:
        encoded = words.encode_batch_fast(
            [line[column] for line in lines], add_special_tokens=False
        )
        return [
            [index for part in frame.around(item.ids[:room]) for index in part] for item in encoded
        ]

    points = []
    targets = [float(line[4]) for line in lines]
    for first, second in zip(_layers(model, inputs(5)), _layers(model, inputs(6)), strict=True):
        a, b = (np.stack([row.mean(0) for row in side]) for side in (first, second))
        cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        scorer = correlations(cosines, targets)
        ends = intervals(scorer, len(lines))["spearman"]
        value = float(scores_of(scorer, len(lines))["spearman"])
        points.append({"mean": value, "interval": ends.tolist(), "words": "Spearman"})
    return points


def _tags(
    model: Any, words: Any, files: tuple[Path, Path], scheme: str, limit: int
) -> list[dict[str, Any]]:
    from sklearn.linear_model import LogisticRegression

    task = TASKS["token-classification"].configured({"tag_scheme": scheme})
    sides = []
    for path in files:
        examples, seen = [], 0
        for example in task.read(path, task.columns(path, NONE)):
            examples.append(example)
            seen += len(example.tags)
            if seen > limit:
                break
        sides.append(examples)
    names = sorted({tag for side in sides for example in side for tag in example.tags})
    number = {tag: place for place, tag in enumerate(names)}
    read = []
    for examples in sides:
        pieces = task.encode(examples, words, model.config, model.config.max_length)
        layers = _layers(model, [piece.ids for piece in pieces])
        features = [
            np.concatenate([rows[p.places] for rows, p in zip(layer, pieces, strict=True)])
            for layer in layers
        ]
        tags = [[examples[p.example].tags[word] for word in p.words] for p in pieces]
        read.append((features, tags))
    (train, known), (test, right) = read
    targets = [number[tag] for tags in known for tag in tags]
    ends = np.cumsum([len(tags) for tags in right])[:-1]
    score, said = ("f1", "entity F1") if "O" in number else ("accuracy", "accuracy")
    points = []
    for seen, asked in zip(train, test, strict=True):
        mean, scale = seen.mean(0), seen.std(0) + 1e-6
        fitted = LogisticRegression(max_iter=200).fit((seen - mean) / scale, targets)
        chosen = np.split(fitted.predict((asked - mean) / scale), ends)
        predicted = [[names[index] for index in row] for row in chosen]
        scorer = sums_of(count(predicted, right), measures)
        interval = intervals(scorer, len(right))[score].tolist()
        value = float(scores_of(scorer, len(right))[score])
        points.append({"mean": value, "interval": interval, "words": said})
    return points


PARTS: dict[str, Callable[[Note], dict[str, Any]]] = {
    "tokens": tokens,
    "labels": labels,
    "context": context,
    "variants": variants,
    "probes": probes,
}
