// Dropout, residual and LayerNorm in one pass over the rows: see kernels/add_layer_norm.py.
#include "kernels.h"

#include <vector>

#include "layer_norm.h"
#include "philox.h"

namespace bertfast::BERTFAST_ISA {

namespace {

struct Row {
  const uint16_t *lanes;  // of the dropout, for the backward; null where there is none
  float total;
};

// s = dropout(x) + residual of one row, and its sum.
template <typename T>
Row add_row(const AddLayerNorm<T> &p, int64_t row, float *s, uint16_t *buffer) {
  const int64_t n = p.hidden, first = row * n;
  const float scale = keep_scale(p.threshold);
  const uint16_t *lanes = p.threshold ? flat_lanes(p.seed, first, n, buffer) : nullptr;
  const float total = sum_vectors(n, [&](int64_t j, int64_t left) {
    vec v = load_some(p.x + first + j, left);
    if (lanes) v = keep(v, lanes + j, p.threshold, scale);
    if (p.residual) v += load_some(p.residual + first + j, left);
    store(s + j, v);
    return v;
  });
  return {lanes, total};
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
      const Row sum = add_row(p, row, s.data(), buffer.data());
      const Moments m = moments(s.data(), n, sum.total, p.eps, p.rms);
      p.mean[row] = m.mean, p.rstd[row] = m.rstd;
      each_vector(n, [&](int64_t j, int64_t left) {
        const vec v = load(s.data() + j);
        store_some(p.out + row * n + j, normalized(v, m, p.weight, p.bias, j, left), left);
        if (p.summed) store_some(p.summed + row * n + j, v, left);
      });
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
        const uint16_t *lanes = add_row(f, row, s.data(), buffer.data()).lanes;
        each_vector(n, [&](int64_t j, int64_t left) { store(dy.data() + j, load_some(p.dout + row * n + j, left)); });
        norm_backward(s.data(), dy.data(), {f.mean[row], f.rstd[row]}, f.rms, f.weight, n, dweight, dweight + n);
        each_vector(n, [&](int64_t j, int64_t left) {
          vec d = load(dy.data() + j);
          if (p.dsummed) d += load_some(p.dsummed + row * n + j, left);
          if (p.dresidual) store_some(p.dresidual + row * n + j, d, left);
          store_some(p.dx + row * n + j, lanes ? keep(d, lanes + j, f.threshold, scale) : d, left);
        });
      }
    }
    sum_chunks(partial.data(), count, width, p.dparameters);
  }
}

template void add_layer_norm_forward(const AddLayerNorm<float> &);
template void add_layer_norm_forward(const AddLayerNorm<bf16> &);
template void add_layer_norm_forward(const AddLayerNorm<f16> &);
template void add_layer_norm_backward(const AddLayerNormBackward<float> &);
template void add_layer_norm_backward(const AddLayerNormBackward<bf16> &);
template void add_layer_norm_backward(const AddLayerNormBackward<f16> &);

}  // namespace bertfast::BERTFAST_ISA
