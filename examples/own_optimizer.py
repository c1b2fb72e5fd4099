"""Train with an optimizer, a schedule and a callback of your own, with checkpoints to resume
from.
"""

import math
import tempfile

import torch
from custom_loop import make_batch

from bertfast import BertConfig, BertForMaskedLM, Callback, Trainer


class Losses(Callback):
    """Keeps what was logged."""

    def __init__(self):
        self.values = []

    def on_log(self, trainer, line):
        self.values.append(line["loss"])


def main(out: str, steps: int = 40, resume: bool = False) -> list[float]:
    """The logged losses of this call."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    model = BertForMaskedLM(config)
    generator = torch.Generator().manual_seed(0)
    losses = Losses()
    Trainer(
        model,
        [make_batch(generator) for _ in range(20)],
        out=out,
        steps=steps,
        optimizer=torch.optim.NAdam(model.parameters(), lr=5e-3),
        schedule=lambda step: 0.5 * (1 + math.cos(math.pi * step / 40)),
        callbacks=[losses],
        checkpoint_every=20,
        log_every=5,
    ).train(resume)
    return losses.values


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        first = main(folder, steps=20)
        rest = main(folder, steps=40, resume=True)
        print(f"loss {first[0]:.3f}, {first[-1]:.3f} at the checkpoint, {rest[-1]:.3f} at the end")
