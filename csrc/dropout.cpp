// Dropout of a flat tensor: see kernels/dropout.py.
#include "kernels.h"

#include "philox.h"

namespace bertfast::BERTFAST_ISA {

template <typename T>
void dropout(const T *x, T *out, int64_t n, uint32_t threshold, uint64_t seed, int threads) {
  constexpr int64_t step = kBlock * kLanes;
  const float scale = keep_scale(threshold);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t start = 0; start < n; start += step) {
    uint32_t words[4 * kBlock];
    philox_block(seed, start / kLanes, 0, 0, true, words);
    uint16_t lanes[step];
    std::memcpy(lanes, words, sizeof lanes);
    const int64_t count = n - start < step ? n - start : step;
    for (int64_t i = 0; i < count; ++i)
      from_float(lanes[i] >= threshold ? to_float(x[start + i]) * scale : 0.0f, out[start + i]);
  }
}

template void dropout(const float *, float *, int64_t, uint32_t, uint64_t, int);
template void dropout(const bf16 *, bf16 *, int64_t, uint32_t, uint64_t, int);

}  // namespace bertfast::BERTFAST_ISA
