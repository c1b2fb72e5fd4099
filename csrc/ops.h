// What the ops take, and the table that each instruction set fills.
#pragma once

#include <cstdint>

namespace bertfast {

// Sizes and strides are counted in elements; `threshold` is of Philox lanes (0: no dropout).
template <typename T>
struct AttentionForward {
  const T *q, *k, *v;
  T *out;
  float *lse;
  const int32_t *cu_seqlens;
  int64_t sequences, heads, head_dim;
  int64_t q_stride[2], k_stride[2], v_stride[2];
  int64_t tokens;
  float scale;
  uint32_t threshold;
  uint64_t seed;
  int threads;
};

template <typename T>
struct AttentionBackward {
  AttentionForward<T> forward;  // its `out` and `lse` are read
  const T *dout;
  T *dq, *dk, *dv;
  int64_t d_stride[2];
};

struct MaskTokens {
  const int64_t *ids;
  const uint8_t *special;
  const int64_t *counters;  // null: a token's is its index
  const int64_t *choices;   // the counters that decide the choice; null: the token's own
  int64_t *masked, *labels;
  int64_t tokens, mask_id, first_random_id;
  uint64_t random_ids;                             // how many from first_random_id on
  uint64_t choose_below, mask_below, random_below;  // of a 32-bit word, up to 2^32
  int64_t ignore_index;
  uint64_t seed;
  int threads;
};

struct bf16 {
  uint16_t bits;
};

template <typename T>
struct Ops {
  void (*attention_forward)(const AttentionForward<T> &);
  void (*attention_backward)(const AttentionBackward<T> &);
  void (*dropout)(const T *x, T *out, int64_t n, uint32_t threshold, uint64_t seed, int threads);
  void (*cross_entropy_rows)(T *logits, const float *bias, const int64_t *labels, float *loss, float *lse, uint8_t *correct,
                             int64_t rows, int64_t vocab, int64_t ignore_index, float label_smoothing, float z_loss,
                             const float *grad_scale, float *dbias, int threads);
};

// Ops that compute with no float: rows are moved as bytes, ids are int64.
struct PlainOps {
  void (*gather_rows)(const char *x, const int64_t *index, char *out, int64_t masked, int64_t width, int64_t stride, int threads);
  void (*scatter_rows)(const char *dout, const int64_t *index, char *dx, int64_t rows, int64_t masked, int64_t width, int threads);
  void (*mask_tokens)(const MaskTokens &);
};

// One instruction set's kernels.
struct Kernels {
  const char *name;
  Ops<float> f32;
  Ops<bf16> b16;
  PlainOps plain;
};

}  // namespace bertfast
