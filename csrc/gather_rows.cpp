// Gather of rows and its backward, of any element type: see kernels/gather_rows.py. Widths and strides are bytes.
#include "kernels.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace bertfast::BERTFAST_ISA {

constexpr int64_t kBlockRows = 64;
constexpr int64_t kAlone = 1 << 15;  // bytes that one thread writes sooner than it wakes others

void gather_rows(const char *x, const int64_t *index, char *out, int64_t masked, int64_t width, int64_t stride, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (masked * width > kAlone)
  for (int64_t m = 0; m < masked; ++m) {
    if (index[m] < 0)
      std::memset(out + m * width, 0, width);
    else
      std::memcpy(out + m * width, x + index[m] * stride, width);
  }
}

void scatter_rows(const char *dout, const int64_t *index, char *dx, int64_t rows, int64_t masked, int64_t width, int threads) {
  // Indices are unique, so each row of dx has one source at most and is written once; rows with none, a run at a time.
  std::vector<int64_t> source(rows, -1);
  for (int64_t m = 0; m < masked; ++m)
    if (index[m] >= 0) source[index[m]] = m;
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * width > kAlone)
  for (int64_t start = 0; start < rows; start += kBlockRows) {
    const int64_t end = std::min(start + kBlockRows, rows);
    for (int64_t row = start, next; row < end; row = next) {
      next = row + 1;
      if (source[row] >= 0) {
        std::memcpy(dx + row * width, dout + source[row] * width, width);
        continue;
      }
      while (next < end && source[next] < 0) ++next;
      std::memset(dx + row * width, 0, (next - row) * width);
    }
  }
}

}  // namespace bertfast::BERTFAST_ISA
