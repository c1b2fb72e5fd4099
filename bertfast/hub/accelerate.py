"""Live models of `transformers` on our encoder.

The forward of each base model of the family is exchanged in place, and its parameters are used as
they are.

Nothing is registered with the modules, so parameters, names and checkpoints stay what they were. A
call that our encoder cannot serve goes to the original forward, and the first of its kind says so.
"""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial, wraps
from types import MethodType, ModuleType
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

from bertfast.config import EncoderConfig
from bertfast.errors import BertfastError
from bertfast.kernels import products
from bertfast.kernels.linear import widened_products
from bertfast.model.attention import POSITIONS
from bertfast.model.encoder import Encoder, make_tree, num_blocks
from bertfast.model.family import FAMILY, Member
from bertfast.model.submodules import Submodules
from bertfast.packed import IGNORE_INDEX

_STATE = "_bertfast"  # the attribute under which an exchanged module keeps what its forward needs
_DEPTH, _HELD = 4, 10_000  # attributes within one another, and of a holder in all, to search
# Base models of `transformers` by module and name, and the members' rows.
_BASES = {(member.modelling_file, f"{member.name}Model"): member for member in FAMILY.values()}

# Arguments of the base models that our encoder takes, and those that mean nothing to an encoder of
# padded input.
_SERVED = {
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "position_ids",
    "inputs_embeds",
    "output_hidden_states",
    "output_attentions",
    "return_dict",
}
_WITHOUT_EFFECT = {
    "use_cache",
    "cache_position",
    "encoder_attention_mask",
    "num_items_in_batch",
    "batch_size",
    "seq_len",
}
_LABELS = ("labels", "start_positions")  # of a head, of which a loss follows
# Fields of a configuration that concern its heads, which stay the original's.
_HEAD_FIELDS = ("tie_word_embeddings", "id2label", "label2id", "num_labels", "problem_type")
_HEAD_PREFIXES = ("classifier_", "summary_", "pooler_")
# Heads of `transformers` that read each token by itself, none the first in particular.
_PER_TOKEN_HEADS = (
    "ForMaskedLM",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ElectraForPreTraining",
)
_HEADS_THAT_MASK = ("ElectraForPreTraining",)  # whose loss leaves out padding by itself
# Hooks of adapter libraries and of `transformers` itself that a packed call may leave out, or run
# on a leaf.
_KNOWN_HOOKS = ("make_inputs_require_grad", "output_capturing_hook")


def accelerate(model: Any) -> Any:
    """Runs the encoders in a live model of `transformers` with bertfast's kernels, in place, for
    inference and training; returns the model.

    Served are BERT (MiniLM too), RoBERTa, XLM-RoBERTa, CamemBERT, MPNet, ALBERT, DistilBERT,
    ELECTRA, DeBERTa v2 and v3 and ModernBERT. Their base models may stand anywhere below ``model``.
    So it may have a task head, or be a `peft.PeftModel` or a
    `sentence_transformers.SentenceTransformer`. Parameters, their names and what `save_pretrained`
    writes stay as they are, so an optimizer that holds the parameters keeps working. `restore`
    undoes it.

    Outputs are those of the original but at padding, where they are zeros, unless a head or its
    loss reads them. A call that cannot be served runs the original, which a warning says once. The
    reason may be attention weights that are wanted, masks between pairs of tokens, caches, hooks on
    inner modules and the like. Dropout in training has the rates of the model's `torch.nn.Dropout`
    modules and other random bits than the original.

    Args:
        model: any `torch.nn.Module`, or an object that holds one, or several, in its attributes:
            langchain's `HuggingFaceEmbeddings`, a `KeyBERT`, a `SetFitModel`, a pipeline.

    Raises:
        BertfastError: no encoder in it can be served. Where only some can, a warning names the
            others and why.
    """
    roots = _roots(model)
    if not roots:
        raise BertfastError(
            "accelerate takes a model of transformers (a torch.nn.Module), "
            f"or an object that holds one; a {type(model).__name__} has none in its attributes. "
            "Pass the model itself, as in accelerate(pipeline.model)"
        )
    served, refused = 0, []
    named = [item for path, root in roots for item in root.named_modules(prefix=path)]
    for name, module in named:
        member = _member(module)
        if member is None:
            continue
        if not _is_exchanged(module):
            state = _Base(module, member)
            trouble = _own_forward(module) or state.trouble
            if trouble is not None:
                refused.append(f"{name or 'the model'} ({type(module).__name__}): {trouble}")
                continue
            _exchange(module, state)
        served += 1
    if not served:
        supported = ", ".join(name for _, name in _BASES)
        found = "; ".join(refused) or f"no base model of the family in this {type(model).__name__}"
        raise BertfastError(
            f"nothing to accelerate: {found}. Supported are transformers' {supported}"
        )
    if refused:
        warnings.warn(f"bertfast leaves untouched {'; '.join(refused)}", stacklevel=2)
    for _, root in roots:
        _attach_heads(root)
        if _STATE not in root.__dict__ and not all(products.NATIVE.values()):
            _exchange(root, _Root())
    return model


def restore(model: Any) -> Any:
    """Gives every module below ``model`` that `accelerate` changed its own forward back; returns
    the model.
    """
    for module in [module for _, root in _roots(model) for module in root.modules()]:
        state = module.__dict__.get(_STATE)
        if state is None:
            continue
        if _is_exchanged(module):
            module.__dict__.pop("_replicate_for_data_parallel")
            module.__dict__.pop("forward")
            if state.previous is not None:
                module.forward = state.previous
        del module.__dict__[_STATE]
    return model


def _roots(model: Any) -> list[tuple[str, nn.Module]]:
    """The module that this is, or those in the attributes of an object and of the objects there,
    each with its path.
    """
    if isinstance(model, nn.Module):
        return [("", model)]
    found: list[tuple[str, nn.Module]] = []
    level, seen = [("", model)], {id(model)}
    for _ in range(_DEPTH):
        below = []
        for path, holder in level:
            for name, value in _attributes(holder):
                if id(value) in seen or len(seen) > _HELD:
                    continue
                seen.add(id(value))
                inner = f"{path}.{name}" if path else name
                if isinstance(value, nn.Module):
                    found.append((inner, value))
                else:
                    below.append((inner, value))
        level = below
    return found


def _attributes(holder: Any) -> list[tuple[str, Any]]:
    """What an object holds, pydantic's private attributes too; of a list or dictionary the
    items.
    """
    if isinstance(holder, Mapping):
        return [(str(name), value) for name, value in holder.items()]
    if isinstance(holder, list | tuple):
        return [(str(index), value) for index, value in enumerate(holder)]
    if isinstance(holder, type | ModuleType):
        return []
    held = dict(getattr(holder, "__dict__", None) or {})
    held |= getattr(holder, "__pydantic_private__", None) or {}
    return list(held.items())


def _member(module: nn.Module) -> Member | None:
    """The row of the member whose base model this is, or derives from."""
    names = ((cls.__module__, cls.__name__) for cls in type(module).__mro__)
    return next((_BASES[name] for name in names if name in _BASES), None)


def _own_forward(module: nn.Module) -> str | None:
    """Why a module's forward is not that of `transformers`; None where it is."""
    forward = type(module).forward
    if forward.__module__ not in {file for file, _ in _BASES}:
        return f"its class has a forward of its own, from {forward.__module__}"
    replaced = module.__dict__.get("forward")
    if replaced is not None and getattr(replaced, "__func__", None) is not forward:
        return "its forward was replaced"
    return None


def _exchange(module: nn.Module, state: _Base | _Head) -> None:
    """Puts our forward before the class's. As a bound method it is copied with the module; pickled,
    it gives the class's own.
    """
    state.previous = module.__dict__.get("forward")
    object.__setattr__(module, _STATE, state)
    object.__setattr__(module, "forward", MethodType(state.make(type(module).forward), module))
    object.__setattr__(
        module, "_replicate_for_data_parallel", MethodType(_replicate_for_data_parallel, module)
    )


def _is_exchanged(module: nn.Module) -> bool:
    """Whether our forward is in place; someone may have put another before it, and pickling drops
    it.
    """
    state = module.__dict__.get(_STATE)
    if state is None:
        return False
    forward = getattr(module.__dict__.get("forward"), "__func__", None)
    return forward is state.make(type(module).forward)


def _replicate_for_data_parallel(module: nn.Module) -> nn.Module:
    """`torch.nn.DataParallel` copies instance attributes as they are: our forward would run on the
    first device's weights.
    """
    replica = type(module)._replicate_for_data_parallel(module)
    for name in ("forward", "_replicate_for_data_parallel", _STATE):
        replica.__dict__.pop(name, None)
    return replica


@cache
def _base_forward(original: Callable[..., Any]) -> Callable[..., Any]:
    """The forward of a base model: ours, with the original's signature."""
    serve = torch.compiler.disable(_serve)  # packed shapes depend on the mask's values

    @wraps(original)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if _STATE not in self.__dict__ or torch.jit.is_tracing() or torch.compiler.is_exporting():
            return original(self, *args, **kwargs)
        output = serve(self.__dict__[_STATE], original, args, kwargs)
        if output is None:
            with widened_products(_first_parameter(self)):
                output = original(self, *args, **kwargs)
        return output

    return forward


def _serve(
    state: _Base, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """What the base model returns to these arguments; None for the original to run."""
    given = _by_name(original, args, kwargs)
    if given is None:
        return None
    try:
        return state.run(given)
    except _Unserved as unserved:
        if unserved.args:
            state.say(str(unserved))
        return None


@cache
def _head_forward(original: Callable[..., Any]) -> Callable[..., Any]:
    """The forward of a model with a head: the original's, after a word to its encoder on what the
    loss reads.
    """
    announce = torch.compiler.disable(_announce)
    names, _ = _parameters(original)
    before = min(names.index(name) for name in _LABELS if name in names)

    @wraps(original)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        state = self.__dict__.get(_STATE)
        if state is not None and (
            len(args) > before or any(kwargs.get(name) is not None for name in _LABELS)
        ):
            announce(self, original, args, kwargs)
        return _run_widened(self, original, args, kwargs)

    return forward


@cache
def _root_forward(original: Callable[..., Any]) -> Callable[..., Any]:
    """The forward of the model that `accelerate` was given: the original's, with the products of
    its other layers widened where the encoder's are.
    """

    @wraps(original)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return _run_widened(self, original, args, kwargs)

    return forward


def _run_widened(
    module: nn.Module,
    original: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """The forward that a module had, its own or its class's."""
    state = module.__dict__.get(_STATE)
    with widened_products(_first_parameter(module)):
        if state is None or state.previous is None:
            return original(module, *args, **kwargs)
        return state.previous(*args, **kwargs)


def _first_parameter(module: nn.Module) -> Tensor | None:
    return next(module.parameters(), None)


def _announce(
    head: nn.Module, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Tells the encoders below whether the loss of this call is of outputs at padding too."""
    given = _by_name(original, args, kwargs)
    reads = given is not None and _loss_reads_padding(head, given)
    for child in head.children():
        if _is_base(child):
            child.__dict__[_STATE].loss_reads_padding = reads


@cache
def _parameters(function: Callable[..., Any]) -> tuple[tuple[str, ...], bool]:
    """The names of a method's parameters past self, and whether it takes others by keyword."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    names = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
    return names, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _by_name(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any] | None:
    """The arguments of a call by name; None where the call is in error, which the original then
    says.
    """
    names, open_ended = _parameters(function)
    positional = dict(zip(names, args, strict=False))
    wrong = len(args) > len(names) or positional.keys() & kwargs.keys()
    if wrong or not (open_ended or kwargs.keys() <= set(names)):
        return None
    return positional | kwargs


def _is_base(module: nn.Module) -> bool:
    return isinstance(module.__dict__.get(_STATE), _Base)


class _Head:
    """What a model with a head keeps.

    Attributes:
        previous: the forward that the instance had of its own.
        make: from the class's forward to the one in its place.
    """

    previous: Callable[..., Any] | None = None
    make = staticmethod(_head_forward)


class _Root(_Head):
    """The same of a model that holds an encoder deeper down."""

    make = staticmethod(_root_forward)


def _attach_heads(model: nn.Module) -> None:
    """Tells each encoder whether the modules right above it read its first column, and has them
    announce what their losses read.
    """
    above: dict[_Base, list[nn.Module]] = {
        module.__dict__[_STATE]: [] for module in model.modules() if _is_base(module)
    }
    for module in list(model.modules()):
        bases = [child.__dict__[_STATE] for child in module.children() if _is_base(child)]
        for base in bases:
            above[base].append(module)
        if (
            bases
            and set(_LABELS) & set(_parameters(type(module).forward)[0])
            and not _is_exchanged(module)
        ):
            _exchange(module, _Head())
    for base, heads in above.items():
        base.head_reads_first = not heads or not all(_is_per_token(type(head)) for head in heads)


def _is_per_token(head: type[nn.Module]) -> bool:
    return head.__module__.startswith("transformers.models.") and head.__name__.endswith(
        _PER_TOKEN_HEADS
    )


def _loss_reads_padding(head: nn.Module, given: dict[str, Any]) -> bool:
    """Whether a head's loss is of outputs at padding too: a span's softmax runs over them, and a
    label may stand there.
    """
    mask, labels = given.get("attention_mask"), given.get("labels")
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return False
    if given.get("start_positions") is not None and given.get("end_positions") is not None:
        return True
    if (
        not isinstance(labels, Tensor)
        or labels.shape != mask.shape
        or type(head).__name__ in _HEADS_THAT_MASK
    ):
        return False
    return bool(((labels != IGNORE_INDEX) & (mask == 0).to(labels.device)).any())


class _Base:
    """What a base model keeps: our encoder over its modules, and what was said.

    Attributes:
        previous: the forward that the instance had of its own.
        head_reads_first: whether something beside the pooler may read the outputs at column 0.
        loss_reads_padding: whether the loss of the next call is of outputs at padding too.
        make: from the class's forward to the one in its place.
    """

    make = staticmethod(_base_forward)

    def __init__(self, base: Any, member: Member) -> None:
        self.base, self.kind = base, member.config.model_type
        self.previous: Callable[..., Any] | None = None
        self.head_reads_first, self.loss_reads_padding = True, False
        self._said: set[str] = set()
        self._build()

    @property
    def member(self) -> Member:
        """The member's row, which a pickle does not hold."""
        return FAMILY[self.kind]

    def _build(self) -> None:
        """Lays the encoder over the modules as they are now."""
        member = self.member
        self.trouble: str | None = None
        self._containers: list[nn.Module] = [self.base]
        try:
            config = _config(self.base, member)
            self.trouble = _misfit(self.base, member, config)
        # AttributeError is of a module that is not where it should be.
        except (BertfastError, AttributeError) as error:
            self.trouble = str(error)
        if self.trouble is None:
            self._config = config
            self.encoder = Encoder(config, self.base)
            self._dropouts = [
                (Submodules(self.base, {path: path}), path, name)
                for path, name in member.dropouts.items()
            ]
            blocks = _blocks(member, config)
            for block in sorted(blocks):
                root = self.base.get_submodule(block)
                self._dropouts += [
                    (Submodules(root, {path: path}), path, name)
                    for path, name in member.layer_dropouts.items()
                ]
            used = {f"{block}.{path}" for block in blocks for path in member.layer_paths.values()}
            used |= set(member.module_paths.values())
            for path, module in _modules_but(self.base, used):
                own = type(module).__module__ == member.modelling_file
                if own or isinstance(module, nn.ModuleList):
                    self._containers.append(module)
                elif not _is_harmless(module):
                    self.trouble = f"{path} is a {type(module).__name__}"
        self._children = self._current_children()

    def _current_children(self) -> list[tuple[str, nn.Module | None]]:
        return [child for container in self._containers for child in container._modules.items()]

    def say(self, reason: str) -> None:
        """Once for each reason."""
        if reason not in self._said:
            self._said.add(reason)
            name = type(self.base).__name__
            warnings.warn(
                f"bertfast: the original forward of {name} runs where {reason}; said once",
                stacklevel=2,
            )

    def _check(self, given: dict[str, Any]) -> tuple[Tensor | None, bool]:
        """The mask, None where it hides nothing, and whether outputs at padding are wanted; raises
        `_Unserved`.
        """
        config = self.base.config
        loss_reads_padding, self.loss_reads_padding = self.loss_reads_padding, False
        if self._option(given, "output_attentions"):
            raise _Unserved("attention weights are wanted (output_attentions)")
        for name in given.keys() - _SERVED - _WITHOUT_EFFECT:
            if given[name] is not None and given[name] is not False:
                raise _Unserved(f"{name} is given")
        for name in ("is_decoder", "is_causal"):
            if getattr(config, name, False):
                raise _Unserved(f"its config says {name}")
        self._check_modules()
        ids, embeds, mask = (
            given.get(name) for name in ("input_ids", "inputs_embeds", "attention_mask")
        )
        first = ids if ids is not None else embeds
        if (
            (ids is None) == (embeds is None)
            or not isinstance(first, Tensor)
            or first.dim() != (2 if embeds is None else 3)
        ):
            raise _Unserved
        shape = tuple(first.shape[:2])
        for name in ("token_type_ids", "position_ids"):
            value = given.get(name)
            if value is not None and tuple(value.shape) not in (shape, (1, shape[1]), shape[1:]):
                raise _Unserved
        ends_normed = (
            not self._is_old_style and getattr(config, "tie_last_hidden_states", True) is not False
        )
        if (
            "final_norm" in self.member.modules
            and not ends_normed
            and self._option(given, "output_hidden_states")
        ):
            raise _Unserved("hidden states before the final norm are wanted")
        keep = False
        if mask is not None:
            if not isinstance(mask, Tensor) or mask.dim() != 2:
                form = (
                    f"{mask.dim()} dimensions"
                    if isinstance(mask, Tensor)
                    else f"the type {type(mask).__name__}"
                )
                raise _Unserved(f"attention_mask has {form}; served is (sequences, positions)")
            if tuple(mask.shape) not in (shape, (1, shape[1])):
                raise _Unserved
            mask = (mask != 0).expand(shape).to(first.device)
            if bool(mask.all()):
                mask = None
            else:
                reads_first = self.head_reads_first or self.encoder.modules.pooler is not None
                keep = loss_reads_padding or (reads_first and not bool(mask[:, 0].all()))
                if keep and not self._everyone_sees(mask):
                    raise _Unserved("padding that sees no token is read")
        return mask, keep

    def _everyone_sees(self, mask: Tensor) -> bool:
        """Whether what an output at padding is does not depend on the original's attention: some
        give the mean to what sees nothing, some zeros.
        """
        if self.member.hides_padding:
            return True
        reach = POSITIONS[self.member.positions].reach(self.encoder.config)
        if reach is None:
            return bool(mask.any(1).all())
        return bool(F.max_pool1d(mask[:, None].float(), 2 * reach + 1, 1, reach).all())

    def _check_modules(self) -> None:
        """That the modules are those that the encoder was laid over, and that leaving out the calls
        of the inner ones is not noticed.
        """
        if self.trouble is not None or self._current_children() != self._children:
            self._build()
        if self.trouble is not None:
            raise _Unserved(self.trouble)
        if getattr(self.base, "z_steps", 0) > 1:
            raise _Unserved("z_steps is above 1")
        for name, child in self._children:
            if child is None:
                continue
            if "forward" in child.__dict__:
                raise _Unserved(f"the forward of an inner module ({name}) was replaced")
            for hooks in (
                child._forward_hooks,
                child._forward_pre_hooks,
                child._backward_hooks,
                child._backward_pre_hooks,
            ):
                if hooks and not all(
                    any(n in getattr(h, "__qualname__", "") for n in _KNOWN_HOOKS)
                    for h in hooks.values()
                ):
                    raise _Unserved(f"an inner module ({name}) has hooks")

    def _rates(self) -> dict[str, float]:
        """The rates at which the model's dropouts drop now, by field of our configuration; none
        when they do not.
        """
        rates: dict[str, float] = {}
        for modules, path, name in self._dropouts:
            module = getattr(modules, path)
            if module is None or isinstance(module, nn.Identity):
                rate = 0.0
            else:  # ModernBERT's attention has a number
                rate = (
                    (module.p if isinstance(module, nn.Dropout) else module.attention_dropout)
                    if module.training
                    else 0.0
                )
            if rates.setdefault(name, rate) != rate:
                raise _Unserved(f"its dropouts that stand for {name} have different rates")
        return rates if any(rates.values()) else {}

    @property
    def _is_old_style(self) -> bool:
        """Whether the original takes its options as arguments of its own (`transformers` 4, and
        DeBERTa), not through decorators.
        """
        return "return_dict" in _parameters(type(self.base).forward)[0]

    def _option(self, given: dict[str, Any], name: str) -> Any:
        value = given.get(name)
        if name not in given or (value is None and self._is_old_style):
            value = getattr(self.base.config, name, False)
        return value

    def run(self, given: dict[str, Any]) -> Any:
        """Our forward, and what the original would return; raises `_Unserved`."""
        mask, keep_padding = self._check(given)
        encoder, rates = self.encoder, self._rates()
        try:
            encoder.config = replace(self._config, **rates) if rates else self._config  # type: ignore[arg-type]
        except BertfastError as error:  # a rate of 1
            raise _Unserved(str(error)) from error
        encoder.checkpoint = self._checkpoint()
        positions = given.get("position_ids")
        segments = given.get("token_type_ids")
        encoded = encoder.encode(
            given.get("input_ids"),
            mask,
            segments[None] if segments is not None and segments.dim() == 1 else segments,
            positions[None] if positions is not None and positions.dim() == 1 else positions,
            given.get("inputs_embeds"),
            training=bool(rates),
            read_first=encoder.modules.pooler is not None,
            keep_padding=keep_padding,
        )
        states = None
        selection = self._option(given, "output_hidden_states")
        if selection:
            states = self._selected(encoded.hidden_states(True), selection)
        last = (
            encoded.as_input(encoded.last) if states is None or states[-1] is None else states[-1]
        )
        return self._output(given, last, encoder.pooled(encoded), states)

    def _selected(self, states: Any, selection: Any) -> tuple[Tensor | None, ...]:
        """Of (layers + 1) hidden states those that the caller asked for: a flag, or in
        `transformers` 5 also one index or several.
        """
        if self._is_old_style:  # one for each turn through a group of layers
            return states[:: self.encoder.config.inner_group_num]
        if isinstance(selection, bool):
            return states
        chosen = {
            index % len(states)
            for index in ([selection] if isinstance(selection, int) else selection)
            if -len(states) <= index < len(states)
        }
        return tuple(state if index in chosen else None for index, state in enumerate(states))

    def _output(
        self, given: dict[str, Any], last: Tensor, pooled: Tensor | None, states: Any
    ) -> Any:
        import transformers.modeling_outputs

        config = self.base.config
        cls = getattr(transformers.modeling_outputs, self.member.output)
        fields: dict[str, Any] = {"last_hidden_state": last, "hidden_states": states}
        pools = hasattr(self.base, "pooler")
        if pools:
            fields["pooler_output"] = pooled
        if self._is_old_style:
            as_dict = given.get("return_dict")
            if as_dict is None:
                as_dict = config.return_dict and not getattr(config, "torchscript", False)
            if not as_dict:
                return (
                    last,
                    *([pooled] if pools else []),
                    *([states] if states is not None else []),
                )
            return cls(**fields)
        output = cls(**fields)
        return (
            output.to_tuple() if given.get("return_dict", config.return_dict) is False else output
        )

    def _checkpoint(self) -> Callable[..., Any] | None:
        """What recomputes a layer in the backward, where `gradient_checkpointing_enable` was
        called; without reentrance, whatever the model's own has.
        """
        for module in self._containers:
            if module.__dict__.get("gradient_checkpointing") and module.training:
                own = getattr(module, "_gradient_checkpointing_func", None)
                options = own.keywords if isinstance(own, partial) else {}
                return partial(
                    torch.utils.checkpoint.checkpoint, **{**options, "use_reentrant": False}
                )
        return None


class _Unserved(Exception):
    """Why the original runs; without a reason where it will say itself what is wrong."""


def _config(base: Any, member: Member) -> EncoderConfig:
    """Ours, of the encoder alone: heads and dropouts are those of the modules."""
    values = {
        name: value
        for name, value in base.config.to_dict().items()
        if name not in _HEAD_FIELDS
        and not name.startswith(_HEAD_PREFIXES)
        and "dropout" not in name
    }
    return EncoderConfig.from_dict({**values, "model_type": member.config.model_type})


def _blocks(member: Member, config: EncoderConfig) -> set[str]:
    """The paths of the layers; one that several turns share is there once."""
    return {member.layer_path(index, config) for index in range(num_blocks(config))}


def _misfit(base: nn.Module, member: Member, config: EncoderConfig) -> str | None:
    """Where the modules are not those that the configuration describes: pruned heads, removed
    layers, another activation.
    """
    blocks = _blocks(member, config)
    for holder, layers in Counter(path.rpartition(".")[0] for path in blocks).items():
        found = len(base.get_submodule(holder)._modules)
        if found != layers:
            return f"it has {found} layers and its config {layers}"
    with torch.device("meta"):
        tree = nn.Module()
        make_tree(tree, config, add_pooling_layer=getattr(base, "pooler", None) is not None)
    for path, module in tree.named_modules():
        if next(module.parameters(recurse=False), None) is None:
            continue
        try:
            live = base.get_submodule(path)
        except AttributeError:
            return f"it has no {path}, which its config asks for"
        if type(live) is not type(module):
            continue  # an adapter's, say
        rows = 1 if isinstance(module, nn.Embedding) else 0  # tables may have been resized
        shapes = [
            {name: tuple(x.shape[rows:]) for name, x in m.named_parameters()}
            for m in (live, module)
        ]
        if shapes[0] != shapes[1]:
            return f"{path} has the shapes {shapes[0]} and its config asks for {shapes[1]}"
    from transformers.activations import ACT2FN

    for block in blocks:
        activation = base.get_submodule(block).get_submodule(member.activation)
        if type(activation) is not type(ACT2FN[config.hidden_act]):
            return (
                f"an activation is a {type(activation).__name__} "
                f"and its config asks for {config.hidden_act}"
            )
    return None


def _modules_but(
    module: nn.Module, used: set[str], prefix: str = ""
) -> Iterator[tuple[str, nn.Module]]:
    """The modules below one, with their paths, but for those that our encoder uses."""
    for name, child in module._modules.items():
        path = f"{prefix}{name}"
        if child is not None and path not in used:
            yield path, child
            yield from _modules_but(child, used, f"{path}.")


def _is_harmless(module: nn.Module) -> bool:
    """Whether it is a dropout, whose rate is read, or an activation."""
    homes = ("torch.nn.modules.activation", "transformers.activations")
    return type(module) in (nn.Dropout, nn.Identity) or type(module).__module__ in homes
