// Rotary position embedding of queries and keys: see kernels/rotary.py.
#include "kernels.h"

#include "simd.h"

namespace bertfast::BERTFAST_ISA {

namespace {

template <typename T>
inline void rotate(const T *x, T *out, const float *cos, const float *sin, float sign, int64_t half) {
  each_vector(half, [&](int64_t j, int64_t left) {
    const vec c = load_some(cos + j, left), s = load_some(sin + j, left) * sign;
    const vec first = load_some(x + j, left), second = load_some(x + half + j, left);
    store_some(out + j, first * c - second * s, left);
    store_some(out + half + j, second * c + first * s, left);
  });
}

}  // namespace

template <typename T>
void rotary(const Rotary<T> &p) {
  const int64_t width = 2 * p.half;
  const float sign = p.inverse ? -1 : 1;
#pragma omp parallel for num_threads(p.threads) schedule(static)
  for (int64_t token = 0; token < p.tokens; ++token) {
    const float *cos = p.cos + p.position_ids[token] * p.half, *sin = p.sin + p.position_ids[token] * p.half;
    const int64_t next = std::min(token + 1, p.tokens - 1);
    for (int64_t head = 0; head < p.heads; ++head) {
      const auto take = [&](const T *x, const int64_t *stride, T *out) {
        // The processor does not look ahead over runs this short by itself: twice as fast.
        for (int64_t j = 0; j < width; j += 64 / sizeof(T)) __builtin_prefetch(x + next * stride[0] + head * stride[1] + j);
        rotate(x + token * stride[0] + head * stride[1], out + (token * p.heads + head) * width, cos, sin, sign, p.half);
      };
      take(p.q, p.q_stride, p.q_out), take(p.k, p.k_stride, p.k_out);
    }
  }
}

template void rotary(const Rotary<float> &);
template void rotary(const Rotary<bf16> &);
template void rotary(const Rotary<f16> &);

}  // namespace bertfast::BERTFAST_ISA
