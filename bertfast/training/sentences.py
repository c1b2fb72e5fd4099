"""Sentence embeddings: one vector a text, from a folder of sentence-transformers or a plain
encoder's. Reimers and Gurevych, "Sentence-BERT", 2019.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as Normalizers
from torch import Tensor, nn

from bertfast.config import MOST_WIDTH
from bertfast.errors import BertfastError
from bertfast.files import (
    MissingFileError,
    make_folder,
    read_json,
    read_object,
    write_atomically,
    write_text,
)
from bertfast.kernels.linear import constant_weights
from bertfast.model import load_config, member_class
from bertfast.model.functional import project
from bertfast.model.models import EncoderModel
from bertfast.model.pooling import MODES, pool
from bertfast.model.weights import WEIGHTS, open_weights, plain
from bertfast.packed import PackedBatch
from bertfast.tokenization import SpecialIds, check_tokenizer_fits, load_tokenizer, save_tokenizer

from . import card
from .metrics import LiveBar

# Tokens of a batch: on a CPU as many as keep a layer's tensors in the caches, on a GPU as many as
# fill it.
BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}
TEXTS = 16384  # tokenized at once
MODULES = 64  # that a folder may list
MANY = 16384  # tokens from which on it pays to bring the weights into another form first
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
ACTIVATIONS = {
    cls.__name__: cls for cls in (nn.Tanh, nn.Identity, nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid)
}
# Files whose keys a folder keeps, whoever wrote them, and the keys among them that name code.
KEPT = ("config.json", "tokenizer_config.json", "config_sentence_transformers.json")
CODE = ("auto_map", "custom_pipelines")
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
VECTOR = (
    "sentence_embedding"  # sentence-transformers' name of what the modules past the pooling work on
)


class Normalize(nn.Module):
    """Vectors of length 1."""

    def forward(self, x: Tensor) -> Tensor:
        """(sequences, width) to the same."""
        return F.normalize(x, dim=-1)


class Dense(nn.Module):
    """act(linear(x)), and with ``residual`` x, projected where the widths differ, on top."""

    def __init__(
        self,
        width: int,
        out: int,
        bias: bool = True,
        activation: str = "Tanh",
        residual: bool = False,
    ):
        super().__init__()
        self.linear = nn.Linear(width, out, bias=bias)
        self.activation = ACTIVATIONS[activation]()
        self.use_residual = residual
        self.residual = nn.Linear(width, out, bias=False) if residual and width != out else None

    def forward(self, x: Tensor) -> Tensor:
        """(sequences, width) to (sequences, out)."""
        out = self.activation(project(self.linear, x))
        if not self.use_residual:
            return out
        return out + (x if self.residual is None else project(self.residual, x))


@dataclass(frozen=True)
class Module:
    """A module of a folder: its kind, its folder, its entry in modules.json and its settings."""

    kind: str
    place: Path
    entry: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


class Tokenized(NamedTuple):
    """Texts as ids.

    Attributes:
        rows: each text's.
        skip: how many tokens at the start of each are a prompt's, and not to be pooled.
        cut: how many texts were longer than the encoder takes.
    """

    rows: list[NDArray[np.int32]]
    skip: int
    cut: int


class SentenceEncoder(nn.Module):
    """An encoder of any member, its tokens pooled to one vector a sequence, and what comes after.

    Attributes:
        encoder: the bare encoder.
        tokenizer: its tokenizer.
        max_length: tokens that a text is cut to; it may be set.
        prompts: name to the text that is put before texts of a kind.
        similarity_fn_name: how vectors are compared: cosine, dot, euclidean or manhattan.

    Args:
        encoder: of any member.
        tokenizer: that gives its ids.
        pooling: one or several of `bertfast.model.pooling.MODES`, whose vectors then stand one
            beside the other.
        steps: `Dense` and `Normalize` modules that follow.
        max_length: as above; None is the model's positions.
        prompts: as above.
        default_prompt: the name of the one that is taken where none is asked for.
        include_prompt: whether a prompt's tokens are pooled with the others.
        truncate_dim: how many numbers of a vector `encode` keeps; None for all.
        special: the tokenizer's special tokens, where their names came with it.
        similarity_fn_name: as above; None leaves it to sentence-transformers, which takes cosine.

    Raises:
        BertfastError: an unknown way to pool or to compare, or a default prompt that is not among the prompts.
    """

    def __init__(
        self,
        encoder: EncoderModel,
        tokenizer: Tokenizer,
        *,
        pooling: str | Sequence[str] = "mean",
        steps: Sequence[nn.Module] = (),
        max_length: int | None = None,
        prompts: dict[str, str] | None = None,
        default_prompt: str | None = None,
        include_prompt: bool = True,
        truncate_dim: int | None = None,
        special: SpecialIds | None = None,
        similarity_fn_name: str | None = None,
    ) -> None:
        super().__init__()
        if similarity_fn_name is not None and similarity_fn_name not in SIMILARITIES:
            raise BertfastError(
                f"similarity_fn_name is {similarity_fn_name!r}; it must be of {', '.join(SIMILARITIES)}"
            )
        self.similarity_fn_name = similarity_fn_name
        self._read: dict[str, Any] = {}  # what the folder's files held, by file
        self._modules_read: list[Module] = []
        self.pooling = (pooling,) if isinstance(pooling, str) else tuple(pooling)
        unknown = [mode for mode in self.pooling if mode not in MODES]
        if unknown or not self.pooling:
            raise BertfastError(
                f"pooling is {unknown[0] if unknown else 'empty'}; it must be of {', '.join(MODES)}, one or several"
            )
        self.encoder, self.tokenizer, self.special = encoder, tokenizer, special
        self.steps = nn.ModuleList(steps)
        limit = encoder.config.max_positions
        told = max_length or encoder.config.max_length
        self.max_length = told if limit is None else min(told, limit)
        self.prompts, self.default_prompt = dict(prompts or {}), default_prompt
        if default_prompt is not None:
            self._prompt(None, default_prompt)
        self.include_prompt, self.truncate_dim = include_prompt, truncate_dim

    @property
    def width(self) -> int:
        """Numbers of a vector, before ``truncate_dim``."""
        widths = [step.linear.out_features for step in self.steps if isinstance(step, Dense)]
        return widths[-1] if widths else len(self.pooling) * self.encoder.config.hidden_size

    def forward(
        self,
        input_ids: Tensor | PackedBatch | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        *,
        skip: int = 0,
        seed: int | Tensor | None = None,
    ) -> Tensor:
        """(sequences, width) of a packed batch or of padded input, with gradients; arguments as of
        `EncoderModel.forward`.

        ``skip`` tokens at the start of each sequence, a prompt's, are read but not pooled. An empty
        sequence's tokens pool to zeros.
        """
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        if self.pooling == ("cls",) and not skip:
            first = self.encoder.encode(*inputs, seed=seed, every_row=False).first
            assert first is not None
            x = first
        else:
            encoded = self.encoder.encode(*inputs, seed=seed, read_first=False)
            x = pool(*_past(encoded.last, encoded.batch.cu_seqlens, skip), self.pooling)
        for step in self.steps:
            x = step(x)
        return x

    def encode(
        self,
        texts: str | Sequence[str],
        *,
        batch_size: int | None = None,
        normalize: bool = False,
        prompt: str | None = None,
        prompt_name: str | None = None,
        show_progress: bool = False,
    ) -> NDArray[np.float32]:
        """The vectors of texts, (texts, width) float32 in their order; (width,) of a text by
        itself.

        Texts are cut at ``max_length`` tokens and packed by length, longest first, with no padding
        between them.

        Args:
            texts: one or several.
            batch_size: texts of a batch at most; None is as many as fill a number of tokens that
                suits the device.
            normalize: make every vector's length 1, which a folder's Normalize does without being
                asked.
            prompt: put before each text.
            prompt_name: the one of ``prompts`` to put there; None is the default prompt, if there
                is one.
            show_progress: on standard error.

        Raises:
            BertfastError: something else than texts, a batch size below 1, or an unknown prompt.
        """
        single = isinstance(texts, str)
        tokens = self.tokenize([texts] if isinstance(texts, str) else texts, prompt, prompt_name)
        vectors = self.encode_tokens(
            tokens, batch_size=batch_size, normalize=normalize, show_progress=show_progress
        )
        return vectors[0] if single else vectors

    def tokenize(
        self, texts: Sequence[str], prompt: str | None = None, prompt_name: str | None = None
    ) -> Tokenized:
        """The ids of texts; arguments and errors as of `encode`."""
        texts, before = list(texts), self._prompt(prompt, prompt_name)
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise BertfastError(
                    f"text {number} is a {type(text).__name__}; every text must be a string"
                )
        added = self.tokenizer.num_special_tokens_to_add(is_pair=False)
        if self.max_length < max(added, 1):
            raise BertfastError(
                f"max_length is {self.max_length}; the special tokens alone are {added}"
            )
        rows: list[NDArray[np.int32]] = []
        cut = 0
        self.tokenizer.enable_truncation(self.max_length)
        try:
            for start in range(0, len(texts), TEXTS):
                for encoding in self.tokenizer.encode_batch_fast(
                    [before + t for t in texts[start : start + TEXTS]]
                ):
                    rows.append(np.array(encoding.ids, dtype=np.int32))
                    cut += bool(encoding.overflowing)
        except TypeError as error:
            raise BertfastError(
                "a text holds half of a surrogate pair, which is no character"
            ) from error
        finally:
            self.tokenizer.no_truncation()
        return Tokenized(rows, 0 if self.include_prompt else self._prompt_length(before), cut)

    def encode_tokens(
        self,
        tokens: Tokenized,
        *,
        batch_size: int | None = None,
        normalize: bool = False,
        show_progress: bool = False,
    ) -> NDArray[np.float32]:
        """`encode` past `tokenize`."""
        if batch_size is not None and batch_size < 1:
            raise BertfastError(f"batch_size is {batch_size}; it must be at least 1")
        rows, device = tokens.rows, next(self.encoder.parameters()).device
        budget = BATCH_TOKENS.get(device.type, BATCH_TOKENS["cuda"])
        width = min(self.width, self.truncate_dim or self.width)
        vectors = np.empty((len(rows), width), dtype=np.float32)
        was_training, done = self.training, 0
        self.eval()
        try:
            many = sum(map(len, rows)) >= MANY
            progress = LiveBar(len(rows), label="embed") if show_progress else nullcontext()
            with (
                torch.inference_mode(),
                constant_weights() if many else nullcontext(),
                progress as bar,
            ):
                for chosen in _batches([len(row) for row in rows], batch_size or len(rows), budget):
                    out = self(
                        _packed([rows[place] for place in chosen]).to(device), skip=tokens.skip
                    )[:, :width]
                    vectors[chosen] = (
                        (F.normalize(out, dim=-1) if normalize else out).float().cpu().numpy()
                    )
                    done += len(chosen)
                    if bar is not None:
                        bar.advance(done, "")
        finally:
            self.train(was_training)
        return vectors

    def _kept(self, name: str) -> dict[str, Any]:
        """What a file of the folder that this came from held, less what names code."""
        return {key: value for key, value in self._read.get(name, {}).items() if key not in CODE}

    def _modules_to_write(self) -> list[Module]:
        """The folder's modules, as long as they are those of this encoder; or else new ones."""
        kinds = ["Transformer", "Pooling", *(type(step).__name__ for step in self.steps)]
        read = self._modules_read
        if [module.kind for module in read if module.kind != "Dropout"] == kinds:
            return read
        return [Module(kind, Path()) for kind in kinds]

    def _pooling_settings(self, read: dict[str, Any]) -> dict[str, Any]:
        """Flags, which every release reads, where the vectors stand in their order; or else a list,
        which the newest do. Where the folder's own settings, ``read``, say the same, they stay.
        """
        others = {
            "word_embedding_dimension": self.encoder.config.hidden_size,
            "include_prompt": self.include_prompt,
        }
        if read and _pooling_modes(read) == self.pooling:
            return others | read | {"include_prompt": self.include_prompt}
        read = {name: value for name, value in read.items() if name not in ("pooling_mode", *FLAGS)}
        flags: dict[str, Any] = {"pooling_mode": list(self.pooling)}
        if self.pooling == tuple(mode for mode in FLAGS.values() if mode in self.pooling):
            flags = {flag: mode in self.pooling for flag, mode in FLAGS.items()}
        return read | others | flags

    def _prompt(self, prompt: str | None, name: str | None) -> str:
        if prompt is not None:
            if name is not None:
                raise BertfastError(f"give either a prompt or the name of one, {name!r}")
            return prompt
        name = self.default_prompt if name is None else name
        if name is not None and name not in self.prompts:
            known = ", ".join(self.prompts) or "none"
            raise BertfastError(f"there is no prompt named {name!r}; there is {known}")
        return "" if name is None else self.prompts[name]

    def _prompt_length(self, prompt: str) -> int:
        """Tokens of a prompt with what the tokenizer puts before it, and without what it puts
        after.
        """
        if not prompt:
            return 0
        encoding = self.tokenizer.encode(prompt)
        return len(encoding.ids) - encoding.special_tokens_mask[-1]

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, pooling: str | Sequence[str] | None = None
    ) -> Self:
        """From a folder of sentence-transformers, of its first releases or its newest, or from a
        plain encoder's, on this machine.

        Args:
            folder: with a modules.json; or with config.json, weights and a tokenizer.
            pooling: in place of the folder's; a plain encoder's is the mean.

        Raises:
            BertfastError: the folder cannot be read, a weight is missing or misshapen, or a module
                is of an unsupported kind: each is named.
        """
        folder = Path(folder)
        transformer, *modules = _read_modules(folder)
        place = transformer.place
        config, told = load_config(place), _sentence_settings(place)
        # Of the encoder, the pooler alone may be missing, and no vector reads it.
        encoder = member_class(config, "Model").from_pretrained(
            place, config=config, new_head_ok=True
        )
        assert isinstance(encoder, EncoderModel)
        tokenizer = load_tokenizer(place)
        check_tokenizer_fits(tokenizer, config, f"{place}: the tokenizer")
        special = SpecialIds(tokenizer, place)
        if told.get("do_lower_case"):
            own = [tokenizer.normalizer] if tokenizer.normalizer is not None else []
            tokenizer.normalizer = Normalizers([Lowercase(), *own])
        extra = read_object(folder / "config_sentence_transformers.json", optional=True)
        prompts, default = extra.get("prompts") or {}, extra.get("default_prompt_name")
        if not isinstance(prompts, dict) or not all(
            isinstance(text, str | None) for text in (*prompts.values(), default)
        ):
            raise BertfastError(
                f"{folder}: its config_sentence_transformers.json has prompts that are no text"
            )
        found, include_prompt, steps = _read_steps(modules)
        made = cls(
            encoder,
            tokenizer,
            pooling=pooling or found or "mean",
            steps=steps,
            max_length=_whole(
                _told_length(place, told, config.max_length), f"{place}: the longest input"
            ),
            prompts={name: text or "" for name, text in prompts.items()},
            default_prompt=default,
            include_prompt=include_prompt,
            truncate_dim=_whole(extra.get("truncate_dim"), f"{folder}: truncate_dim"),
            special=special,
            similarity_fn_name=extra.get("similarity_fn_name"),
        ).eval()
        homes = {name: place if name != KEPT[-1] else folder for name in KEPT}
        made._read = {
            name: read_object(home / name, optional=True) for name, home in homes.items()
        } | {"sentence_bert_config.json": told}
        made._modules_read = [transformer, *modules]
        return made

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes a folder that sentence-transformers loads, and `transformers` as a plain encoder,
        and a model card where there is none yet.

        What the files of the folder that this came from say beside, is kept: a key that nothing
        here reads is written as it was.

        Raises:
            BertfastError: the folder cannot be written to.
        """
        folder = Path(folder)
        self.encoder.save_pretrained(folder)
        segments = self.encoder.config.type_vocab_size > 1
        save_tokenizer(self.tokenizer, folder, self.max_length, self.special, segments)
        objects: dict[str, Any] = {
            "sentence_bert_config.json": {"do_lower_case": False}
            | self._read.get("sentence_bert_config.json", {})
            | {"max_seq_length": self.max_length},
            "config_sentence_transformers.json": self._kept("config_sentence_transformers.json")
            | {
                "prompts": self.prompts,
                "default_prompt_name": self.default_prompt,
                "similarity_fn_name": self.similarity_fn_name,
            },
        }
        extra = objects["config_sentence_transformers.json"]
        extra.pop("truncate_dim", None)
        if self.truncate_dim is not None:
            extra["truncate_dim"] = self.truncate_dim
        for name in ("config.json", "tokenizer_config.json"):
            objects[name] = self._kept(name) | read_object(folder / name)
        dtype = str(next(self.encoder.parameters()).dtype).removeprefix("torch.")
        for name in {"dtype", "torch_dtype"} & objects["config.json"].keys():
            objects["config.json"][name] = dtype
        modules = self._modules_to_write()
        steps = iter(self.steps)
        for number, module in enumerate(modules):
            if not number:
                continue
            name = f"{number}_{module.kind}"
            settings = dict(module.settings)
            if module.kind == "Pooling":
                settings = self._pooling_settings(settings)
            step = next(steps) if module.kind in ("Dense", "Normalize") else None
            make_folder(folder / name)
            if isinstance(step, Dense):
                settings |= _dense_config(step)
            objects[f"{name}/config.json"] = settings
            if isinstance(step, Dense):
                weights = plain(step.state_dict())
                write_atomically(
                    folder / name / WEIGHTS,
                    lambda path, weights=weights: save_file(weights, path),  # type: ignore[misc]
                )
        objects["modules.json"] = [
            {"name": str(number), "type": f"sentence_transformers.models.{module.kind}"}
            | module.entry
            | {"idx": number, "path": f"{number}_{module.kind}" if number else ""}
            for number, module in enumerate(modules)
        ]
        for file, values in objects.items():
            write_text(folder / file, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
        if not (folder / card.FILE).exists():  # one that somebody wrote is kept
            name = folder.absolute().name
            text = card.sentence_card(name, self.width, self.max_length, self.pooling)
            write_text(folder / card.FILE, text)


def _past(x: Tensor, cu_seqlens: Tensor, skip: int) -> tuple[Tensor, Tensor]:
    """The tokens and boundaries without the first ``skip`` of each sequence."""
    if not skip:
        return x, cu_seqlens
    starts, ends = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
    token = torch.arange(int(cu_seqlens[-1]), device=x.device)
    kept = token - starts[torch.searchsorted(ends, token, right=True)] >= skip
    lengths = (ends - starts - skip).clamp(min=0)
    return x[: len(token)][kept], F.pad(lengths.cumsum(0), (1, 0)).to(cu_seqlens.dtype)


def _batches(lengths: Sequence[int], most: int, budget: int) -> Iterator[NDArray[np.int64]]:
    """The places of sequences, longest first, in runs of at most so many and of so many tokens, one
    sequence at least.
    """
    order = np.argsort([-length for length in lengths], kind="stable")
    start = 0
    while start < len(order):
        end, total = start, 0
        while (
            end < len(order)
            and end - start < most
            and (end == start or total + lengths[order[end]] <= budget)
        ):
            total += lengths[order[end]]
            end += 1
        yield order[start:end]
        start = end


def _packed(rows: Sequence[NDArray[np.int32]]) -> PackedBatch:
    """`PackedBatch.from_sequences` of arrays, whose ids never are Python's numbers."""
    lengths = np.array([len(row) for row in rows])
    ends = lengths.cumsum()
    ids = torch.from_numpy(np.concatenate(rows).astype(np.int64))
    return PackedBatch(
        input_ids=ids,
        segment_ids=torch.zeros_like(ids),
        position_ids=torch.from_numpy(np.arange(len(ids)) - np.repeat(ends - lengths, lengths)),
        cu_seqlens=torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32)),
        max_seqlen=int(lengths.max()),
    )


def _whole(value: Any, what: str) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise BertfastError(f"{what} is {value!r}; it must be a whole number of at least 1")
    return value


def _read_modules(folder: Path) -> list[Module]:
    """The modules, the encoder first; of a plain encoder's folder that alone."""
    try:
        listed = read_json(folder / "modules.json")
    except MissingFileError:
        return [Module("Transformer", folder)]
    if isinstance(listed, list) and len(listed) > MODULES:
        raise BertfastError(
            f"{folder / 'modules.json'}: lists {len(listed)} modules; at most {MODULES} are supported"
        )
    try:
        modules = [(str(entry["type"]), folder / entry["path"]) for entry in listed]
    except (KeyError, TypeError) as error:
        raise BertfastError(
            f"{folder / 'modules.json'}: is no list of modules, each with a type and a path"
        ) from error
    for kind, place in modules:
        try:
            inside = place.resolve().is_relative_to(folder.resolve())
        except (OSError, ValueError, RuntimeError) as error:  # of a zero byte, or a loop of links
            raise BertfastError(f"{folder / 'modules.json'}: {error}") from None
        if not inside:
            raise BertfastError(f"{folder / 'modules.json'}: {place} is outside of the folder")
        if not kind.startswith("sentence_transformers."):
            raise BertfastError(
                f"{folder}: the module {kind} is code of its own; sentence-transformers' are supported"
            )
    kinds = [kind.rpartition(".")[2] for kind, _ in modules]
    for kind, (name, _), wanted in zip(kinds, modules, ("Transformer", "Pooling"), strict=False):
        if kind != wanted:
            raise BertfastError(
                f"{folder}: the module {name} is not supported here; a {wanted} is wanted"
            )
    if not modules:
        raise BertfastError(f"{folder / 'modules.json'}: lists no module")
    return [
        Module(kind, place, entry, read_object(place / "config.json", optional=True))
        for kind, (_, place), entry in zip(kinds, modules, listed, strict=True)
    ]


def _sentence_settings(place: Path) -> dict[str, Any]:
    """What sentence-transformers keeps beside an encoder, in a file that old releases named after
    the member.
    """
    for path in sorted(place.glob("sentence_*_config.json")):
        settings = read_object(path)
        task = settings.get("transformer_task", "feature-extraction")
        if task != "feature-extraction":
            raise BertfastError(
                f"{path}: transformer_task is {task!r}; supported is feature-extraction"
            )
        return settings
    return {}


def _told_length(place: Path, told: dict[str, Any], positions: int) -> Any:
    """Tokens of the longest input: that of sentence-transformers, or else of the tokenizer, where
    the model has positions for it.
    """
    length = told.get("max_seq_length")
    if length is None:
        length = read_object(place / "tokenizer_config.json", optional=True).get("model_max_length")
        if not isinstance(length, int | float) or math.isnan(length):
            return positions
        length = int(min(length, positions))
    return length


def _pooling_modes(settings: dict[str, Any]) -> tuple[str, ...]:
    mode = (
        settings.get("pooling_mode")
        or [name for flag, name in FLAGS.items() if settings.get(flag)]
        or "mean"
    )
    if not isinstance(mode, str | list):
        raise BertfastError(f"pooling_mode is {mode!r}; it must be a name or a list of names")
    return (mode,) if isinstance(mode, str) else tuple(map(str, mode))


def _read_steps(
    modules: Sequence[Module],
) -> tuple[tuple[str, ...] | None, bool, list[nn.Module]]:
    """How a folder pools (None where it does not say), whether prompts are pooled, and the modules
    past the pooling.
    """
    pooling, include_prompt = None, True
    steps: list[nn.Module] = []
    for number, module in enumerate(modules, 1):
        kind, place, settings = module.kind, module.place, module.settings
        names = {
            settings.get(name) or VECTOR for name in ("module_input_name", "module_output_name")
        }
        if kind == "Pooling" and number == 1:
            pooling = _pooling_modes(settings)
            if len(set(pooling)) < len(pooling):
                raise BertfastError(f"{place}: pooling_mode names one way twice")
            include_prompt = bool(settings.get("include_prompt", True))
        elif kind in ("Normalize", "Dense") and names == {VECTOR}:
            steps.append(Normalize() if kind == "Normalize" else _read_dense(place, settings))
        elif kind != "Dropout":  # which does nothing but in training
            raise BertfastError(
                f"{place}: the module {kind} is not supported; past a Transformer and a Pooling, Dense and Normalize are"
            )
    return pooling, include_prompt, steps


def _read_dense(place: Path, settings: dict[str, Any]) -> Dense:
    activation = str(settings.get("activation_function", "torch.nn.modules.activation.Tanh"))
    name = activation.rpartition(".")[2]
    if not activation.startswith("torch.nn.") or name not in ACTIVATIONS:
        raise BertfastError(
            f"{place}: activation_function is {activation}; supported are {', '.join(ACTIVATIONS)}"
        )
    width, out = (
        _whole(settings.get(size), f"{place}: {size}") for size in ("in_features", "out_features")
    )
    if width is None or out is None:
        raise BertfastError(f"{place}: its config.json lacks in_features or out_features")
    residual = bool(settings.get("use_residual", False))
    if max(width, out) > MOST_WIDTH:
        raise BertfastError(f"{place}: its vectors are wider than {MOST_WIDTH}")
    with torch.device("meta"):
        dense = Dense(width, out, bool(settings.get("bias", True)), name, residual)
    stored = open_weights(place)
    wanted = {key: tuple(value.shape) for key, value in dense.state_dict().items()}
    found = {key: value.shape for key, value in stored.items()}
    if wanted != found:
        raise BertfastError(
            f"{place}: the weights do not fit the Dense of its config.json: they are {found}, and "
            f"it asks for {wanted}"
        )
    dense.to_empty(device=torch.get_default_device())
    dense.load_state_dict({key: value.read() for key, value in stored.items()})
    return dense


def _dense_config(dense: Dense) -> dict[str, Any]:
    activation = type(dense.activation)
    return {
        "in_features": dense.linear.in_features,
        "out_features": dense.linear.out_features,
        "bias": dense.linear.bias is not None,
        "activation_function": f"{activation.__module__}.{activation.__name__}",
        **({"use_residual": True} if dense.use_residual else {}),
    }
