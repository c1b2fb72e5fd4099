"""Pretraining: text and a tokenizer in, a BERT in Hugging Face's format out."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from bertfast._version import __version__
from bertfast.card import CARD_FILE
from bertfast.config import PRESETS, EncoderConfig
from bertfast.data.mixture import Chain, Growth, Mixture, Stages, sources_of
from bertfast.data.packing import Batches
from bertfast.data.shards import ShardedStore
from bertfast.data.store import TokenStore
from bertfast.data.words import continuations
from bertfast.errors import BertfastError
from bertfast.files import make_folder, read_yaml, write_text
from bertfast.model import PreTrainedModel, load, load_config, load_weights, member_class
from bertfast.model.memory import check_memory
from bertfast.objectives import OBJECTIVES
from bertfast.objectives.joint import Distillation
from bertfast.ranks import Ranks, launched
from bertfast.resolve import resolve
from bertfast.tokenization import (
    TOKENIZER_FILES,
    SpecialIds,
    check_tokenizer_fits,
    load_tokenizer,
    save_tokenizer,
)

from . import card
from .checkpoint import check_branch, clean, load_checkpoint, locked
from .config import YOUNGER, PretrainConfig
from .held_out import LOSS, Evaluations, HeldOut, held_out_batches
from .options import takes_fields_of, without_defaults
from .other_optimizers import other_optimizer
from .parallel import share_batches
from .precision import find_device
from .schedules import schedule
from .trackers import Report
from .trainer import Callback, Interrupted, Trainer

__all__ = ["Interrupted", "PretrainResult", "pretrain"]
# Options that change nothing in what is computed: a resumed run may have others.
FREE = (
    *("out", "checkpoint_every", "keep", "log_every", "device", "report_to"),
    *("reduction", "rank_timeout", "shard_cache"),
)


@dataclass(frozen=True)
class PretrainResult:
    """Where a run ended: its folder, the steps done, the last logged numbers, and the best
    evaluation.

    That is of held-out text, with its ``step``, and empty where there was none.
    """

    out: Path
    steps: int
    last: dict[str, Any]
    best: dict[str, Any]


@takes_fields_of(PretrainConfig)
def pretrain(
    data: tuple[str, ...] | list[str],
    tokenizer: str | None,
    out: str,
    *,
    resume: bool = False,
    on_log: Callable[[dict[str, Any]], None] | None = None,
    **options: Any,
) -> PretrainResult:
    """Pretrains a BERT; the command ``bertfast pretrain`` as a function.

    Args:
        data: files of text.
        tokenizer: folder or Hub id of the tokenizer; None is the one of the model.
        out: folder of the run.
        resume: go on from the run's last checkpoint (from step 0 where there is none), to the same
            losses bit for bit. A launcher that starts the ranks anew resumes by itself.
        on_log: called with each logged line.
        options: the other fields of `PretrainConfig`.

    Raises:
        BertfastError: an option, a file or the folder cannot be used, or the loss became NaN; what
            was there is kept.
        Interrupted: after a checkpoint, on SIGINT or SIGTERM.
    """
    config = PretrainConfig(
        data=tuple(data),
        tokenizer=None if tokenizer is None else str(tokenizer),
        out=str(out),
        **options,
    )
    run, ranks = Path(config.out), launched()
    resume = resume or ranks.place.restarts > 0
    device = find_device(ranks.device(config.device))
    if config.cuda_graph and device.type != "cuda":
        raise BertfastError(
            "cuda-graph needs a GPU that PyTorch can use, and there is none here; leave it out"
        )
    if config.cuda_graph and ranks.size > 1:
        raise BertfastError(
            f"cuda-graph is on and there are {ranks.size} ranks; a graph holds an update of one"
        )
    config = _settled(config, run, ranks)
    if config.branch is not None:
        check_branch(load_checkpoint(Path(config.branch)), config.branch, config.steps)
    same = {name: value for name, value in config.to_dict().items() if name != "device"}
    with ranks.joined(
        device,
        run,
        config.rank_timeout,
        {
            "bertfast": __version__,
            "torch": torch.__version__,
            **{f"option {name}": json.dumps(value) for name, value in same.items()},
        },
    ):
        return _pretrain(config, run, device, ranks, resume, on_log)


def _pretrain(
    config: PretrainConfig,
    run: Path,
    device: torch.device,
    ranks: Ranks,
    resume: bool,
    on_log: Callable[[dict[str, Any]], None] | None,
) -> PretrainResult:
    words = load_tokenizer(config.tokenizer_folder)
    objective = OBJECTIVES.find(config.objective)
    setup = RunSetup(config, words, ranks.first)
    torch.manual_seed(config.seed)
    model = objective.build(setup)
    saved = objective.saved(model)
    fresh = False
    if ranks.first:
        fresh = _claim(run, config, resume)
    else:
        ranks.wait("claimed")
    with locked(run) if ranks.first else nullcontext():
        try:
            if ranks.first:
                _write_tokenizer(config, run, saved, words)
                ranks.note("claimed")
            batches, held_out = _open_data(config, run, saved, words, ranks)
        except BertfastError:
            if fresh:
                # Nothing was trained: no folder stands in the way of the next try.
                shutil.rmtree(run)
            raise
        if fresh:
            setup.say(f"starts from {config.origin}")
        graph = config.cuda_graph
        if graph is None:
            graph = (
                device.type == "cuda" and config.accumulation == 1 and config.optimizer == "adamw"
            )
        assert config.warmup is not None
        assert config.accumulation is not None
        trackers = (config.report_to or ()) if ranks.first else ()
        with Report(trackers, run, config.to_dict()) as report:
            trainer = Trainer(
                model,
                batches,
                out=run,
                steps=config.steps,
                lr=config.lr,
                weight_decay=config.weight_decay,
                betas=(config.adam_beta1, config.adam_beta2),
                epsilon=config.adam_epsilon,
                optimizer=other_optimizer(
                    config.optimizer,
                    [name for name, weight in model.named_parameters() if weight.requires_grad],
                    config.lr,
                    config.weight_decay,
                    (config.adam_beta1, config.adam_beta2),
                    config.adam_epsilon,
                ),
                schedule=schedule(
                    config.schedule,
                    config.warmup,
                    config.steps,
                    max(config.steps // 10, 1) if config.decay is None else config.decay,
                ),
                precision=config.precision,
                clip_norm=config.clip_norm,
                accumulation=config.accumulation,
                seed=config.seed,
                callbacks=[report, Evaluations(), *([] if on_log is None else [_OnLog(on_log)])],
                evaluate=None if held_out is None else partial(held_out, device=device),
                evaluate_every=config.evaluate_every or config.checkpoint_every,
                best=None if held_out is None else LOSS,
                lowest=True,
                checkpoint_every=config.checkpoint_every,
                keep=config.keep,
                branch=config.branch,
                log_every=config.log_every,
                device=device,
                budget=batches.budget() if graph else None,
                models=saved,
                files=_tokenizer_files(run, saved),
                inputs=_fingerprints(config, words, model, saved, batches, held_out),
                label="pretrain",
                ranks=ranks,
                reduction=config.reduction,
            )
            done = trainer.train(resume)
            report.finish(done.last)
        result = PretrainResult(run, done.steps, done.last, done.best)
        if ranks.first:
            _write_cards(config, saved, result)
    return result


def _write_cards(
    config: PretrainConfig, saved: dict[str, PreTrainedModel], result: PretrainResult
) -> None:
    for subfolder, model in saved.items():
        folder = result.out / subfolder
        if (folder / CARD_FILE).exists():
            # Somebody wrote one, or the run was complete before.
            continue
        architecture = type(model).__name__
        text = card.pretraining_card(
            config, folder.absolute().name, architecture, result.steps, result.last
        )
        write_text(folder / CARD_FILE, text)


def _tokenizer_files(run: Path, saved: dict[str, PreTrainedModel]) -> dict[str, str]:
    """The text of the tokenizer's files by path, for each model."""
    paths = [Path(subfolder) / name for subfolder in saved for name in TOKENIZER_FILES]
    return {
        str(path): (run / path).read_text(encoding="utf-8")
        for path in paths
        if (run / path).is_file()
    }


def _write_tokenizer(
    config: PretrainConfig, run: Path, saved: dict[str, PreTrainedModel], words: Tokenizer
) -> None:
    """Puts what does not change into the run's folder."""
    clean(run)
    special = SpecialIds(words, config.tokenizer_folder)
    for subfolder, model in saved.items():
        save_tokenizer(
            words,
            run / subfolder,
            model.config.max_length,
            special,
            segments=model.config.type_vocab_size > 1,
        )
        text = json.dumps(model.config.to_dict(type(model).__name__), indent=2) + "\n"
        write_text(run / subfolder / "config.json", text)


def _open_data(
    config: PretrainConfig,
    run: Path,
    saved: dict[str, PreTrainedModel],
    words: Tokenizer,
    ranks: Ranks,
) -> tuple[Batches | Mixture | Stages, HeldOut | None]:
    """What the run trains on, and what is held out. Rank 0 makes the stores, which others open."""
    special = SpecialIds(words, config.tokenizer_folder)
    if not ranks.first:
        ranks.wait("tokenised")
    vocab_size = saved[""].config.vocab_size
    continues = None if config.mask_unit == "token" else continuations(words, vocab_size)

    def batches_of(
        store: TokenStore | ShardedStore,
        masking: str,
        seed: int,
        mask_unit: str,
        seq_len: int = config.seq_len,
        **others: Any,
    ) -> Batches:
        return Batches(
            store,
            special,
            vocab_size,
            seq_len,
            config.batch_tokens,
            OBJECTIVES.find(config.objective),
            masking,
            seed,
            "cpu",  # a worker makes them, and the trainer moves them
            mask_unit,
            continues,
            **others,
        )

    def opened(
        data: tuple[str, ...], folder: Path
    ) -> list[tuple[TokenStore | ShardedStore, float]]:
        cache = "shards" if ranks.first else f"shards-{ranks.rank}"
        found = sources_of(data, run / cache, round(config.shard_cache * (1 << 30)))
        for store, _ in found:
            store.check_tokenizer(words, str(config.tokenizer))
        return [*found] or [(TokenStore.build(data, words, folder, config.text_field), 1.0)]

    stores = opened(config.data, run / "tokens")
    valid: list[TokenStore | ShardedStore] = []
    if config.valid is not None:
        valid = [store for store, _ in opened(config.valid, run / "valid-tokens")]
    elif config.valid_split is not None:
        split = [(*store.split(config.valid_split), weight) for store, weight in stores]
        stores = [(first, weight) for first, _, weight in split]
        valid = [rest for _, rest, _ in split]
    ranks.note("tokenised")
    scored = [held_out_batches(config, store, special, vocab_size) for store in valid]
    held_out = HeldOut(Chain(scored) if len(scored) > 1 else scored[0]) if scored else None
    drawn = config.masking, config.seed, config.mask_unit
    together = config.accumulation or 1
    growth = Growth(
        config.batch_tokens,
        config.batch_tokens_start,
        config.batch_warmup * together,
    )

    def stage(number: int, seq_len: int, first: int) -> Batches | Mixture:
        """The batches of sequences of a length, whose first one is number ``first`` of all."""

        def batches_from(index: int, sizes: Callable[[int], int]) -> Batches:
            return batches_of(
                stores[index][0],
                *drawn,
                seq_len=seq_len,
                source=number * len(stores) + index,
                sizes=sizes,
                together=together,
                grown=growth.batches,
                mask_rate=lambda n: config.mask_rate_at((first + n) // together),
                most_rate=max(config.mask_rate, config.mask_rate_end or 0.0),
            )

        if len(stores) == 1:
            return batches_from(0, lambda n: growth.tokens(first + n))
        names = [Path(s.location).name for s, _ in stores if isinstance(s, ShardedStore)]
        weights = [weight for _, weight in stores]
        return Mixture(names, weights, batches_from, growth, seq_len, first)

    starts = [first * together for _, first in config.stages]
    parts = [
        stage(number, seq_len, first)
        for number, ((seq_len, _), first) in enumerate(zip(config.stages, starts, strict=True))
    ]
    batches = parts[0] if len(parts) == 1 else Stages(list(zip(starts, parts, strict=True)))
    batches.plan()  # says now if the corpus cannot serve the objective
    return batches, held_out


def _fingerprints(
    config: PretrainConfig,
    words: Tokenizer,
    model: nn.Module,
    saved: dict[str, PreTrainedModel],
    batches: Batches | Mixture | Stages,
    held_out: HeldOut | None,
) -> dict[str, str | tuple[str, ...]]:
    """SHA-256 of each thing outside a checkpoint that decides what a run computes."""
    special = SpecialIds(words, config.tokenizer_folder)
    shapes = [part.config.to_dict() for part in saved.values()]
    found = {
        "data": batches.digest,
        "tokenizer": f"{words.to_str()}{special.all}{special.mask}{special.pad}",
        "model's configuration": json.dumps(shapes, sort_keys=True),
    }
    if held_out is not None:
        found["held-out data"] = held_out.batches.digest
    digests: dict[str, str | tuple[str, ...]] = {
        name: hashlib.sha256(text.encode()).hexdigest() for name, text in found.items()
    }
    digests["options"] = _options_digests(config)
    if isinstance(model, Distillation):
        digest = hashlib.sha256()
        for name, weight in model.teacher.state_dict().items():
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
        digests["teacher"] = digest.hexdigest()
    return digests


class RunSetup:
    """What an objective builds its model from (see `bertfast.objectives.registry.Setup`)."""

    def __init__(self, options: PretrainConfig, tokenizer: Tokenizer, speaks: bool = True) -> None:
        self.options, self.tokenizer, self.speaks = options, tokenizer, speaks
        own: dict[str, Any] = {
            # Published vocabularies have ids without a token.
            "vocab_size": max(tokenizer.get_vocab().values()) + 1,
            "pad_token_id": SpecialIds(tokenizer, options.tokenizer_folder).pad,
        }
        self.shape = options.encoder
        if options.starts_random:
            self.shape = replace(self.shape, **own)
        if options.seq_len > self.shape.max_length:
            raise BertfastError(
                f"seq-len is {options.seq_len} and the model has {self.shape.max_length} positions"
            )
        check_tokenizer_fits(
            tokenizer, self.shape, options.tokenizer or str(options.tokenizer_folder)
        )
        if options.starts_random:
            with torch.device("meta"):
                encoder = member_class(self.shape, "Model")(self.shape)
            check_memory(encoder, options.start, copies=4)
        if options.starts_random and self.shape.padding_row != self.shape.pad_token_id:
            raise BertfastError(
                f"{options.tokenizer}: gives padding the id {self.shape.pad_token_id} and "
                f"{self.shape.model_type} counts positions past the id {self.shape.padding_row}. "
                "Take its own tokenizer, or train one with bertfast tokenizer --type mpnet"
            )

    def load_weights(self, model: PreTrainedModel, subfolder: str = "") -> None:
        if not self.options.starts_random:
            load_weights(model, self.options.source.folder / subfolder, new_head_ok=not subfolder)

    def config_at(self, subfolder: str) -> EncoderConfig | None:
        if self.options.starts_random or not (self.options.source.folder / subfolder).is_dir():
            return None
        return load_config(self.options.source.folder / subfolder)

    def other_model(self, folder: str) -> tuple[PreTrainedModel, Tokenizer]:
        local = resolve(folder).folder
        return load(local), load_tokenizer(local)

    def say(self, text: str) -> None:
        if self.speaks:
            print(f"bertfast: {text}", file=sys.stderr)


class _OnLog(Callback):
    """A function that is called with each logged line."""

    def __init__(self, function: Callable[[dict[str, Any]], None]) -> None:
        self.function = function

    def on_log(self, trainer: Trainer, line: dict[str, Any]) -> None:
        self.function(line)


def _settled(config: PretrainConfig, run: Path, ranks: Ranks) -> PretrainConfig:
    """With as many batches an update as the run has had, or else one a rank, where none are told.

    Raises:
        BertfastError: the ranks cannot share them.
    """
    count = config.accumulation
    if count is None:
        kept = read_yaml(run / "config.yaml") if (run / "config.yaml").is_file() else None
        found = kept.get("accumulation") if isinstance(kept, dict) else None
        count = found if isinstance(found, int) and found > 0 else ranks.size
        if ranks.first and count > 1:
            print(
                f"bertfast: an update takes {count} batches of --batch-tokens "
                f"{config.batch_tokens}; one process makes the same run with --accumulation "
                f"{count}",
                file=sys.stderr,
            )
    share_batches(count, ranks)
    return replace(config, accumulation=count)


def _claim(run: Path, config: PretrainConfig, resume: bool) -> bool:
    """Makes the run's folder and returns True, or checks that this run may go on in it and returns
    False.
    """
    # Hidden files are what a run killed in its first moments leaves.
    occupied = run.exists() and (
        not run.is_dir() or any(not path.name.startswith(".") for path in run.iterdir())
    )
    if not occupied:
        make_folder(run)
        write_text(run / "config.yaml", config.to_yaml())
        return True
    if not resume:
        raise BertfastError(
            f"{run}: exists already; choose another --out, or add --resume to go on with that run"
        )
    try:
        saved = read_yaml(run / "config.yaml")
        if not isinstance(saved, dict):
            raise ValueError("no mapping")
    except (BertfastError, ValueError) as error:
        raise BertfastError(
            f"{run}: is no pretraining run (its config.yaml: {' '.join(str(error).split())})"
        ) from error
    if "shape" not in saved:  # before there was one, a model's name stood for its shape too
        model = str(saved.get("model"))
        if model in PRESETS or model.endswith(".json"):
            saved |= {"shape": model, "model": None}
    younger = {field.name: field.default for field in fields(config) if field.name in YOUNGER}
    saved = {**younger, **saved}
    now = {name: value for name, value in config.to_dict().items() if name not in FREE}
    changed = [name for name in now if saved.get(name) != now[name]]
    if changed:
        shown = ", ".join(f"{name} was {saved.get(name)!r}, is {now[name]!r}" for name in changed)
        raise BertfastError(f"{run}: a resumed run keeps its options, but {shown}")
    return False


def _options_digests(config: PretrainConfig) -> tuple[str, ...]:
    """Of the options that decide what is computed: as they are written now, and as they were before
    there was a shape.
    """
    kept = without_defaults(config, YOUNGER).keys() - set(FREE)
    values = {name: value for name, value in config.to_dict().items() if name in kept}
    before = {name: value for name, value in values.items() if name not in ("shape", "revision")}
    before["model"] = config.start
    return tuple(
        hashlib.sha256(json.dumps(form, sort_keys=True).encode()).hexdigest()
        for form in (values, before)
    )
