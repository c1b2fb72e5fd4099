"""Train a masked-language model with a loop of your own: packed batches in, a loss out."""

import torch

from bertfast import BertConfig, BertForMaskedLM, PackedBatch


def make_batch(generator: torch.Generator) -> PackedBatch:
    """Three sequences of counting, of which every fourth token is hidden behind the id 1."""
    starts = torch.randint(4, 20, (3,), generator=generator).tolist()
    batch = PackedBatch.from_sequences(
        [[2, *range(start, start + 8 + row), 3] for row, start in enumerate(starts)]
    )
    batch.masked_positions = torch.arange(2, batch.num_tokens, 4)
    batch.masked_labels = batch.input_ids[batch.masked_positions]
    batch.input_ids[batch.masked_positions] = 1
    return batch


def main(steps: int = 40) -> list[float]:
    """The losses, step by step."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    model = BertForMaskedLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    generator, losses = torch.Generator().manual_seed(0), []
    for step in range(steps):
        # The seed decides the dropout, so that a step can be repeated.
        output = model(make_batch(generator), seed=step)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(output.loss.item())
    return losses


if __name__ == "__main__":
    losses = main()
    print(f"loss {losses[0]:.3f} at the first step, {losses[-1]:.3f} at the last")
