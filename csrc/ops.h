// What the ops take, and the table that each instruction set fills.
#pragma once

#include <cstdint>

namespace bertfast {

// What relative positions add to the scores (see kernels/positions.py); a null table is absent.
template <typename T>
struct Positions {
  const int32_t *bucket_of;  // of a query and a key, at query - key + max_seqlen - 1
  const T *bias;             // (heads, buckets)
  const T *query_scores, *key_scores;
  int64_t buckets, max_seqlen;
  int64_t query_stride[2], key_stride[2];
};

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
  int64_t window;  // keys that a query sees on each side; -1: all
  Positions<T> positions;
};

template <typename T>
struct AttentionBackward {
  AttentionForward<T> forward;  // its `out` and `lse` are read
  const T *dout;
  T *dq, *dk, *dv;
  int64_t d_stride[2];
  T *dbias, *dquery_scores, *dkey_scores;  // contiguous; null: not wanted
};

struct bf16 {
  uint16_t bits;
};

template <typename T>
struct Ops {
  void (*attention_forward)(const AttentionForward<T> &);
  void (*attention_backward)(const AttentionBackward<T> &);
  void (*dropout)(const T *x, T *out, int64_t n, uint32_t threshold, uint64_t seed, int threads);
  void (*gather_rows)(const T *x, const int64_t *index, T *out, int64_t masked, int64_t hidden, int64_t stride, int threads);
  void (*scatter_rows)(const T *dout, const int64_t *index, T *dx, int64_t rows, int64_t masked, int64_t hidden, int threads);
  void (*cross_entropy_rows)(T *logits, const float *bias, const int64_t *labels, float *loss, float *lse, uint8_t *correct,
                             int64_t rows, int64_t vocab, int64_t ignore_index, float label_smoothing, float z_loss,
                             const float *grad_scale, float *dbias, int threads);
};

// One instruction set's kernels.
struct Kernels {
  const char *name;
  Ops<float> f32;
  Ops<bf16> b16;
};

}  // namespace bertfast
