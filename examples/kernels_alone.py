"""Use the kernels without a model: attention over sequences of unlike lengths, with its
gradients.
"""

import torch

from bertfast import kernels


def main() -> float:
    """The largest difference to PyTorch's attention, sequence by sequence."""
    torch.manual_seed(0)
    lengths, heads, head_dim = (5, 1, 9), 4, 16
    boundaries = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    q, k, v = (torch.randn(sum(lengths), heads, head_dim, requires_grad=True) for _ in range(3))
    out = kernels.attention(q, k, v, boundaries, max(lengths))
    out.square().sum().backward()

    worst = 0.0
    for start, end in zip(boundaries[:-1].tolist(), boundaries[1:].tolist(), strict=True):
        parts = (x[start:end].detach().transpose(0, 1) for x in (q, k, v))
        wanted = torch.nn.functional.scaled_dot_product_attention(*parts)
        difference = out.detach()[start:end] - wanted.transpose(0, 1)
        worst = max(worst, float(difference.abs().max()))
    return worst


if __name__ == "__main__":
    print(f"largest difference to PyTorch: {main():.1e}")
