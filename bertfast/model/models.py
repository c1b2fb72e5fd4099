"""The encoder and its heads as models, written once; `members.py` names them for each member of the
family.

Every model takes either of two inputs. With a `PackedBatch` as its first argument, its outputs are
packed and its labels come from the batch. With padded tensors under Hugging Face's argument names,
its outputs have Hugging Face's shapes. Two differences from Hugging Face's models show with padded
input. Outputs at padding are zeros. What reads the first token takes the first real one where they
take column 0 (another token only under left padding).
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

from bertfast import kernels
from bertfast.config import EncoderConfig
from bertfast.errors import BertfastError
from bertfast.packed import IGNORE_INDEX, PackedBatch, grid_size, padded_rows
from bertfast.resolve import resolve

from .adapters import load_adapted_config, merge
from .checkpoint import check_layers, is_adapter, load_config, load_weights, save_pretrained
from .encoder import Encoded, Encoder, check_tensors, make_tree
from .family import Member, member_of, value
from .functional import dropout, project
from .heads import DiscriminatorHead, FeatureHead, MLMHead, classification_loss
from .outputs import (
    BaseModelOutputWithPooling,
    BertForPreTrainingOutput,
    ElectraForPreTrainingOutput,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from .pooling import mean_pooled
from .submodules import place
from .weights import open_weights


def initialize(
    model: nn.Module, config: EncoderConfig, only: Collection[str] | None = None
) -> None:
    """Truncated normal weights (two deviations), zero biases, LayerNorms of one, and zero padding
    rows, as published.

    Modules that the member's row lists (`Member.deviations`) have a deviation of their own.

    Args:
        model: whose parameters are set.
        config: with the deviation, and at how many deviations the normal is cut off.
        only: names of the parameters to set; None for all.
    """
    cutoff, deviations = config.initializer_cutoff_factor, member_of(config).deviations
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            # On the meta device there is nothing to set, and the first attempt takes seconds.
            skipped = only is not None and f"{prefix}.{name}".removeprefix(".") not in only
            if parameter.is_meta or skipped:
                continue
            if name != "weight":
                nn.init.zeros_(parameter)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(parameter)
            else:
                own = [
                    entry for end, entry in deviations.items() if f".{prefix}".endswith(f".{end}")
                ]
                deviation = value(config, own[0]) if own else config.initializer_range
                nn.init.trunc_normal_(
                    parameter, std=deviation, a=-cutoff * deviation, b=cutoff * deviation
                )
                if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                    with torch.no_grad():
                        parameter[module.padding_idx].zero_()


_LABEL_NAMES = {"num_labels", "id2label", "label2id"}


def _data_type(dtype: torch.dtype | str, stored: Sequence[str]) -> torch.dtype:
    """A data type of parameters by its name; "auto" is the first of real numbers in the files."""
    floats = [name for name in stored if name.startswith(("float", "bfloat"))]
    name = floats[0] if dtype == "auto" and floats else str(dtype).removeprefix("torch.")
    found = getattr(torch, name, None)
    if found not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        raise BertfastError(
            f"dtype is {str(dtype)!r}; it must be auto, float32, bfloat16, float16 or float64"
        )
    return found


class PreTrainedModel(nn.Module):
    """What the models share: the configuration, and folders in Hugging Face's format.

    Attributes:
        config_class: the member's; a configuration of another is refused.
        mlm: the masked-LM head, where the model has one.
    """

    config_class: ClassVar[type[EncoderConfig]] = EncoderConfig
    mlm: MLMHead | None = None

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        if not isinstance(config, self.config_class):
            raise BertfastError(
                f"{type(self).__name__} is built from a {self.config_class.__name__}; "
                f"this is a {type(config).__name__}"
            )
        self.config = config

    @property
    def member(self) -> Member:
        """What the member is made of."""
        return member_of(self.config)

    @property
    def base(self) -> EncoderModel:
        """The encoder."""
        raise NotImplementedError

    def num_parameters(self) -> int:
        """How many parameters there are; tied ones count once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def gradient_checkpointing_enable(self) -> None:
        """Keeps each block's input alone in the forward and computes the block again in the
        backward: less memory, a third more work.
        """
        # Dropout is a function of seeds, so torch's generators need not be put back.
        checkpoint = partial(
            torch.utils.checkpoint.checkpoint, use_reentrant=False, preserve_rng_state=False
        )
        self.base.encoder_run.checkpoint = checkpoint

    def gradient_checkpointing_disable(self) -> None:
        """The inverse of `gradient_checkpointing_enable`."""
        self.base.encoder_run.checkpoint = None

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        config: EncoderConfig | None = None,
        new_head_ok: bool = False,
        ignore_mismatched_sizes: bool = False,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        **overrides: Any,
    ) -> Self:
        """The model in a Hugging Face folder (config.json, model.safetensors), or on the Hub.

        A folder of `peft` holds an adapter: it is added to the weights of its base model.

        Args:
            model: a folder; or the id of a model on the Hub ("roberta-base", "org/name"), whose
                safetensors are downloaded into its cache (see `bertfast.resolve`).
            revision: branch, tag or commit on the Hub.
            config: in place of the folder's, to give a new head its labels.
            new_head_ok: let weights of this class's head that the folder lacks keep their initial
                values (fine-tuning).
            ignore_mismatched_sizes: the same for a head's weights that the folder has in another
                shape; a warning names them.
            dtype: of the parameters, as torch's or by its name; "auto" is that of the files. None
                is float32.
            torch_dtype: the same, under its older name.
            overrides: fields of the configuration to change, as `EncoderConfig.overridden` takes
                them. Where they name labels (``num_labels=3``), a head that the folder lacks
                starts from random values, and a warning says so.

        Raises:
            BertfastError: the folder cannot be read, or the Hub cannot be reached. A weight is
                missing, unknown or of another shape, or an override is no field: each is named.
        """
        folder = resolve(model, revision).folder
        dtype = dtype if dtype is not None else torch_dtype
        adapter = None
        if is_adapter(folder):
            adapter, (found, _, base) = folder, load_adapted_config(folder)
            config, folder = config or found, resolve(base).folder
        config = (config or load_config(folder)).overridden(**overrides)
        labelled = bool(_LABEL_NAMES & overrides.keys())
        stored = open_weights(folder)
        check_layers(config, stored, folder)
        with torch.device("meta"):  # weights that are about to be read are not worth drawing
            made = cls(config)
        new = load_weights(
            made,
            folder,
            new_head_ok=new_head_ok or labelled or adapter is not None,
            mismatched_ok=new_head_ok or ignore_mismatched_sizes or adapter is not None,
            stored=stored,
        )
        initialize(made, config, only=new)
        if adapter is not None:
            saved = merge(made, adapter)
            new = [name for name in new if name not in saved]
            if new and not (new_head_ok or labelled):
                raise BertfastError(
                    f"{adapter}: holds an adapter, and neither it nor {folder} has {new[0]}"
                )
        if new and not new_head_ok:
            warnings.warn(
                f"{folder}: {', '.join(new)} start from random values; train them before use",
                stacklevel=2,
            )
        if dtype is not None:
            made.to(_data_type(dtype, [tensor.dtype for tensor in stored.values()]))
        return made.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json and model.safetensors, which `transformers` loads too."""
        save_pretrained(self, folder)


class EncoderModel(PreTrainedModel):
    """The bare encoder, with its pooler where the member has one."""

    def __init__(self, config: EncoderConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        make_tree(self, config, add_pooling_layer)
        self.encoder_run = Encoder(config, self)
        initialize(self, config)

    @property
    def base(self) -> EncoderModel:
        return self

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
            attention_mask: (sequences, positions), nonzero where a token is real, in any pattern;
                None for all.
            token_type_ids: like input_ids; None is zeros.
            position_ids: like input_ids, or (1, positions), into the position table. None counts as
                Hugging Face does: columns, padding included. In RoBERTa it counts the ids that are
                not padding.
            inputs_embeds: (sequences, positions, width of the word embeddings) in place of
                input_ids.
            output_hidden_states: also return the embeddings' output and each block's.
            seed: of the dropouts when training; None draws one from torch's generator.

        Raises:
            BertfastError: inputs that contradict one another or go beyond the configuration.
        """
        encoded = self.encode(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, seed=seed
        )
        pooled = self.encoder_run.pooled(encoded)
        return BaseModelOutputWithPooling(
            last_hidden_state=encoded.as_input(encoded.last),
            pooler_output=None if pooled is None else encoded.of_sequences(pooled),
            hidden_states=encoded.hidden_states(output_hidden_states),
        )

    def encode(self, *inputs: Any, **options: Any) -> Encoded:
        """`Encoder.encode` in this model's mode, for the heads."""
        return self.encoder_run.encode(*inputs, training=self.training, **options)


class _HeadModel(PreTrainedModel):
    """An encoder below a head."""

    def __init__(self, config: EncoderConfig, add_pooling_layer: bool) -> None:
        super().__init__(config)
        self.add_module(self.member.base, EncoderModel(config, add_pooling_layer))

    @property
    def base(self) -> EncoderModel:
        return getattr(self, self.member.base)

    def _initialize_head(self) -> None:
        own = [
            name
            for name, _ in self.named_parameters()
            if not name.startswith(f"{self.member.base}.")
        ]
        initialize(self, self.config, only=own)


def _no_labels_beside(batch: Any, *labels: Tensor | None) -> None:
    if isinstance(batch, PackedBatch) and any(x is not None for x in labels):
        raise BertfastError("a PackedBatch carries its own labels; give none beside it")


def _packed_labels(encoded: Encoded, labels: Tensor) -> Tensor:
    """(tokens,) of padded (sequences, positions) labels, -100 for slack."""
    assert encoded.padding is not None
    if tuple(labels.shape) != encoded.padding.shape:
        raise BertfastError(
            f"labels have shape {tuple(labels.shape)} and the input {encoded.padding.shape}; "
            "they must be the same"
        )
    packed, rows = encoded.padding.pack(labels), encoded.padding.rows
    return packed if rows is None else packed.masked_fill(rows < 0, IGNORE_INDEX)


class MaskedLMModel(_HeadModel):
    """What the models with a masked-LM head share."""

    mlm: MLMHead

    def __init__(self, config: EncoderConfig, add_pooling_layer: bool) -> None:
        super().__init__(config, add_pooling_layer)
        self.mlm = MLMHead(config, self)

    def _encode(
        self, batch: Any, *inputs: Any, output_hidden_states: bool, seed: int | Tensor | None
    ) -> Encoded:
        """The encoder's output; of a packed batch with masked positions, only what the heads read
        of it.
        """
        if isinstance(batch, PackedBatch) and batch.masked_positions is not None:
            return self.encode_masked(batch, seed, *inputs, every_row=output_hidden_states)
        pooled = self.base.encoder_run.modules.pooler is not None
        return self.base.encode(batch, *inputs, seed=seed, read_first=pooled, tied=True)

    def encode_masked(
        self, batch: PackedBatch, seed: int | Tensor | None, *inputs: Any, every_row: bool = False
    ) -> Encoded:
        """What the heads read of a packed batch with masked positions; with ``every_row`` the last
        block's other rows too.
        """
        return self.base.encode(
            batch,
            *inputs,
            seed=seed,
            read_first=self.base.encoder_run.modules.pooler is not None,
            read_masked=True,
            every_row=every_row,
            tied=True,
        )

    def _predict(
        self, encoded: Encoded, labels: Tensor | None, return_logits: bool
    ) -> tuple[tuple[Tensor, Tensor, Tensor] | None, Tensor | None]:
        """(loss, correct, count) if there are labels, and the logits if the input is padded and
        they are wanted.
        """
        head, table, batch = self.mlm, encoded.table, encoded.batch
        if encoded.padding is None:
            _no_labels_beside(batch, labels)
            if batch.masked_positions is None or batch.masked_labels is None:
                return None, encoded.as_input(head.logits(encoded.last, table))
            assert encoded.predicted is not None
            return head.loss(encoded.predicted, table, batch.masked_labels), None
        loss = None
        if labels is not None:
            packed = _packed_labels(encoded, labels)
            positions = (packed != IGNORE_INDEX).nonzero().squeeze(1)
            rows, labels = kernels.gather_rows(encoded.last, positions), packed[positions]
            if rows.device.type == "cpu" and not torch.compiler.is_compiling():
                slack = grid_size(len(labels)) - len(labels)
                rows = F.pad(rows, (0, 0, 0, slack))
                labels = F.pad(labels, (0, slack), value=IGNORE_INDEX)
            loss = head.loss(rows, table, labels)
        logits = encoded.as_input(head.logits(encoded.last, table)) if return_logits else None
        return loss, logits

    def word_logits(self, hidden: Tensor) -> Tensor:
        """(..., hidden) rows of the last block to (..., vocab)."""
        word = self.base.encoder_run.modules.word
        return self.mlm.logits(hidden, word.weight)


class ForMaskedLM(MaskedLMModel):
    """The encoder with the masked-LM head alone (no pooler)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config, add_pooling_layer=False)
        self._initialize_head()

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
        """Predicts masked tokens; arguments as of `EncoderModel.forward`.

        From a `PackedBatch` with masked positions come the loss and the counts, and no logits are
        made. From one without, logits (tokens, vocab). From padded input, logits (sequences,
        positions, vocab), unless ``return_logits`` is False, which spares the vocabulary-sized work
        beyond the masked positions. With ``labels`` (sequences, positions), it has the mean loss
        too. There -100 is where nothing is predicted, and labels at padding count for nothing.
        """
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        encoded = self._encode(*inputs, output_hidden_states=output_hidden_states, seed=seed)
        predicted, logits = self._predict(encoded, labels, return_logits)
        loss, correct, count = predicted or (None, None, None)
        return MaskedLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=encoded.hidden_states(output_hidden_states),
            mlm_correct=correct,
            mlm_count=count,
        )


class _PairPreTraining(MaskedLMModel):
    """The masked-LM head and one that judges a pair of segments from the pooled first token."""

    pair_path: ClassVar[str]

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config, add_pooling_layer=True)
        place(self, self.pair_path, nn.Linear(config.hidden_size, 2))
        self._initialize_head()

    def _pretrain(
        self,
        inputs: tuple[Any, ...],
        labels: Tensor | None,
        pair_label: Tensor | None,
        output_hidden_states: bool,
        return_logits: bool,
        seed: int | Tensor | None,
        name: str,
        logits_name: str,
        dropout_p: float,
    ) -> BertForPreTrainingOutput:
        """The loss is the sum of those there are labels for."""
        encoded = self._encode(*inputs, output_hidden_states=output_hidden_states, seed=seed)
        _no_labels_beside(inputs[0], pair_label)
        predicted, logits = self._predict(encoded, labels, return_logits)
        mlm_loss, correct, count = predicted or (None, None, None)
        if encoded.padding is None:
            pair_label = encoded.batch.pair_labels
        pooled = self.base.encoder_run.pooled(encoded)
        assert pooled is not None
        pair_logits = project(
            self.get_submodule(self.pair_path), dropout(pooled, dropout_p, encoded.head_seed)
        )
        pair_loss = pair_correct = None
        if pair_label is not None:
            pair_loss = F.cross_entropy(pair_logits.float(), pair_label)
            pair_correct = (pair_logits.argmax(-1) == pair_label).sum()
        losses = [loss for loss in (mlm_loss, pair_loss) if loss is not None]
        return BertForPreTrainingOutput(
            loss=losses[0] + losses[1] if len(losses) == 2 else (losses[0] if losses else None),
            prediction_logits=logits,
            hidden_states=encoded.hidden_states(output_hidden_states),
            mlm_loss=mlm_loss,
            mlm_correct=correct,
            mlm_count=count,
            **{
                logits_name: encoded.of_sequences(pair_logits),
                f"{name}_loss": pair_loss,
                f"{name}_correct": pair_correct,
            },
        )


class NextSentencePreTraining(_PairPreTraining):
    """Masked LM and next-sentence prediction. Devlin et al., section 3.1."""

    pair_path = "cls.seq_relationship"

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
        """Predicts masked tokens and whether the second segment follows; arguments as of
        `ForMaskedLM.forward`.

        The loss is the sum of those there are labels for. They are ``labels`` and
        ``next_sentence_label`` (sequences,), 1 where the second segment is random, or what the
        `PackedBatch` carries.
        """
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        options = (output_hidden_states, return_logits, seed)
        return self._pretrain(
            inputs, labels, next_sentence_label, *options, "nsp", "seq_relationship_logits", 0.0
        )


class SentenceOrderPreTraining(_PairPreTraining):
    """Masked LM and sentence-order prediction. Lan et al., "ALBERT", section 3.1."""

    pair_path = "sop_classifier.classifier"

    def forward(
        self,
        input_ids: Tensor | PackedBatch | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        sentence_order_label: Tensor | None = None,
        output_hidden_states: bool = False,
        *,
        return_logits: bool = True,
        seed: int | Tensor | None = None,
    ) -> BertForPreTrainingOutput:
        """Predicts masked tokens and whether the segments were swapped; arguments as of
        `ForMaskedLM.forward`.

        The loss is the sum of those there are labels for: ``labels`` and ``sentence_order_label``
        (sequences,), 1 where they were swapped, or what the `PackedBatch` carries.
        """
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        options = (output_hidden_states, return_logits, seed)
        p = self.config.head_dropout
        return self._pretrain(
            inputs, labels, sentence_order_label, *options, "sop", "sop_logits", p
        )


class ReplacedTokenPreTraining(_HeadModel):
    """ELECTRA's discriminator: which tokens were replaced. Clark et al., "ELECTRA", section 2."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config, add_pooling_layer=False)
        self.discriminator = DiscriminatorHead(config, self)
        self._initialize_head()

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
    ) -> ElectraForPreTrainingOutput:
        """Logits (sequences, positions), and with labels the mean binary cross-entropy over the
        real tokens.

        The labels are ``labels``, shaped like the logits (1 replaced, 0 original), or
        ``token_labels`` of the `PackedBatch`. Other arguments are as of `EncoderModel.forward`.
        """
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        encoded = self.base.encode(*inputs, seed=seed)
        _no_labels_beside(input_ids, labels)
        logits, loss = self.discriminator(encoded.last), None
        packed = encoded.batch.token_labels if labels is None else _packed_labels(encoded, labels)
        if packed is not None:
            labelled = packed != IGNORE_INDEX
            losses = F.binary_cross_entropy_with_logits(
                logits.float(), packed.clamp(min=0).float(), reduction="none"
            )
            loss = torch.where(labelled, losses, 0.0).sum() / labelled.sum().clamp(min=1)
        return ElectraForPreTrainingOutput(
            loss=loss,
            logits=encoded.as_input(logits),
            hidden_states=encoded.hidden_states(output_hidden_states),
        )


class _SequenceHead(_HeadModel):
    """A head over one feature a sequence."""

    task_head: FeatureHead

    @property
    def reads_every_row(self) -> bool:
        """Whether the feature is more than the first token's row."""
        return self.config.classifier_pooling == "mean"

    def features(self, encoded: Encoded) -> Tensor:
        """(sequences, hidden), what `classify` takes: the last block's rows of the first tokens, or
        the mean over each sequence.
        """
        if self.reads_every_row:
            return mean_pooled(encoded.last, encoded.batch.cu_seqlens)
        assert encoded.first is not None
        return encoded.first

    def classify(self, features: Tensor, seed: Tensor | None = None) -> Tensor:
        """(sequences, hidden) to (sequences, outputs of the head), through the pooler where there
        is one; no dropout where seed is None.
        """
        pooler = self.base.encoder_run.modules.pooler
        if pooler is not None:
            features = torch.tanh(pooler(features))
        return self.task_head(features, seed)


class ForSequenceClassification(_SequenceHead):
    """A class, several, or a number for each input. Devlin et al., section 4.1."""

    def __init__(self, config: EncoderConfig) -> None:
        spec = member_of(config).sequence
        super().__init__(config, add_pooling_layer=spec.pooled)
        self.task_head = FeatureHead(config, self, spec, config.num_labels)
        self._initialize_head()

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
        """Logits (sequences, labels), and the loss if there are ``labels`` (sequences,) or the
        `PackedBatch` carries them.

        The loss is `classification_loss`'s. Other arguments as of `EncoderModel.forward`.
        """
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        encoded = self.base.encode(
            *inputs, seed=seed, every_row=self.reads_every_row or output_hidden_states
        )
        logits = encoded.of_sequences(self.classify(self.features(encoded), encoded.head_seed))
        if isinstance(input_ids, PackedBatch):
            _no_labels_beside(input_ids, labels)
            labels = input_ids.labels
        return SequenceClassifierOutput(
            loss=None if labels is None else classification_loss(logits, labels, self.config),
            logits=logits,
            hidden_states=encoded.hidden_states(output_hidden_states),
        )


class ForMultipleChoice(_SequenceHead):
    """Which of several continuations, a softmax over their scores. Devlin et al., section 4.4."""

    def __init__(self, config: EncoderConfig) -> None:
        spec = member_of(config).choice_head
        super().__init__(config, add_pooling_layer=spec.pooled)
        self.task_head = FeatureHead(config, self, spec, 1)
        self._initialize_head()

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
        num_choices: int | None = None,
        seed: int | Tensor | None = None,
    ) -> MultipleChoiceModelOutput:
        """Logits (questions, choices), and with ``labels`` (questions,), the right choices, the
        mean cross-entropy.

        Inputs are (questions, choices, positions); a `PackedBatch` holds the choices of a question
        one after another, ``num_choices`` of them each. Other arguments as of
        `EncoderModel.forward`.
        """
        every_row = self.reads_every_row or output_hidden_states
        if isinstance(input_ids, PackedBatch):
            if num_choices is None or num_choices < 1 or input_ids.num_sequences % num_choices:
                raise BertfastError(
                    f"num_choices is {num_choices} and the batch has {input_ids.num_sequences} "
                    "sequences; it must divide them"
                )
            encoded = self.base.encode(input_ids, seed=seed, every_row=every_row)
        else:
            inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
            check_tensors(*inputs)
            given = input_ids if input_ids is not None else inputs_embeds
            if given is None or given.dim() < 3:
                raise BertfastError(
                    "the input of multiple choice must be (questions, choices, positions)"
                )
            num_choices = given.shape[1]
            flat = (None if x is None else x.flatten(0, 1) if x.dim() > 2 else x for x in inputs)
            encoded = self.base.encode(*flat, seed=seed, every_row=every_row)
        scores = encoded.of_sequences(self.classify(self.features(encoded), encoded.head_seed))
        logits = scores.view(-1, num_choices)
        return MultipleChoiceModelOutput(
            loss=None if labels is None else F.cross_entropy(logits.float(), labels),
            logits=logits,
            hidden_states=encoded.hidden_states(output_hidden_states),
        )


class ForTokenClassification(_HeadModel):
    """A class for each token. Devlin et al., section 5.3."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config, add_pooling_layer=False)
        self.task_head = FeatureHead(config, self, self.member.token, config.num_labels)
        self._initialize_head()

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
    ) -> TokenClassifierOutput:
        """Logits (sequences, positions, labels), and with labels the mean cross-entropy.

        The labels are ``labels`` (sequences, positions), -100 where there is none, or
        ``token_labels`` of the `PackedBatch`. Labels at padding count for nothing. Other arguments
        as of `EncoderModel.forward`.
        """
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        encoded = self.base.encode(*inputs, seed=seed)
        _no_labels_beside(input_ids, labels)
        logits = self.task_head(encoded.last, encoded.head_seed)
        packed = encoded.batch.token_labels if labels is None else _packed_labels(encoded, labels)
        return TokenClassifierOutput(
            loss=None if packed is None else F.cross_entropy(logits.float(), packed),
            logits=encoded.as_input(logits),
            hidden_states=encoded.hidden_states(output_hidden_states),
        )


class ForQuestionAnswering(_HeadModel):
    """The first and the last token of an answer. Devlin et al., section 4.2."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config, add_pooling_layer=False)
        self.task_head = FeatureHead(config, self, self.member.span, 2)
        self._initialize_head()

    def forward(
        self,
        input_ids: Tensor | PackedBatch | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_hidden_states: bool = False,
        *,
        seed: int | Tensor | None = None,
    ) -> QuestionAnsweringModelOutput:
        """Start and end logits (sequences, positions), and with ``start_positions`` and
        ``end_positions`` (sequences,), or those of the `PackedBatch`, the mean of the two
        cross-entropies.

        A place outside the input counts for nothing. From a `PackedBatch` the softmax is over a
        sequence's tokens. From padded input it is over its padding too, as in `transformers`. That
        makes the loss slow, and dependent on how the batch was padded. Without labels the logits at
        padding are the lowest finite number. Other arguments as of `EncoderModel.forward`.
        """
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        labelled = start_positions is not None and end_positions is not None
        encoded = self.base.encode(*inputs, seed=seed, keep_padding=labelled)
        _no_labels_beside(input_ids, start_positions, end_positions)
        logits = self.task_head(encoded.last, encoded.head_seed)
        batch, padding = encoded.batch, encoded.padding
        if padding is None:
            start_positions, end_positions = batch.start_positions, batch.end_positions
            rows, shape = (
                padded_rows(batch.cu_seqlens, batch.num_tokens, batch.max_seqlen),
                (batch.num_sequences, batch.max_seqlen),
            )
            starts, ends = _over_places(logits, rows, shape)
        elif padding.rows is None:
            starts, ends = padding.unpack(logits).unbind(-1)
        else:
            starts, ends = _over_places(logits, padding.rows, padding.shape)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = (_place_loss(starts, start_positions) + _place_loss(ends, end_positions)) / 2
        packed = padding is None
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=encoded.as_input(logits)[:, 0] if packed else starts,
            end_logits=encoded.as_input(logits)[:, 1] if packed else ends,
            hidden_states=encoded.hidden_states(output_hidden_states),
        )


def _over_places(logits: Tensor, rows: Tensor, shape: tuple[int, int]) -> tuple[Tensor, ...]:
    """(tokens, 2) to two of (sequences, positions), the lowest finite number where there is no
    token.
    """
    real = kernels.unpack(torch.ones_like(logits[:, :1]), rows, shape) != 0
    return (
        kernels.unpack(logits, rows, shape)
        .masked_fill(~real, torch.finfo(logits.dtype).min)
        .unbind(-1)
    )


def _place_loss(logits: Tensor, places: Tensor) -> Tensor:
    """Cross-entropy of (sequences, positions) logits against (sequences,) places; those outside
    count for nothing.
    """
    inside = (places >= 0) & (places < logits.shape[1])
    return F.cross_entropy(logits.float(), torch.where(inside, places, IGNORE_INDEX))
