// The kernels as each instruction set compiles them, one source file an op.
#pragma once

#include "ops.h"

namespace bertfast::BERTFAST_ISA {

template <typename T>
void attention_forward(const AttentionForward<T> &);
template <typename T>
void attention_backward(const AttentionBackward<T> &);
template <typename T>
void dropout(const T *x, T *out, int64_t n, uint32_t threshold, uint64_t seed, int threads);
void gather_rows(const char *x, const int64_t *index, char *out, int64_t masked, int64_t width, int64_t stride, int threads);
void scatter_rows(const char *dout, const int64_t *index, char *dx, int64_t rows, int64_t masked, int64_t width, int threads);
void mask_tokens(const MaskTokens &);
template <typename T>
void cross_entropy_rows(T *logits, const float *bias, const int64_t *labels, float *loss, uint8_t *correct,
                        int64_t rows, int64_t vocab, int64_t ignore_index, float label_smoothing, float z_loss,
                        const float *grad_scale, float *dbias, int threads);
template <typename T>
void add_layer_norm_forward(const AddLayerNorm<T> &);
template <typename T>
void add_layer_norm_backward(const AddLayerNormBackward<T> &);
template <typename T>
void bias_gelu_forward(const BiasGelu<T> &);
template <typename T>
void bias_gelu_backward(const BiasGeluBackward<T> &);
template <typename T>
void embed_forward(const Embed<T> &);
template <typename T>
void embed_backward(const EmbedBackward<T> &);
template <typename T>
void sum_row_groups(const float *rows, const int64_t *order, const int64_t *starts, const int64_t *targets, T *out,
                    int64_t groups, int64_t hidden, int threads);
template <typename T>
void adamw(const AdamwTensor<T> *tensors, int64_t count, const AdamwRates &rates, int threads);
template <typename T>
double sum_of_squares(const AdamwTensor<T> *tensors, int64_t count, int threads);
template <typename T>
void rotary(const Rotary<T> &);
template <typename T>
void widened_product(const WidenedProduct<T> &);

}  // namespace bertfast::BERTFAST_ISA
