"""Put a head of your own on a packed encoder and train it: here, one number a sequence."""

import tempfile

import torch
from torch import nn

from bertfast import BertConfig, BertModel, PackedBatch, Trainer


class Regressor(nn.Module):
    """The mean of squares between a target and a linear map of each sequence's first token."""

    def __init__(self, config):
        super().__init__()
        self.encoder = BertModel(config)
        self.head = nn.Linear(config.hidden_size, 1)

    def forward(self, batch, *, seed=None):
        states = self.encoder(batch, seed=seed).last_hidden_state
        firsts = states[batch.cu_seqlens[:-1].clamp(max=len(states) - 1).long()]
        targets = batch.per_sequence["target"]
        # A batch may end in empty sequences, which count for nothing.
        real = batch.cu_seqlens.diff() > 0
        errors = (self.head(firsts).squeeze(1) - targets).square()
        return {"loss": (errors * real).sum() / real.sum()}


def make_batch(generator):
    """Eight sequences of 6 tokens; the target is the mean of the ids."""
    rows = torch.randint(4, 40, (8, 6), generator=generator)
    batch = PackedBatch.from_sequences(rows.tolist())
    batch.per_sequence["target"] = rows.float().mean(1) / 40
    return batch


def main(out: str, steps: int = 60) -> float:
    """The last logged loss."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    model = Regressor(BertConfig(vocab_size=40, num_hidden_layers=2, **shape))
    generator = torch.Generator().manual_seed(0)
    batches = [make_batch(generator) for _ in range(20)]
    return Trainer(model, batches, out=out, steps=steps, lr=2e-3).train().last["loss"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(f"mean square error {main(folder):.4f}")
