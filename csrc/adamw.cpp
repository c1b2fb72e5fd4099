// AdamW over many tensors in one pass, and the norm of their gradients: see kernels/adamw.py.
#include "kernels.h"

#include <vector>

#include "simd.h"

namespace bertfast::BERTFAST_ISA {

namespace {

constexpr int64_t kPiece = 1 << 14;  // elements of a task

struct Piece {
  int64_t tensor, start, end;
};

template <typename T>
std::vector<Piece> pieces(const AdamwTensor<T> *tensors, int64_t count) {
  std::vector<Piece> found;
  for (int64_t i = 0; i < count; ++i)
    for (int64_t start = 0; start < tensors[i].n; start += kPiece)
      found.push_back({i, start, std::min(tensors[i].n, start + kPiece)});
  return found;
}

inline vec square_root(vec x) {
  for (int i = 0; i < kWidth; ++i) x[i] = std::sqrt(x[i]);
  return x;
}

}  // namespace

template <typename T>
void adamw(const AdamwTensor<T> *tensors, int64_t count, const AdamwRates &r, int threads) {
  const std::vector<Piece> work = pieces(tensors, count);
  const float shrink = 1 - r.rate * r.weight_decay, step = r.rate / r.correction1;
  const float root = 1 / std::sqrt(r.correction2);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (size_t i = 0; i < work.size(); ++i) {
    const AdamwTensor<T> &t = tensors[work[i].tensor];
    for (int64_t j = work[i].start; j < work[i].end; j += kWidth) {
      const int64_t left = work[i].end - j;
      const vec g = load_some(t.gradient + j, left) * r.gradient_scale;
      const vec m = load_some(t.mean + j, left) * r.beta1 + g * (1 - r.beta1);
      const vec v = load_some(t.square + j, left) * r.beta2 + g * g * (1 - r.beta2);
      const vec w = load_some(t.weight + j, left) * shrink - m * step / (square_root(v) * root + r.eps);
      store_some(t.mean + j, m, left);
      store_some(t.square + j, v, left);
      store_some(t.weight + j, w, left);
      if (t.copy) store_some(t.copy + j, w, left);
    }
  }
}

template <typename T>
double sum_of_squares(const AdamwTensor<T> *tensors, int64_t count, int threads) {
  const std::vector<Piece> work = pieces(tensors, count);
  std::vector<double> sums(work.size());
#pragma omp parallel for num_threads(threads) schedule(static)
  for (size_t i = 0; i < work.size(); ++i) {
    const T *g = tensors[work[i].tensor].gradient;
    vec total = {};
    for (int64_t j = work[i].start; j < work[i].end; j += kWidth) {
      const vec x = load_some(g + j, work[i].end - j);
      total += x * x;
    }
    sums[i] = sum(total);
  }
  double total = 0;  // in order: the same on any number of threads
  for (double one : sums) total += one;
  return total;
}

template void adamw(const AdamwTensor<float> *, int64_t, const AdamwRates &, int);
template void adamw(const AdamwTensor<bf16> *, int64_t, const AdamwRates &, int);
template void adamw(const AdamwTensor<f16> *, int64_t, const AdamwRates &, int);
template double sum_of_squares(const AdamwTensor<float> *, int64_t, int);
template double sum_of_squares(const AdamwTensor<bf16> *, int64_t, int);
template double sum_of_squares(const AdamwTensor<f16> *, int64_t, int);

}  // namespace bertfast::BERTFAST_ISA
