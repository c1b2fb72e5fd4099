"""Pretraining of two models at once: ELECTRA's generator and discriminator, DistilBERT's student
under its teacher.

Each is a module that the trainer steps like any other. Called with a packed batch and a seed, it
returns the loss with its parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from bertfast.config import ElectraConfig
from bertfast.errors import BertfastError
from bertfast.kernels.philox import as_seed
from bertfast.model.encoder import Encoder
from bertfast.model.members import ElectraForMaskedLM, ElectraForPreTraining
from bertfast.model.models import MaskedLMModel
from bertfast.model.outputs import ModelOutput
from bertfast.model.submodules import Submodules
from bertfast.objectives.distillation import (
    COSINE_WEIGHT,
    MLM_WEIGHT,
    SOFT_WEIGHT,
    cosine_loss,
    distillation_loss,
    teacher_layers,
)
from bertfast.objectives.rtd import DISCRIMINATOR_WEIGHT, discriminator_inputs, sample_tokens
from bertfast.packed import IGNORE_INDEX, PackedBatch
from bertfast.seeds import DISCRIMINATOR, SAMPLING, fold_in

GENERATOR = "generator"  # its folder in a run's, which is the discriminator's


@dataclass
class ReplacedTokenOutput(ModelOutput):
    """The sum of the generator's loss and the weighted one of the discriminator; ``rtd_correct`` of
    ``rtd_count`` tokens are told rightly.
    """

    loss: Tensor
    mlm_loss: Tensor
    rtd_loss: Tensor
    mlm_correct: Tensor
    mlm_count: Tensor
    rtd_correct: Tensor
    rtd_count: Tensor


class ReplacedTokenDetection(nn.Module):
    """A discriminator and the generator that it learns from, which share their embeddings. Clark et
    al., "ELECTRA", sections 2 and 3.2.

    Args:
        discriminator: whose embeddings the generator takes over.
        generator: of the same vocabulary and embedding width.
    """

    counted: ClassVar[dict[str, str]] = {"rtd": "tokens"}

    def __init__(self, discriminator: ElectraForPreTraining, generator: ElectraForMaskedLM) -> None:
        super().__init__()
        self.discriminator, self.generator = discriminator, generator
        base = generator.base
        base._modules["embeddings"] = discriminator.base._modules["embeddings"]
        base.encoder_run = Encoder(base.config, base)

    def forward(self, batch: PackedBatch, *, seed: int | Tensor) -> ReplacedTokenOutput:
        """One batch with masked positions; the generator's samples are drawn under the same
        seed.
        """
        generator, seed = self.generator, as_seed(seed, batch.input_ids.device)
        encoded = generator.encode_masked(batch, seed)
        batch = encoded.batch
        assert encoded.predicted is not None
        assert batch.masked_labels is not None
        rows = generator.mlm.transform(encoded.predicted)
        mlm_loss, mlm_correct, mlm_count = generator.mlm.loss_of_rows(
            rows, encoded.table, batch.masked_labels
        )
        number = torch.arange(len(rows), device=rows.device)
        table, bias = (
            generator.mlm.cast(encoded.table, rows),
            generator.mlm.cast(generator.mlm.bias, rows),
        )
        sampled = sample_tokens(rows, table, bias, fold_in(seed, SAMPLING), number)
        ids, labels = discriminator_inputs(batch, sampled)
        read = replace(
            batch, input_ids=ids, token_labels=labels, masked_positions=None, masked_labels=None
        )
        output = self.discriminator(read, seed=fold_in(seed, DISCRIMINATOR))
        counted = labels != IGNORE_INDEX
        return ReplacedTokenOutput(
            loss=mlm_loss + DISCRIMINATOR_WEIGHT * output.loss,
            mlm_loss=mlm_loss,
            rtd_loss=output.loss,
            mlm_correct=mlm_correct,
            mlm_count=mlm_count,
            rtd_correct=(((output.logits > 0).long() == labels) & counted).sum(),
            rtd_count=counted.sum(),
        )


def generator_config(config: ElectraConfig, size: float) -> ElectraConfig:
    """A generator of this share of the discriminator's width, the embeddings being the same. Clark
    et al., section 3.2: a quarter to a half is best.
    """
    heads = max(1, round(config.num_attention_heads * size))
    return replace(
        config,
        hidden_size=heads * config.head_dim,
        num_attention_heads=heads,
        intermediate_size=max(1, round(config.intermediate_size * size)),
    )


@dataclass
class DistillationOutput(ModelOutput):
    """The weighted sum of the three losses; without the cosine one where the widths differ."""

    loss: Tensor
    mlm_loss: Tensor
    soft_loss: Tensor
    cosine_loss: Tensor | None
    mlm_correct: Tensor
    mlm_count: Tensor


class Distillation(nn.Module):
    """A student that learns from a teacher's predictions and hidden states. Sanh et al.,
    "DistilBERT", section 3.

    The teacher is no part of the module's parameters; it goes where the module goes.

    Args:
        student: of the teacher's vocabulary.
        teacher: with a masked-LM head; frozen, in evaluation mode.

    Raises:
        BertfastError: the vocabularies differ in size.
    """

    teacher: MaskedLMModel
    counted: ClassVar[dict[str, str]] = {"soft": "masked", "cosine": "tokens"}

    def __init__(self, student: MaskedLMModel, teacher: MaskedLMModel) -> None:
        super().__init__()
        if student.config.vocab_size != teacher.config.vocab_size:
            raise BertfastError(
                f"the teacher has {teacher.config.vocab_size} words and the student "
                f"{student.config.vocab_size}; both must have the teacher's tokenizer"
            )
        self.student = student
        object.__setattr__(self, "teacher", teacher.eval().requires_grad_(False))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Distillation:
        self.teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def forward(self, batch: PackedBatch, *, seed: int | Tensor) -> DistillationOutput:
        """One batch with masked positions, which the teacher reads without dropout."""
        student, teacher = self.student, self.teacher
        encoded = student.encode_masked(batch, seed, every_row=True)
        batch = encoded.batch
        assert encoded.predicted is not None
        assert batch.masked_labels is not None
        rows = student.mlm.transform(encoded.predicted)
        mlm_loss, correct, count = student.mlm.loss_of_rows(
            rows, encoded.table, batch.masked_labels
        )
        with torch.no_grad():
            targets = teacher.encode_masked(batch, None, every_row=True)
            assert targets.predicted is not None
            target_rows = teacher.mlm.transform(targets.predicted)
        soft_loss = distillation_loss(
            rows,
            student.mlm.cast(encoded.table, rows),
            student.mlm.cast(student.mlm.bias, rows),
            target_rows,
            targets.table.to(target_rows.dtype),
            teacher.mlm.cast(teacher.mlm.bias, target_rows),
            batch.masked_labels >= 0,
        )
        loss = SOFT_WEIGHT * soft_loss + MLM_WEIGHT * mlm_loss
        cosine = None
        if student.config.hidden_size == teacher.config.hidden_size:
            cosine = cosine_loss(encoded.last, targets.last, batch)
            loss = loss + COSINE_WEIGHT * cosine
        return DistillationOutput(
            loss=loss,
            mlm_loss=mlm_loss,
            soft_loss=soft_loss,
            cosine_loss=cosine,
            mlm_correct=correct,
            mlm_count=count,
        )


@torch.no_grad()
def start_from_teacher(student: MaskedLMModel, teacher: MaskedLMModel) -> bool:
    """Copies the teacher's embeddings, some of its layers, evenly spread, and its masked-LM head
    into the student; whether the shapes let it.

    The two may be of different members: what one has and the other has not is left out. Positions
    are copied from the first token's on.
    """
    mine, theirs = student.base.encoder_run, teacher.base.encoder_run
    if len(mine.blocks) > len(theirs.blocks):
        return False
    layers = teacher_layers(len(mine.blocks), len(theirs.blocks))
    pairs = [
        (mine.modules, theirs.modules),
        *((block, theirs.blocks[index]) for block, index in zip(mine.blocks, layers, strict=True)),
    ]
    pairs.append((student.mlm.modules, teacher.mlm.modules))
    shared = [found for pair in pairs for found in _shared_parameters(*pair)]
    if any(a.shape != b.shape for name, a, b in shared if name != "position"):
        return False
    for name, own, other in shared:
        if name == "position":
            first, start = student.config.position_offset, teacher.config.position_offset
            count = min(len(own) - first, len(other) - start)
            own[first : first + count] = other[start : start + count]
        else:
            own.copy_(other)
    if student.mlm.bias is not None and teacher.mlm.bias is not None:
        student.mlm.bias.copy_(teacher.mlm.bias)
    return True


def _shared_parameters(mine: Submodules, theirs: Submodules) -> list[tuple[str, Tensor, Tensor]]:
    """(name of the module, the student's parameter, the teacher's) of the modules that both
    have.
    """
    found = []
    for name in mine.names():
        own, other = getattr(mine, name), getattr(theirs, name)
        if own is not None and other is not None:
            others = dict(other.named_parameters())
            found += [
                (name, parameter, others[key])
                for key, parameter in own.named_parameters()
                if key in others
            ]
    return found
