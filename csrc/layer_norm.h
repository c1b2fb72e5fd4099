// LayerNorm and RMSNorm of one row in float32: see kernels/add_layer_norm.py for the formula.
#pragma once

#include "simd.h"

namespace bertfast::BERTFAST_ISA {

constexpr int64_t kChunk = 32;  // rows whose share of a sum over rows is made by one thread, whatever the number of threads

inline int64_t chunks(int64_t rows) { return (rows + kChunk - 1) / kChunk; }

struct Moments {
  float mean, rstd;
};

// Of s[0 .. n), which zeros follow up to a whole vector, and whose sum is `total`; RMSNorm's mean is zero.
inline Moments moments(const float *s, int64_t n, float total, float eps, bool rms) {
  const float mean = rms ? 0 : total / n;
  const float squares = sum_vectors(n, [&](int64_t j, int64_t left) {
    const vec centred = first_lanes(load(s + j) - mean, left);
    return centred * centred;
  });
  return {mean, 1 / std::sqrt(squares / n + eps)};
}

// weight * (s - mean) * rstd + bias at column j; bias may be null.
inline vec normalized(vec s, Moments m, const float *weight, const float *bias, int64_t j, int64_t left) {
  const vec y = (s - m.mean) * m.rstd * load_some(weight + j, left);
  return bias ? y + load_some(bias + j, left) : y;
}

// On entry s is the normalised row's input and dy its gradient. On return dy is the input's gradient, and the row's parts are added to the
// gradients of weight and bias. Both rows are zeros past n, up to a whole vector.
inline void norm_backward(float *s, float *dy, Moments m, bool rms, const float *weight, int64_t n, float *dweight, float *dbias) {
  vec total[2] = {};
  const float along = sum_vectors(n, [&](int64_t j, int64_t left) {
    const vec g = load(dy + j), normal = (load(s + j) - m.mean) * m.rstd, weighted = g * load_some(weight + j, left);
    store_some(dweight + j, load_some(dweight + j, left) + g * normal, left);
    store_some(dbias + j, load_some(dbias + j, left) + g, left);
    total[j / kWidth % 2] += weighted;
    store(s + j, normal);
    store(dy + j, weighted);
    return weighted * normal;
  });
  const float a = along / n, b = rms ? 0 : sum(total[0] + total[1]) / n;
  for (int64_t j = 0; j < n; j += kWidth) store(dy + j, (load(dy + j) - load(s + j) * a - b) * m.rstd);
}

// out[j] = sum over chunks, in order, of partial[chunk * width + j]. The team that made the chunks calls it, every thread of it: a
// second team would wait a second time.
inline void sum_chunks(const float *partial, int64_t count, int64_t width, float *out) {
#pragma omp for schedule(static)
  for (int64_t start = 0; start < width; start += 64) {
    const int64_t end = std::min(width, start + 64);
    std::fill(out + start, out + end, 0.0f);
    for (int64_t c = 0; c < count; ++c)
      for (int64_t j = start; j < end; ++j) out[j] += partial[c * width + j];
  }
}

}  // namespace bertfast::BERTFAST_ISA
