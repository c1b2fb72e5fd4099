// The row part of the fused linear cross-entropy: a block of logits becomes losses and, in place, gradients.
// See kernels/linear_cross_entropy.py for the formula.
#include "kernels.h"

#include <cmath>
#include <vector>

#include "simd.h"

namespace bertfast::BERTFAST_ISA {

template <typename T>
void cross_entropy_rows(T *logits, const float *bias, const int64_t *labels, float *loss, uint8_t *correct,
                        int64_t rows, int64_t vocab, int64_t ignore_index, float label_smoothing, float z_loss,
                        const float *grad_scale, float *dbias, int threads) {
  // A row is widened once into a buffer that stays in the cache: sums in float32, one exp an element.
  const int64_t padded = (vocab + kWidth - 1) / kWidth * kWidth;
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> buffer(padded, -std::numeric_limits<float>::infinity());
    float *x = buffer.data();
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
      T *out = logits + row * vocab;
      const int64_t label = labels[row];
      if (label == ignore_index) {
        loss[row] = 0;
        correct[row] = 0;
        if (grad_scale)
          for (int64_t j = 0; j < vocab; ++j) from_float(0.0f, out[j]);
        continue;
      }
      vec largest = splat(-std::numeric_limits<float>::infinity());
      int64_t j = 0;
      for (; j + kWidth <= vocab; j += kWidth) {
        const vec v = bias ? load(out + j) + load(bias + j) : load(out + j);
        store(x + j, v);
        largest = v > largest ? v : largest;
      }
      for (; j < vocab; ++j) x[j] = to_float(out[j]) + (bias ? bias[j] : 0.0f);
      for (; j < padded; ++j) x[j] = -std::numeric_limits<float>::infinity();
      const vec last = load(x + padded - kWidth);
      largest = last > largest ? last : largest;
      const float top = max(largest), at_label = x[label];
      bool right = at_label == top;  // and, on a tie, no lower id
      for (int64_t k = 0; right && k < label; ++k) right = x[k] != top;
      correct[row] = right;

      float mean = 0;
      if (label_smoothing > 0) {
        double total = 0;
        for (int64_t k = 0; k < vocab; ++k) total += x[k];
        mean = static_cast<float>(total / vocab);
      }
      vec total = {};
      for (int64_t j = 0; j < padded; j += kWidth) {
        vec e = exp(load(x + j) - top);
        store(x + j, e);
        total += e;
      }
      const float denominator = sum(total), l = top + std::log(denominator);
      loss[row] = (1 - label_smoothing) * (l - at_label) + z_loss * l * l;
      if (label_smoothing > 0) loss[row] += label_smoothing * (l - mean);
      if (!grad_scale) continue;

      const float g = grad_scale[row];
      const float factor = g * (1 + 2 * z_loss * l) / denominator, shift = g * label_smoothing / vocab;
      const float at = x[label] * factor - shift - g * (1 - label_smoothing);
      for (int64_t j = 0; j < vocab; j += kWidth) store_some(out + j, load(x + j) * factor - shift, vocab - j);
      from_float(at, out[label]);
    }
    if (dbias) {
      // Columns are shared out, rows go in order: the sum is the same on any number of threads.
#pragma omp for schedule(static)
      for (int64_t start = 0; start < vocab; start += 1024) {
        const int64_t end = start + 1024 < vocab ? start + 1024 : vocab;
        for (int64_t row = 0; row < rows; ++row)
          for (int64_t j = start; j < end; j += kWidth)
            store_some(dbias + j, load_some(dbias + j, end - j) + load_some(logits + row * vocab + j, end - j), end - j);
      }
    }
  }
}

template void cross_entropy_rows(float *, const float *, const int64_t *, float *, uint8_t *, int64_t, int64_t, int64_t,
                                 float, float, const float *, float *, int);
template void cross_entropy_rows(bf16 *, const float *, const int64_t *, float *, uint8_t *, int64_t, int64_t, int64_t,
                                 float, float, const float *, float *, int);
template void cross_entropy_rows(f16 *, const float *, const int64_t *, float *, uint8_t *, int64_t, int64_t, int64_t,
                                 float, float, const float *, float *, int);

}  // namespace bertfast::BERTFAST_ISA
