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
void cross_entropy_rows(T *logits, const float *bias, const int64_t *labels, float *loss, float *lse, uint8_t *correct,
                        int64_t rows, int64_t vocab, int64_t ignore_index, float label_smoothing, float z_loss,
                        const float *grad_scale, float *dbias, int threads);

}  // namespace bertfast::BERTFAST_ISA
