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

struct f16 {
  uint16_t bits;
};

// `residual`, `bias` and `summed` may be null; an RMSNorm has no mean.
template <typename T>
struct AddLayerNorm {
  const T *x, *residual;
  const float *weight, *bias;
  T *out, *summed;
  float *mean, *rstd;
  int64_t rows, hidden;
  float eps;
  bool rms;
  uint32_t threshold;
  uint64_t seed;
  int threads;
};

template <typename T>
struct AddLayerNormBackward {
  AddLayerNorm<T> forward;  // its `mean` and `rstd` are read
  const T *dout, *dsummed;  // dsummed may be null
  T *dx, *dresidual;        // dresidual may be null
  float *dparameters;       // of the weight, then of the bias
};

// x has `features` columns, or twice as many when `gated`; so has the bias, which may be null.
template <typename T>
struct BiasGelu {
  const T *x;
  const float *bias;
  T *out;
  int64_t rows, features;
  bool tanh, gated;
  int threads;
};

template <typename T>
struct BiasGeluBackward {
  BiasGelu<T> forward;
  const T *dout;
  T *dx;
  float *dbias;  // may be null
};

// Word, position and segment tables with their ids; a null table is left out, and the bias may be null.
template <typename T>
struct Embed {
  const T *tables[3];
  const int64_t *ids[3];
  const float *weight, *bias;
  T *out;
  float *mean, *rstd;
  int64_t tokens, hidden;
  float eps;
  uint32_t threshold;
  uint64_t seed;
  int threads;
};

template <typename T>
struct EmbedBackward {
  Embed<T> forward;  // its `mean` and `rstd` are read
  const T *dout;
  float *dsum;         // (tokens, hidden), of the tables' rows
  float *dparameters;  // of the weight, then of the bias
};

// Queries and keys with strides of token and head; the outputs are contiguous. The tables have `half` columns, half a head.
template <typename T>
struct Rotary {
  const T *q, *k;
  T *q_out, *k_out;
  const int64_t *position_ids;
  const float *cos, *sin;
  int64_t tokens, heads, half;
  int64_t q_stride[2], k_stride[2];
  bool inverse;  // by the angles' negatives
  int threads;
};

// One parameter of an AdamW step; `copy`, a lower-precision copy of the updated weights, may be null.
template <typename T>
struct AdamwTensor {
  float *weight;
  const T *gradient;
  float *mean, *square;
  bf16 *copy;
  int64_t n;
};

struct AdamwRates {
  float rate, correction1, correction2, gradient_scale, beta1, beta2, eps, weight_decay;
};

// Whether a matrix of a product holds the op's type or float32.
enum class Elements { kNarrow, kWide };

// C (rows, columns) (+)= A (rows, inner) B (inner, columns) + bias (columns,). One stride of each matrix is 1; the bias, which may be
// null, is contiguous.
template <typename T>
struct WidenedProduct {
  const void *a, *b, *bias;
  void *c;
  Elements a_elements, b_elements, bias_elements, c_elements;
  int64_t rows, inner, columns;
  int64_t a_stride[2], b_stride[2], c_stride[2];
  bool accumulate;
  int threads;
};

template <typename T>
struct Ops {
  void (*attention_forward)(const AttentionForward<T> &);
  void (*attention_backward)(const AttentionBackward<T> &);
  void (*dropout)(const T *x, T *out, int64_t n, uint32_t threshold, uint64_t seed, int threads);
  void (*cross_entropy_rows)(T *logits, const float *bias, const int64_t *labels, float *loss, uint8_t *correct,
                             int64_t rows, int64_t vocab, int64_t ignore_index, float label_smoothing, float z_loss,
                             const float *grad_scale, float *dbias, int threads);
  void (*add_layer_norm_forward)(const AddLayerNorm<T> &);
  void (*add_layer_norm_backward)(const AddLayerNormBackward<T> &);
  void (*bias_gelu_forward)(const BiasGelu<T> &);
  void (*bias_gelu_backward)(const BiasGeluBackward<T> &);
  void (*embed_forward)(const Embed<T> &);
  void (*embed_backward)(const EmbedBackward<T> &);
  void (*sum_row_groups)(const float *rows, const int64_t *order, const int64_t *starts, const int64_t *targets, T *out,
                         int64_t groups, int64_t hidden, int threads);
  void (*adamw)(const AdamwTensor<T> *tensors, int64_t count, const AdamwRates &rates, int threads);
  double (*sum_of_squares)(const AdamwTensor<T> *tensors, int64_t count, int threads);
  void (*rotary)(const Rotary<T> &);
  void (*widened_product)(const WidenedProduct<T> &);
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
  Ops<float> float32;
  Ops<bf16> bfloat16;
  Ops<f16> float16;
  PlainOps plain;
};

}  // namespace bertfast
