"""BERT and its heads, on packed batches inside whatever form the input has.

Every model takes either a `PackedBatch` as its first argument, and then its outputs are packed and its labels come from the batch, or padded
tensors under Hugging Face's argument names, and then its outputs have Hugging Face's shapes. Two differences from Hugging Face's
BERT show with padded input: outputs at padding are zeros, and the pooler takes the first real token of a sequence where it takes column
0, which is another token only under left padding.

Source: Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", NAACL 2019.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertfast import kernels
from bertfast.config import BertConfig
from bertfast.errors import BertfastError
from bertfast.kernels.philox import as_seed
from bertfast.packed import IGNORE_INDEX, PackedBatch, Padding

from .embeddings import BertEmbeddings
from .encoder import SITES_PER_LAYER, BertEncoder
from .heads import BertPooler, MLMHeads, PreTrainingHeads
from .outputs import (
    BaseModelOutputWithPooling,
    BertForPreTrainingOutput,
    MaskedLMOutput,
    SequenceClassifierOutput,
)
from .tying import tie

# splitmix64's increment: the seeds of a forward's dropouts stay far apart.
SEED_INCREMENT = 0x9E3779B97F4A7C15 - (1 << 64)


def initialize(model: nn.Module, deviation: float, only: Collection[str] | None = None) -> None:
    """Truncated normal weights (two deviations), zero biases, LayerNorms of one, and a zero padding row, as published.

    Args:
        model: whose parameters are set.
        deviation: of the normal, before it is cut off.
        only: names of the parameters to set; None for all.
    """
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if only is not None and f"{prefix}.{name}" not in only:
                continue
            if name != "weight":
                nn.init.zeros_(parameter)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(parameter)
            else:
                nn.init.trunc_normal_(parameter, std=deviation, a=-2 * deviation, b=2 * deviation)
                if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                    with torch.no_grad():
                        parameter[module.padding_idx].zero_()


class PreTrainedModel(nn.Module):
    """What the models share: the configuration, and folders in Hugging Face's format."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config

    def num_parameters(self) -> int:
        """How many parameters there are; tied ones count once."""
        return sum(parameter.numel() for parameter in self.parameters())

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, config: BertConfig | None = None, new_head_ok: bool = False
    ) -> Self:
        """The model in a Hugging Face folder (config.json, model.safetensors).

        Args:
            folder: on this machine; nothing is downloaded.
            config: in place of the folder's, to give a new head its labels.
            new_head_ok: let weights of this class's head that the folder lacks keep their initial values (fine-tuning).

        Raises:
            BertfastError: the folder cannot be read, or a weight is missing, unknown or of another shape: each is named.
        """
        from bertfast.hub import load_config, load_weights

        config = config or load_config(folder)
        with torch.device("meta"):  # weights that are about to be read are not worth drawing
            model = cls(config)
        model.to_empty(device=torch.get_default_device())
        new = load_weights(model, folder, new_head_ok=new_head_ok)
        initialize(model, config.initializer_range, only=new)
        return model.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json and model.safetensors, which `transformers` loads too."""
        from bertfast.hub import save_pretrained

        save_pretrained(self, folder)


@dataclass
class Encoded:
    """What the encoder gives the heads: packed states, the pooled rows, and the way back to the padded form.

    Attributes:
        states: the embeddings' output and each block's, (tokens, hidden); not the last block's where only the rows below were wanted.
        pooled: (sequences, hidden), where there is a pooler.
        predicted: (masked, hidden), the last block's rows at the masked positions that `BertModel.encode` was given.
        padding: the way back, where the input was padded.
        head_seed: of the dropout in a head, when training.
        table: the word embeddings, as a tied output layer reads them.
    """

    states: list[Tensor]
    pooled: Tensor | None
    predicted: Tensor | None
    padding: Padding | None
    head_seed: Tensor | None
    table: Tensor

    @property
    def last(self) -> Tensor:
        return self.states[-1]

    def outward(self, x: Tensor) -> Tensor:
        """A per-token tensor in the form that the input had."""
        return x if self.padding is None else self.padding.unpack(x)

    def hidden_states(self, wanted: bool) -> tuple[Tensor, ...] | None:
        return tuple(self.outward(state) for state in self.states) if wanted else None


class BertModel(PreTrainedModel):
    """The encoder with its pooler."""

    def __init__(self, config: BertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        self.pooler = BertPooler(config) if add_pooling_layer else None
        initialize(self, config.initializer_range)

    def forward(
        self,
        input_ids: Tensor | PackedBatch | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool = False,
        *,
        seed: int | Tensor | None = None,
    ) -> BaseModelOutputWithPooling:
        """Encodes a packed batch, or padded (sequences, positions) input.

        Args:
            input_ids: a `PackedBatch`, or (sequences, positions) int64.
            attention_mask: (sequences, positions), nonzero where a token is real, in any pattern; None for all.
            token_type_ids: like input_ids; None is zeros.
            position_ids: like input_ids, or (1, positions); None counts the columns, padding included, as Hugging Face does.
            inputs_embeds: (sequences, positions, hidden) in place of input_ids.
            output_hidden_states: also return the embeddings' output and each block's.
            seed: of the dropouts when training; None draws one from torch's generator.

        Raises:
            BertfastError: inputs that contradict one another or go beyond the configuration.
        """
        encoded = self.encode(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, seed=seed)
        return BaseModelOutputWithPooling(
            last_hidden_state=encoded.outward(encoded.last),
            pooler_output=encoded.pooled,
            hidden_states=encoded.hidden_states(output_hidden_states),
        )

    def encode(
        self,
        input_ids: Tensor | PackedBatch | None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        *,
        seed: int | Tensor | None = None,
        masked_positions: Tensor | None = None,
        every_row: bool = True,
        tied: bool = False,
    ) -> Encoded:
        """`forward` for the heads: everything stays packed.

        Args:
            masked_positions: of a `PackedBatch`, whose rows `Encoded.predicted` is to hold.
            every_row: False where the heads read the pooled rows and those at masked_positions alone; the last block then computes no other
                past its attention.
            tied: an output layer reads `Encoded.table`.
        """
        padding = None
        embeds = None
        if isinstance(input_ids, PackedBatch):
            batch = input_ids
            batch.check()
            if any(x is not None for x in (attention_mask, token_type_ids, position_ids, inputs_embeds)):
                raise BertfastError(
                    "a PackedBatch carries its own segments, positions and boundaries; give nothing beside it"
                )
        else:
            batch, padding, embeds = self._pack(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        first, *between, last = self._site_seeds(seed, batch.segment_ids.device)
        table = self.embeddings.word_embeddings.weight
        # On a GPU the pass that tying spares is nothing, and a sparse gradient would stall the queue.
        tied = tied and embeds is None and table.requires_grad and torch.is_grad_enabled()
        pair = (
            tie(table) if tied and table.device.type == "cpu" and not torch.compiler.is_compiling() else (None, table)
        )
        x = self.embeddings(batch.input_ids, batch.segment_ids, batch.position_ids, first, embeds, pair[0])
        read = [] if self.pooler is None else [_first_tokens(batch.cu_seqlens)]
        if masked_positions is not None:
            read.append(masked_positions)
        states = self.encoder(x, batch.cu_seqlens, batch.max_seqlen, tuple(between), None if every_row else read)
        if every_row:
            rows = [kernels.gather_rows(states[-1], index) for index in read]
        else:
            # A row that stands for no token is zeros, as a gathered one is.
            missing = torch.cat(read)[:, None] < 0
            rows = list(states.pop().masked_fill(missing, 0).split([len(index) for index in read]))
        predicted = None if masked_positions is None else rows.pop()
        return Encoded(states, None if self.pooler is None else self.pooler(rows[0]), predicted, padding, last, pair[1])

    def _pack(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
    ) -> tuple[PackedBatch, Padding, Tensor | None]:
        given = input_ids if input_ids is not None else inputs_embeds
        if given is None or (input_ids is not None and inputs_embeds is not None):
            raise BertfastError("give either input_ids or inputs_embeds")
        if input_ids is not None and (input_ids.is_floating_point() or input_ids.dtype == torch.bool):
            raise BertfastError(f"input_ids are {input_ids.dtype}; they must be whole numbers (int64)")
        width = self.config.hidden_size
        if inputs_embeds is not None and inputs_embeds.shape[-1] != width:
            raise BertfastError(f"inputs_embeds have {inputs_embeds.shape[-1]} features and the model {width}")
        dims = 2 if input_ids is not None else 3
        if given.dim() != dims:
            raise BertfastError(
                f"the input has shape {tuple(given.shape)}; it must be (sequences, positions{', hidden' * (dims - 2)})"
            )
        shape = (given.shape[0], given.shape[1])
        positions = shape[1]
        if position_ids is None:
            limit = self.config.max_position_embeddings
            if positions > limit:
                raise BertfastError(f"the input has {positions} positions and the model {limit}; truncate it")
            position_ids = torch.arange(positions, device=given.device)[None]
        zeros = torch.zeros(shape, dtype=torch.int64, device=given.device)
        for name, ids in (("token_type_ids", token_type_ids), ("position_ids", position_ids)):
            if ids is not None and tuple(ids.shape) not in (shape, (1, positions)):
                raise BertfastError(f"{name} has shape {tuple(ids.shape)} and the input {shape}; they must be the same")
        padding = Padding(shape, attention_mask, given.device)
        segment_ids = zeros if token_type_ids is None else token_type_ids.expand(shape)
        batch = PackedBatch(
            input_ids=padding.pack(zeros if input_ids is None else input_ids),
            segment_ids=padding.pack(segment_ids),
            position_ids=padding.pack(position_ids.expand(shape)),
            cu_seqlens=padding.cu_seqlens,
            max_seqlen=padding.max_seqlen,
        )
        return batch, padding, None if inputs_embeds is None else padding.pack(inputs_embeds)

    def _site_seeds(self, seed: int | Tensor | None, device: torch.device) -> tuple[Tensor | None, ...]:
        """One seed for each place of dropout: the embeddings, three to a block, the classifier; Nones when not training."""
        sites = 2 + SITES_PER_LAYER * self.config.num_hidden_layers
        if not self.training:
            return (None,) * sites
        if seed is None:
            base = torch.randint(-(2**63), 2**63 - 1, (1,), device=device)
        else:
            base = as_seed(seed, device)
        return (base + torch.arange(sites, device=device) * SEED_INCREMENT).split(1)


def _first_tokens(cu_seqlens: Tensor) -> Tensor:
    """(sequences,) where each sequence starts; -1, for a row of zeros, where it is empty."""
    starts, ends = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
    return torch.where(ends > starts, starts, -1)


class _MaskedLM(PreTrainedModel):
    """What the two models with a masked-LM head share."""

    bert: BertModel
    cls: MLMHeads

    def _encode(
        self, batch: Any, *inputs: Tensor | None, output_hidden_states: bool, seed: int | Tensor | None
    ) -> Encoded:
        """The encoder's output; of a packed batch with masked positions, only what the heads read of it."""
        positions = batch.masked_positions if isinstance(batch, PackedBatch) else None
        every_row = positions is None or output_hidden_states
        return self.bert.encode(batch, *inputs, seed=seed, masked_positions=positions, every_row=every_row, tied=True)

    def _predict(
        self, encoded: Encoded, batch: Any, labels: Tensor | None, return_logits: bool
    ) -> tuple[tuple[Tensor, Tensor, Tensor] | None, Tensor | None]:
        """(loss, correct, count) if there are labels, and the logits if the input is padded and they are wanted."""
        head, table = self.cls.predictions, encoded.table
        if isinstance(batch, PackedBatch):
            if labels is not None:
                raise BertfastError("a PackedBatch carries its own labels; give none beside it")
            if batch.masked_positions is None or batch.masked_labels is None:
                return None, head.logits(encoded.last, table)
            assert encoded.predicted is not None
            return head.loss(encoded.predicted, table, batch.masked_labels), None
        loss = None
        if labels is not None:
            assert encoded.padding is not None
            if tuple(labels.shape) != encoded.padding.shape:
                raise BertfastError(
                    f"labels have shape {tuple(labels.shape)} and the input {encoded.padding.shape}; they must be the same"
                )
            packed = encoded.padding.pack(labels)
            positions = (packed != IGNORE_INDEX).nonzero().squeeze(1)
            loss = head.loss(kernels.gather_rows(encoded.last, positions), table, packed[positions])
        logits = encoded.outward(head.logits(encoded.last, table)) if return_logits else None
        return loss, logits


class BertForMaskedLM(_MaskedLM):
    """BERT with the masked-LM head alone (no pooler)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.cls = MLMHeads(config)
        initialize(self.cls, config.initializer_range)

    def forward(
        self,
        input_ids: Tensor | PackedBatch | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool = False,
        *,
        return_logits: bool = True,
        seed: int | Tensor | None = None,
    ) -> MaskedLMOutput:
        """Predicts masked tokens; arguments as of `BertModel.forward`.

        From a `PackedBatch` with masked positions come the loss and the counts, and no logits are made. From one without, logits
        (tokens, vocab). From padded input, logits (sequences, positions, vocab) unless ``return_logits`` is False, which spares
        the vocabulary-sized work beyond the masked positions, and with ``labels`` (sequences, positions; -100 where nothing is
        predicted; at padding they count for nothing) the mean loss.
        """
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        encoded = self._encode(*inputs, output_hidden_states=output_hidden_states, seed=seed)
        predicted, logits = self._predict(encoded, input_ids, labels, return_logits)
        loss, correct, count = predicted or (None, None, None)
        return MaskedLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=encoded.hidden_states(output_hidden_states),
            mlm_correct=correct,
            mlm_count=count,
        )


class BertForPreTraining(_MaskedLM):
    """BERT with both pretraining heads."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config)
        self.cls: PreTrainingHeads = PreTrainingHeads(config)
        initialize(self.cls, config.initializer_range)

    def forward(
        self,
        input_ids: Tensor | PackedBatch | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        output_hidden_states: bool = False,
        *,
        return_logits: bool = True,
        seed: int | Tensor | None = None,
    ) -> BertForPreTrainingOutput:
        """Predicts masked tokens and whether the second segment follows; arguments as of `BertForMaskedLM.forward`.

        The loss is the sum of those there are labels for: ``labels`` and ``next_sentence_label`` (sequences,), or what the
        `PackedBatch` carries.
        """
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        encoded = self._encode(*inputs, output_hidden_states=output_hidden_states, seed=seed)
        predicted, logits = self._predict(encoded, input_ids, labels, return_logits)
        mlm_loss, correct, count = predicted or (None, None, None)
        if isinstance(input_ids, PackedBatch):
            next_sentence_label = input_ids.next_sentence_labels
        relationship = self.cls.seq_relationship(encoded.pooled)
        nsp_loss = nsp_correct = None
        if next_sentence_label is not None:
            nsp_loss = F.cross_entropy(relationship.float(), next_sentence_label)
            nsp_correct = (relationship.argmax(-1) == next_sentence_label).sum()
        losses = [loss for loss in (mlm_loss, nsp_loss) if loss is not None]
        return BertForPreTrainingOutput(
            loss=losses[0] + losses[1] if len(losses) == 2 else (losses[0] if losses else None),
            prediction_logits=logits,
            seq_relationship_logits=relationship,
            hidden_states=encoded.hidden_states(output_hidden_states),
            mlm_loss=mlm_loss,
            nsp_loss=nsp_loss,
            mlm_correct=correct,
            mlm_count=count,
            nsp_correct=nsp_correct,
        )


class BertForSequenceClassification(PreTrainedModel):
    """BERT with a linear layer on the pooled output. Devlin et al., section 4.1."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        rate = config.classifier_dropout
        self.dropout_p = config.hidden_dropout_prob if rate is None else rate
        initialize(self.classifier, config.initializer_range)

    def forward(
        self,
        input_ids: Tensor | PackedBatch | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool = False,
        *,
        seed: int | Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Logits (sequences, labels), and the loss if there are ``labels`` (sequences,) or the `PackedBatch` carries them.

        The loss follows ``config.problem_type``; where that is None: squared error for one label, cross-entropy for integer labels,
        and binary cross-entropy of each label for float labels (sequences, labels). Other arguments as of `BertModel.forward`.
        """
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        encoded = self.bert.encode(*inputs, seed=seed, every_row=output_hidden_states)
        assert encoded.pooled is not None
        logits = self.classify(encoded.pooled, encoded.head_seed)
        if isinstance(input_ids, PackedBatch):
            labels = input_ids.labels
        return SequenceClassifierOutput(
            loss=None if labels is None else self._loss(logits.float(), labels),
            logits=logits,
            hidden_states=encoded.hidden_states(output_hidden_states),
        )

    def classify(self, pooled: Tensor, seed: Tensor | None = None) -> Tensor:
        """(sequences, hidden) to (sequences, labels); no dropout where seed is None."""
        if seed is not None:
            pooled = kernels.dropout(pooled, self.dropout_p, seed=seed)
        return self.classifier(pooled)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        kind = self.config.problem_type
        if kind is None:
            if self.config.num_labels == 1:
                kind = "regression"
            else:
                kind = "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
        if kind == "regression":
            return F.mse_loss(logits.squeeze(-1) if self.config.num_labels == 1 else logits, labels.to(logits.dtype))
        if kind == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return F.cross_entropy(logits, labels)
