"""What stands on the encoder, written once for every member: what a head is made of is for the
member's row in `family.FAMILY` to say.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertfast import kernels
from bertfast.config import EncoderConfig
from bertfast.errors import BertfastError
from bertfast.seeds import BEFORE_DENSE, fold_in

from .family import HeadSpec, member_of, value
from .functional import ACTIVATIONS, activated, dropout, norm, project
from .submodules import Submodules, place


class MLMHead:
    """The masked-LM head: LN(act(dense(x))), and a decoder that is the word embedding table with a
    bias of its own.

    Args:
        config: of the member.
        root: where the modules are placed.
    """

    def __init__(self, config: EncoderConfig, root: nn.Module) -> None:
        spec = member_of(config).masked_lm(config)
        self.activation: str = value(config, spec.activation)
        self.has_bias: bool = value(config, spec.decoder_bias)
        width: int = value(config, spec.width)
        dense = nn.Linear(config.hidden_size, width, bias=value(config, spec.dense_bias))
        place(root, spec.dense, dense)
        place(
            root,
            spec.norm,
            nn.LayerNorm(width, eps=config.layer_norm_eps, bias=config.norm_bias),
        )
        if self.has_bias:
            place(root, spec.bias, nn.Parameter(torch.zeros(config.vocab_size)))
        self.modules = Submodules(root, spec.paths)

    def transform(self, x: Tensor) -> Tensor:
        """(..., hidden) to (..., width of the word embeddings)."""
        h: Tensor = norm(self.modules.norm, activated(self.modules.dense, x, self.activation))
        return h

    @property
    def bias(self) -> Tensor | None:
        """(vocab,) of the decoder."""
        return self.modules.parameter("bias") if self.has_bias else None

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
        # The meta device knows no autocast.
        if not h.is_meta and torch.is_autocast_enabled(h.device.type):
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
        return kernels.linear(self.transform(x), table, self.bias)


class FeatureHead:
    """out(dropout(norm(act(dense(dropout(x)))))) of a row each for a sequence or a token; what a
    member has none of is left out.

    Args:
        config: of the member.
        root: where the modules are placed.
        spec: what the head is made of.
        outputs: columns of the result.
    """

    def __init__(
        self, config: EncoderConfig, root: nn.Module, spec: HeadSpec, outputs: int
    ) -> None:
        width = config.hidden_size
        self.activation: str = value(config, spec.activation) or ""
        self.dense_dropout: float = value(config, spec.dense_dropout)
        self.dropout: float = value(config, spec.dropout)
        if spec.dense is not None and value(config, spec.has_dense):
            dense = nn.Linear(width, width, bias=value(config, spec.dense_bias))
            place(root, spec.dense, dense)
        if spec.norm is not None:
            place(
                root,
                spec.norm,
                nn.LayerNorm(width, eps=config.layer_norm_eps, bias=config.norm_bias),
            )
        place(root, spec.out, nn.Linear(width, outputs))
        self.modules = Submodules(root, spec.paths)

    def __call__(self, x: Tensor, seed: Tensor | None) -> Tensor:
        """(rows, hidden) to (rows, outputs); no dropout where seed is None."""
        dense = self.modules.dense
        if dense is not None:
            before = None if seed is None else fold_in(seed, BEFORE_DENSE)
            x = dropout(x, self.dense_dropout, before)
            x = activated(dense, x, self.activation) if self.activation else project(dense, x)
        elif self.activation:
            x = ACTIVATIONS[self.activation](x)
        if self.modules.norm is not None:
            x = norm(self.modules.norm, x)
        return project(self.modules.out, dropout(x, self.dropout, seed))


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
        self.modules = Submodules(root, paths)

    def __call__(self, x: Tensor) -> Tensor:
        """(tokens, hidden) to (tokens,)."""
        return project(self.modules.out, activated(self.modules.dense, x, self.activation)).squeeze(
            -1
        )


def classification_loss(logits: Tensor, labels: Tensor, config: EncoderConfig) -> Tensor:
    """The loss that ``config.problem_type`` says.

    Where that is None, it is squared error for one label, and cross-entropy for integer labels. For
    float labels (sequences, labels) it is binary cross-entropy of each. DeBERTa tells the last two
    by their number, and has cross-entropy against float ones (`Member.float_labels`).

    Raises:
        BertfastError: labels of another shape.
    """
    kind, logits = config.problem_type, logits.float()
    if kind is None:
        if config.num_labels == 1:
            kind = "regression"
        elif member_of(config).float_labels == "distribution":
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
