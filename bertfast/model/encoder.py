"""The encoder of every member: what goes in is packed, run through the blocks, and comes out
packed.

An `Encoder` owns no weights. It reads them through views of a tree of modules, one of ours or a
live model of `transformers`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bertfast import kernels
from bertfast.config import EncoderConfig
from bertfast.errors import BertfastError
from bertfast.kernels.linear import lay_together, together
from bertfast.kernels.philox import as_seed
from bertfast.packed import Budget, PackedBatch, Padding
from bertfast.seeds import DROPOUT, drawn_seed, fold_in

from .attention import POSITIONS, Sequences, attend, convolve
from .embeddings import embed, is_fused
from .family import Member, member_of
from .functional import (
    activated,
    activated_beside,
    are_plain,
    dropout,
    is_plain,
    norm,
    norm_of_rows,
    project,
    project_to_norm,
)
from .submodules import Submodules, place
from .tying import tie

SITES_PER_LAYER = 3  # dropouts: attention probabilities, attention output, feed-forward

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")

Seeds = tuple[Tensor | None, ...]


def make_tree(root: nn.Module, config: EncoderConfig, add_pooling_layer: bool) -> None:
    """Places an encoder's modules below ``root``, where the member has them."""
    member = member_of(config)
    for name, spec in member.modules.items():
        if spec.is_in(config) and (add_pooling_layer or name != "pooler"):
            place(root, spec.path, spec.make(config))
    paths = [member.layer_path(index, config) for index in range(num_blocks(config))]
    for number, path in enumerate(dict.fromkeys(paths)):  # shared layers are made once
        for spec in member.layer.values():
            if spec.is_in(config, first=number == 0):
                place(root, f"{path}.{spec.path}", spec.make(config))


def join_projections(root: nn.Module) -> None:
    """Lays the queries', keys' and values' weights of every layer of ours below ``root`` together,
    so that each layer multiplies once for the three. Names and values stay as they are.
    """
    for module in root.modules():
        encoder = module.__dict__.get("encoder_run")
        for block in encoder.blocks if isinstance(encoder, Encoder) else ():
            layers = (block.query, block.key, block.value)
            if not all(is_plain(layer, nn.Linear) for layer in layers):
                continue
            for kind in ("weight", "bias"):
                parameters = [getattr(layer, kind) for layer in layers]
                if (
                    all(isinstance(parameter, nn.Parameter) for parameter in parameters)
                    and len({(x.dtype, x.device, *x.shape[1:]) for x in parameters}) == 1
                    and together(parameters) is None
                ):
                    lay_together(parameters)


def num_blocks(config: EncoderConfig) -> int:
    """How many blocks a token goes through."""
    return config.num_hidden_layers * config.inner_group_num


@dataclass
class Encoded:
    """What the encoder gives the heads: packed states, the first tokens' rows, and the way back to
    the padded form.

    Attributes:
        states: the embeddings' output and each block's, (tokens, hidden); not the last block's
            where only the rows below were asked for.
        first: (sequences, hidden), each sequence's first token, where it was asked for; zeros for
            an empty one.
        predicted: (masked, hidden), the last block's rows at the masked positions that
            `Encoder.encode` was given.
        batch: what was encoded: a `PackedBatch` that was given has slack up to the grid of
            `Budget.rounded` here, with its labels.
        given: the sizes of the input.
        padding: the way back, where the input was padded.
        head_seed: of the dropouts in a head, when training.
        table: the word embeddings, as a tied output layer reads them.
    """

    states: list[Tensor]
    first: Tensor | None
    predicted: Tensor | None
    batch: PackedBatch
    given: Budget
    padding: Padding | None
    head_seed: Tensor | None
    table: Tensor

    @property
    def last(self) -> Tensor:
        return self.states[-1]

    def as_input(self, x: Tensor) -> Tensor:
        """A per-token tensor in the form that the input had: packed, or padded."""
        if self.padding is not None:
            return self.padding.unpack(x)
        return x if len(x) == self.given.tokens else x[: self.given.tokens]

    def of_sequences(self, x: Tensor) -> Tensor:
        """A per-sequence tensor of the input's sequences alone."""
        return x if len(x) == self.given.sequences else x[: self.given.sequences]

    def hidden_states(self, requested: bool) -> tuple[Tensor, ...] | None:
        """`states` in the form that the input had; None where they are not requested."""
        return tuple(self.as_input(state) for state in self.states) if requested else None


class Encoder:
    """The blocks over a tree of modules.

    Args:
        config: of the member.
        root: the tree, with the member's modules where its row of `family.FAMILY` says.
    """

    def __init__(self, config: EncoderConfig, root: nn.Module) -> None:
        member = member_of(config)
        self.config: Any = config  # of the member's class, with its own fields
        self.modules = Submodules(root, member.module_paths)
        self.blocks = [
            Submodules(root.get_submodule(member.layer_path(index, config)), member.layer_paths)
            for index in range(num_blocks(config))
        ]
        self.checkpoint: Callable[..., Any] | None = (
            None  # like torch.utils.checkpoint.checkpoint: recompute a block in the backward
        )

    @property
    def member(self) -> Member:
        """The member's row, which is looked up: it does not go through a pickle."""
        return member_of(self.config)

    def encode(
        self,
        input_ids: Tensor | PackedBatch | None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        *,
        training: bool,
        seed: int | Tensor | None = None,
        read_first: bool = True,
        read_masked: bool = False,
        every_row: bool = True,
        tied: bool = False,
        keep_padding: bool = False,
    ) -> Encoded:
        """Encodes a packed batch, or padded input, and leaves it packed.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds: as of
            `EncoderModel.forward`.
            training: whether dropouts drop.
            seed: of the dropouts; None draws one from torch's generator.
            read_first: whether `Encoded.first` is wanted.
            read_masked: whether `Encoded.predicted` is wanted, of a `PackedBatch`.
            every_row: False where the heads read the first tokens' rows and those at the masked
                positions alone. The last block then computes no other past its attention.
            tied: an output layer reads `Encoded.table`.
            keep_padding: compute the outputs at padding too, as Hugging Face's models do, where
                something reads them. Slow: attention then runs in plain PyTorch.
        """
        batch, given, padding, embeds, sequences = self._inputs(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, keep_padding
        )
        seeds = self._site_seeds(seed, batch.segment_ids.device, training)
        table: Tensor = self.modules.word.weight
        # On a GPU the pass that tying spares is nothing, and a sparse gradient would stall the
        # queue.
        tied = tied and embeds is None and table.requires_grad and torch.is_grad_enabled()
        tied = (
            tied
            and table.device.type == "cpu"
            and not torch.compiler.is_compiling()
            and is_fused(self.modules, self.config)
        )
        inner, outer = tie(table) if tied else (None, table)
        x = embed(
            self.modules,
            self.config,
            batch.input_ids,
            batch.segment_ids,
            sequences.position_ids,
            sequences.cu_seqlens,
            seeds[0],
            embeds,
            inner,
        )
        if self.member.hides_padding:
            x = sequences.hide(x)
        read = [_first_tokens(batch.cu_seqlens)] if read_first else []
        if read_masked:
            assert batch.masked_positions is not None
            read.append(batch.masked_positions)
        states = self._run(x, sequences, seeds, None if every_row else read)
        if every_row:
            rows = [kernels.gather_rows(states[-1], index) for index in read]
        else:
            # A row that stands for no token is zeros, as a gathered one is.
            missing = torch.cat(read)[:, None] < 0
            rows = list(states.pop().masked_fill(missing, 0).split([len(index) for index in read]))
        predicted = rows.pop() if read_masked else None
        first = rows[0] if read_first else None
        head_seed = seeds[self._head_site]
        return Encoded(states, first, predicted, batch, given, padding, head_seed, outer)

    def pooled(self, encoded: Encoded) -> Tensor | None:
        """tanh(dense(first token)) of each sequence, where there is a pooler. Devlin et al.,
        section 3 and the released code.
        """
        if self.modules.pooler is None:
            return None
        assert encoded.first is not None
        return torch.tanh(project(self.modules.pooler, encoded.first))

    def _run(
        self, x: Tensor, sequences: Sequences, seeds: Seeds, rows: Sequence[Tensor] | None
    ) -> list[Tensor]:
        """The input and the output of each block, (tokens, hidden).

        With ``rows``, indexes as `kernels.gather_rows` takes them, the last output has those rows
        alone, one index's after another's. Past the attention no token meets another, so the others
        are not computed.
        """
        config = self.config
        scheme = POSITIONS[self.member.positions]
        table = scheme.table(self.modules, config)
        run = self._pre_norm_block if self.member.pre_norm else self._post_norm_block
        states, branch = [x], None
        for index, modules in enumerate(self.blocks):
            last = index == len(self.blocks) - 1
            own = seeds[1 + SITES_PER_LAYER * index : 1 + SITES_PER_LAYER * (index + 1)]
            own_table = table
            if table is not None:
                own_table = scheme.layer_table(table, config, seeds[self._head_site + 1 + index])
            convolved = index == 0 and self.modules.conv is not None
            kept = rows if last and not convolved else None
            call = run if self.checkpoint is None else self._checkpointed(run)
            x, branch, summed = call(modules, index, x, branch, sequences, own, own_table, kept)
            if summed is not None and index:
                states[-1] = summed
            if convolved:
                x = convolve(self.modules, config, states[0], x, sequences, seeds[-1])
                if last and rows is not None:
                    x = torch.cat([kernels.gather_rows(x, index) for index in rows])
            states.append(x)
        if branch is not None:
            states[-1] = norm(self.modules.final_norm, branch, x)
        return states

    def _checkpointed(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            assert self.checkpoint is not None
            return self.checkpoint(run, *arguments)

        return call

    def _post_norm_block(
        self,
        modules: Submodules,
        index: int,
        x: Tensor,
        branch: Tensor | None,
        sequences: Sequences,
        seeds: Seeds,
        table: Tensor | None,
        rows: Sequence[Tensor] | None,
    ) -> tuple[Tensor, None, None]:
        """Attention and feed-forward, each with its residual and LayerNorm. Devlin et al., section
        3.
        """
        config = self.config
        context, kept = attend(modules, config, index, x, sequences, seeds[0], table)
        if are_plain(modules.attention_output, modules.attention_norm):
            x = kept
        if rows is not None:
            context, x = (
                torch.cat([kernels.gather_rows(y, row) for row in rows]) for y in (context, x)
            )
        branch_output, bias = project_to_norm(
            modules.attention_output, context, modules.attention_norm
        )
        x = norm_of_rows(
            modules.attention_norm,
            branch_output,
            x,
            config.attention_output_dropout,
            seeds[1],
            rows,
            bias,
        )
        inner, kept = activated_beside(modules.up, x, config.hidden_act, self.member.gated)
        if are_plain(modules.down, modules.output_norm):
            x = kept
        branch_output, bias = project_to_norm(modules.down, inner, modules.output_norm)
        x = norm_of_rows(
            modules.output_norm,
            branch_output,
            x,
            config.feed_forward_dropout,
            seeds[2],
            rows,
            bias,
        )
        return x, None, None

    def _pre_norm_block(
        self,
        modules: Submodules,
        index: int,
        x: Tensor,
        branch: Tensor | None,
        sequences: Sequences,
        seeds: Seeds,
        table: Tensor | None,
        rows: Sequence[Tensor] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """LayerNorms before the attention and before the gated feed-forward. Warner et al., section
        2.1.1.

        x is the residual stream and branch what is still to be added to it, which the next norm
        does on its way. Returned are these two and the sum at the start, which is the output of the
        block before.
        """
        config = self.config
        if isinstance(modules.attention_norm, nn.Identity | None):
            normed = x
        else:
            normed, x = norm(
                modules.attention_norm,
                x if branch is None else branch,
                None if branch is None else x,
                prenorm=True,
            )
        summed = x
        context, _ = attend(modules, config, index, normed, sequences, seeds[0], table)
        if rows is not None:
            context, x = (
                torch.cat([kernels.gather_rows(y, row) for row in rows]) for y in (context, x)
            )
        output, bias = project_to_norm(modules.attention_output, context, modules.output_norm)
        normed, x = norm(
            modules.output_norm,
            output,
            x,
            config.attention_output_dropout,
            seeds[1],
            prenorm=True,
            x_bias=bias,
        )
        inner = activated(modules.up, normed, config.hidden_act, gated=self.member.gated)
        return x, project(modules.down, dropout(inner, config.mlp_dropout, seeds[2])), summed

    def _inputs(
        self,
        input_ids: Tensor | PackedBatch | None,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        keep_padding: bool,
    ) -> tuple[PackedBatch, Budget, Padding | None, Tensor | None, Sequences]:
        """The packed batch, its sizes as it was given, and how it was padded.

        The word embeddings that stand in for ids, and where the tokens stand, come last.

        Here every batch takes the grid of sizes, whichever loop made it.
        """
        offset = self.config.position_offset
        if isinstance(input_ids, PackedBatch):
            batch = input_ids
            batch.check()
            if any(
                x is not None for x in (attention_mask, token_type_ids, position_ids, inputs_embeds)
            ):
                raise BertfastError(
                    "a PackedBatch carries its own segments, positions and boundaries; "
                    "give nothing beside it"
                )
            given = batch.sizes
            # A compiled graph has its own shapes, and the sizes may be no numbers yet.
            if not torch.compiler.is_compiling():
                batch = batch.on_grid()
            positions = batch.position_ids + offset if offset else batch.position_ids
            sequences = Sequences(batch.cu_seqlens, batch.max_seqlen, positions, batch.max_seqlen)
            return batch, given, None, None, sequences
        check_tensors(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        padded = input_ids if input_ids is not None else inputs_embeds
        if padded is None or (input_ids is not None and inputs_embeds is not None):
            raise BertfastError("give either input_ids or inputs_embeds")
        if input_ids is not None and (
            input_ids.is_floating_point() or input_ids.dtype == torch.bool
        ):
            raise BertfastError(
                f"input_ids are {input_ids.dtype}; they must be whole numbers (int64)"
            )
        width = self.config.embedding_width
        if inputs_embeds is not None and inputs_embeds.shape[-1] != width:
            raise BertfastError(
                f"inputs_embeds have {inputs_embeds.shape[-1]} features and the model {width}"
            )
        dims = 2 if input_ids is not None else 3
        if padded.dim() != dims:
            raise BertfastError(
                f"the input has shape {tuple(padded.shape)}; it must be (sequences, "
                f"positions{', hidden' * (dims - 2)})"
            )
        shape = (padded.shape[0], padded.shape[1])
        limit = shape[1]
        if position_ids is None:
            most = self.config.max_positions
            if most is not None and shape[1] > most:
                raise BertfastError(
                    f"the input has {shape[1]} positions and the model {most}; truncate it"
                )
            position_ids = self._default_positions(input_ids, shape, padded.device)
        elif position_ids.numel():
            limit = int(position_ids.max()) + 1
        zeros = torch.zeros(shape, dtype=torch.int64, device=padded.device)
        for name, ids in (("token_type_ids", token_type_ids), ("position_ids", position_ids)):
            if ids is not None and tuple(ids.shape) not in (shape, (1, shape[1])):
                raise BertfastError(
                    f"{name} has shape {tuple(ids.shape)} and the input {shape}; "
                    "they must be the same"
                )
        padding = Padding(shape, attention_mask, padded.device, slack=padded.device.type == "cpu")
        visible = None
        if keep_padding and padding.rows is not None:
            assert attention_mask is not None
            visible = attention_mask.flatten().to(padded.device) != 0
            padding = Padding(shape, None, padded.device)
        batch = PackedBatch(
            input_ids=padding.pack(zeros if input_ids is None else input_ids),
            segment_ids=padding.pack(
                zeros if token_type_ids is None else token_type_ids.expand(shape)
            ),
            position_ids=padding.pack(position_ids.expand(shape)),
            cu_seqlens=padding.cu_seqlens,
            max_seqlen=padding.max_seqlen,
        )
        by_distance = POSITIONS[self.member.positions].reads_distances
        sequences = Sequences(
            batch.cu_seqlens,
            batch.max_seqlen,
            batch.position_ids,
            limit,
            padding.columns if by_distance else None,
            shape[1],
            visible,
        )
        return (
            batch,
            batch.sizes,
            padding,
            None if inputs_embeds is None else padding.pack(inputs_embeds),
            sequences,
        )

    def _default_positions(
        self, input_ids: Tensor | None, shape: tuple[int, int], device: torch.device
    ) -> Tensor:
        """Columns, padding included, as Hugging Face counts; with RoBERTa's offset the padding ids
        are left out of the count.
        """
        offset = self.config.position_offset
        if offset and input_ids is not None:
            real = input_ids.ne(offset - 1).long()
            return real.cumsum(1) * real + offset - 1
        return torch.arange(offset, offset + shape[1], device=device)[None]

    @property
    def _head_site(self) -> int:
        return 1 + SITES_PER_LAYER * len(self.blocks)

    def _site_seeds(self, seed: int | Tensor | None, device: torch.device, training: bool) -> Seeds:
        """One seed for each dropout, or Nones when not training.

        They are the embeddings', three of a block, the head's, that of what each block's positions
        read, and the convolution's.
        """
        sites = self._head_site + 1 + len(self.blocks) + 1
        if not training:
            return (None,) * sites
        base = drawn_seed(device) if seed is None else as_seed(seed, device)
        return fold_in(base, DROPOUT, torch.arange(sites, device=device)).split(1)


def check_tensors(*inputs: Any) -> None:
    """Raises BertfastError for one of the `INPUTS` that is neither a tensor nor None, with what to
    pass.
    """
    for name, value in zip(INPUTS, inputs, strict=True):
        if value is None or isinstance(value, Tensor):
            continue
        kind = type(value).__name__
        if isinstance(value, Mapping):
            keys = ", ".join(map(str, value))
            advice = f"a mapping ({keys}) is passed by name: model(**inputs)"
            if name != "input_ids":
                advice = f"a mapping ({keys}) has its tensors under its names"
        elif isinstance(value, str) or (
            isinstance(value, list | tuple) and any(isinstance(x, str) for x in value)
        ):
            advice = 'a tokenizer makes ids of text: model(**tokenizer(text, return_tensors="pt"))'
        elif isinstance(value, list | tuple):
            advice = f"make a tensor of it, torch.tensor({name}), or PackedBatch.from_sequences"
        else:
            advice = "it must be a torch.Tensor or, as the first argument, a PackedBatch"
        raise BertfastError(f"{name} is a {kind}; {advice}")


def _first_tokens(cu_seqlens: Tensor) -> Tensor:
    """(sequences,) where each sequence starts; -1, for a row of zeros, where it is empty."""
    starts, ends = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
    return torch.where(ends > starts, starts, -1)
