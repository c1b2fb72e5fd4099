// GELU of a sum with a bias, and its gated form: see kernels/bias_gelu.py.
#include "kernels.h"

#include <vector>

#include "layer_norm.h"

namespace bertfast::BERTFAST_ISA {

namespace {

constexpr float kEdge = 5.5f;  // beyond it Phi is 0 or 1 in float32

// Minimax fits, in y = 2 (x / kEdge)^2 - 1, of (Phi(x) - 1/2) / x and of (d/dx (x Phi(x)) - 1/2) / x: both functions are odd about 1/2.
// The errors of x times the fit are below 1e-7 and 4e-7.
constexpr float kPhi[] = {1.285519302e-01f,  -6.417247653e-02f, 4.773699120e-02f,  -3.878726810e-02f, 3.208174184e-02f,
                          -2.611246891e-02f, 2.028798126e-02f,  -1.467136387e-02f, 1.046862081e-02f,  -7.674673572e-03f,
                          4.236381967e-03f,  -1.229398302e-03f, 1.023841091e-03f,  -1.368830213e-03f, 5.380791845e-04f};
constexpr float kSlope[] = {1.287591755e-01f,  -6.574013829e-02f, 5.367087200e-02f,  -5.372582376e-02f,
                            6.018722802e-02f,  -6.885715574e-02f, 7.533518970e-02f,  -7.291946560e-02f,
                            6.065640599e-02f,  -5.308616534e-02f, 4.956648126e-02f,  -2.782357298e-02f,
                            4.100683145e-03f,  -6.424942054e-03f, 1.212025527e-02f,  -4.909856711e-03f};

// 1/2 + x fit(x), and 0 or 1 beyond the edge.
template <int kTerms>
inline vec step_like(vec x, const float (&fit)[kTerms]) {
  const vec y = x * x * (2 / (kEdge * kEdge)) - 1.0f;
  vec r = splat(fit[kTerms - 1]);
  for (int i = kTerms - 2; i >= 0; --i) r = r * y + fit[i];
  r = x * r + 0.5f;
  r = x > kEdge ? splat(1) : r;
  return x < -kEdge ? vec{} : r;
}

constexpr float kRoot = 0.7978845608028654f, kCube = 0.044715f;  // sqrt(2 / pi), and the cubic term of the tanh form

// 1 / (1 + exp(-2 u)), which is (1 + tanh u) / 2.
inline vec half_tanh(vec x) {
  vec exponent = x * (kCube * x * x + 1.0f) * (-2 * kRoot);
  exponent = exponent > 88.0f ? splat(88) : exponent;
  return 1.0f / (1.0f + exp(exponent));
}

inline vec gelu(vec x, bool tanh) {
  const vec share = tanh ? half_tanh(x) : step_like(x, kPhi);
  return x < -1e4f ? vec{} : x * share;  // the product would be minus infinity times zero
}

inline vec gelu_slope(vec x, bool tanh) {
  if (!tanh) return step_like(x, kSlope);
  const vec share = half_tanh(x);
  const vec slope = share + x * share * (1.0f - share) * (2 * kRoot) * (3 * kCube * x * x + 1.0f);
  return x > 1e2f ? splat(1) : (x < -1e2f ? vec{} : slope);
}

template <typename T>
inline vec with_bias(const T *x, const float *bias, int64_t j, int64_t left) {
  const vec v = load_some(x + j, left);
  return bias ? v + load_some(bias + j, left) : v;
}

}  // namespace

template <typename T>
void bias_gelu_forward(const BiasGelu<T> &p) {
  const int64_t n = p.features, stride = p.gated ? 2 * n : n;
#pragma omp parallel for num_threads(p.threads) schedule(static)
  for (int64_t row = 0; row < p.rows; ++row) {
    const T *x = p.x + row * stride;
    each_vector(n, [&](int64_t j, int64_t left) {
      vec y = gelu(with_bias(x, p.bias, j, left), p.tanh);
      if (p.gated) y *= with_bias(x + n, p.bias ? p.bias + n : nullptr, j, left);
      store_some(p.out + row * n + j, y, left);
    });
  }
}

template <typename T>
void bias_gelu_backward(const BiasGeluBackward<T> &p) {
  const BiasGelu<T> &f = p.forward;
  const int64_t n = f.features, stride = f.gated ? 2 * n : n, count = chunks(f.rows);
  const float *second = f.bias ? f.bias + n : nullptr;
  std::vector<float> partial(p.dbias ? count * stride : 0);
#pragma omp parallel num_threads(f.threads)
  {
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < count; ++chunk) {
      for (int64_t row = chunk * kChunk; row < std::min(f.rows, (chunk + 1) * kChunk); ++row) {
        const T *x = f.x + row * stride;
        T *dx = p.dx + row * stride;
        float *sums = p.dbias ? partial.data() + chunk * stride : nullptr;
        const auto put = [&](int64_t at, vec d, int64_t left) {
          store_some(dx + at, d, left);
          if (sums) store_some(sums + at, load_some(sums + at, left) + d, left);
        };
        each_vector(n, [&](int64_t j, int64_t left) {
          const vec v = with_bias(x, f.bias, j, left), dy = load_some(p.dout + row * n + j, left);
          if (f.gated) {
            put(j, dy * gelu_slope(v, f.tanh) * with_bias(x + n, second, j, left), left);
            put(n + j, dy * gelu(v, f.tanh), left);
          } else {
            put(j, dy * gelu_slope(v, f.tanh), left);
          }
        });
      }
    }
    if (p.dbias) sum_chunks(partial.data(), count, stride, p.dbias);
  }
}

template void bias_gelu_forward(const BiasGelu<float> &);
template void bias_gelu_forward(const BiasGelu<bf16> &);
template void bias_gelu_forward(const BiasGelu<f16> &);
template void bias_gelu_backward(const BiasGeluBackward<float> &);
template void bias_gelu_backward(const BiasGeluBackward<bf16> &);
template void bias_gelu_backward(const BiasGeluBackward<f16> &);

}  // namespace bertfast::BERTFAST_ISA
