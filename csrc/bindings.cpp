// bertfast._C: pointers and sizes from Python, checked here before any is followed, and the instruction set picked at run time.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "ops.h"

namespace py = pybind11;

namespace bertfast {

const Kernels *kernels_baseline();
#ifdef BERTFAST_X86
const Kernels *kernels_avx2();
const Kernels *kernels_avx512();
const Kernels *kernels_avx512bf16();
#endif

namespace {

// Those that were compiled and that this processor (and its operating system) runs, best first.
std::vector<const Kernels *> runnable() {
  std::vector<const Kernels *> found;
#ifdef BERTFAST_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma")) {
    if (__builtin_cpu_supports("avx512bf16")) found.push_back(kernels_avx512bf16());
    found.push_back(kernels_avx512());
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(kernels_avx2());
#endif
  found.push_back(kernels_baseline());
  return found;
}

const Kernels *find(const std::string &name) {
  std::string names;
  for (const Kernels *kernels : runnable()) {
    if (name == kernels->name) return kernels;
    names += (names.empty() ? "" : ", ") + std::string(kernels->name);
  }
  throw std::invalid_argument("instruction set '" + name + "' is not to be had here; there are " + names);
}

const Kernels *selected = nullptr;

const Kernels &kernels() {
  if (!selected) {
    const char *forced = std::getenv("BERTFAST_CPU_ISA");
    selected = forced && *forced ? find(forced) : runnable().front();
  }
  return *selected;
}

template <typename T>
const Ops<T> &ops();
template <>
const Ops<float> &ops<float>() {
  return kernels().f32;
}
template <>
const Ops<bf16> &ops<bf16>() {
  return kernels().b16;
}

using Address = uintptr_t;

template <typename T>
T *pointer(Address address) {
  return reinterpret_cast<T *>(address);
}

[[noreturn]] void fail(const std::string &message) { throw std::invalid_argument(message); }

// The message is made only where it is needed: checks of every element would otherwise cost more than the ops.
#define REQUIRE(condition, message)  \
  do {                               \
    if (!(condition)) fail(message); \
  } while (false)

void require_pointer(Address address, int64_t elements, const char *name) {
  REQUIRE(address != 0 || elements == 0, std::string(name) + " is a null pointer");
}

void require_sizes(std::initializer_list<std::pair<const char *, int64_t>> sizes) {
  for (const auto &[name, size] : sizes)
    REQUIRE(size >= 0, std::string(name) + " is " + std::to_string(size) + "; it must be at least 0");
}

// Calls run(T{}) with the element type that `dtype` names, without the interpreter's lock.
template <typename Run>
void with_dtype(const std::string &dtype, Run run) {
  REQUIRE(dtype == "float32" || dtype == "bfloat16", "dtype is '" + dtype + "'; it must be float32 or bfloat16");
  kernels();  // may raise, so it comes before the lock is given up
  py::gil_scoped_release release;
  if (dtype == "float32")
    run(float{});
  else
    run(bf16{});
}

struct AttentionSizes {
  int64_t sequences, heads, head_dim, tokens, max_seqlen;
  int64_t threshold, threads;
};

void check_attention(const AttentionSizes &size, Address cu_seqlens) {
  require_sizes({{"sequences", size.sequences},
                 {"heads", size.heads},
                 {"tokens", size.tokens},
                 {"max_seqlen", size.max_seqlen},
                 {"threshold", size.threshold}});
  REQUIRE(size.head_dim > 0 && size.head_dim <= 128 && size.head_dim % 16 == 0,
          "head_dim is " + std::to_string(size.head_dim) + "; it must be a multiple of 16, at most 128");
  REQUIRE(size.threshold < 65536, "threshold must be below 65536");
  REQUIRE(size.threads > 0, "threads must be above 0");
  REQUIRE(cu_seqlens != 0, "cu_seqlens is a null pointer");
  const int32_t *bounds = pointer<const int32_t>(cu_seqlens);
  REQUIRE(bounds[0] == 0, "cu_seqlens must start with 0");
  for (int64_t i = 0; i < size.sequences; ++i) {
    REQUIRE(bounds[i + 1] >= bounds[i], "cu_seqlens must never fall");
    REQUIRE(bounds[i + 1] - bounds[i] <= size.max_seqlen, "a sequence is longer than max_seqlen");
  }
  REQUIRE(bounds[size.sequences] <= size.tokens, "cu_seqlens goes beyond the tokens");
}

// The widest reach of a strided (tokens, heads, head_dim) array must not run backwards.
void check_strides(const char *name, int64_t token, int64_t head) {
  REQUIRE(token >= 0 && head >= 0, std::string("the strides of ") + name + " must be at least 0");
}

// Addresses of bucket_of, bias, query_scores and key_scores (0: absent), and what `Positions` says of them.
struct PositionTables {
  std::array<Address, 4> tables;
  int64_t buckets;
  std::array<int64_t, 4> strides;
};

void check_positions(const PositionTables &positions, const AttentionSizes &size, int64_t window) {
  REQUIRE(window >= -1, "window is " + std::to_string(window) + "; it must be at least 0, or -1 for all keys");
  const auto [bucket_of, bias, query_scores, key_scores] = positions.tables;
  require_sizes({{"buckets", positions.buckets}});
  for (int64_t stride : positions.strides) REQUIRE(stride >= 0, "the strides of the tables must be at least 0");
  require_pointer(bucket_of, size.max_seqlen && (bias || query_scores || key_scores), "bucket_of");
  if (!bucket_of) return;
  const int32_t *values = pointer<const int32_t>(bucket_of);
  for (int64_t i = 0; i < 2 * size.max_seqlen - 1; ++i)
    REQUIRE(values[i] >= 0 && values[i] < positions.buckets, "bucket_of[" + std::to_string(i) + "] is " + std::to_string(values[i]) +
                                                                 "; it must be from 0 to " + std::to_string(positions.buckets - 1));
}

template <typename T>
Positions<T> positions_of(const PositionTables &positions, const AttentionSizes &size) {
  const auto &[bucket_of, bias, query_scores, key_scores] = positions.tables;
  const auto &strides = positions.strides;
  return {pointer<const int32_t>(bucket_of),
          pointer<const T>(bias),
          pointer<const T>(query_scores),
          pointer<const T>(key_scores),
          positions.buckets,
          size.max_seqlen,
          {strides[0], strides[1]},
          {strides[2], strides[3]}};
}

template <typename T>
AttentionForward<T> forward_of(Address q, Address k, Address v, Address out, Address lse, Address cu_seqlens,
                               const AttentionSizes &size, const std::array<int64_t, 6> &strides, float scale, int64_t seed,
                               int64_t window, const PositionTables &positions) {
  return {pointer<const T>(q),
          pointer<const T>(k),
          pointer<const T>(v),
          pointer<T>(out),
          pointer<float>(lse),
          pointer<const int32_t>(cu_seqlens),
          size.sequences,
          size.heads,
          size.head_dim,
          {strides[0], strides[1]},
          {strides[2], strides[3]},
          {strides[4], strides[5]},
          size.tokens,
          scale,
          static_cast<uint32_t>(size.threshold),
          static_cast<uint64_t>(seed),
          static_cast<int>(size.threads),
          std::min(window, size.max_seqlen),
          positions_of<T>(positions, size)};
}

void attention_forward(const std::string &dtype, Address q, Address k, Address v, Address out, Address lse, Address cu_seqlens,
                       int64_t sequences, int64_t heads, int64_t head_dim, int64_t q0, int64_t q1, int64_t k0, int64_t k1,
                       int64_t v0, int64_t v1, int64_t tokens, int64_t max_seqlen, float scale, int64_t threshold, int64_t seed,
                       int64_t threads, int64_t window, std::array<Address, 4> tables, int64_t buckets,
                       std::array<int64_t, 4> table_strides) {
  const AttentionSizes size{sequences, heads, head_dim, tokens, max_seqlen, threshold, threads};
  const PositionTables positions{tables, buckets, table_strides};
  check_attention(size, cu_seqlens), check_positions(positions, size, window);
  for (auto [address, name] : {std::pair{q, "q"}, {k, "k"}, {v, "v"}, {out, "out"}, {lse, "lse"}})
    require_pointer(address, tokens * heads, name);
  check_strides("q", q0, q1), check_strides("k", k0, k1), check_strides("v", v0, v1);
  with_dtype(dtype, [&](auto tag) {
    using T = decltype(tag);
    ops<T>().attention_forward(
        forward_of<T>(q, k, v, out, lse, cu_seqlens, size, {q0, q1, k0, k1, v0, v1}, scale, seed, window, positions));
  });
}

void attention_backward(const std::string &dtype, Address dout, Address q, Address k, Address v, Address out, Address lse,
                        Address dq, Address dk, Address dv, Address cu_seqlens, int64_t sequences, int64_t heads,
                        int64_t head_dim, int64_t q0, int64_t q1, int64_t k0, int64_t k1, int64_t v0, int64_t v1, int64_t d0,
                        int64_t d1, int64_t tokens, int64_t max_seqlen, float scale, int64_t threshold, int64_t seed,
                        int64_t threads, int64_t window, std::array<Address, 4> tables, int64_t buckets,
                        std::array<int64_t, 4> table_strides, std::array<Address, 3> table_gradients) {
  const AttentionSizes size{sequences, heads, head_dim, tokens, max_seqlen, threshold, threads};
  const PositionTables positions{tables, buckets, table_strides};
  check_attention(size, cu_seqlens), check_positions(positions, size, window);
  for (size_t i = 0; i < table_gradients.size(); ++i)
    REQUIRE(!table_gradients[i] || tables[i + 1], "a gradient is wanted of a table that is absent");
  for (auto [address, name] : {std::pair{dout, "dout"}, {q, "q"}, {k, "k"}, {v, "v"}, {out, "out"}, {lse, "lse"}, {dq, "dq"},
                               {dk, "dk"}, {dv, "dv"}})
    require_pointer(address, tokens * heads, name);
  check_strides("q", q0, q1), check_strides("k", k0, k1), check_strides("v", v0, v1), check_strides("dq", d0, d1);
  with_dtype(dtype, [&](auto tag) {
    using T = decltype(tag);
    ops<T>().attention_backward(
        {forward_of<T>(q, k, v, out, lse, cu_seqlens, size, {q0, q1, k0, k1, v0, v1}, scale, seed, window, positions),
         pointer<const T>(dout),
         pointer<T>(dq),
         pointer<T>(dk),
         pointer<T>(dv),
         {d0, d1},
         pointer<T>(table_gradients[0]),
         pointer<T>(table_gradients[1]),
         pointer<T>(table_gradients[2])});
  });
}

void dropout(const std::string &dtype, Address x, Address out, int64_t n, int64_t threshold, int64_t seed, int64_t threads) {
  require_sizes({{"n", n}, {"threshold", threshold}});
  REQUIRE(threshold < 65536 && threads > 0, "threshold must be below 65536 and threads above 0");
  require_pointer(x, n, "x"), require_pointer(out, n, "out");
  with_dtype(dtype, [&](auto tag) {
    using T = decltype(tag);
    ops<T>().dropout(pointer<const T>(x), pointer<T>(out), n, static_cast<uint32_t>(threshold), static_cast<uint64_t>(seed),
                     static_cast<int>(threads));
  });
}

// Raises unless each index is -1 or a row, and no row comes twice: the words of kernels/gather_rows.py.
void check_rows(const std::string &name, Address index, int64_t masked, const std::string &owner, int64_t rows) {
  require_sizes({{"rows", rows}, {"masked", masked}});
  require_pointer(index, masked, "index");
  const int64_t *values = pointer<const int64_t>(index);
  std::vector<bool> seen(rows);
  for (int64_t m = 0; m < masked; ++m) {
    const int64_t row = values[m];
    if (row == -1) continue;
    if (row < 0 || row >= rows)
      throw std::invalid_argument(name + " holds " + std::to_string(row) + "; " + owner + " has " + std::to_string(rows) +
                                  " rows, so it must be from -1 to " + std::to_string(rows - 1));
    if (seen[row])
      throw std::invalid_argument(name + " holds " + std::to_string(row) + " twice; the rows must be unique");
    seen[row] = true;
  }
}

// The range alone, which is what keeps a kernel within its memory.
void check_index(Address index, int64_t masked, int64_t rows) {
  require_pointer(index, masked, "index");
  const int64_t *values = pointer<const int64_t>(index);
  for (int64_t m = 0; m < masked; ++m)
    if (values[m] < -1 || values[m] >= rows)
      throw std::invalid_argument("index[" + std::to_string(m) + "] is " + std::to_string(values[m]) +
                                  "; it must be from -1 to " + std::to_string(rows - 1));
}

// `width` and `stride` are the bytes of a row, and from one to the next.
void gather_rows(Address x, Address index, Address out, int64_t rows, int64_t masked, int64_t width, int64_t stride,
                 int64_t threads) {
  require_sizes({{"rows", rows}, {"masked", masked}, {"width", width}, {"the stride of x", stride}});
  REQUIRE(threads > 0, "threads must be above 0");
  check_index(index, masked, rows);
  require_pointer(x, rows * width, "x"), require_pointer(out, masked * width, "out");
  const Kernels &table = kernels();
  py::gil_scoped_release release;
  table.plain.gather_rows(pointer<const char>(x), pointer<const int64_t>(index), pointer<char>(out), masked, width, stride,
                          static_cast<int>(threads));
}

void scatter_rows(Address dout, Address index, Address dx, int64_t rows, int64_t masked, int64_t width, int64_t threads) {
  require_sizes({{"rows", rows}, {"masked", masked}, {"width", width}});
  REQUIRE(threads > 0, "threads must be above 0");
  check_index(index, masked, rows);
  require_pointer(dout, masked * width, "dout"), require_pointer(dx, rows * width, "dx");
  const Kernels &table = kernels();
  py::gil_scoped_release release;
  table.plain.scatter_rows(pointer<const char>(dout), pointer<const int64_t>(index), pointer<char>(dx), rows, masked, width,
                           static_cast<int>(threads));
}

void mask_tokens(Address ids, Address special, Address counters, Address choices, Address masked, Address labels,
                 int64_t tokens, int64_t mask_id, int64_t first_random_id, int64_t random_ids, int64_t choose_below,
                 int64_t mask_below, int64_t random_below, int64_t ignore_index, int64_t seed, int64_t threads) {
  require_sizes({{"tokens", tokens},
                 {"random_ids", random_ids},
                 {"choose_below", choose_below},
                 {"mask_below", mask_below},
                 {"random_below", random_below}});
  REQUIRE(random_ids <= int64_t{1} << 32, "random_ids must be at most 2^32");
  REQUIRE(threads > 0, "threads must be above 0");
  for (auto [address, name] : {std::pair{ids, "ids"}, {special, "special"}, {masked, "masked"}, {labels, "labels"}})
    require_pointer(address, tokens, name);
  const MaskTokens arguments{pointer<const int64_t>(ids),
                             pointer<const uint8_t>(special),
                             pointer<const int64_t>(counters),
                             pointer<const int64_t>(choices),
                             pointer<int64_t>(masked),
                             pointer<int64_t>(labels),
                             tokens,
                             mask_id,
                             first_random_id,
                             static_cast<uint64_t>(random_ids),
                             static_cast<uint64_t>(choose_below),
                             static_cast<uint64_t>(mask_below),
                             static_cast<uint64_t>(random_below),
                             ignore_index,
                             static_cast<uint64_t>(seed),
                             static_cast<int>(threads)};
  const Kernels &table = kernels();
  py::gil_scoped_release release;
  table.plain.mask_tokens(arguments);
}

void cross_entropy_rows(const std::string &dtype, Address logits, Address bias, Address labels, Address loss, Address lse,
                        Address correct, int64_t rows, int64_t vocab, int64_t ignore_index, float label_smoothing, float z_loss,
                        Address grad_scale, Address dbias, int64_t threads) {
  require_sizes({{"rows", rows}, {"vocab", vocab}});
  REQUIRE(vocab > 0, "vocab must be above 0");
  REQUIRE(threads > 0, "threads must be above 0");
  REQUIRE(!dbias || grad_scale, "dbias needs grad_scale");
  for (auto [address, name] : {std::pair{logits, "logits"}, {labels, "labels"}, {loss, "loss"}, {lse, "lse"}, {correct, "correct"}})
    require_pointer(address, rows, name);
  const int64_t *values = pointer<const int64_t>(labels);
  for (int64_t row = 0; row < rows; ++row)
    REQUIRE(values[row] == ignore_index || (values[row] >= 0 && values[row] < vocab),
            "labels[" + std::to_string(row) + "] is " + std::to_string(values[row]) + "; it must be from 0 to " +
                std::to_string(vocab - 1) + ", or " + std::to_string(ignore_index) + " to be ignored");
  with_dtype(dtype, [&](auto tag) {
    using T = decltype(tag);
    ops<T>().cross_entropy_rows(pointer<T>(logits), pointer<const float>(bias), values, pointer<float>(loss),
                                pointer<float>(lse), pointer<uint8_t>(correct), rows, vocab, ignore_index, label_smoothing,
                                z_loss, pointer<const float>(grad_scale), pointer<float>(dbias), static_cast<int>(threads));
  });
}

void check_sizes(int64_t rows, int64_t width, int64_t threshold, int64_t threads) {
  require_sizes({{"rows", rows}, {"the width", width}, {"threshold", threshold}});
  REQUIRE(width > 0 && threshold < 65536 && threads > 0, "the width and threads must be above 0 and threshold below 65536");
}

template <typename T>
AddLayerNorm<T> norm_of(Address x, Address residual, Address weight, Address bias, Address out, Address summed, Address mean,
                        Address rstd, int64_t rows, int64_t hidden, float eps, bool rms, int64_t threshold, int64_t seed,
                        int64_t threads) {
  return {pointer<const T>(x),
          pointer<const T>(residual),
          pointer<const float>(weight),
          pointer<const float>(bias),
          pointer<T>(out),
          pointer<T>(summed),
          pointer<float>(mean),
          pointer<float>(rstd),
          rows,
          hidden,
          eps,
          rms,
          static_cast<uint32_t>(threshold),
          static_cast<uint64_t>(seed),
          static_cast<int>(threads)};
}

void add_layer_norm_forward(const std::string &dtype, Address x, Address residual, Address weight, Address bias, Address out,
                            Address summed, Address mean, Address rstd, int64_t rows, int64_t hidden, float eps, bool rms,
                            int64_t threshold, int64_t seed, int64_t threads) {
  check_sizes(rows, hidden, threshold, threads);
  for (auto [address, name] : {std::pair{x, "x"}, {weight, "weight"}, {out, "out"}, {mean, "mean"}, {rstd, "rstd"}})
    require_pointer(address, rows, name);
  with_dtype(dtype, [&](auto tag) {
    using T = decltype(tag);
    ops<T>().add_layer_norm_forward(norm_of<T>(x, residual, weight, bias, out, summed, mean, rstd, rows, hidden, eps, rms,
                                               threshold, seed, threads));
  });
}

void add_layer_norm_backward(const std::string &dtype, Address dout, Address dsummed, Address x, Address residual,
                             Address weight, Address mean, Address rstd, Address dx, Address dresidual, Address dparameters,
                             int64_t rows, int64_t hidden, bool rms, int64_t threshold, int64_t seed, int64_t threads) {
  check_sizes(rows, hidden, threshold, threads);
  for (auto [address, name] : {std::pair{dout, "dout"}, {x, "x"}, {weight, "weight"}, {mean, "mean"}, {rstd, "rstd"}, {dx, "dx"}})
    require_pointer(address, rows, name);
  require_pointer(dparameters, 1, "dparameters");
  with_dtype(dtype, [&](auto tag) {
    using T = decltype(tag);
    ops<T>().add_layer_norm_backward({norm_of<T>(x, residual, weight, 0, 0, 0, mean, rstd, rows, hidden, 0, rms, threshold,
                                                 seed, threads),
                                      pointer<const T>(dout), pointer<const T>(dsummed), pointer<T>(dx),
                                      pointer<T>(dresidual), pointer<float>(dparameters)});
  });
}

void bias_gelu_forward(const std::string &dtype, Address x, Address bias, Address out, int64_t rows, int64_t features, bool tanh,
                       bool gated, int64_t threads) {
  check_sizes(rows, features, 0, threads);
  require_pointer(x, rows, "x"), require_pointer(out, rows, "out");
  with_dtype(dtype, [&](auto tag) {
    using T = decltype(tag);
    ops<T>().bias_gelu_forward({pointer<const T>(x), pointer<const float>(bias), pointer<T>(out), rows, features, tanh, gated,
                                static_cast<int>(threads)});
  });
}

void bias_gelu_backward(const std::string &dtype, Address dout, Address x, Address bias, Address dx, Address dbias, int64_t rows,
                        int64_t features, bool tanh, bool gated, int64_t threads) {
  check_sizes(rows, features, 0, threads);
  for (auto [address, name] : {std::pair{dout, "dout"}, {x, "x"}, {dx, "dx"}}) require_pointer(address, rows, name);
  with_dtype(dtype, [&](auto tag) {
    using T = decltype(tag);
    ops<T>().bias_gelu_backward({{pointer<const T>(x), pointer<const float>(bias), nullptr, rows, features, tanh, gated,
                                  static_cast<int>(threads)},
                                 pointer<const T>(dout), pointer<T>(dx), pointer<float>(dbias)});
  });
}

using Three = std::array<Address, 3>;

// A table comes with its ids, and every id is within it.
void check_embed(int64_t tokens, int64_t hidden, const Three &tables, const Three &ids, const std::array<int64_t, 3> &sizes,
                 int64_t threshold, int64_t threads) {
  check_sizes(tokens, hidden, threshold, threads);
  require_pointer(tables[0], 1, "the word table");
  for (int i = 0; i < 3; ++i) {
    if (!tables[i]) continue;
    require_pointer(ids[i], tokens, "a table's ids");
    const int64_t *values = pointer<const int64_t>(ids[i]);
    for (int64_t token = 0; token < tokens; ++token)
      REQUIRE(values[token] >= 0 && values[token] < sizes[i],
              "an id is " + std::to_string(values[token]) + " and its table has " + std::to_string(sizes[i]) + " rows");
  }
}

template <typename T>
Embed<T> embed_of(const Three &tables, const Three &ids, Address weight, Address bias, Address out, Address mean, Address rstd,
                  int64_t tokens, int64_t hidden, float eps, int64_t threshold, int64_t seed, int64_t threads) {
  return {{pointer<const T>(tables[0]), pointer<const T>(tables[1]), pointer<const T>(tables[2])},
          {pointer<const int64_t>(ids[0]), pointer<const int64_t>(ids[1]), pointer<const int64_t>(ids[2])},
          pointer<const float>(weight),
          pointer<const float>(bias),
          pointer<T>(out),
          pointer<float>(mean),
          pointer<float>(rstd),
          tokens,
          hidden,
          eps,
          static_cast<uint32_t>(threshold),
          static_cast<uint64_t>(seed),
          static_cast<int>(threads)};
}

void embed_forward(const std::string &dtype, const Three &tables, const Three &ids, const std::array<int64_t, 3> &sizes,
                   Address weight, Address bias, Address out, Address mean, Address rstd, int64_t tokens, int64_t hidden,
                   float eps, int64_t threshold, int64_t seed, int64_t threads) {
  check_embed(tokens, hidden, tables, ids, sizes, threshold, threads);
  for (auto [address, name] : {std::pair{weight, "weight"}, {out, "out"}, {mean, "mean"}, {rstd, "rstd"}})
    require_pointer(address, tokens, name);
  with_dtype(dtype, [&](auto tag) {
    using T = decltype(tag);
    ops<T>().embed_forward(
        embed_of<T>(tables, ids, weight, bias, out, mean, rstd, tokens, hidden, eps, threshold, seed, threads));
  });
}

void embed_backward(const std::string &dtype, Address dout, const Three &tables, const Three &ids,
                    const std::array<int64_t, 3> &sizes, Address weight, Address mean, Address rstd, Address dsum,
                    Address dparameters, int64_t tokens, int64_t hidden, int64_t threshold, int64_t seed, int64_t threads) {
  check_embed(tokens, hidden, tables, ids, sizes, threshold, threads);
  for (auto [address, name] : {std::pair{dout, "dout"}, {weight, "weight"}, {mean, "mean"}, {rstd, "rstd"}, {dsum, "dsum"}})
    require_pointer(address, tokens, name);
  require_pointer(dparameters, 1, "dparameters");
  with_dtype(dtype, [&](auto tag) {
    using T = decltype(tag);
    ops<T>().embed_backward(
        {embed_of<T>(tables, ids, weight, 0, 0, mean, rstd, tokens, hidden, 0, threshold, seed, threads),
         pointer<const T>(dout), pointer<float>(dsum), pointer<float>(dparameters)});
  });
}

void sum_row_groups(const std::string &dtype, Address rows, Address order, Address starts, Address targets, Address out,
                    int64_t count, int64_t groups, int64_t size, int64_t hidden, int64_t threads) {
  check_sizes(count, hidden, 0, threads);
  require_sizes({{"groups", groups}, {"the size of out", size}});
  for (auto [address, name] : {std::pair{rows, "rows"}, {order, "order"}}) require_pointer(address, count, name);
  for (auto [address, name] : {std::pair{starts, "starts"}, {targets, "targets"}, {out, "out"}})
    require_pointer(address, groups, name);
  for (int64_t i = 0; i < count; ++i)
    REQUIRE(pointer<const int64_t>(order)[i] >= 0 && pointer<const int64_t>(order)[i] < count, "order goes beyond the rows");
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t *start = pointer<const int64_t>(starts) + g, target = pointer<const int64_t>(targets)[g];
    REQUIRE(start[0] >= 0 && start[0] <= start[1] && start[1] <= count, "starts must rise within the rows");
    REQUIRE(target >= 0 && target < size, "targets go beyond out");
  }
  with_dtype(dtype, [&](auto tag) {
    using T = decltype(tag);
    ops<T>().sum_row_groups(pointer<const float>(rows), pointer<const int64_t>(order), pointer<const int64_t>(starts),
                            pointer<const int64_t>(targets), pointer<T>(out), groups, hidden, static_cast<int>(threads));
  });
}

// `strides` are of q's tokens and heads, then of k's.
void rotary(const std::string &dtype, Address q, Address k, Address q_out, Address k_out, Address position_ids, Address cos,
            Address sin, int64_t tokens, int64_t heads, int64_t half, int64_t positions, std::array<int64_t, 4> strides,
            bool inverse, int64_t threads) {
  require_sizes({{"tokens", tokens}, {"heads", heads}, {"positions", positions}});
  REQUIRE(half > 0 && threads > 0, "half and threads must be above 0");
  check_strides("q", strides[0], strides[1]), check_strides("k", strides[2], strides[3]);
  for (auto [address, name] : {std::pair{q, "q"}, {k, "k"}, {q_out, "q_out"}, {k_out, "k_out"}})
    require_pointer(address, tokens * heads, name);
  require_pointer(position_ids, tokens, "position_ids");
  for (auto [address, name] : {std::pair{cos, "cos"}, {sin, "sin"}}) require_pointer(address, positions, name);
  const int64_t *ids = pointer<const int64_t>(position_ids);
  for (int64_t token = 0; token < tokens; ++token)
    REQUIRE(ids[token] >= 0 && ids[token] < positions, "position_ids[" + std::to_string(token) + "] is " +
                                                           std::to_string(ids[token]) + "; it must be from 0 to " +
                                                           std::to_string(positions - 1));
  with_dtype(dtype, [&](auto tag) {
    using T = decltype(tag);
    ops<T>().rotary({pointer<const T>(q), pointer<const T>(k), pointer<T>(q_out), pointer<T>(k_out), ids,
                     pointer<const float>(cos), pointer<const float>(sin), tokens, heads, half, {strides[0], strides[1]},
                     {strides[2], strides[3]}, inverse, static_cast<int>(threads)});
  });
}

template <typename T>
std::vector<AdamwTensor<T>> adamw_tensors(const std::vector<std::array<Address, 5>> &addresses, const std::vector<int64_t> &sizes) {
  std::vector<AdamwTensor<T>> tensors;
  for (size_t i = 0; i < addresses.size(); ++i) {
    const auto &[weight, gradient, mean, square, copy] = addresses[i];
    tensors.push_back({pointer<float>(weight), pointer<const T>(gradient), pointer<float>(mean), pointer<float>(square),
                       pointer<bf16>(copy), sizes[i]});
  }
  return tensors;
}

void check_adamw(const std::vector<std::array<Address, 5>> &addresses, const std::vector<int64_t> &sizes, int needed,
                 int64_t threads) {
  REQUIRE(addresses.size() == sizes.size(), "there must be a size for each tensor");
  REQUIRE(threads > 0, "threads must be above 0");
  for (size_t i = 0; i < sizes.size(); ++i) {
    require_sizes({{"a tensor's size", sizes[i]}});
    for (int part = 0; part < 4; ++part)
      if (part == 1 || part < needed) require_pointer(addresses[i][part], sizes[i], "an address");
  }
}

void adamw(const std::string &dtype, const std::vector<std::array<Address, 5>> &addresses, const std::vector<int64_t> &sizes,
           const std::array<float, 8> &rates, int64_t threads) {
  check_adamw(addresses, sizes, 4, threads);
  with_dtype(dtype, [&](auto tag) {
    using T = decltype(tag);
    const auto tensors = adamw_tensors<T>(addresses, sizes);
    const auto &[rate, correction1, correction2, scale, beta1, beta2, eps, decay] = rates;
    ops<T>().adamw(tensors.data(), static_cast<int64_t>(tensors.size()),
                   {rate, correction1, correction2, scale, beta1, beta2, eps, decay}, static_cast<int>(threads));
  });
}

double sum_of_squares(const std::string &dtype, const std::vector<Address> &addresses, const std::vector<int64_t> &sizes,
                      int64_t threads) {
  std::vector<std::array<Address, 5>> rows;
  for (Address address : addresses) rows.push_back({0, address, 0, 0, 0});
  check_adamw(rows, sizes, 0, threads);
  double total = 0;
  with_dtype(dtype, [&](auto tag) {
    using T = decltype(tag);
    const auto tensors = adamw_tensors<T>(rows, sizes);
    total = ops<T>().sum_of_squares(tensors.data(), static_cast<int64_t>(tensors.size()), static_cast<int>(threads));
  });
  return total;
}

py::dict capabilities() {
  std::vector<std::string> names;
  for (const Kernels *kernels : runnable()) names.push_back(kernels->name);
  py::dict result;
  result["runnable"] = names;
  result["selected"] = kernels().name;
#ifdef _OPENMP
  result["openmp"] = true;
#else
  result["openmp"] = false;
#endif
  return result;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "The C++ kernels: raw addresses and sizes; bertfast.kernels is the interface to them.";
  module.def("attention_forward", &attention_forward);
  module.def("attention_backward", &attention_backward);
  module.def("dropout", &dropout);
  module.def("check_rows", &check_rows);
  module.def("gather_rows", &gather_rows);
  module.def("scatter_rows", &scatter_rows);
  module.def("mask_tokens", &mask_tokens);
  module.def("cross_entropy_rows", &cross_entropy_rows);
  module.def("add_layer_norm_forward", &add_layer_norm_forward);
  module.def("add_layer_norm_backward", &add_layer_norm_backward);
  module.def("bias_gelu_forward", &bias_gelu_forward);
  module.def("bias_gelu_backward", &bias_gelu_backward);
  module.def("embed_forward", &embed_forward);
  module.def("embed_backward", &embed_backward);
  module.def("sum_row_groups", &sum_row_groups);
  module.def("adamw", &adamw);
  module.def("sum_of_squares", &sum_of_squares);
  module.def("rotary", &rotary);
  module.def("capabilities", &capabilities, "The instruction sets that run here, best first, and the one that is used.");
  module.def("set_isa", [](const std::string &name) { selected = find(name); }, "Uses that instruction set from now on.");
}

}  // namespace bertfast
