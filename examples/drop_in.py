"""Run a model of transformers on bertfast's kernels: its code, its weights, its outputs."""

import torch
from transformers import BertConfig, BertForSequenceClassification

import bertfast


def main() -> float:
    """The largest difference of the logits before and after."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
    )
    model = BertForSequenceClassification(config).eval()
    ids = torch.randint(5, 100, (3, 12))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    with torch.no_grad():
        before = model(ids, attention_mask=mask).logits
        bertfast.accelerate(model)
        after = model(ids, attention_mask=mask).logits
        bertfast.restore(model)
    return float((before - after).abs().max())


if __name__ == "__main__":
    print(f"largest difference of the logits: {main():.1e}")
