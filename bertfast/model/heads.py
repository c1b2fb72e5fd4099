"""What stands on the encoder: the pooler and the pretraining heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertfast import kernels
from bertfast.config import BertConfig

from .encoder import ActivatedLinear


class BertPooler(nn.Module):
    """tanh(dense(first token)) of each sequence. Devlin et al., section 3 and the released code."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(sequences, hidden), each sequence's first token, to (sequences, hidden)."""
        return torch.tanh(self.dense(x))


class PredictionTransform(ActivatedLinear):
    """LN(act(dense(x))), before the decoder."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config.hidden_size, config.hidden_size, config.hidden_act)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """(masked, hidden) to (masked, hidden)."""
        norm = self.LayerNorm
        return kernels.add_layer_norm(super().forward(x), None, norm.weight, norm.bias, eps=norm.eps)


class MLMHead(nn.Module):
    """The masked-LM head; its decoder is the word embedding table, with a bias of its own."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.transform = PredictionTransform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def loss(self, x: Tensor, table: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The mean loss at the masked positions, the count of right predictions, and the count of predictions.

        x (masked, hidden), table (vocab, hidden), labels (masked,): only these rows meet the vocabulary.
        """
        h = self.transform(x)
        bias: Tensor = self.bias
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            h, table, bias = h.to(dtype), table.to(dtype), bias.to(dtype)
        loss, correct = kernels.linear_cross_entropy(h, table, bias, labels)
        return loss, correct, (labels >= 0).sum()

    def logits(self, x: Tensor, table: Tensor) -> Tensor:
        """(..., hidden) to (..., vocab): for use, not for training."""
        return F.linear(self.transform(x), table, self.bias)


class MLMHeads(nn.Module):
    """The masked-LM head under Hugging Face's name for it, ``cls.predictions``."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.predictions = MLMHead(config)


class PreTrainingHeads(MLMHeads):
    """The masked-LM head and the next-sentence head."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.seq_relationship = nn.Linear(config.hidden_size, 2)
