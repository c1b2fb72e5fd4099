// The sum of embeddings, LayerNorm and dropout; and the sum of gradient rows into tables: see kernels/embed.py.
#include "kernels.h"

#include <vector>

#include "layer_norm.h"
#include "philox.h"

namespace bertfast::BERTFAST_ISA {

namespace {

// word[id] + position[id] + segment[id] of one token; a null table is left out.
template <typename T>
void add_embeddings(const Embed<T> &p, int64_t token, float *s) {
  const int64_t n = p.hidden;
  const T *rows[3];
  int count = 0;
  for (int table = 0; table < 3; ++table)
    if (p.tables[table]) rows[count++] = p.tables[table] + p.ids[table][token] * n;
  for (int64_t j = 0; j < n; j += kWidth) {
    vec v = load_some(rows[0] + j, n - j);
    for (int i = 1; i < count; ++i) v += load_some(rows[i] + j, n - j);
    store(s + j, v);
  }
}

}  // namespace

template <typename T>
void embed_forward(const Embed<T> &p) {
  const int64_t n = p.hidden;
  const float scale = keep_scale(p.threshold);
#pragma omp parallel num_threads(p.threads)
  {
    std::vector<float> s(n + kWidth);
    std::vector<uint16_t> buffer(n + 2 * kBlockLanes);
#pragma omp for schedule(static)
    for (int64_t token = 0; token < p.tokens; ++token) {
      add_embeddings(p, token, s.data());
      const Moments m = moments(s.data(), n, p.eps, false);
      p.mean[token] = m.mean, p.rstd[token] = m.rstd;
      const uint16_t *lanes = p.threshold ? flat_lanes(p.seed, token * n, n, buffer.data()) : nullptr;
      for (int64_t j = 0; j < n; j += kWidth) {
        vec y = normalized(load(s.data() + j), m, p.weight, p.bias, j, n);
        if (lanes) y = keep(y, lanes + j, p.threshold, scale);
        store_some(p.out + token * n + j, y, n - j);
      }
    }
  }
}

template <typename T>
void embed_backward(const EmbedBackward<T> &p) {
  const Embed<T> &f = p.forward;
  const int64_t n = f.hidden, count = chunks(f.tokens), width = 2 * n;
  const float scale = keep_scale(f.threshold);
  std::vector<float> partial(count * width);
#pragma omp parallel num_threads(f.threads)
  {
    std::vector<float> s(n + kWidth), dy(n + kWidth);
    std::vector<uint16_t> buffer(n + 2 * kBlockLanes);
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < count; ++chunk) {
      float *dweight = partial.data() + chunk * width;
      for (int64_t token = chunk * kChunk; token < std::min(f.tokens, (chunk + 1) * kChunk); ++token) {
        add_embeddings(f, token, s.data());
        const uint16_t *lanes = f.threshold ? flat_lanes(f.seed, token * n, n, buffer.data()) : nullptr;
        for (int64_t j = 0; j < n; j += kWidth) {
          vec g = load_some(p.dout + token * n + j, n - j);
          if (lanes) g = keep(g, lanes + j, f.threshold, scale);
          store(dy.data() + j, g);
        }
        norm_backward(s.data(), dy.data(), {f.mean[token], f.rstd[token]}, false, f.weight, n, dweight, dweight + n);
        for (int64_t j = 0; j < n; j += kWidth) store_some(p.dsum + token * n + j, load(dy.data() + j), n - j);
      }
    }
  }
  sum_chunks(partial.data(), count, width, p.dparameters, f.threads);
}

// out[group] = sum over the group's members, in order, of rows[order[member]]; a group is starts[g] to starts[g + 1].
template <typename T>
void sum_row_groups(const float *rows, const int64_t *order, const int64_t *starts, const int64_t *targets, T *out,
                    int64_t groups, int64_t hidden, int threads) {
  constexpr int64_t step = 256;  // columns of a task, so that one large group does not fall to one thread
  const int64_t parts = (hidden + step - 1) / step;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t task = 0; task < groups * parts; ++task) {
    const int64_t group = task / parts, begin = task % parts * step, n = std::min(step, hidden - begin);
    alignas(64) float total[step + kWidth] = {};
    for (int64_t member = starts[group]; member < starts[group + 1]; ++member) {
      const float *row = rows + order[member] * hidden + begin;
      for (int64_t j = 0; j < n; j += kWidth) store(total + j, load(total + j) + load_some(row + j, n - j));
    }
    T *target = out + targets[group] * hidden + begin;
    for (int64_t j = 0; j < n; j += kWidth) store_some(target + j, load(total + j), n - j);
  }
}

template void embed_forward(const Embed<float> &);
template void embed_forward(const Embed<bf16> &);
template void embed_backward(const EmbedBackward<float> &);
template void embed_backward(const EmbedBackward<bf16> &);
template void sum_row_groups(const float *, const int64_t *, const int64_t *, const int64_t *, float *, int64_t, int64_t, int);
template void sum_row_groups(const float *, const int64_t *, const int64_t *, const int64_t *, bf16 *, int64_t, int64_t, int);

}  // namespace bertfast::BERTFAST_ISA
