"""What stands on the encoder, written once for every member: which leaves a head has is its
`Layout`'s to say.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertfast import kernels
from bertfast.config import DebertaV2Config, ElectraConfig, EncoderConfig, ModernBertConfig
from bertfast.errors import BertfastError

from .layout import View, place
from .leaves import ACTIVATIONS, activated, dropout, norm


class MLMHead:
    """The masked-LM head: LN(act(dense(x))), and a decoder that is the word embedding table with a
    bias of its own.

    Args:
        config: of the member.
        root: where the leaves are placed.
        paths: theirs.
    """

    def __init__(self, config: EncoderConfig, root: nn.Module, paths: dict[str, str]) -> None:
        # Everyone but BERT's closest kin has the exact GELU whatever the encoder has.
        self.activation = (
            "gelu"
            if config.model_type in ("roberta", "xlm-roberta", "electra")
            else config.hidden_act
        )
        has_dense_bias = self.has_bias = True
        if isinstance(config, ModernBertConfig):
            self.activation = config.classifier_activation
            has_dense_bias, self.has_bias = config.classifier_bias, config.decoder_bias
        width = config.hidden_size if "lm_predictions" in paths["dense"] else config.embedding_width
        dense = nn.Linear(config.hidden_size, width, bias=has_dense_bias)
        place(root, paths["dense"], dense)
        layer_norm = nn.LayerNorm(
            width, eps=config.layer_norm_eps, bias=getattr(config, "norm_bias", True)
        )
        place(root, paths["norm"], layer_norm)
        if self.has_bias:
            place(root, paths["bias"], nn.Parameter(torch.zeros(config.vocab_size)))
        self.parts = View(root, paths)

    def transform(self, x: Tensor) -> Tensor:
        """(..., hidden) to (..., width of the word embeddings)."""
        h: Tensor = norm(self.parts.norm, activated(self.parts.dense, x, self.activation))
        return h

    @property
    def bias(self) -> Tensor | None:
        """(vocab,) of the decoder."""
        return self.parts.parameter("bias") if self.has_bias else None

    def loss(self, x: Tensor, table: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The mean loss at the masked positions, the count of right predictions, and the count of
        predictions.

        x (masked, hidden), table (vocab, width), labels (masked,): only these rows meet the
        vocabulary.
        """
        return self.loss_of_rows(self.transform(x), table, labels)

    def loss_of_rows(
        self, h: Tensor, table: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`loss` of what `transform` gave."""
        if torch.is_autocast_enabled(h.device.type):
            h = h.to(torch.get_autocast_dtype(h.device.type))
        loss, correct = kernels.linear_cross_entropy(
            h, self.cast(table, h), self.cast(self.bias, h), labels
        )
        return loss, correct, (labels >= 0).sum()

    @staticmethod
    def cast(x: Tensor | None, like: Tensor) -> Any:  # a Tensor, or None for None
        """x in the dtype of the rows that meet it."""
        return None if x is None else x.to(like.dtype)

    def logits(self, x: Tensor, table: Tensor) -> Tensor:
        """(..., hidden) to (..., vocab): for use, not for training."""
        return F.linear(self.transform(x), table, self.bias)


class FeatureHead:
    """out(dropout(norm(act(dense(dropout(x)))))) of a feature each for a sequence or a token; what
    a member has none of is left out.

    Args:
        config: of the member.
        root: where the leaves are placed.
        paths: theirs: dense, norm and out.
        outputs: columns of the result.
        kind: "sequence", "choice", "token" or "span", which differ in their dropouts.
    """

    def __init__(
        self, config: EncoderConfig, root: nn.Module, paths: dict[str, str], outputs: int, kind: str
    ) -> None:
        width = config.hidden_size
        self.activation, has_dense_bias = "tanh", True
        self.first_dropout, self.last_dropout = 0.0, config.head_dropout
        if isinstance(config, ModernBertConfig):
            self.activation, has_dense_bias = config.classifier_activation, config.classifier_bias
        elif isinstance(config, DebertaV2Config):
            self.activation, self.first_dropout = config.pooler_hidden_act, config.pooler_dropout
            if kind == "token":
                self.last_dropout = config.hidden_dropout_prob
        elif config.model_type == "distilbert":
            self.activation = "relu"
            if kind == "token":
                self.last_dropout = config.hidden_dropout_prob
        elif isinstance(config, ElectraConfig) and kind == "choice":
            self.activation, self.last_dropout = (
                config.summary_activation or "",
                config.summary_last_dropout,
            )
            if not config.summary_use_proj:
                paths = {"out": paths["out"]}
        elif kind == "sequence" and "dense" in paths:
            self.activation = "gelu" if isinstance(config, ElectraConfig) else "tanh"
            self.first_dropout = config.head_dropout
        # ELECTRA's activation stands without the layer too.
        self.always_activated = (
            isinstance(config, ElectraConfig) and kind == "choice" and bool(self.activation)
        )
        if kind == "choice" and config.model_type in ("roberta", "xlm-roberta"):
            self.last_dropout = config.hidden_dropout_prob
        if kind == "span" and "dense" not in paths:
            self.last_dropout = getattr(config, "qa_dropout", 0.0)

        if "dense" in paths:
            place(root, paths["dense"], nn.Linear(width, width, bias=has_dense_bias))
        if "norm" in paths:
            layer_norm = nn.LayerNorm(
                width, eps=config.layer_norm_eps, bias=getattr(config, "norm_bias", True)
            )
            place(root, paths["norm"], layer_norm)
        place(root, paths["out"], nn.Linear(width, outputs))
        self.parts = View(root, paths)

    def __call__(self, x: Tensor, seed: Tensor | None) -> Tensor:
        """(rows, hidden) to (rows, outputs); no dropout where seed is None."""
        if self.parts.dense is not None:
            x = dropout(x, self.first_dropout, None if seed is None else seed + 1)
            x = (
                activated(self.parts.dense, x, self.activation)
                if self.activation
                else self.parts.dense(x)
            )
        elif self.always_activated:
            x = ACTIVATIONS[self.activation](x)
        if self.parts.norm is not None:
            x = norm(self.parts.norm, x)
        x = dropout(x, self.last_dropout, seed)
        return self.parts.out(x)


class DiscriminatorHead:
    """ELECTRA's: dense_prediction(act(dense(x))), one number a token. Clark et al., section 2."""

    def __init__(self, config: EncoderConfig, root: nn.Module) -> None:
        self.activation = config.hidden_act
        paths = {
            "dense": "discriminator_predictions.dense",
            "out": "discriminator_predictions.dense_prediction",
        }
        place(root, paths["dense"], nn.Linear(config.hidden_size, config.hidden_size))
        place(root, paths["out"], nn.Linear(config.hidden_size, 1))
        self.parts = View(root, paths)

    def __call__(self, x: Tensor) -> Tensor:
        """(tokens, hidden) to (tokens,)."""
        return self.parts.out(activated(self.parts.dense, x, self.activation)).squeeze(-1)


def classification_loss(logits: Tensor, labels: Tensor, config: EncoderConfig) -> Tensor:
    """What ``config.problem_type`` says; where that is None: squared error for one label,
    cross-entropy for integer labels, and for float labels (sequences, labels) binary cross-entropy
    of each. DeBERTa tells the last two by their number, and has cross-entropy against the float
    ones.

    Raises:
        BertfastError: labels of another shape.
    """
    kind, logits = config.problem_type, logits.float()
    if kind is None:
        if config.num_labels == 1:
            kind = "regression"
        elif isinstance(config, DebertaV2Config):
            one_each = labels.numel() == logits.shape[0]
            kind, labels = (
                ("single_label_classification", labels.long())
                if one_each
                else ("distributions", labels)
            )
        else:
            kind = ("multi" if labels.is_floating_point() else "single") + "_label_classification"
    shape = logits.shape[:1] if kind == "single_label_classification" else logits.shape
    if labels.numel() != shape.numel():
        raise BertfastError(
            f"labels have shape {tuple(labels.shape)}; for {kind} they must be {tuple(shape)}"
        )
    labels = labels.view(shape)
    if kind == "single_label_classification":
        return F.cross_entropy(logits, labels)
    labels = labels.to(logits.dtype)
    if kind == "regression":
        return F.mse_loss(logits, labels)
    return (F.cross_entropy if kind == "distributions" else F.binary_cross_entropy_with_logits)(
        logits, labels
    )
