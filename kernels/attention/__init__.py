"""Variable-length bidirectional attention: ``out = dropout(softmax(scale Q Kᵀ + terms)) V`` of each
sequence by itself.

q, k, v and out (tokens, heads, head_dim): a packed batch, where sequence b is rows
``cu_seqlens[b]`` to ``cu_seqlens[b + 1]``. No padding is computed, and the score matrix never
stands in memory. An online softmax makes it tile by tile. The backward makes it again from the
saved log-sum-exp, and counts the dropout mask instead of reading a stored one.

The terms of relative positions are read from small tables as each tile is made (see
`positions.py`). With a window, tiles of keys that no query of the tile sees are skipped. A call
that asks for neither runs the same code as if there were neither.

| file | holds |
| --- | --- |
| `tiles.py` | what the kernels share: rows of a head, scores, windows, probabilities, dropout |
| `forward.py` | the online softmax |
| `backward_one_pass.py` | the backward of sequences that fit one tile of keys |
| `backward_two_passes.py` | the backward of any length: dQ by queries, then dK and dV by keys |
| `tile_list.py` | the list of blocks, longest sequences first |
| `table_gradients.py` | the gradients of the position tables |
| `op.py` | the launches' choice, the registration with PyTorch, the public function |

The kernels' names are those of Dao, "FlashAttention-2", algorithms 1 and 2:

| paper | kernel | shape |
| --- | --- | --- |
| Q_i, O_i, dQ_i, dO_i | ``q_i``, ``o_i``, ``dq_i``, ``do_i`` | (BLOCK_M, BLOCK_D), queries |
| K_j, V_j, dK_j, dV_j | ``k_j``, ``v_j``, ``dk_j``, ``dv_j`` | (BLOCK_N, BLOCK_D), keys |
| S, P, dP, dS | ``s``, ``p``, ``dp``, ``ds`` | the tile of both: scores and probabilities |
| m_i, l_i | ``m_i``, ``l_i`` | (BLOCK_M,), the greatest score so far and the sum of exponentials |
| L_i, D_i | ``lse_i``, ``delta_i`` | (BLOCK_M,), the log-sum-exp and the row sums of dO ∘ O |
| B_r, B_c | ``BLOCK_M``, ``BLOCK_N`` | queries and keys of a tile |

BLOCK_D is head_dim padded to a power of two. Scores and ``m_i`` are in units of log2, for exp2.

Sources: Vaswani et al., "Attention Is All You Need", section 3.2.1; Dao et al., "FlashAttention",
section 3.1 and appendix B; Dao, "FlashAttention-2", section 3.1; Beltagy et al., "Longformer",
section 3.1 (the window); Milakov and Gimelshein, "Online normalizer calculation for softmax".
"""

from .op import attention, attention_blocks

__all__ = ["attention", "attention_blocks"]
