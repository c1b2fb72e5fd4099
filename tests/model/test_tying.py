"""The table that is tied to the output layer takes one dense gradient, whichever parts of the model
a backward goes through.
"""

import pytest
import torch
from torch import Tensor

from bertfast import kernels
from bertfast.config import BertConfig
from bertfast.model import BertForPreTraining
from bertfast.model import encoder as module
from bertfast.packed import PackedBatch


def model_and_batch() -> tuple[BertForPreTraining, PackedBatch]:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    batch = PackedBatch.from_sequences([[2, 5, 0, 9, 3], [2, 7, 7, 3]])
    batch.masked_positions, batch.masked_labels = torch.tensor([1, 6]), torch.tensor([4, 8])
    batch.pair_labels = torch.tensor([0, 1])
    return BertForPreTraining(config).train(), batch


def table_gradient(loss_name: str, backwards: int = 1) -> Tensor:
    model, batch = model_and_batch()
    loss = getattr(model(batch, seed=1), loss_name)
    for _ in range(backwards):
        loss.backward(retain_graph=backwards > 1)
    gradient = model.bert.embeddings.word_embeddings.weight.grad
    assert gradient is not None
    return gradient


@pytest.mark.parametrize("backwards", [1, 2])
@pytest.mark.parametrize("loss_name", ["loss", "mlm_loss", "nsp_loss"])
@pytest.mark.parametrize("backend", [None, "reference"])
def test_the_gradient_is_that_of_the_plain_sum(
    backend: str | None, loss_name: str, backwards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with kernels.use_backend(backend):
        tied = table_gradient(loss_name, backwards)
        with monkeypatch.context() as patched:
            patched.setattr(module, "tie", lambda table: (None, table))
            plain = table_gradient(loss_name, backwards)
    assert tied.layout == torch.strided
    torch.testing.assert_close(tied, plain)


def test_gradients_of_the_gradients_are_not_disturbed() -> None:
    model, batch = model_and_batch()
    with kernels.use_backend("reference"):
        loss = model(batch, seed=1).loss
        table = model.bert.embeddings.word_embeddings.weight
        (gradient,) = torch.autograd.grad(loss, table, create_graph=True)
        (again,) = torch.autograd.grad(loss, table)
    torch.testing.assert_close(gradient.detach(), again)
