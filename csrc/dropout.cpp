// Dropout of a flat tensor: see kernels/dropout.py.
#include "kernels.h"

#include "philox.h"

namespace bertfast::BERTFAST_ISA {

template <typename T>
void dropout(const T *x, T *out, int64_t n, uint32_t threshold, uint64_t seed, int threads) {
  constexpr int64_t step = 8 * kBlockLanes;
  const float scale = keep_scale(threshold);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t start = 0; start < n; start += step) {
    uint16_t buffer[step + 2 * kBlockLanes];
    const int64_t end = std::min(n, start + step);
    const uint16_t *lanes = flat_lanes(seed, start, end - start, buffer) - start;
    for (int64_t i = start; i < end; i += kWidth)
      store_some(out + i, keep(load_some(x + i, end - i), lanes + i, threshold, scale), end - i);
  }
}

template void dropout(const float *, float *, int64_t, uint32_t, uint64_t, int);
template void dropout(const bf16 *, bf16 *, int64_t, uint32_t, uint64_t, int);
template void dropout(const f16 *, f16 *, int64_t, uint32_t, uint64_t, int);

}  // namespace bertfast::BERTFAST_ISA
