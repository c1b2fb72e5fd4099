"""What an op cannot do without, as a function of its shapes.

That is the FLOPs of its result and the bytes that it must read and write.

Forward and backward together. A multiply-add is two FLOPs; a recomputation counts for nothing. A
tensor counts as often as it must pass between memory and the caches. The op is taken to be one
fused pass forward and one backward. What fits in registers is free. An input that the backward
needs again is read again. Of the memory-bound ops the FLOPs are the operations as
`kernels/reference.py` writes them, with a transcendental function counted as one. They place an op
in a roofline and decide nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from bertfast.config import EncoderConfig, ModernBertConfig
from bertfast.model.family import member_of

from .lengths import Lengths

INT64 = 8


@dataclass(frozen=True)
class Floor:
    """The least work: floating-point operations, and bytes read plus bytes written."""

    flops: float
    bytes: float

    def __add__(self, other: Floor) -> Floor:
        return Floor(self.flops + other.flops, self.bytes + other.bytes)

    def times(self, count: int) -> Floor:
        """This work so many times."""
        return Floor(self.flops * count, self.bytes * count)

    def seconds(self, rates: dict[str, float], dtype: str) -> float:
        """The least time on a machine of these rates (see `rates`): the longer of computing
        and moving.
        """
        return max(self.flops / rates[f"matrix {dtype}"], self.bytes / rates["copy"])


def attention_forward(
    lengths: Lengths, heads: int, head_dim: int, itemsize: int, window: int | None = None
) -> Floor:
    """Two products of each pair of tokens in a sequence, or in a window; q, k, v in, out out."""
    width = heads * head_dim
    return Floor(2 * 2 * lengths.pairs(window) * width, 4 * lengths.tokens * width * itemsize)


def attention_backward(
    lengths: Lengths, heads: int, head_dim: int, itemsize: int, window: int | None = None
) -> Floor:
    """Four products (the scores' second making is a recomputation); q, k, v, dout in, three
    gradients out.
    """
    width = heads * head_dim
    return Floor(4 * 2 * lengths.pairs(window) * width, 7 * lengths.tokens * width * itemsize)


def attention(lengths: Lengths, heads: int, head_dim: int, itemsize: int) -> Floor:
    """Both passes."""
    sizes = (lengths, heads, head_dim, itemsize)
    return attention_forward(*sizes) + attention_backward(*sizes)


def linear_cross_entropy(masked: int, vocab: int, hidden: int, itemsize: int) -> Floor:
    """Three products; states and table in twice, their gradients out."""
    return Floor(3 * 2 * masked * vocab * hidden, 3 * (masked + vocab) * hidden * itemsize)


def add_layer_norm(
    tokens: int, hidden: int, itemsize: int, dropout: bool = True, prenorm: bool = False
) -> Floor:
    """Forward: x and residual in, the normed out. Backward: both again and dout in; one gradient
    out, two where dropout makes them differ.

    The pre-norm form's sum is an output, which the backward reads in place of both; its own
    gradient comes in too.
    """
    passes = (2 + 2) + (3 + 1) if prenorm else (2 + 1) + (3 + 1)
    return Floor(20 * tokens * hidden, (passes + dropout) * tokens * hidden * itemsize)


def layer_norm(tokens: int, hidden: int, itemsize: int) -> Floor:
    """Without a residual: x in, the normed out; x and dout in, dx out."""
    return Floor(18 * tokens * hidden, 5 * tokens * hidden * itemsize)


def bias_gelu(tokens: int, features: int, itemsize: int, gated: bool = False) -> Floor:
    """x in, the result out; x and dout in, dx out. Gated, x and dx are twice as wide as the
    result.
    """
    return Floor(
        (16 if gated else 14) * tokens * features,
        (8 if gated else 5) * tokens * features * itemsize,
    )


def dropout(elements: int, itemsize: int) -> Floor:
    """x in, out out; dout in, dx out."""
    return Floor(2 * elements, 4 * elements * itemsize)


def gather_rows(masked: int, tokens: int, hidden: int, itemsize: int) -> Floor:
    """The rows in and out; their gradients in, the whole gradient out."""
    return Floor(0, (3 * masked + tokens) * hidden * itemsize + 2 * INT64 * masked)


def embed(tokens: int, table_rows: int, hidden: int, itemsize: int) -> Floor:
    """Ids and rows in, the normed sum out; ids, rows and dout in, the tables' gradients out.

    autograd's gradient of a table has all of its rows. The position and segment rows stay in the
    caches.
    """
    return Floor(
        22 * tokens * hidden, (4 * tokens + table_rows) * hidden * itemsize + 2 * 3 * INT64 * tokens
    )


def rotary(tokens: int, hidden: int, itemsize: int) -> Floor:
    """q and k in and out, and so their gradients; the tables stay in the caches."""
    return Floor(
        2 * 2 * 3 * tokens * hidden, 2 * 4 * tokens * hidden * itemsize + 2 * INT64 * tokens
    )


def mask_tokens(tokens: int, words: bool = False) -> Floor:
    """Ids and a byte for the special ones in, ids and labels out; there is no backward."""
    return Floor(0, tokens * ((3 + words) * INT64 + 1))


def padding(tokens: int, cells: int, hidden: int, itemsize: int) -> Floor:
    """Pack, or unpack, and its backward, which is the other: tokens in and out each way, the padded
    cells out once.
    """
    return Floor(0, (3 * tokens + cells) * hidden * itemsize + 2 * INT64 * tokens)


def adamw(parameters: int, itemsize: int) -> Floor:
    """Weight and both moments in float32 in and out, the gradient in; in half precision the
    weight's copy out too.
    """
    copies = itemsize if itemsize < 4 else 0
    return Floor(12 * parameters, (2 * 3 * 4 + itemsize + copies) * parameters)


def linear(rows: int, inner: int, columns: int, itemsize: int) -> Floor:
    """A dense layer: three products; input and weight in twice, output out, dout in, the gradients
    out.
    """
    passes = 3 * (rows * inner + inner * columns) + 2 * rows * columns
    return Floor(3 * 2 * rows * inner * columns, passes * itemsize)


def step_ops(
    config: EncoderConfig, lengths: Lengths, masked: int, parameters: int, itemsize: int
) -> dict[str, Floor]:
    """A masked-LM training step by op, under the names of `bertfast profile`.

    Of the last block only the masked positions' rows are counted past its attention. Dropouts and
    residual sums are part of the norms, as copies, casts, fills and sums of gradients are of
    nothing: whatever these cost is lost.
    """
    tokens, hidden, inner = lengths.tokens, config.hidden_size, config.intermediate_size
    layers, heads, head_dim = config.num_hidden_layers, config.num_attention_heads, config.head_dim
    gated = member_of(config).gated
    up = 2 * inner if gated else inner  # GeGLU's gate
    products = linear(tokens, hidden, hidden, itemsize).times(3 * layers) + linear(
        masked, hidden, hidden, itemsize
    )
    norms, gelus = layer_norm(masked, hidden, itemsize), bias_gelu(masked, hidden, itemsize)
    for rows, count in ((tokens, layers - 1), (masked, 1)):
        products += linear(rows, hidden, hidden, itemsize).times(count)
        products += linear(rows, hidden, up, itemsize).times(count)
        products += linear(rows, inner, hidden, itemsize).times(count)
        norms += add_layer_norm(rows, hidden, itemsize).times(2 * count)
        gelus += bias_gelu(rows, inner, itemsize, gated).times(count)
    windows = [
        config.window(layer) if isinstance(config, ModernBertConfig) else None
        for layer in range(layers)
    ]
    attention = (lengths, heads, head_dim, itemsize)
    rows = config.vocab_size + config.max_position_embeddings + config.type_vocab_size
    return {
        "matrix products": products,
        "attention forward": sum(
            (attention_forward(*attention, window) for window in windows), Floor(0, 0)
        ),
        "attention backward": sum(
            (attention_backward(*attention, window) for window in windows), Floor(0, 0)
        ),
        "linear_cross_entropy": linear_cross_entropy(masked, config.vocab_size, hidden, itemsize),
        "layer norm": norms,
        "gelu": gelus,
        "embedding": embed(tokens, rows, hidden, itemsize),
        "gather_rows": gather_rows(masked, tokens, hidden, itemsize).times(2),
        "optimizer": adamw(parameters, itemsize),
    }


def inference(config: EncoderConfig, lengths: Lengths, itemsize: int) -> Floor:
    """The products of a forward of the encoder alone, for every row of its last block too.

    Each layer has four products of the attention and two of the feed-forward.
    """
    tokens, hidden, inner, layers = (
        lengths.tokens,
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
    )
    up = 2 * inner if member_of(config).gated else inner  # GeGLU's gate
    weights = hidden * (4 * hidden + up + inner)
    products = Floor(
        2 * tokens * weights, (weights + tokens * (10 * hidden + up + inner)) * itemsize
    )
    attention = attention_forward(lengths, config.num_attention_heads, config.head_dim, itemsize)
    return (products + attention).times(layers)


PRODUCTS = ("matrix products", "attention forward", "attention backward", "linear_cross_entropy")


def step_flops(config: EncoderConfig, lengths: Lengths, masked: int) -> float:
    """FLOPs of the products of a forward and a backward: of real tokens, of pairs in one sequence,
    and of masked positions.
    """
    ops = step_ops(config, lengths, masked, 0, 4)
    return sum(ops[name].flops for name in PRODUCTS)
