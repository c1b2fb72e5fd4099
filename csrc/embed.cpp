// The sum of embeddings, LayerNorm and dropout; and the sum of gradient rows into tables: see kernels/embed.py.
#include "kernels.h"

#include <vector>

#include "layer_norm.h"
#include "philox.h"

namespace bertfast::BERTFAST_ISA {

namespace {

// s = word[id] + position[id] + segment[id] of one token, a null table left out; returns its sum.
template <typename T>
float add_embeddings(const Embed<T> &p, int64_t token, float *s) {
  const int64_t n = p.hidden;
  const T *rows[3];
  for (int table = 0; table < 3; ++table) rows[table] = p.tables[table] ? p.tables[table] + p.ids[table][token] * n : nullptr;
  return sum_vectors(n, [&](int64_t j, int64_t left) {
    vec v = load_some(rows[0] + j, left);
    if (rows[1]) v += load_some(rows[1] + j, left);
    if (rows[2]) v += load_some(rows[2] + j, left);
    store(s + j, v);
    return v;
  });
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
      const Moments m = moments(s.data(), n, add_embeddings(p, token, s.data()), p.eps, false);
      p.mean[token] = m.mean, p.rstd[token] = m.rstd;
      const uint16_t *lanes = p.threshold ? flat_lanes(p.seed, token * n, n, buffer.data()) : nullptr;
      each_vector(n, [&](int64_t j, int64_t left) {
        vec y = normalized(load(s.data() + j), m, p.weight, p.bias, j, left);
        if (lanes) y = keep(y, lanes + j, p.threshold, scale);
        store_some(p.out + token * n + j, y, left);
      });
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
        each_vector(n, [&](int64_t j, int64_t left) {
          const vec g = load_some(p.dout + token * n + j, left);
          store(dy.data() + j, lanes ? keep(g, lanes + j, f.threshold, scale) : g);
        });
        norm_backward(s.data(), dy.data(), {f.mean[token], f.rstd[token]}, false, f.weight, n, dweight, dweight + n);
        each_vector(n, [&](int64_t j, int64_t left) { store_some(p.dsum + token * n + j, load(dy.data() + j), left); });
      }
    }
    sum_chunks(partial.data(), count, width, p.dparameters);
  }
}

// out[group] = sum over the group's members, in order, of rows[order[member]]; a group is starts[g] to starts[g + 1].
template <typename T>
void sum_row_groups(const float *rows, const int64_t *order, const int64_t *starts, const int64_t *targets, T *out,
                    int64_t groups, int64_t hidden, int threads) {
  constexpr int64_t step = 256;  // columns of a task, so that one large group does not fall to one thread
  const int64_t parts = (hidden + step - 1) / step, tasks = groups * parts;
  const int64_t share = std::clamp<int64_t>(tasks / (16 * threads), 1, 32);  // of tasks that a thread takes at a time
#pragma omp parallel for num_threads(threads) schedule(dynamic, share)
  for (int64_t task = 0; task < tasks; ++task) {
    const int64_t group = task / parts, begin = task % parts * step, n = std::min(step, hidden - begin);
    alignas(64) float total[step + kWidth] = {};
    for (int64_t member = starts[group]; member < starts[group + 1]; ++member) {
      const float *row = rows + order[member] * hidden + begin;
      each_vector(n, [&](int64_t j, int64_t left) { store(total + j, load(total + j) + load_some(row + j, left)); });
    }
    T *target = out + targets[group] * hidden + begin;
    for (int64_t j = 0; j < n; j += kWidth) store_some(target + j, load(total + j), n - j);
  }
}

template void embed_forward(const Embed<float> &);
template void embed_forward(const Embed<bf16> &);
template void embed_forward(const Embed<f16> &);
template void embed_backward(const EmbedBackward<float> &);
template void embed_backward(const EmbedBackward<bf16> &);
template void embed_backward(const EmbedBackward<f16> &);
template void sum_row_groups(const float *, const int64_t *, const int64_t *, const int64_t *, float *, int64_t, int64_t, int);
template void sum_row_groups(const float *, const int64_t *, const int64_t *, const int64_t *, bf16 *, int64_t, int64_t, int);
template void sum_row_groups(const float *, const int64_t *, const int64_t *, const int64_t *, f16 *, int64_t, int64_t, int);

}  // namespace bertfast::BERTFAST_ISA
