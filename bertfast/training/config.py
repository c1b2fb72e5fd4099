"""What a pretraining run is told, checked when it is made; ``config.yaml`` mirrors it field for
field.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from bertfast.checks import check_adam, number, one_of, whole_number
from bertfast.config import PRESETS, EncoderConfig
from bertfast.data.packing import MASK_UNITS, MASKINGS
from bertfast.errors import BertfastError
from bertfast.model import load_config
from bertfast.objectives import OBJECTIVES, default_objective
from bertfast.ranks import TIMEOUT
from bertfast.resolve import Source, resolve

from .checkpoint import KEEP
from .optimizer import BETAS, EPSILON
from .other_optimizers import OPTIMIZERS
from .precision import PRECISIONS
from .schedules import SCHEDULES
from .trackers import TRACKERS, tracker_names

SHAPE = "bert-small"  # of a new model, where nobody says


# Options that are younger than runs that may be resumed: at their defaults they change nothing.
YOUNGER = (
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "valid",
    "valid_split",
    "evaluate_every",
    "shard_cache",
    "schedule",
    "decay",
    "branch",
    "optimizer",
    "mask_rate",
    "mask_rate_end",
    "batch_tokens_start",
    "batch_warmup",
    "seq_len_stages",
    "keep",
)


@dataclass(frozen=True)
class PretrainConfig:
    """One pretraining run.

    Attributes:
        data: files of text (see `bertfast.data.readers`), or stores that ``bertfast prepare`` made,
            folders or addresses. Of several ``STORE:WEIGHT`` says how much of each batch is of it.
        tokenizer: folder or Hub id of the tokenizer; None is the one of ``model``.
        out: folder of the run; it must not exist, unless the run is resumed.
        shape: of a new model with random weights over the tokenizer's words: a preset's name, or a
            config.json. None is "bert-small" where no ``model`` is given.
        model: of weights to go on training from: a folder in Hugging Face's format, or a Hub id.
        revision: branch, tag or commit of ``model`` on the Hub.
        objective: "mlm", "rtd" (ELECTRA's replaced-token detection) or "distill" (from a teacher).
            Also "mlm+nsp" (is the second segment the next or a random one) or "mlm+sop" (are the
            two swapped). None is the model's own: "mlm+nsp" for BERT, "mlm+sop" for ALBERT, "rtd"
            for ELECTRA, and "mlm" for the others.
        teacher: folder or Hub id of the model to distill from; with "distill" alone.
        generator_size: width of the generator beside the discriminator's, with "rtd".
        masking: "dynamic" (new each epoch) or "static".
        mask_unit: what is hidden together: "token", "whole-word" or "span" (of whole words, as in
            SpanBERT).
        mask_rate: share of the tokens that are hidden.
        mask_rate_end: the same at the last update, to which it changes evenly; None is
            ``mask_rate``. Held-out text is always scored under 0.15.
        steps: optimizer updates.
        batch_tokens: tokens of a batch at most; of one part of it under accumulation.
        batch_tokens_start: ``batch_tokens`` of the first update, from which it rises evenly over
            ``batch_warmup`` updates.
        batch_warmup: updates; 0 without a start of its own.
        seq_len: tokens of a sequence at most, special tokens included.
        seq_len_stages: shorter sequences first, as "LENGTH:UPDATES" each; after them ``seq_len``.
        optimizer: "adamw", "lamb" or "muon" (PyTorch's, for the matrices of the layers).
        lr: peak learning rate.
        warmup: updates over which the rate rises. None is 1000, or a tenth of ``steps`` if that is
            less.
        schedule: how it falls then: "linear" or "cosine" to zero at ``steps``, "wsd" (not, but in
            the last ``decay`` updates) or "inverse-sqrt".
        decay: updates; None is a tenth of ``steps``, with "wsd" alone.
        branch: a checkpoint of another run to go on from, with its optimizer and its step, under
            another plan: for "wsd" any checkpoint before the decay.
        weight_decay: not of biases and norms.
        adam_beta1, adam_beta2, adam_epsilon: of AdamW's moments.
        clip_norm: the joint norm that gradients are scaled down to.
        accumulation: batches whose gradients are averaged for one update. None: one for each rank
            of torchrun, and in a run that goes on as many as it had.
        precision: "fp32", or "bf16" with float32 master weights.
        device: "cpu", "cuda" or "cuda:N"; None is the GPU where there is one.
        cuda_graph: send each update to the GPU as one CUDA graph, batches padded to fixed sizes;
            not with accumulation. None: wherever it can be.
        seed: of the weights, the data order, the masks and the dropout.
        checkpoint_every: updates; one more is written at the end.
        keep: the newest checkpoints that are kept.
        log_every: updates that a logged line averages over.
        valid: files of text that is held out. The objective's loss on it is measured under masks
            that never change. The checkpoint with the lowest is kept too.
        valid_split: the same with a share of the documents of ``data``, the last ones.
        evaluate_every: updates between two such evaluations; None is ``checkpoint_every``.
        text_field: of JSON lines.
        shard_cache: gibibytes that the shards of an address may take in the run's folder.
        report_to: trackers that get the numbers: of tensorboard, wandb, mlflow and trackio, "all"
            that are installed, or "none". None is TensorBoard where it is installed.
        reduction: "fp32" or "bf16", in which gradients travel between ranks.
        rank_timeout: seconds without a step after which the ranks are taken to hang.
    """

    data: tuple[str, ...]
    tokenizer: str | None
    out: str
    shape: str | None = None
    model: str | None = None
    revision: str | None = None
    objective: str | None = None
    teacher: str | None = None
    generator_size: float = 0.25
    masking: str = "dynamic"
    mask_unit: str = "token"
    mask_rate: float = 0.15
    mask_rate_end: float | None = None
    steps: int = 10_000
    batch_tokens: int = 8192
    batch_tokens_start: int | None = None
    batch_warmup: int = 0
    seq_len: int = 128
    seq_len_stages: tuple[str, ...] | None = None
    optimizer: str = "adamw"
    lr: float = 1e-4
    warmup: int | None = None
    schedule: str = "linear"
    decay: int | None = None
    branch: str | None = None
    weight_decay: float = 0.01
    adam_beta1: float = BETAS[0]
    adam_beta2: float = BETAS[1]
    adam_epsilon: float = EPSILON
    clip_norm: float = 1.0
    accumulation: int | None = None
    precision: str = "fp32"
    device: str | None = None
    cuda_graph: bool | None = None
    seed: int = 0
    checkpoint_every: int = 1000
    keep: int = KEEP
    log_every: int = 10
    valid: tuple[str, ...] | None = None
    valid_split: float | None = None
    evaluate_every: int | None = None
    text_field: str = "text"
    shard_cache: float = 4.0
    report_to: tuple[str, ...] | None = None
    reduction: str = "fp32"
    rank_timeout: float = TIMEOUT

    def __post_init__(self) -> None:
        default = ("tensorboard",) if TRACKERS["tensorboard"].installed else ()
        found = default if self.report_to is None else tracker_names(self.report_to)
        object.__setattr__(self, "report_to", found)
        object.__setattr__(self, "data", tuple(str(path) for path in self.data))
        # No file is the same as none given: the command line has an empty list.
        valid = tuple(str(path) for path in self.valid or ()) or None
        object.__setattr__(self, "valid", valid)
        if valid is not None and self.valid_split is not None:
            raise BertfastError("valid and valid-split both name held-out text; give one")
        if self.valid_split is not None:
            number("valid_split", self.valid_split, above=0, below=1)
        if self.evaluate_every is not None:
            whole_number("evaluate_every", self.evaluate_every, 1)
            if valid is None and self.valid_split is None:
                raise BertfastError("evaluate-every needs held-out text: --valid or --valid-split")
        self._settle_model()
        objective = OBJECTIVES.find(self.objective)
        if not self.data:
            raise BertfastError("data names no file")
        for name in (
            "steps",
            "batch_tokens",
            "seq_len",
            "checkpoint_every",
            "keep",
            "log_every",
        ):
            whole_number(name, getattr(self, name), 1)
        if self.accumulation is not None:
            whole_number("accumulation", self.accumulation, 1)
        if self.warmup is None:
            object.__setattr__(self, "warmup", min(1000, self.steps // 10))
        warmup = whole_number("warmup", self.warmup, 0)
        whole_number("seed", self.seed, 0)
        if warmup > self.steps:
            raise BertfastError(
                f"warmup is {self.warmup} and steps {self.steps}; warmup must not go beyond them"
            )
        check_adam(self)
        for name, choices in (
            ("masking", MASKINGS),
            ("mask_unit", MASK_UNITS),
            ("precision", PRECISIONS),
            ("reduction", PRECISIONS),
            ("schedule", SCHEDULES),
            ("optimizer", OPTIMIZERS),
        ):
            one_of(name, getattr(self, name), choices)
        self._check_course()
        number("shard_cache", self.shard_cache, above=0)
        number("generator_size", self.generator_size, above=0, most=1)
        objective.check(self)
        if self.cuda_graph not in (None, True, False):
            raise BertfastError(
                f"cuda-graph is {self.cuda_graph!r}; it must be true, false or left out"
            )
        if self.cuda_graph and (self.accumulation or 1) > 1:
            raise BertfastError(
                f"cuda-graph is on and accumulation {self.accumulation}; "
                "a graph holds an update of one batch"
            )
        if self.batch_tokens < self.seq_len:
            raise BertfastError(
                f"batch-tokens is {self.batch_tokens} and seq-len {self.seq_len}; "
                "a batch must hold a whole sequence"
            )

    def _check_course(self) -> None:
        """Refuses what the rates and sizes of the updates cannot be."""
        if self.decay is not None:
            if self.schedule != "wsd":
                raise BertfastError(
                    f"decay is {self.decay} and schedule {self.schedule}; --schedule wsd takes one"
                )
            if whole_number("decay", self.decay, 1) > self.steps:
                raise BertfastError(f"decay is {self.decay}, and steps {self.steps}")
        number("mask_rate", self.mask_rate, above=0, below=1)
        if self.mask_rate_end is not None:
            number("mask_rate_end", self.mask_rate_end, above=0, below=1)
        whole_number("batch_warmup", self.batch_warmup, 0)
        if (self.batch_tokens_start is None) != (self.batch_warmup == 0):
            raise BertfastError("batch-tokens-start and batch-warmup go together; give both")
        if self.batch_tokens_start is not None:
            whole_number("batch_tokens_start", self.batch_tokens_start, self.seq_len)
        if self.optimizer != "adamw" and self.cuda_graph:
            raise BertfastError(f"cuda-graph is on, and optimizer {self.optimizer}; it takes adamw")
        stages = tuple(map(str, self.seq_len_stages or ())) or None
        object.__setattr__(self, "seq_len_stages", stages)
        self.stages  # noqa: B018  says now what is wrong with one

    @property
    def stages(self) -> list[tuple[int, int]]:
        """(tokens of a sequence, first update) of each stage, the last one ``seq_len``'s."""
        found, first = [], 0
        for stage in self.seq_len_stages or ():
            length, _, updates = stage.partition(":")
            if not (length.isdecimal() and updates.isdecimal() and int(updates)):
                raise BertfastError(
                    f"seq-len-stages has {stage!r}; each is LENGTH:UPDATES, as 64:1000"
                )
            if int(length) > self.seq_len:
                raise BertfastError(
                    f"seq-len-stages has {stage}, and seq-len is {self.seq_len}; shorter sequences "
                    "come first"
                )
            found.append((int(length), first))
            first += int(updates)
        if first >= self.steps:
            raise BertfastError(
                f"seq-len-stages take {first} updates, and steps is {self.steps}; some must be "
                "left for seq-len"
            )
        return [*found, (self.seq_len, first)]

    def mask_rate_at(self, step: int) -> float:
        """The share of tokens that are hidden in the update with that index."""
        if self.mask_rate_end is None:
            return self.mask_rate
        done = min(step / max(self.steps - 1, 1), 1.0)
        return self.mask_rate + done * (self.mask_rate_end - self.mask_rate)

    def _settle_model(self) -> None:
        """Says which model, tokenizer and objective it is, where that was left open."""
        if self.model is None and self.shape is None:
            object.__setattr__(self, "shape", SHAPE)
        if self.model is not None and self.shape is not None:
            raise BertfastError(
                f"shape is {self.shape!r} and model {self.model!r}; a new model has a shape, and "
                "an existing one its weights: give one of the two"
            )
        if self.revision is not None and self.model is None:
            raise BertfastError(f"revision is {self.revision!r}, of no model; give a model too")
        if self.tokenizer is None:
            if self.model is None:
                raise BertfastError("tokenizer is missing; a new model needs one (--tokenizer)")
            object.__setattr__(self, "tokenizer", self.model)
        if self.objective is None:
            object.__setattr__(self, "objective", default_objective(self.encoder))

    @property
    def starts_random(self) -> bool:
        """Whether the model is named by its shape alone."""
        return self.model is None

    @property
    def start(self) -> str:
        """What the model is named by: its shape, or where its weights are."""
        return str(self.shape or self.model)

    @cached_property
    def source(self) -> Source:
        """Where the weights of ``model`` are, downloaded if need be; errors as of `resolve`."""
        assert self.model is not None
        try:
            return resolve(self.model, self.revision)
        except BertfastError as error:
            if self.model not in PRESETS:
                raise
            raise BertfastError(
                f"{error}; --shape {self.model} makes a new model, of random weights"
            ) from error

    @property
    def origin(self) -> str:
        """What training starts from, in words."""
        return f"random weights, shape {self.shape}" if self.shape else str(self.source)

    @cached_property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer is, downloaded if need be; errors as of `resolve`."""
        if self.tokenizer == self.model:
            return self.source.folder
        return resolve(str(self.tokenizer), tokenizer_only=True).folder

    @cached_property
    def encoder(self) -> EncoderConfig:
        """The configuration of the model that training starts from, with its own vocabulary.

        Raises:
            BertfastError: there is no such shape, or the model cannot be read.
        """
        if self.shape is None:
            return load_config(self.source.folder)
        if self.shape in PRESETS:
            return EncoderConfig.preset(self.shape)
        if not Path(self.shape).is_file():
            raise BertfastError(
                f"shape is {self.shape!r}; it must be a preset ({', '.join(PRESETS)}) or a "
                "config.json"
            )
        return EncoderConfig.from_json_file(self.shape)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, lists in the place of tuples."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    def to_yaml(self) -> str:
        """The text of ``config.yaml``."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)
