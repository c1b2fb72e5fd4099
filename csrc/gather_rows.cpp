// Gather of rows and its backward: see kernels/gather_rows.py.
#include "kernels.h"

#include <cstring>
#include <vector>

namespace bertfast::BERTFAST_ISA {

template <typename T>
void gather_rows(const T *x, const int64_t *index, T *out, int64_t masked, int64_t hidden, int64_t stride, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t m = 0; m < masked; ++m) {
    if (index[m] < 0)
      std::memset(out + m * hidden, 0, hidden * sizeof(T));
    else
      std::memcpy(out + m * hidden, x + index[m] * stride, hidden * sizeof(T));
  }
}

template <typename T>
void scatter_rows(const T *dout, const int64_t *index, T *dx, int64_t rows, int64_t masked, int64_t hidden, int threads) {
  // Indices are unique, so each row of dx has one source at most and is written once.
  std::vector<int64_t> source(rows, -1);
  for (int64_t m = 0; m < masked; ++m)
    if (index[m] >= 0) source[index[m]] = m;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    if (source[row] < 0)
      std::memset(dx + row * hidden, 0, hidden * sizeof(T));
    else
      std::memcpy(dx + row * hidden, dout + source[row] * hidden, hidden * sizeof(T));
  }
}

template void gather_rows(const float *, const int64_t *, float *, int64_t, int64_t, int64_t, int);
template void gather_rows(const bf16 *, const int64_t *, bf16 *, int64_t, int64_t, int64_t, int);
template void scatter_rows(const float *, const int64_t *, float *, int64_t, int64_t, int64_t, int);
template void scatter_rows(const bf16 *, const int64_t *, bf16 *, int64_t, int64_t, int64_t, int);

}  // namespace bertfast::BERTFAST_ISA
