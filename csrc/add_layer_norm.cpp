// Dropout, residual and LayerNorm in one pass over the rows: see kernels/add_layer_norm.py.
#include "kernels.h"

#include <vector>

#include "layer_norm.h"
#include "philox.h"

namespace bertfast::BERTFAST_ISA {

namespace {

// s = dropout(x) + residual of one row; the lanes stay in `lanes` for the backward.
template <typename T>
const uint16_t *add_row(const AddLayerNorm<T> &p, int64_t row, float *s, uint16_t *buffer) {
  const int64_t n = p.hidden, first = row * n;
  const float scale = keep_scale(p.threshold);
  const uint16_t *lanes = p.threshold ? flat_lanes(p.seed, first, n, buffer) : nullptr;
  for (int64_t j = 0; j < n; j += kWidth) {
    vec v = load_some(p.x + first + j, n - j);
    if (lanes) v = keep(v, lanes + j, p.threshold, scale);
    if (p.residual) v += load_some(p.residual + first + j, n - j);
    store(s + j, v);
  }
  return lanes;
}

}  // namespace

template <typename T>
void add_layer_norm_forward(const AddLayerNorm<T> &p) {
  const int64_t n = p.hidden;
#pragma omp parallel num_threads(p.threads)
  {
    std::vector<float> s(n + kWidth);
    std::vector<uint16_t> buffer(n + 2 * kBlockLanes);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < p.rows; ++row) {
      add_row(p, row, s.data(), buffer.data());
      const Moments m = moments(s.data(), n, p.eps, p.rms);
      p.mean[row] = m.mean, p.rstd[row] = m.rstd;
      for (int64_t j = 0; j < n; j += kWidth) {
        const vec v = load(s.data() + j);
        store_some(p.out + row * n + j, normalized(v, m, p.weight, p.bias, j, n), n - j);
        if (p.summed) store_some(p.summed + row * n + j, v, n - j);
      }
    }
  }
}

template <typename T>
void add_layer_norm_backward(const AddLayerNormBackward<T> &p) {
  const AddLayerNorm<T> &f = p.forward;
  const int64_t n = f.hidden, count = chunks(f.rows), width = 2 * n;
  const float scale = keep_scale(f.threshold);
  std::vector<float> partial(count * width);
#pragma omp parallel num_threads(f.threads)
  {
    std::vector<float> s(n + kWidth), dy(n + kWidth);
    std::vector<uint16_t> buffer(n + 2 * kBlockLanes);
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < count; ++chunk) {
      float *dweight = partial.data() + chunk * width;
      for (int64_t row = chunk * kChunk; row < std::min(f.rows, (chunk + 1) * kChunk); ++row) {
        const uint16_t *lanes = add_row(f, row, s.data(), buffer.data());
        for (int64_t j = 0; j < n; j += kWidth) store(dy.data() + j, load_some(p.dout + row * n + j, n - j));
        norm_backward(s.data(), dy.data(), {f.mean[row], f.rstd[row]}, f.rms, f.weight, n, dweight, dweight + n);
        for (int64_t j = 0; j < n; j += kWidth) {
          vec d = load(dy.data() + j);
          if (p.dsummed) d += load_some(p.dsummed + row * n + j, n - j);
          if (p.dresidual) store_some(p.dresidual + row * n + j, d, n - j);
          store_some(p.dx + row * n + j, lanes ? keep(d, lanes + j, f.threshold, scale) : d, n - j);
        }
      }
    }
  }
  sum_chunks(partial.data(), count, width, p.dparameters, f.threads);
}

template void add_layer_norm_forward(const AddLayerNorm<float> &);
template void add_layer_norm_forward(const AddLayerNorm<bf16> &);
template void add_layer_norm_backward(const AddLayerNormBackward<float> &);
template void add_layer_norm_backward(const AddLayerNormBackward<bf16> &);

}  // namespace bertfast::BERTFAST_ISA
