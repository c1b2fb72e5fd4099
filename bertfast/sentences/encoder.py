"""Sentence embeddings: one vector a text, from a folder of sentence-transformers or a plain
encoder's. Reimers and Gurevych, "Sentence-BERT", 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as Normalizers
from torch import Tensor, nn

from bertfast.errors import BertfastError
from bertfast.kernels.linear import constant_weights
from bertfast.model import load_config, member_class
from bertfast.model.models import EncoderModel
from bertfast.model.pooling import MODES, pool
from bertfast.packed import PackedBatch, runs_of_tokens
from bertfast.progress import LiveBar
from bertfast.resolve import resolve
from bertfast.tokenization import SpecialIds, check_tokenizer_fits, load_tokenizer

from .folder import Folder, read_folder, read_steps, write_folder
from .losses import SIMILARITIES
from .modules import Dense, positive_or_none
from .quantization import check_precision, quantize
from .search import similarity_matrix

# Tokens of a batch: on a CPU as many as keep a layer's tensors in the caches, on a GPU as many as
# fill it.
BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}
TEXTS = 16384  # tokenized at once
MANY = 16384  # tokens from which on it pays to bring the weights into another form first


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
        BertfastError: an unknown way to pool or to compare, or a default prompt that is not among
            the prompts.
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
                f"similarity_fn_name is {similarity_fn_name!r}; "
                f"it must be of {', '.join(SIMILARITIES)}"
            )
        self.similarity_fn_name = similarity_fn_name
        self._source: Folder | None = None
        self.pooling = (pooling,) if isinstance(pooling, str) else tuple(pooling)
        unknown = [mode for mode in self.pooling if mode not in MODES]
        if unknown or not self.pooling:
            raise BertfastError(
                f"pooling is {unknown[0] if unknown else 'empty'}; "
                f"it must be of {', '.join(MODES)}, one or several"
            )
        self.encoder, self.tokenizer, self.special = encoder, tokenizer, special
        self.steps = nn.ModuleList(steps)
        limit = encoder.config.max_positions
        longest = max_length or encoder.config.max_length
        self.max_length = longest if limit is None else min(longest, limit)
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
            encoded = self.encoder.encode(*inputs, seed=seed, every_row=False)
            assert encoded.first is not None
            x = encoded.first
        else:
            encoded = self.encoder.encode(*inputs, seed=seed, read_first=False)
            x = pool(*_past(encoded.last, encoded.batch.cu_seqlens, skip), self.pooling)
        return encoded.of_sequences(self._stepped(x))

    def layer_vectors(
        self, batch: PackedBatch, *, seed: int | Tensor | None = None
    ) -> list[Tensor]:
        """(sequences, width) of a packed batch from the embeddings' output and from each layer's,
        the last of which `forward` gives; with gradients.
        """
        encoded = self.encoder.encode(batch, seed=seed, read_first=False)
        pooled = (pool(x, encoded.batch.cu_seqlens, self.pooling) for x in encoded.states)
        return [encoded.of_sequences(self._stepped(x)) for x in pooled]

    def _stepped(self, x: Tensor) -> Tensor:
        """What the modules past the pooling make of its vectors."""
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
        precision: str = "float32",
        truncate_dim: int | None = None,
        convert_to_tensor: bool = False,
        out: NDArray[np.float32] | None = None,
        normalize_embeddings: bool | None = None,
        show_progress_bar: bool | None = None,
        convert_to_numpy: bool = True,
        task_metadata: Any = None,
        prompt_type: Any = None,
        hf_split: str | None = None,
        hf_subset: str | None = None,
    ) -> Any:
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
            precision: float32, or int8, uint8, binary or ubinary, as `quantize` makes them.
            truncate_dim: how many numbers of a vector are kept; None is the encoder's own.
            convert_to_tensor: give a tensor on the encoder's device.
            out: (texts, width) array to write to and to return, as a memory-mapped one. No more
                texts than `TEXTS` are held as tokens at a time.
            normalize_embeddings, show_progress_bar: ``normalize`` and ``show_progress`` under the
                names of sentence-transformers.
            convert_to_numpy: False gives a list of tensors, as sentence-transformers does.
            task_metadata, prompt_type: with which ``mteb`` calls; the prompt is then the first that
                there is for the task, its type or the kind of text. Its loader of batches is taken
                in the place of texts.
            hf_split, hf_subset: of ``mteb``'s data; nothing is made of them.

        Raises:
            BertfastError: something else than texts, a batch size below 1, an unknown prompt or
                precision, or an ``out`` of another shape.
        """
        check_precision(precision)
        if truncate_dim is not None:
            positive_or_none(truncate_dim, "truncate_dim")
        single = isinstance(texts, str)
        rows = [texts] if isinstance(texts, str) else texts
        if task_metadata is not None:
            rows = [text for batch in rows for text in batch["text"]]  # type: ignore[index]
            if prompt is None and prompt_name is None:
                prompt_name = self._prompt_of_task(task_metadata, prompt_type)
        elif not hasattr(rows, "__getitem__"):
            rows = list(rows)
        width = min(self.width, truncate_dim or self.truncate_dim or self.width)
        if out is not None and (out.shape != (len(rows), width) or out.dtype != np.float32):
            raise BertfastError(
                f"out is {out.dtype} of shape {out.shape}; it must be float32 of "
                f"{(len(rows), width)}"
            )
        vectors = np.empty((len(rows), width), dtype=np.float32) if out is None else out
        self.encode_into(
            vectors,
            rows,
            batch_size=batch_size,
            normalize=normalize if normalize_embeddings is None else normalize_embeddings,
            prompt=prompt,
            prompt_name=prompt_name,
            show_progress=show_progress if show_progress_bar is None else show_progress_bar,
        )
        found: Any = vectors if precision == "float32" else quantize(vectors, precision)
        if convert_to_tensor or not convert_to_numpy:
            found = torch.from_numpy(found).to(next(self.encoder.parameters()).device)
        if single:
            return found[0]
        return found if convert_to_tensor or convert_to_numpy else list(found)

    def encode_into(
        self,
        out: NDArray[np.float32],
        texts: Sequence[str],
        *,
        batch_size: int | None = None,
        normalize: bool = False,
        prompt: str | None = None,
        prompt_name: str | None = None,
        show_progress: bool = False,
    ) -> int:
        """Writes the first numbers of the vectors of texts to (texts, numbers) float32, which may
        be memory-mapped; returns how many texts were cut. Arguments and errors as of `encode`.
        """
        cut = 0
        progress = LiveBar(len(texts), label="embed") if show_progress and len(texts) else None
        with progress or nullcontext():
            for start in range(0, len(texts), TEXTS):
                part = slice(start, start + TEXTS)
                tokens = self.tokenize(texts[part], prompt, prompt_name)
                cut += tokens.cut
                self._encode_tokens(tokens, out[part], batch_size, normalize, progress, start)
        return cut

    def encode_query(self, texts: str | Sequence[str], **options: Any) -> Any:
        """`encode` with the prompt "query", where there is one and no other is asked for."""
        return self._encode_as(("query",), texts, options)

    def encode_document(self, texts: str | Sequence[str], **options: Any) -> Any:
        """`encode` with the first prompt that there is of "document", "passage" and "corpus", where
        no other is asked for.
        """
        return self._encode_as(("document", "passage", "corpus"), texts, options)

    def _encode_as(
        self, names: Sequence[str], texts: str | Sequence[str], options: dict[str, Any]
    ) -> Any:
        if options.get("prompt") is None and options.get("prompt_name") is None:
            options["prompt_name"] = next((name for name in names if name in self.prompts), None)
        return self.encode(texts, **options)

    def _prompt_of_task(self, task: Any, kind: Any) -> str | None:
        """The name of the prompt for a task of ``mteb`` and a kind of text, the most special
        first.
        """
        kind = getattr(kind, "value", kind)
        names = [
            name
            for of in (task.name, task.type)
            for name in ([f"{of}-{kind}", of] if kind else [of])
        ]
        return next((name for name in (*names, kind) if name in self.prompts), None)

    @property
    def mteb_model_meta(self) -> Any:
        """What ``mteb`` asks of a model: None, so that its own description is an empty one."""
        return None

    def similarity_pairwise(self, a: Any, b: Any) -> Tensor:
        """(rows,): how like each row of a is to that of b; see `similarity`."""
        a, b = (torch.as_tensor(x).float() for x in (a, b))
        a, b = (x[None] if x.dim() == 1 else x for x in (a, b))
        return SIMILARITIES[self.similarity_fn_name or "cosine"](a, b)

    def similarity(self, a: Any, b: Any) -> Tensor:
        """(rows of a, rows of b): how like vectors of `encode` are, by ``similarity_fn_name``, or
        the cosine where that is None.
        """
        a, b = (torch.as_tensor(x).float() for x in (a, b))
        a, b = (x[None] if x.dim() == 1 else x for x in (a, b))
        return similarity_matrix(a, b, self.similarity_fn_name or "cosine")

    @property
    def max_seq_length(self) -> int:
        """``max_length`` under the name of sentence-transformers."""
        return self.max_length

    @max_seq_length.setter
    def max_seq_length(self, tokens: int) -> None:
        self.max_length = tokens

    @property
    def device(self) -> torch.device:
        """Where the encoder is."""
        return next(self.encoder.parameters()).device

    def get_sentence_embedding_dimension(self) -> int:
        """Numbers of a vector of `encode`."""
        return min(self.width, self.truncate_dim or self.width)

    get_embedding_dimension = get_sentence_embedding_dimension

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
        width = min(self.width, self.truncate_dim or self.width)
        vectors = np.empty((len(tokens.rows), width), dtype=np.float32)
        progress = LiveBar(len(vectors), label="embed") if show_progress and len(vectors) else None
        with progress or nullcontext():
            self._encode_tokens(tokens, vectors, batch_size, normalize, progress)
        return vectors

    def _encode_tokens(
        self,
        tokens: Tokenized,
        vectors: NDArray[np.float32],
        batch_size: int | None,
        normalize: bool,
        progress: LiveBar | None = None,
        before: int = 0,
    ) -> None:
        """Writes the vectors of tokens, and shows how many are done, beside those ``before``."""
        if batch_size is not None and batch_size < 1:
            raise BertfastError(f"batch_size is {batch_size}; it must be at least 1")
        rows, device, width = tokens.rows, self.device, vectors.shape[1]
        budget = BATCH_TOKENS.get(device.type, BATCH_TOKENS["cuda"])
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        longest_first = np.argsort(-lengths, kind="stable")
        was_training, done = self.training, 0
        self.eval()
        try:
            many = lengths.sum() >= MANY
            with torch.inference_mode(), constant_weights() if many else nullcontext():
                for run in runs_of_tokens(lengths[longest_first].tolist(), budget, batch_size):
                    chosen = longest_first[run]
                    batch = pack_rows([rows[row] for row in chosen]).to(device)
                    made = self(batch, skip=tokens.skip)[:, :width]
                    vectors[chosen] = (
                        (F.normalize(made, dim=-1) if normalize else made).float().cpu().numpy()
                    )
                    done += len(chosen)
                    if progress is not None:
                        progress.advance(before + done, "")
        finally:
            self.train(was_training)

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
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        pooling: str | Sequence[str] | None = None,
    ) -> Self:
        """From a folder of sentence-transformers, of its first releases or its newest, or from a
        plain encoder's; on this machine, or on the Hub.

        Args:
            model: a folder with a modules.json; or with config.json, weights and a tokenizer; or
                the id of such a model on the Hub ("sentence-transformers/all-MiniLM-L6-v2").
            revision: branch, tag or commit on the Hub.
            pooling: in place of the folder's; a plain encoder's is the mean.

        Raises:
            BertfastError: the folder cannot be read, a weight is missing or misshapen, or a module
                is of an unsupported kind: each is named.
        """
        source = read_folder(resolve(model, revision).folder)
        config = load_config(source.encoder)
        # Of the encoder, the pooler alone may be missing, and no vector reads it.
        encoder = member_class(config, "Model").from_pretrained(
            source.encoder, config=config, new_head_ok=True
        )
        assert isinstance(encoder, EncoderModel)
        tokenizer = load_tokenizer(source.encoder)
        check_tokenizer_fits(tokenizer, config, f"{source.encoder}: the tokenizer")
        special = SpecialIds(tokenizer, source.encoder)
        if source.settings.get("do_lower_case"):
            own = [tokenizer.normalizer] if tokenizer.normalizer is not None else []
            tokenizer.normalizer = Normalizers([Lowercase(), *own])
        prompts, default_prompt = source.prompts()
        own_pooling, include_prompt, steps = read_steps(source.modules[1:])
        made = cls(
            encoder,
            tokenizer,
            pooling=pooling or own_pooling or "mean",
            steps=steps,
            max_length=source.max_length(config.max_length),
            prompts=prompts,
            default_prompt=default_prompt,
            include_prompt=include_prompt,
            truncate_dim=source.truncate_dim(),
            special=special,
            similarity_fn_name=source.extra.get("similarity_fn_name"),
        ).eval()
        made._source = source
        return made

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes a folder that sentence-transformers loads, and `transformers` as a plain encoder,
        and a model card where there is none yet.

        What the files of the folder that this came from say beside, is kept: a key that nothing
        here reads is written as it was.

        Raises:
            BertfastError: the folder cannot be written to.
        """
        write_folder(self, Path(folder), self._source)


def _past(x: Tensor, cu_seqlens: Tensor, skip: int) -> tuple[Tensor, Tensor]:
    """The tokens and boundaries without the first ``skip`` of each sequence."""
    if not skip:
        return x, cu_seqlens
    starts, ends = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
    token = torch.arange(int(cu_seqlens[-1]), device=x.device)
    kept = token - starts[torch.searchsorted(ends, token, right=True)] >= skip
    lengths = (ends - starts - skip).clamp(min=0)
    return x[: len(token)][kept], F.pad(lengths.cumsum(0), (1, 0)).to(cu_seqlens.dtype)


def pack_rows(rows: Sequence[NDArray[np.int32]]) -> PackedBatch:
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
