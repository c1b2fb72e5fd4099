"""A folder of sentence-transformers: its modules, prompts and settings, in and out."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from bertfast.card import CARD_FILE, model_card
from bertfast.errors import BertfastError
from bertfast.escape import markdown, one_line
from bertfast.files import (
    MissingFileError,
    make_folder,
    read_json,
    read_object,
    write_text,
)
from bertfast.model.weights import WEIGHTS, write_tensors
from bertfast.tokenization import save_tokenizer

from .modules import Dense, Normalize, dense_settings, positive_or_none, read_dense

if TYPE_CHECKING:
    from .encoder import SentenceEncoder

MODULES = 64  # that a folder may list
# How old releases of sentence-transformers name the ways to pool, each a flag, in the order in
# which the vectors stand.
FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# Files whose keys a folder keeps, whoever wrote them, and the keys among them that name code.
EXTRA = "config_sentence_transformers.json"
KEPT = ("config.json", "tokenizer_config.json", EXTRA)
CODE = ("auto_map", "custom_pipelines")
# sentence-transformers' name of what the modules past the pooling work on
VECTOR = "sentence_embedding"


@dataclass(frozen=True)
class Folder:
    """What a folder says of a sentence encoder.

    Attributes:
        path: of the folder.
        modules: the encoder first.
        settings: what sentence-transformers keeps beside the encoder.
        files: what the files of `KEPT` held, by name.
    """

    path: Path
    modules: list[Module]
    settings: dict[str, Any]
    files: dict[str, dict[str, Any]]

    @property
    def encoder(self) -> Path:
        """The folder of the encoder."""
        return self.modules[0].path

    @property
    def extra(self) -> dict[str, Any]:
        """Prompts, and how vectors are compared."""
        return self.files[EXTRA]

    def prompts(self) -> tuple[dict[str, str], str | None]:
        """The prompts by name, and the name of the default one.

        Raises:
            BertfastError: they are no text.
        """
        prompts = self.extra.get("prompts") or {}
        default = self.extra.get("default_prompt_name")
        if not isinstance(prompts, dict) or not all(
            isinstance(text, str | None) for text in (*prompts.values(), default)
        ):
            raise BertfastError(f"{self.path}: its {EXTRA} has prompts that are no text")
        return {name: text or "" for name, text in prompts.items()}, default

    def max_length(self, positions: int) -> int | None:
        """Tokens of the longest input: that of sentence-transformers, or else of the tokenizer,
        where the model has ``positions`` for it.
        """
        length = self.settings.get("max_seq_length")
        if length is None:
            length = self.files["tokenizer_config.json"].get("model_max_length")
            if not isinstance(length, int | float) or math.isnan(length):
                return positions
            length = int(min(length, positions))
        return positive_or_none(length, f"{self.encoder}: the longest input")

    def truncate_dim(self) -> int | None:
        """Numbers of a vector that are kept; None for all."""
        return positive_or_none(self.extra.get("truncate_dim"), f"{self.path}: truncate_dim")


def read_folder(path: Path) -> Folder:
    """A folder of sentence-transformers, or of a plain encoder.

    Raises:
        BertfastError: it cannot be read, or a module is of an unsupported kind.
    """
    modules = _read_modules(path)
    encoder = modules[0].path
    homes = {name: path if name == EXTRA else encoder for name in KEPT}
    files = {name: read_object(home / name, optional=True) for name, home in homes.items()}
    return Folder(path, modules, _sentence_settings(encoder), files)


@dataclass(frozen=True)
class Module:
    """A module of a folder: its kind, its path, its entry in modules.json and its settings."""

    kind: str
    path: Path
    entry: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def _read_modules(folder: Path) -> list[Module]:
    """The modules, the encoder first; of a plain encoder's folder that alone."""
    try:
        listed = read_json(folder / "modules.json")
    except MissingFileError:
        return [Module("Transformer", folder)]
    if isinstance(listed, list) and len(listed) > MODULES:
        raise BertfastError(
            f"{folder / 'modules.json'}: lists {len(listed)} modules; "
            f"at most {MODULES} are supported"
        )
    try:
        modules = [(str(entry["type"]), folder / entry["path"]) for entry in listed]
    except (KeyError, TypeError) as error:
        raise BertfastError(
            f"{folder / 'modules.json'}: is no list of modules, each with a type and a path"
        ) from error
    for kind, path in modules:
        try:
            inside = path.resolve().is_relative_to(folder.resolve())
        except (OSError, ValueError, RuntimeError) as error:  # of a zero byte, or a loop of links
            raise BertfastError(f"{folder / 'modules.json'}: {error}") from None
        if not inside:
            raise BertfastError(f"{folder / 'modules.json'}: {path} is outside of the folder")
        if not kind.startswith("sentence_transformers."):
            raise BertfastError(
                f"{folder}: the module {kind} is code of its own; "
                "sentence-transformers' are supported"
            )
    kinds = [kind.rpartition(".")[2] for kind, _ in modules]
    for kind, (name, _), needed in zip(kinds, modules, ("Transformer", "Pooling"), strict=False):
        if kind != needed:
            raise BertfastError(
                f"{folder}: the module {name} is not supported here; a {needed} is wanted"
            )
    if not modules:
        raise BertfastError(f"{folder / 'modules.json'}: lists no module")
    return [
        Module(kind, path, entry, read_object(path / "config.json", optional=True))
        for kind, (_, path), entry in zip(kinds, modules, listed, strict=True)
    ]


def _sentence_settings(encoder: Path) -> dict[str, Any]:
    """What sentence-transformers keeps beside an encoder, in a file that old releases named after
    the member.
    """
    for path in sorted(encoder.glob("sentence_*_config.json")):
        settings = read_object(path)
        task = settings.get("transformer_task", "feature-extraction")
        if task != "feature-extraction":
            raise BertfastError(
                f"{path}: transformer_task is {task!r}; supported is feature-extraction"
            )
        return settings
    return {}


def _pooling_modes(settings: dict[str, Any]) -> tuple[str, ...]:
    mode = (
        settings.get("pooling_mode")
        or [name for flag, name in FLAGS.items() if settings.get(flag)]
        or "mean"
    )
    if not isinstance(mode, str | list):
        raise BertfastError(f"pooling_mode is {mode!r}; it must be a name or a list of names")
    return (mode,) if isinstance(mode, str) else tuple(map(str, mode))


def read_steps(
    modules: Sequence[Module],
) -> tuple[tuple[str, ...] | None, bool, list[nn.Module]]:
    """How a folder pools (None where it does not say), whether prompts are pooled, and the modules
    past the pooling.
    """
    pooling, include_prompt = None, True
    steps: list[nn.Module] = []
    for number, module in enumerate(modules, 1):
        kind, path, settings = module.kind, module.path, module.settings
        names = {
            settings.get(name) or VECTOR for name in ("module_input_name", "module_output_name")
        }
        if kind == "Pooling" and number == 1:
            pooling = _pooling_modes(settings)
            if len(set(pooling)) < len(pooling):
                raise BertfastError(f"{path}: pooling_mode names one way twice")
            include_prompt = bool(settings.get("include_prompt", True))
        elif kind in ("Normalize", "Dense") and names == {VECTOR}:
            steps.append(Normalize() if kind == "Normalize" else read_dense(path, settings))
        elif kind != "Dropout":  # which does nothing but in training
            raise BertfastError(
                f"{path}: the module {kind} is not supported; past a Transformer and a Pooling, "
                "Dense and Normalize are"
            )
    return pooling, include_prompt, steps


def write_folder(model: SentenceEncoder, folder: Path, source: Folder | None) -> None:
    """Writes what `SentenceEncoder.save_pretrained` says; ``source`` is the folder that the model
    came from.
    """
    model.encoder.save_pretrained(folder)
    config = model.encoder.config
    save_tokenizer(
        model.tokenizer, folder, model.max_length, model.special, config.type_vocab_size > 1
    )
    kept = {
        name: {key: value for key, value in values.items() if key not in CODE}
        for name, values in (source.files if source else {}).items()
    }
    objects: dict[str, Any] = {
        "sentence_bert_config.json": {"do_lower_case": False}
        | (source.settings if source else {})
        | {"max_seq_length": model.max_length},
        EXTRA: kept.get(EXTRA, {})
        | {
            "prompts": model.prompts,
            "default_prompt_name": model.default_prompt,
            "similarity_fn_name": model.similarity_fn_name,
        },
    }
    objects[EXTRA].pop("truncate_dim", None)
    if model.truncate_dim is not None:
        objects[EXTRA]["truncate_dim"] = model.truncate_dim
    for name in ("config.json", "tokenizer_config.json"):
        objects[name] = kept.get(name, {}) | read_object(folder / name)
    dtype = str(next(model.encoder.parameters()).dtype).removeprefix("torch.")
    for name in {"dtype", "torch_dtype"} & objects["config.json"].keys():
        objects["config.json"][name] = dtype
    modules = _modules_to_write(model, source)
    steps = iter(model.steps)
    for number, module in enumerate(modules[1:], 1):
        name = f"{number}_{module.kind}"
        settings = dict(module.settings)
        if module.kind == "Pooling":
            settings = _pooling_settings(model, settings)
        step = next(steps) if module.kind in ("Dense", "Normalize") else None
        make_folder(folder / name)
        if isinstance(step, Dense):
            settings |= dense_settings(step)
            write_tensors(folder / name / WEIGHTS, step.state_dict())
        objects[f"{name}/config.json"] = settings
    objects["modules.json"] = [
        {"name": str(number), "type": f"sentence_transformers.models.{module.kind}"}
        | module.entry
        | {"idx": number, "path": f"{number}_{module.kind}" if number else ""}
        for number, module in enumerate(modules)
    ]
    for file, values in objects.items():
        write_text(folder / file, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    if not (folder / CARD_FILE).exists():  # one that somebody wrote is kept
        name = folder.absolute().name
        text = sentence_card(name, model.width, model.max_length, model.pooling)
        write_text(folder / CARD_FILE, text)


def _modules_to_write(model: SentenceEncoder, source: Folder | None) -> list[Module]:
    """The source's modules, as long as they are those of this model; or else new ones."""
    kinds = ["Transformer", "Pooling", *(type(step).__name__ for step in model.steps)]
    read = source.modules if source else []
    if [module.kind for module in read if module.kind != "Dropout"] == kinds:
        return read
    return [Module(kind, Path()) for kind in kinds]


def _pooling_settings(model: SentenceEncoder, read: dict[str, Any]) -> dict[str, Any]:
    """Flags, which every release reads, where the vectors stand in their order; or else a list,
    which the newest do. Where the source's own settings, ``read``, say the same, they stay.
    """
    others = {
        "word_embedding_dimension": model.encoder.config.hidden_size,
        "include_prompt": model.include_prompt,
    }
    if read and _pooling_modes(read) == model.pooling:
        return others | read | {"include_prompt": model.include_prompt}
    read = {name: value for name, value in read.items() if name not in ("pooling_mode", *FLAGS)}
    flags: dict[str, Any] = {"pooling_mode": list(model.pooling)}
    if model.pooling == tuple(mode for mode in FLAGS.values() if mode in model.pooling):
        flags = {flag: mode in model.pooling for flag, mode in FLAGS.items()}
    return read | others | flags


def sentence_card(name: str, width: int, max_length: int, pooling: Sequence[str]) -> str:
    """The card of a sentence encoder; its format is that of sentence-transformers.

    Args:
        name: of the folder.
        width: numbers of a vector.
        max_length: tokens of a text at most.
        pooling: how a text's tokens become one vector.
    """
    metadata = {
        "model_name": one_line(name),
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ["sentence-transformers", "feature-extraction"],
    }
    return model_card(
        metadata,
        f"""# {markdown(name)}

A sentence encoder, saved with bertfast: a text of {max_length} tokens at most becomes a vector of
{width} numbers (pooling: {", ".join(pooling)}).

## Use

    from bertfast import SentenceEncoder
    SentenceEncoder.from_pretrained(".").encode(["some text"])

    from sentence_transformers import SentenceTransformer
    SentenceTransformer(".").encode(["some text"])
""",
    )
