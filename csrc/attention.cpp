// Variable-length bidirectional attention, forward and backward: see kernels/attention for the formula.
//
// A task is one head of one sequence, and nothing is shared between tasks: the result is the same bits on any number of threads. Keys and
// values are brought once into the form that the products take (products.h): float32, or bfloat16 as it is where the processor
// multiplies it. Queries go in blocks, so that the scores of a block stay in the cache. The backward makes the probabilities again from
// the saved log-sum-exp.
#include "kernels.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "philox.h"
#include "products.h"

namespace bertfast::BERTFAST_ISA {

namespace {

constexpr int kQueries = 64;  // rows of a block of queries

int64_t up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Keys `from` to `to` of a sequence.
struct Keys {
  int64_t from, to;
};

// The dropout lanes of a block of queries: each row has those of its keys.
struct BlockLanes {
  const uint8_t *first;
  int64_t stride;
  const uint8_t *row(int64_t i) const { return first + i * stride; }
};

// For queries `query` on, a multiple of 32, of the sequence that begins at `start`. A counter's lanes lie eight rows and eight columns
// apart (kernels/philox.py): of 32 queries and keys the first eight of each count. `buffer` grows to what is needed.
BlockLanes block_lanes(uint64_t seed, int64_t start, int64_t query, int64_t rows, uint32_t head, Keys keys,
                       std::vector<uint8_t> &buffer) {
  constexpr int counters = PhiloxBlock::kPerVector;
  typedef uint8_t lane_vec __attribute__((vector_size(counters)));
  constexpr int64_t group = 32, keys_made = group * kBlock / 8;
  const int64_t begin = keys.from / group * group, stride = up(keys.to - begin, keys_made);
  const size_t needed = up(rows, group) * stride;
  if (buffer.size() < needed) buffer.resize(needed);
  for (int64_t first = 0; first < rows; first += group)
    for (int64_t row = first; row < std::min(first + 8, rows); ++row)
      for (int64_t made = 0; made < stride; made += keys_made) {
        PhiloxBlock x;
        for (int i = 0; i < kBlock; ++i)
          x.c0[i / counters][i % counters] = begin + made + i / 8 * group + i % 8;
        for (int v = 0; v < kBlock / counters; ++v) {
          x.c1[v] = wide{} + static_cast<uint64_t>(start + query + row);
          x.c2[v] = wide{} + head, x.c3[v] = wide{};
        }
        philox_rounds(seed, kAttentionRounds, x);
        const wide *const words[4] = {x.c0, x.c1, x.c2, x.c3};
        for (int word = 0; word < 4; ++word)
          for (int i = 0; i < kBlock; i += counters)
            for (int byte = 0; byte < 4; ++byte) {
              const lane_vec lanes = __builtin_convertvector((words[word][i / counters] >> (8 * byte)) & 0xff, lane_vec);
              std::memcpy(buffer.data() + (row + 8 * word) * stride + made + i / 8 * group + 8 * byte + i % 8, &lanes, sizeof lanes);
            }
      }
  return {buffer.data() + keys.from % group, stride};
}

// Scratch of one thread, grown to the longest sequence it meets.
struct Scratch {
  std::vector<float> memory;
  std::vector<int32_t> bucket_of;
  std::vector<uint8_t> lanes;
  float *next = nullptr;
  void start(int64_t floats) {
    if (static_cast<int64_t>(memory.size()) < floats) memory.resize(floats);
    next = memory.data();
  }
  template <typename E = float>
  E *take(int64_t elements) {
    static_assert(sizeof(E) == sizeof(float));
    float *taken = next;
    next += elements;
    return reinterpret_cast<E *>(taken);
  }
};

template <typename T>
void zero_slack(T *x, int64_t from, int64_t to, int64_t row) {
  std::memset(static_cast<void *>(x + from * row), 0, (to - from) * row * sizeof(T));
}

// The keys that some query of a block sees; `from` is a multiple of kWidth.
Keys seen_by_block(int64_t window, int64_t first, int64_t rows, int64_t n) {
  if (window < 0) return {0, n};
  return {std::max<int64_t>(first - window, 0) / kWidth * kWidth, std::min(first + rows + window, n)};
}

// -inf to the scores of the keys that query i does not see; x[0] is the score of key `from`, and there are `width`.
void hide_unseen(int64_t window, int64_t i, int64_t n, int64_t from, int64_t width, float *x) {
  const float hidden = -std::numeric_limits<float>::infinity();
  const int64_t begin = window < 0 ? 0 : std::max<int64_t>(i - window - from, 0);
  const int64_t end = (window < 0 ? n : std::min(i + window + 1, n)) - from;
  for (int64_t j = 0; j < begin; ++j) x[j] = hidden;
  for (int64_t j = end; j < width; ++j) x[j] = hidden;
}

// The positions of one task. What depends on the distance alone is laid out by key - query, at key - query + n - 1. The keys of a query are
// then adjacent.
template <typename T>
struct TaskPositions {
  const Positions<T> &p;
  const int64_t start, n, head;  // the sequence's first token and length
  const int32_t *bucket_of;
  float *bias;

  static int64_t floats(const Positions<T> &p, int64_t n) { return p.bias ? 2 * n : 0; }

  TaskPositions(const Positions<T> &positions, int64_t start, int64_t n, int64_t head, Scratch &scratch)
      : p(positions), start(start), n(n), head(head), bucket_of(nullptr), bias(nullptr) {
    if (!p.bucket_of) return;
    const int64_t distances = 2 * n - 1;
    if (static_cast<int64_t>(scratch.bucket_of.size()) < distances) scratch.bucket_of.resize(distances);
    for (int64_t e = 0; e < distances; ++e) scratch.bucket_of[e] = p.bucket_of[p.max_seqlen - 1 + n - 1 - e];
    bucket_of = scratch.bucket_of.data();
    if (!p.bias) return;
    bias = scratch.take(floats(p, n));
    for (int64_t e = 0; e < distances; ++e) bias[e] = to_float(p.bias[head * p.buckets + bucket_of[e]]);
  }

  // Adds the terms of query i to its scores x of the keys.
  void add(int64_t i, Keys keys, float *x) const {
    if (!bucket_of) return;
    const int64_t line = n - 1 - i + keys.from, count = keys.to - keys.from;
    const int32_t *bucket = bucket_of + line;
    if (p.bias)
      for (int64_t j = 0; j < count; ++j) x[j] += bias[line + j];
    if (p.query_scores) {
      const T *scores = p.query_scores + (start + i) * p.query_stride[0] + head * p.query_stride[1];
      for (int64_t j = 0; j < count; ++j) x[j] += to_float(scores[bucket[j]]);
    }
    if (p.key_scores) {
      const T *scores = p.key_scores + (start + keys.from) * p.key_stride[0] + head * p.key_stride[1];
      for (int64_t j = 0; j < count; ++j) x[j] += to_float(scores[j * p.key_stride[0] + bucket[j]]);
    }
  }
};

// The gradients of the tables from one task: nothing else writes its rows of them, and of `dbias` it makes a part of its own.
template <typename T>
struct TaskPositionGradients {
  const AttentionBackward<T> &p;
  const TaskPositions<T> &task;
  float *by_distance, *of_query, *of_keys;

  static int64_t floats(const AttentionBackward<T> &p, int64_t n) {
    const int64_t buckets = p.forward.positions.buckets;
    return (p.dbias ? 2 * n : 0) + (p.dquery_scores ? buckets : 0) + (p.dkey_scores ? n * buckets : 0);
  }

  TaskPositionGradients(const AttentionBackward<T> &p, const TaskPositions<T> &task, Scratch &scratch) : p(p), task(task) {
    const int64_t buckets = task.p.buckets, n = task.n;
    by_distance = scratch.take(p.dbias ? 2 * n : 0);
    of_query = scratch.take(p.dquery_scores ? buckets : 0);
    of_keys = scratch.take(p.dkey_scores ? n * buckets : 0);
    if (p.dbias) std::fill_n(by_distance, 2 * n, 0.0f);
    if (p.dkey_scores) std::fill_n(of_keys, n * buckets, 0.0f);
  }

  // Adds the gradient y of query i's scores of the keys.
  void add(int64_t i, Keys keys, const float *y) {
    if (!task.bucket_of) return;
    const int64_t line = task.n - 1 - i + keys.from, count = keys.to - keys.from, buckets = task.p.buckets;
    const int32_t *bucket = task.bucket_of + line;
    if (p.dbias)
      for (int64_t j = 0; j < count; ++j) by_distance[line + j] += y[j];
    if (p.dquery_scores) {
      std::fill_n(of_query, buckets, 0.0f);
      for (int64_t j = 0; j < count; ++j) of_query[bucket[j]] += y[j];
      narrow(of_query, 1, buckets, 1, p.dquery_scores + ((task.start + i) * p.forward.heads + task.head) * buckets, 0);
    }
    if (p.dkey_scores)
      for (int64_t j = 0; j < count; ++j) of_keys[(keys.from + j) * buckets + bucket[j]] += y[j];
  }

  // `part` is (buckets,) zeros.
  void finish(float *part) {
    const int64_t buckets = task.p.buckets, heads = p.forward.heads;
    if (p.dbias)
      for (int64_t e = 0; e < 2 * task.n - 1; ++e) part[task.bucket_of[e]] += by_distance[e];
    if (p.dkey_scores)
      narrow(of_keys, task.n, buckets, 1, p.dkey_scores + (task.start * heads + task.head) * buckets, heads * buckets);
  }
};

template <typename T>
void forward_task(const AttentionForward<T> &p, int64_t sequence, int64_t head, Scratch &scratch) {
  typedef typename Factor<T>::Element E;
  constexpr int kPack = Factor<T>::kPack;
  const int64_t start = p.cu_seqlens[sequence], n = p.cu_seqlens[sequence + 1] - start, d = p.head_dim, de = d / kPack;
  if (n == 0) return;
  const int64_t padded = up(n, kWidth), block = std::min<int64_t>(n, kQueries);
  scratch.start(n * de + de * padded + up(n, kPack) * d + block * (de + d + 2 * padded) + TaskPositions<T>::floats(p.positions, n));
  E *k = scratch.take<E>(n * de), *kt = scratch.take<E>(de * padded), *v = scratch.take<E>(up(n, kPack) / kPack * d);
  E *q = scratch.take<E>(block * de);
  float *o = scratch.take(block * d), *s = scratch.take(block * padded);
  E *probabilities = scratch.take<E>(kPack == 1 ? 0 : block * padded / kPack);
  float inverses[kQueries];  // of the rows' sums, by which it is cheaper to divide the outputs than the probabilities
  const TaskPositions<T> positions(p.positions, start, n, head, scratch);
  along(p.k + start * p.k_stride[0] + head * p.k_stride[1], p.k_stride[0], n, d, 1, k);
  across(p.v + start * p.v_stride[0] + head * p.v_stride[1], p.v_stride[0], n, d, v);
  transpose(k, n, de, padded, kt);
  // Floats carry the scale in the queries; pairs are not rounded a second time for it.
  const float query_scale = kPack == 1 ? p.scale : 1, score_scale = kPack == 1 ? 1 : p.scale;
  const float keeps = keep_scale(p.threshold, kAttentionLaneRange);

  for (int64_t first = 0; first < n; first += block) {
    const int64_t rows = std::min(block, n - first), row0 = start + first;
    const Keys keys = seen_by_block(p.window, first, rows, n);
    const int64_t seen = keys.to - keys.from, width = up(seen, kWidth);
    along(p.q + row0 * p.q_stride[0] + head * p.q_stride[1], p.q_stride[0], rows, d, query_scale, q);
    product(rows, width, de, q, de, 1, kt + keys.from, padded, s, padded, false);
    BlockLanes lanes{};
    if (p.threshold) lanes = block_lanes(p.seed, start, first, rows, head, keys, scratch.lanes);
    for (int64_t i = 0; i < rows; ++i) {
      float *x = s + i * padded;  // of key keys.from and on
      if (kPack > 1)
        for (int64_t j = 0; j < width; j += kWidth) store(x + j, load(x + j) * score_scale);
      positions.add(first + i, keys, x);
      hide_unseen(p.window, first + i, n, keys.from, width, x);
      vec largest = load(x);
      for (int64_t j = kWidth; j < width; j += kWidth) {
        vec y = load(x + j);
        largest = y > largest ? y : largest;
      }
      const float top = max(largest);
      vec total = {};
      for (int64_t j = 0; j < width; j += kWidth) {
        vec e = exp(load(x + j) - top);
        total += e;
        store(x + j, e);
      }
      const float denominator = sum(total);
      p.lse[head * p.tokens + row0 + i] = top + std::log(denominator);
      if (p.threshold) {
        const uint8_t *lane = lanes.row(i);
        for (int64_t j = 0; j < width; j += kWidth) store(x + j, keep(load(x + j), lane + j, p.threshold, keeps));
      }
      inverses[i] = 1 / denominator;
    }
    if constexpr (kPack == 1) {
      product(rows, d, seen, s, padded, 1, v + keys.from * d, d, o, d, false);
    } else {
      along(s, padded, rows, width, 1, probabilities);
      product(rows, d, up(seen, kPack) / kPack, probabilities, padded / kPack, 1, v + keys.from / kPack * d, d, o, d, false);
    }
    for (int64_t i = 0; i < rows; ++i) narrow(o + i * d, 1, d, inverses[i], p.out + ((row0 + i) * p.heads + head) * d, 0);
  }
}

template <typename T>
void backward_task(const AttentionBackward<T> &p, int64_t sequence, int64_t head, float *dbias_part, Scratch &scratch) {
  typedef typename Factor<T>::Element E;
  constexpr int kPack = Factor<T>::kPack;
  const AttentionForward<T> &f = p.forward;
  const int64_t start = f.cu_seqlens[sequence], n = f.cu_seqlens[sequence + 1] - start, d = f.head_dim, de = d / kPack;
  if (n == 0) return;
  const int64_t padded = up(n, kWidth), block = std::min<int64_t>(n, kQueries), out_stride = f.heads * d;
  scratch.start(2 * n * (de + d) + up(n, kPack) * d + 2 * de * padded + up(block, kPack) * (3 * de + 3 * d + 4 * padded) +
                TaskPositions<T>::floats(f.positions, n) + TaskPositionGradients<T>::floats(p, n));
  E *k = scratch.take<E>(n * de), *v = scratch.take<E>(n * de);
  float *dk = scratch.take(n * d), *dv = scratch.take(n * d), *dq = scratch.take(block * d);
  E *kt = scratch.take<E>(de * padded), *vt = scratch.take<E>(de * padded);
  E *q = scratch.take<E>(block * de), *dout = scratch.take<E>(block * de);
  float *s = scratch.take(block * padded), *dp = scratch.take(block * padded);
  const TaskPositions<T> positions(f.positions, start, n, head, scratch);
  TaskPositionGradients<T> position_gradients(p, positions, scratch);
  // What enters a product as the other factor too: floats serve as both.
  E *k_across = k, *q_across = q, *dout_across = dout, *ds_along = nullptr, *p_across = nullptr, *ds_across = nullptr;
  if constexpr (kPack > 1) {
    const int64_t pairs = up(block, kPack) / kPack;
    k_across = scratch.take<E>(up(n, kPack) / kPack * d);
    q_across = scratch.take<E>(pairs * d), dout_across = scratch.take<E>(pairs * d);
    ds_along = scratch.take<E>(block * padded / kPack);
    p_across = scratch.take<E>(pairs * padded), ds_across = scratch.take<E>(pairs * padded);
  }
  const T *keys_of_head = f.k + start * f.k_stride[0] + head * f.k_stride[1];
  along(keys_of_head, f.k_stride[0], n, d, 1, k);
  along(f.v + start * f.v_stride[0] + head * f.v_stride[1], f.v_stride[0], n, d, 1, v);
  transpose(k, n, de, padded, kt);
  transpose(v, n, de, padded, vt);
  if (kPack > 1) across(keys_of_head, f.k_stride[0], n, d, k_across);
  // With a window no block reaches all keys, so that their gradients start from zeros and not from the first block's.
  if (f.window >= 0) std::fill_n(dk, n * d, 0.0f), std::fill_n(dv, n * d, 0.0f);
  const float query_scale = kPack == 1 ? f.scale : 1, score_scale = kPack == 1 ? 1 : f.scale;
  const float keeps = keep_scale(f.threshold, kAttentionLaneRange);

  for (int64_t first = 0; first < n; first += block) {
    const int64_t rows = std::min(block, n - first), row0 = start + first;
    const Keys keys = seen_by_block(f.window, first, rows, n);
    const int64_t seen = keys.to - keys.from, width = up(seen, kWidth);
    const bool accumulate = first > 0 || f.window >= 0;
    const T *queries = f.q + row0 * f.q_stride[0] + head * f.q_stride[1];
    const T *out_rows = f.out + (row0 * f.heads + head) * d, *dout_rows = p.dout + (row0 * f.heads + head) * d;
    along(queries, f.q_stride[0], rows, d, query_scale, q);
    along(dout_rows, out_stride, rows, d, 1, dout);
    product(rows, width, de, q, de, 1, kt + keys.from, padded, s, padded, false);
    product(rows, width, de, dout, de, 1, vt + keys.from, padded, dp, padded, false);
    BlockLanes lanes{};
    if (f.threshold) lanes = block_lanes(f.seed, start, first, rows, head, keys, scratch.lanes);
    for (int64_t i = 0; i < rows; ++i) {
      float *x = s + i * padded, *y = dp + i * padded;  // of key keys.from and on
      if (kPack > 1)
        for (int64_t j = 0; j < width; j += kWidth) store(x + j, load(x + j) * score_scale);
      positions.add(first + i, keys, x);
      hide_unseen(f.window, first + i, n, keys.from, width, x);
      const float l = f.lse[head * f.tokens + row0 + i];
      vec along_row = {};
      for (int64_t e = 0; e < d; e += kWidth) along_row += load(dout_rows + i * out_stride + e) * load(out_rows + i * out_stride + e);
      const float delta = sum(along_row);
      const uint8_t *lane = f.threshold ? lanes.row(i) : nullptr;
      // x becomes the dropped probabilities that multiply V, y the gradient of the scores.
      for (int64_t j = 0; j < width; j += kWidth) {
        vec probability = exp(load(x + j) - l), g = load(y + j);
        if (lane) g = keep(g, lane + j, f.threshold, keeps);
        store(y + j, probability * (g - delta));
        store(x + j, lane ? keep(probability, lane + j, f.threshold, keeps) : probability);
      }
      position_gradients.add(first + i, keys, y);
    }
    if constexpr (kPack == 1) {
      product(seen, d, rows, s, 1, padded, dout, d, dv + keys.from * d, d, accumulate);
      product(seen, d, rows, dp, 1, padded, q, d, dk + keys.from * d, d, accumulate);  // q carries the scale
      product(rows, d, seen, dp, padded, 1, k + keys.from * d, d, dq, d, false);
    } else {
      const int64_t pairs = up(rows, kPack) / kPack;
      across(queries, f.q_stride[0], rows, d, q_across);
      across(dout_rows, out_stride, rows, d, dout_across);
      across(s, padded, rows, width, p_across);
      across(dp, padded, rows, width, ds_across);
      along(dp, padded, rows, width, 1, ds_along);
      product(seen, d, pairs, p_across, 1, padded, dout_across, d, dv + keys.from * d, d, accumulate);
      product(seen, d, pairs, ds_across, 1, padded, q_across, d, dk + keys.from * d, d, accumulate);
      product(rows, d, up(seen, kPack) / kPack, ds_along, padded / kPack, 1, k_across + keys.from / kPack * d, d, dq, d, false);
    }
    narrow(dq, rows, d, f.scale, p.dq + row0 * p.d_stride[0] + head * p.d_stride[1], p.d_stride[0]);
  }
  narrow(dk, n, d, score_scale, p.dk + start * p.d_stride[0] + head * p.d_stride[1], p.d_stride[0]);
  narrow(dv, n, d, 1, p.dv + start * p.d_stride[0] + head * p.d_stride[1], p.d_stride[0]);
  position_gradients.finish(dbias_part);
}

}  // namespace

template <typename T>
void attention_forward(const AttentionForward<T> &p) {
  const int64_t used = p.cu_seqlens[p.sequences], tasks = p.sequences * p.heads;
  zero_slack(p.out, used, p.tokens, p.heads * p.head_dim);
  for (int64_t head = 0; head < p.heads; ++head) zero_slack(p.lse + head * p.tokens, used, p.tokens, 1);
  const int64_t chunk = std::clamp<int64_t>(tasks / (8 * p.threads), 1, 4);  // of neighbouring heads to a thread, which has them in its cache
#pragma omp parallel num_threads(p.threads)
  {
    Scratch scratch;
#pragma omp for schedule(dynamic, chunk)
    for (int64_t task = 0; task < tasks; ++task) forward_task(p, task / p.heads, task % p.heads, scratch);
  }
}

template <typename T>
void attention_backward(const AttentionBackward<T> &p) {
  const AttentionForward<T> &f = p.forward;
  const int64_t used = f.cu_seqlens[f.sequences], tasks = f.sequences * f.heads;
  for (T *gradient : {p.dq, p.dk, p.dv})
    for (int64_t token = used; token < f.tokens; ++token)
      for (int64_t head = 0; head < f.heads; ++head)
        zero_slack(gradient + token * p.d_stride[0] + head * p.d_stride[1], 0, 1, f.head_dim);
  const int64_t buckets = f.positions.buckets;
  for (T *gradient : {p.dquery_scores, p.dkey_scores})
    if (gradient) zero_slack(gradient, used, f.tokens, f.heads * buckets);
  std::vector<float> dbias_parts(p.dbias ? tasks * buckets : 0);
#pragma omp parallel num_threads(f.threads)
  {
    Scratch scratch;
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < tasks; ++task)
      backward_task(p, task / f.heads, task % f.heads, p.dbias ? &dbias_parts[task * buckets] : nullptr, scratch);
#pragma omp for
    for (int64_t i = 0; i < (p.dbias ? f.heads * buckets : 0); ++i) {
      float total = 0;
      for (int64_t sequence = 0; sequence < f.sequences; ++sequence) total += dbias_parts[sequence * f.heads * buckets + i];
      from_float(total, p.dbias[i]);
    }
  }
}

template void attention_forward(const AttentionForward<float> &);
template void attention_forward(const AttentionForward<bf16> &);
template void attention_forward(const AttentionForward<f16> &);
template void attention_backward(const AttentionBackward<float> &);
template void attention_backward(const AttentionBackward<bf16> &);
template void attention_backward(const AttentionBackward<f16> &);

}  // namespace bertfast::BERTFAST_ISA
