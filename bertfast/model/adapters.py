"""Adapters of `peft` over our models: a few new weights train, the model's own stay as they are.

`peft` puts its layers in the place of ours, in the same tree of names as `transformers` has, so
its folders go both ways. The packed forward calls what stands in a module's place.

Sources: LoRA, Hu et al. (2021); DoRA, Liu et al. (2024); (IA)3, Liu et al. (2022).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bertfast import kernels
from bertfast.checks import number, one_of, whole_number
from bertfast.config import EncoderConfig
from bertfast.errors import BertfastError
from bertfast.files import make_folder, read_object, write_text
from bertfast.resolve import resolve
from bertfast.seeds import ADAPTER, drawn_seed, fold_in

from .checkpoint import ADAPTER_SETTINGS, load_config
from .family import member_of
from .weights import open_safetensors, write_tensors

if TYPE_CHECKING:
    from .models import PreTrainedModel

ADAPTERS = ("lora", "dora", "ia3")
WEIGHTS = "adapter_model.safetensors"
# The whole model's configuration, with the labels. Under the usual name, `transformers` would take
# the folder for one of a whole model.
CONFIG = "adapted_config.json"
PREFIX = "base_model.model."  # of the weights' names in peft's files
NAME = "default"  # peft's name of the first adapter
# The names that peft has for what a model's head does.
TASK_TYPES = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}
ATTENTION = ("query", "value", "query_key_value")
KEYS = ("key", "value", "query_key_value")


@dataclass(frozen=True)
class Adapter:
    """What is put over a model.

    Attributes:
        kind: "lora", "dora" or "ia3".
        rank: of the two factors of a change of weights; (IA)3 has none.
        alpha: the change is scaled by alpha / rank.
        dropout: of the input of the factors.
        targets: "attention" for the projections of queries and values, "all-linear" for every
            linear layer of the encoder, or ends of modules' paths between commas. (IA)3 has its
            own: keys, values and the feed-forward's inner states.
    """

    kind: str = "lora"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: str = "attention"

    def __post_init__(self) -> None:
        one_of("adapter", self.kind, ADAPTERS)
        whole_number("adapter_rank", self.rank, 1)
        number("adapter_alpha", self.alpha, above=0)
        number("adapter_dropout", self.dropout, least=0, below=1)
        if not isinstance(self.targets, str) or not self.targets.strip(", "):
            raise BertfastError(
                f"adapter-targets is {self.targets!r}; it must be attention, all-linear, or names "
                "of modules between commas"
            )


class SeededDropout(nn.Module):
    """Dropout whose bits are counted from the forward's seed, as those of the encoder are."""

    seed: int | Tensor | None

    def __init__(self, p: float, site: int) -> None:
        super().__init__()
        self.p, self.site = p, site
        self.seed = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        seed = drawn_seed(x.device) if self.seed is None else self.seed
        return kernels.dropout(x, self.p, seed=fold_in(seed, ADAPTER, self.site))


class AdaptedModel:
    """A model with an adapter over it, which trains with the head alone.

    Attributes:
        model: that was given; its modules are exchanged in place.
        base: name of the model without it: a folder, or an id on the Hub.
    """

    def __init__(self, model: PreTrainedModel, adapter: Adapter, base: str) -> None:
        """Puts the adapter over the encoder.

        Args:
            model: its weights' ``requires_grad`` is set.
            adapter: its new weights are drawn from torch's generator.
            base: for the folder that `save_pretrained` writes.

        Raises:
            BertfastError: peft is not installed, or no module has a name of ``targets``.
        """
        self.model, self.base = model, base
        head = [name for name, _ in model.named_parameters() if not _below(name, model.member.base)]
        self._peft = _peft().PeftModel(model, _settings(model, adapter))
        for name in head:
            model.get_parameter(name).requires_grad_(True)
        self._trained = set(head)
        sites: list[SeededDropout] = []
        for layer in model.modules():
            drops = getattr(layer, "lora_dropout", None)
            if isinstance(drops, nn.ModuleDict) and isinstance(drops[NAME], nn.Dropout):
                sites.append(SeededDropout(adapter.dropout, len(sites) + 1))
                drops[NAME] = sites[-1]

        def seed_sites(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            for site in sites:
                site.seed = kwargs.get("seed")

        if sites:
            model.register_forward_pre_hook(seed_sites, with_kwargs=True)

    def train_too(self, names: list[str]) -> None:
        """Lets other weights of the model train, such as a pooler that started from random ones;
        they are saved with the head.
        """
        for name in names:
            self.model.get_parameter(name).requires_grad_(True)
        self._trained |= set(names)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes peft's two files, in which the head's weights are too, and our configuration.

        Raises:
            BertfastError: the folder cannot be written to.
        """
        folder, model = Path(folder), self.model
        make_folder(folder)
        own = dict(model.named_parameters())
        tensors = {
            **_weights(self._peft),
            **{PREFIX + name: own[name].detach() for name in sorted(self._trained)},
        }
        settings = self._peft.peft_config[NAME].to_dict() | {
            "task_type": TASK_TYPES.get(type(model).__name__.removeprefix(model.member.name)),
            "base_model_name_or_path": self.base,
            "modules_to_save": sorted({_module_of(name, model) for name in self._trained}),
            "inference_mode": True,
        }
        kept = {name: value.float().contiguous() for name, value in tensors.items()}
        write_tensors(folder / WEIGHTS, kept, {"format": "pt"})
        write_text(folder / ADAPTER_SETTINGS, json.dumps(settings, indent=2, default=_plain) + "\n")
        config = model.config.to_dict(type(model).__name__)
        write_text(folder / CONFIG, json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def load_adapted_config(folder: str | Path) -> tuple[EncoderConfig, str | None, str]:
    """The whole model's configuration, the end of its class's name, and the base model's name.

    peft's own folders have no configuration: the base's is taken, and the class by the task.

    Raises:
        BertfastError: a file cannot be read, or the base cannot be found.
    """
    folder = Path(folder)
    settings = read_object(folder / ADAPTER_SETTINGS)
    base = settings.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise BertfastError(
            f"{folder / ADAPTER_SETTINGS}: base_model_name_or_path is {base!r}; it must name a "
            "model"
        )
    if (folder / CONFIG).is_file():
        config = EncoderConfig.from_json_file(folder / CONFIG)
        names = read_object(folder / CONFIG).get("architectures")
        if isinstance(names, list) and names and isinstance(names[0], str):
            return config, names[0].removeprefix(member_of(config).name), base
        return config, None, base
    heads = [head for head, task in TASK_TYPES.items() if task == settings.get("task_type")]
    return load_config(resolve(base).folder), heads[0] if heads else None, base


def merge(model: PreTrainedModel, folder: str | Path) -> list[str]:
    """Adds a folder's adapter to the weights of its base model, in place.

    Args:
        model: with the base's weights in its encoder.
        folder: as `AdaptedModel.save_pretrained` or peft wrote it.

    Returns:
        The names of the weights, not of the adapter, that the folder holds.

    Raises:
        BertfastError: peft is not installed, or the files do not fit the model.
    """
    folder, peft = Path(folder), _peft()
    stored = open_safetensors(folder / WEIGHTS)
    own = model.state_dict()
    whole = {
        name: stored[PREFIX + name] for name in own if PREFIX + name in stored
    }  # under names that the adapter's layers do not have
    for name, tensor in whole.items():
        if tensor.shape != tuple(own[name].shape):
            raise BertfastError(
                f"{folder / WEIGHTS}: {name} is {tensor.shape}, and the model's is "
                f"{tuple(own[name].shape)}"
            )
    try:
        settings = peft.PeftConfig.from_pretrained(str(folder))
        settings.modules_to_save, settings.task_type = None, None
        adapted = peft.PeftModel(model, settings)
        weights = {
            name: tensor.read()
            for name, tensor in stored.items()
            if name.removeprefix(PREFIX) not in whole
        }
        result = peft.set_peft_model_state_dict(adapted, weights, adapter_name=NAME)
        names = _weights(adapted)
    except (TypeError, ValueError, KeyError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BertfastError(f"{folder}: its adapter does not fit the model ({reason})") from None
    unknown = sorted({*result.unexpected_keys, *(weights.keys() - names.keys())})
    if problems := [*unknown, *sorted(names.keys() - weights.keys())]:
        raise BertfastError(
            f"{folder / WEIGHTS}: the adapter's weights do not fit {ADAPTER_SETTINGS}: "
            f"{problems[0]} {'is unknown' if unknown else 'is missing'}"
        )
    adapted.base_model.merge_and_unload()
    with torch.no_grad():
        for name, tensor in whole.items():
            model.get_parameter(name).copy_(tensor.read())
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return list(whole)


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise BertfastError(
            "adapters need the package peft; install it with: pip install 'bertfast[adapters]'"
        ) from None
    return peft


def _settings(model: PreTrainedModel, adapter: Adapter) -> Any:
    """The configuration of peft, which names modules in full: the ends of two paths may agree."""
    peft, member = _peft(), model.member
    prefix = "" if model.base is model else f"{member.base}."
    layers = {
        member.layer_path(index, model.config) for index in range(model.config.num_hidden_layers)
    }

    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}

    def of(roles: Iterable[str]) -> list[str]:
        names = {
            f"{prefix}{layer}.{member.layer_paths[role]}"
            for layer in layers
            for role in roles
            if role in member.layer
        }
        return sorted(names & linear)

    if adapter.kind == "ia3":
        return peft.IA3Config(target_modules=of([*KEYS, "down"]), feedforward_modules=of(["down"]))
    if adapter.targets == "attention":
        targets = of(ATTENTION)
    else:
        every = of(member.layer)
        ends = [end.strip() for end in adapter.targets.split(",") if end.strip()]
        targets = every if ends == ["all-linear"] else []
        for end in ends if not targets else ():
            found = [name for name in every if f".{name}".endswith(f".{end}")]
            if not found:
                shown = sorted({name.rpartition(".")[2] for name in every})
                raise BertfastError(
                    f"adapter-targets names {end!r}, and no linear layer of {type(model).__name__} "
                    f"ends so; they end in {', '.join(shown)}"
                )
            targets += found
    return peft.LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=sorted(set(targets)),
        use_dora=adapter.kind == "dora",
    )


def _weights(adapted: Any) -> dict[str, Tensor]:
    """The adapter's own, by peft's names."""
    found: dict[str, Tensor] = _peft().get_peft_model_state_dict(
        adapted, adapter_name=NAME, save_embedding_layers=False
    )
    return found


def _below(name: str, path: str) -> bool:
    return name.startswith(f"{path}.")


def _module_of(name: str, model: PreTrainedModel) -> str:
    """The module to save for a weight: the head's whole one, or the weight's own in the encoder."""
    return name.rpartition(".")[0] if _below(name, model.member.base) else name.partition(".")[0]


def _plain(value: Any) -> Any:
    """peft's sets and enumerations for JSON."""
    return (
        sorted(value)
        if isinstance(value, (set, frozenset))
        else str(getattr(value, "value", value))
    )
