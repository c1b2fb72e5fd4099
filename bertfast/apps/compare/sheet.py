"""The sheet: what is compared, read from YAML and checked before anything runs."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from bertfast.checks import number, whole_number
from bertfast.errors import BertfastError
from bertfast.files import read_yaml
from bertfast.training.config import PretrainConfig
from bertfast.training.finetune import FinetuneConfig

from .baselines import BASELINES

ALL = "all"  # of the labelled examples
# Ways of adapting that a sheet may name alone.
WAYS: dict[str, dict[str, Any]] = {
    "whole": {},
    "frozen": {"freeze_encoder": True},
    "random": {"from_scratch": True},
    "lora": {"adapter": "lora"},
    "dora": {"adapter": "dora"},
    "ia3": {"adapter": "ia3"},
}
MOST_SEEDS = 100
RESAMPLES = 10_000
_FIELDS = {field.name for field in fields(FinetuneConfig)}
_DATA = ("train", "dev", "dev_split", "split_seed", "task", "task_options")
_COLUMNS = ("text_column", "pair_column", "label_column")
# What the sheet says itself, of every run.
_SETTLED = {
    *(*_DATA, *_COLUMNS, "model", "out", "folds", "fold", "seed", "seeds", "max_train_samples"),
    *("report_to", "log_every", "revision"),
}
OPTIONS = _FIELDS - _SETTLED
_PRETRAIN = {field.name for field in fields(PretrainConfig)} - {"out"}
TOKENIZER = {"type": "wordpiece", "vocab_size": 8192, "cased": False}
KEYS: dict[str, Any] = {
    "title": "",
    "variables": {},
    "data": None,
    "models": {},
    "models_folder": None,
    "ways": ["whole"],
    "baselines": [],
    "labels": [ALL],
    "seeds": 1,
    "settings": {},
    "least_updates": 0,
    "compare_with": None,
    "resamples": RESAMPLES,
}
_VARIABLE = re.compile(r"\$\{(\w+)\}")
PREPOSITIONS = "prepositions"  # the data that every Python brings


@dataclass(frozen=True)
class Row:
    """What a line of the table is of: a model adapted in a way, or a baseline.

    Attributes:
        name: that the page says.
        model: its name in the sheet; None for a baseline.
        baseline: its name; None for a model.
        options: the way's, as fields of `FinetuneConfig`.
    """

    name: str
    model: str | None
    baseline: str | None
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Sheet:
    """A sheet that was read.

    Attributes:
        path: of the file.
        title: of the page.
        data: ``train``, ``dev`` or ``dev_split``, ``test`` and what else is of the data; or
            ``builtin`` alone.
        models: of each name a folder or Hub id, or how it is made: ``pretrain`` or ``adapt`` with
            fields of `PretrainConfig`.
        models_folder: where models that are made are kept; None is the result's folder.
        rows: of the table.
        labels: numbers of examples to train on; None is all.
        seeds: of each row and number of labels.
        settings: of every run, as fields of `FinetuneConfig`.
        least_updates: of a run; epochs are added where it would have fewer.
        compare_with: the row that all others are tested against; None tests each pair.
        resamples: draws of the bootstrap.
        values: the sheet as plain values, its variables replaced.
    """

    path: Path
    title: str
    data: Mapping[str, Any]
    models: Mapping[str, str | Mapping[str, Any]]
    models_folder: str | None
    rows: tuple[Row, ...]
    labels: tuple[int | None, ...]
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]
    least_updates: int
    compare_with: str | None
    resamples: int
    values: Mapping[str, Any]


def read_sheet(path: str | Path, variables: Mapping[str, str] | None = None) -> Sheet:
    """Reads and checks a sheet; files that it names are looked at later.

    Args:
        path: of a YAML file.
        variables: values in place of those under ``variables``.

    Raises:
        BertfastError: the file cannot be read, or a key or a value cannot be used: it is named.
    """
    where = str(path)
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise BertfastError(f"{where}: must hold a mapping, as of data and models")
    _known(where, values, KEYS)
    values = _replaced(where, values, variables or {})
    found = {**KEYS, **{name: value for name, value in values.items() if value is not None}}
    title, data = _text(where, "title", found["title"]), _data(where, found["data"])
    models = _models(where, found["models"])
    ways = _ways(where, found["ways"])
    baselines = _baselines(where, found["baselines"], ways)
    rows = _rows(where, models, ways, baselines)
    settings = _options(f"{where}: settings", found["settings"])
    names = [row.name for row in rows]
    against = found["compare_with"]
    if against is not None and against not in names:
        raise BertfastError(
            f"{where}: compare_with is {against!r}; the rows are {', '.join(map(repr, names))}"
        )
    folder = found["models_folder"]
    if folder is not None:
        folder = _text(where, "models_folder", folder)
    _number(where, "least_updates", found["least_updates"], 0)
    _number(where, "resamples", found["resamples"], 100)
    return Sheet(
        path=Path(path),
        title=title or Path(path).stem,
        data=data,
        models=models,
        models_folder=folder,
        rows=tuple(rows),
        labels=_labels(where, found["labels"]),
        seeds=_seeds(where, found["seeds"]),
        settings=settings,
        least_updates=found["least_updates"],
        compare_with=against,
        resamples=found["resamples"],
        values=values,
    )


def _known(where: str, given: Mapping[Any, Any], known: Any) -> None:
    """Refuses a key that is none of those known."""
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), sorted(known), 1, 0)
            raise BertfastError(f"{where}: no such key: {key}; the nearest is {near[0]}")


def _mapping(where: str, name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise BertfastError(f"{where}: {name} is {value!r}; it must be a mapping of names")
    return value


def _text(where: str, name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise BertfastError(f"{where}: {name} is {value!r}; it must be text")
    return value


def _number(where: str, name: str, value: Any, least: int) -> int:
    try:
        return whole_number(name, value, least)
    except BertfastError as error:
        raise BertfastError(f"{where}: {error}") from None


def _replaced(where: str, values: dict[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    """The sheet with ``${name}`` in its texts replaced by its variables."""
    own = _mapping(where, "variables", values.get("variables") or {})
    for name, value in own.items():
        if value is not None and not isinstance(value, str | int | float):
            raise BertfastError(f"{where}: the variable {name} is {value!r}; it must be text")
    _known(f"{where}: --set", given, own)
    variables = {**own, **{name: _scalar(value) for name, value in given.items()}}

    def value_of(match: re.Match[str]) -> str:
        name = match[1]
        if name not in variables:
            raise BertfastError(f"{where}: there is no variable {name}; name it under variables")
        if variables[name] is None:
            raise BertfastError(f"{where}: the variable {name} has no value; give --set {name}=...")
        return str(variables[name])

    def replaced(value: Any) -> Any:
        if isinstance(value, str):
            whole = _VARIABLE.fullmatch(value)
            if whole and value_of(whole):
                return variables[whole[1]]
            return _VARIABLE.sub(value_of, value)
        if isinstance(value, list):
            return [replaced(item) for item in value]
        if isinstance(value, dict):
            return {key: replaced(item) for key, item in value.items()}
        return value

    rest = {key: replaced(value) for key, value in values.items() if key != "variables"}
    return {**rest, **({"variables": variables} if variables else {})}


def _scalar(text: str) -> str | int | float:
    """The number that a text is, as YAML reads it, or the text."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return value if type(value) in (int, float) else text


def _data(where: str, value: Any) -> dict[str, Any]:
    if value is None:
        raise BertfastError(f"{where}: there is no data; name its train file, and dev or dev_split")
    where = f"{where}: data"
    data = _mapping(where, "data", value)
    _known(where, data, (*_DATA, *_COLUMNS, "test", "builtin"))
    data = {name: value for name, value in data.items() if value is not None}
    if "builtin" in data:
        if data["builtin"] != PREPOSITIONS:
            raise BertfastError(f"{where}: builtin is {data['builtin']!r}; it is {PREPOSITIONS!r}")
        if len(data) > 1:
            raise BertfastError(f"{where}: builtin brings its files; leave out the rest")
        return data
    for name in ("train", "dev", "test", "task", *_COLUMNS):
        if name in data:
            _text(where, name, data[name])
    if "train" not in data:
        raise BertfastError(f"{where}: has no train; it is the file of examples to train on")
    if "dev_split" in data:
        try:
            number("dev_split", data["dev_split"], above=0)
        except BertfastError as error:
            raise BertfastError(f"{where}: {error}") from None
    return data


def _models(where: str, value: Any) -> dict[str, str | Mapping[str, Any]]:
    models: dict[str, str | Mapping[str, Any]] = {}
    for name, model in _mapping(where, "models", value).items():
        here = f"{where}: the model {name}"
        if isinstance(model, str):
            models[name] = model
            continue
        if not isinstance(model, dict) or len(model) != 1:
            raise BertfastError(
                f"{here} is {model!r}; it must be a folder or a Hub id, or pretrain or adapt with "
                "its options"
            )
        _known(here, model, ("pretrain", "adapt"))
        ((way, options),) = model.items()
        options = dict(_mapping(here, way, options))
        _known(f"{here}: {way}", options, _PRETRAIN)
        data = options.get("data")
        options["data"] = [data] if isinstance(data, str) else data
        if not isinstance(options["data"], list) or not all(
            isinstance(file, str) for file in options["data"]
        ):
            raise BertfastError(f"{here}: {way}: data is {data!r}; it must be a list of files")
        if way == "adapt" and not isinstance(options.get("model"), str):
            raise BertfastError(f"{here}: adapt has no model; it is a folder or a Hub id")
        words = options.get("tokenizer")
        if isinstance(words, dict):
            _known(f"{here}: {way}: tokenizer", words, TOKENIZER)
        models[name] = {way: options}
    return models


def _options(where: str, value: Any) -> dict[str, Any]:
    """Fields of `FinetuneConfig` that a sheet leaves to the user."""
    options = _mapping(where, "settings", value)
    _known(where, options, OPTIONS)
    return options


def _ways(where: str, value: Any) -> dict[str, dict[str, Any]]:
    """Each way's options by its name."""
    if isinstance(value, dict):
        value = [
            key if options is None else {"name": key, **_mapping(where, f"ways: {key}", options)}
            for key, options in value.items()
        ]
    if not isinstance(value, list) or not value:
        raise BertfastError(f"{where}: ways is {value!r}; it must be a list, as [whole, frozen]")
    ways: dict[str, dict[str, Any]] = {}
    for way in value:
        if isinstance(way, dict):
            options = dict(way)
            name = _text(where, "the name of a way", options.pop("name", None))
            options = {**WAYS.get(name, {}), **_options(f"{where}: the way {name}", options)}
        elif isinstance(way, str) and way in WAYS:
            name, options = way, WAYS[way]
        else:
            raise BertfastError(
                f"{where}: the way {way!r} is not known; known are {', '.join(WAYS)}, and others "
                "have a name and options"
            )
        if name in ways:
            raise BertfastError(f"{where}: there are two ways named {name!r}")
        ways[name] = options
    return ways


def _baselines(where: str, value: Any, ways: dict[str, dict[str, Any]]) -> list[str]:
    """The baselines that have no encoder; the others are ways, and join those."""
    if not isinstance(value, list):
        raise BertfastError(f"{where}: baselines is {value!r}; it must be a list of names")
    found: list[str] = []
    for name in value:
        if name in BASELINES and name not in found:
            found.append(name)
        elif name in ("random", "frozen"):
            ways.setdefault(name, WAYS[name])
        else:
            raise BertfastError(
                f"{where}: the baseline {name!r} is "
                f"{'there twice' if name in found else 'not known'}; "
                f"known are {', '.join([*BASELINES, 'random', 'frozen'])}"
            )
    return found


def _rows(
    where: str,
    models: Mapping[str, Any],
    ways: Mapping[str, Mapping[str, Any]],
    baselines: list[str],
) -> list[Row]:
    rows = [Row(BASELINES[name].title, None, name, {}) for name in baselines]
    alone = list(ways) == ["whole"]
    rows += [
        Row(model if alone else f"{model}, {way}", model, None, options)
        for model in models
        for way, options in ways.items()
    ]
    if not rows:
        raise BertfastError(f"{where}: there is nothing to compare; name models or baselines")
    names = [row.name for row in rows]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BertfastError(f"{where}: there are two rows named {twice!r}")
    return rows


def _labels(where: str, value: Any) -> tuple[int | None, ...]:
    value = value if isinstance(value, list) else [value]
    if not value:
        raise BertfastError(f"{where}: labels is empty; name numbers of examples, or all")
    found: list[int | None] = []
    for item in value:
        wanted = None if item == ALL else _number(where, "labels", item, 1)
        if wanted in found:
            raise BertfastError(f"{where}: labels has {item} twice")
        found.append(wanted)
    return tuple(sorted(found, key=lambda count: (count is None, count or 0)))


def _seeds(where: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, list):
        seeds = [_number(where, "seeds", seed, 0) for seed in value]
        if not seeds or len(set(seeds)) != len(seeds):
            raise BertfastError(f"{where}: seeds is {value!r}; each seed stands in it once")
        return tuple(seeds)
    if _number(where, "seeds", value, 1) > MOST_SEEDS:
        raise BertfastError(f"{where}: seeds is {value}; at most {MOST_SEEDS} are made")
    return tuple(range(value))
