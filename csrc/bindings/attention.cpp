#include <algorithm>

#include "call.h"

namespace bertfast {

namespace {

// What both passes take: q, k and v (tokens, heads, head_dim) of any strides of tokens and heads, and the boundaries of the sequences. The
// output and its log-sum-exp (heads, tokens) too, and the tables of the relative positions, any of them absent.
struct Attention {
  const Tensor q, k, v, out, lse, cu_seqlens, buckets, bias, query_scores, key_scores;
  const int64_t max_seqlen;
  int64_t window;
  const float scale;
  const uint32_t threshold;
  const uint64_t seed;
  const int threads;
  int64_t tokens = 0, heads = 0, head_dim = 0, sequences = 0, count = 0;  // count: of the buckets

  Attention(py::handle q_, py::handle k_, py::handle v_, py::handle out_, py::handle lse_, py::handle cu_seqlens_,
            py::handle buckets_, py::handle bias_, py::handle query_scores_, py::handle key_scores_, int64_t max_seqlen,
            int64_t window, float scale, int64_t threshold, int64_t seed, int64_t threads)
      : q("q", q_), k("k", k_), v("v", v_), out("out", out_), lse("lse", lse_), cu_seqlens("cu_seqlens", cu_seqlens_),
        buckets("buckets", buckets_), bias("bias", bias_), query_scores("query_scores", query_scores_),
        key_scores("key_scores", key_scores_), max_seqlen(max_seqlen), window(window), scale(scale),
        threshold(dropout_threshold(threshold, 256)), seed(static_cast<uint64_t>(seed)), threads(thread_count(threads)) {
    q.there().of_floats().with_dims("tokens, heads, head_dim", 3).adjacent();
    tokens = q.size(0), heads = q.size(1), head_dim = q.size(2);
    REQUIRE(head_dim > 0 && head_dim <= 128 && head_dim % 16 == 0,
            "head_dim is " + std::to_string(head_dim) + "; it must be a multiple of 16, at most 128");
    for (const Tensor *x : {&k, &v}) x->there().of(q.dtype()).shaped({tokens, heads, head_dim}).adjacent();
    out.there().of(q.dtype()).shaped({tokens, heads, head_dim}).contiguous();
    lse.there().of(Dtype::float32).shaped({heads, tokens}).contiguous();
    check_boundaries();
    check_tables();
    check_least("window", window, -1);
    this->window = std::min(window, tokens);  // no sequence is longer, and no sum with it is too large
  }

  std::vector<const Tensor *> read() const {
    return {&q, &k, &v, &cu_seqlens, &buckets, &bias, &query_scores, &key_scores};
  }

  template <typename T>
  AttentionForward<T> arguments() const {
    const auto stride = [](const Tensor &x, int dim) { return x ? x.stride(dim) : 0; };
    return {q.data<const T>(),
            k.data<const T>(),
            v.data<const T>(),
            out.data<T>(),
            lse.data<float>(),
            cu_seqlens.data<const int32_t>(),
            sequences,
            heads,
            head_dim,
            {q.stride(0), q.stride(1)},
            {k.stride(0), k.stride(1)},
            {v.stride(0), v.stride(1)},
            tokens,
            scale,
            threshold,
            seed,
            threads,
            window,
            {count ? buckets.data<const int32_t>() : nullptr, bias.data<const T>(), query_scores.data<const T>(),
             key_scores.data<const T>(), count, max_seqlen, {stride(query_scores, 0), stride(query_scores, 1)},
             {stride(key_scores, 0), stride(key_scores, 1)}}};
  }

 private:
  void check_boundaries() {
    cu_seqlens.there().of(Dtype::int32).with_dims("sequences + 1", 1).contiguous();
    check_least("max_seqlen", max_seqlen, 0);
    REQUIRE(cu_seqlens.size(0) > 0, "cu_seqlens is empty; it must hold 0 and then the end of each sequence");
    sequences = cu_seqlens.size(0) - 1;
    const int32_t *bounds = cu_seqlens.data<const int32_t>();
    REQUIRE(bounds[0] == 0, "cu_seqlens must start with 0");
    for (int64_t i = 0; i < sequences; ++i) {
      REQUIRE(bounds[i + 1] >= bounds[i], "cu_seqlens must never fall");
      REQUIRE(bounds[i + 1] - bounds[i] <= max_seqlen, "a sequence is longer than max_seqlen");
    }
    REQUIRE(bounds[sequences] <= tokens, "cu_seqlens goes beyond the tokens");
  }

  void check_tables() {
    for (const Tensor *table : {&bias, &query_scores, &key_scores}) {
      if (!*table) continue;
      REQUIRE(table->dims() > 0, std::string(table->name()) + " must have a dimension of buckets");
      REQUIRE(!count || table->size(table->dims() - 1) == count, "the tables differ in buckets; they must not");
      count = table->size(table->dims() - 1);
      REQUIRE(count > 0 || max_seqlen == 0, std::string(table->name()) + " has no buckets");
    }
    bias.of(q.dtype()).shaped({heads, count}).contiguous();
    for (const Tensor *scores : {&query_scores, &key_scores}) scores->of(q.dtype()).shaped({tokens, heads, count}).adjacent();
    if (!bias && !query_scores && !key_scores) return;
    REQUIRE(max_seqlen <= int64_t{1} << 31, "max_seqlen must be at most 2^31");
    const int64_t distances = std::max<int64_t>(2 * max_seqlen - 1, 0);
    buckets.there().of(Dtype::int32).shaped({distances}).contiguous();
    const int32_t *values = buckets.data<const int32_t>();
    for (int64_t i = 0; i < distances; ++i)
      if (values[i] < 0 || values[i] >= count) fail_value("buckets", i, values[i], 0, count - 1);
  }
};

void attention_forward(py::handle q, py::handle k, py::handle v, py::handle out, py::handle lse, py::handle cu_seqlens,
                       py::handle buckets, py::handle bias, py::handle query_scores, py::handle key_scores, int64_t max_seqlen,
                       int64_t window, float scale, int64_t threshold, int64_t seed, int64_t threads) {
  const Attention call(q, k, v, out, lse, cu_seqlens, buckets, bias, query_scores, key_scores, max_seqlen, window, scale,
                       threshold, seed, threads);
  check_apart({&call.out, &call.lse}, call.read());
  if (call.q.elements() == 0) return;
  with_dtype(call.q, [&](auto tag) {
    using T = decltype(tag);
    ops<T>().attention_forward(call.arguments<T>());
  });
}

void attention_backward(py::handle dout_, py::handle q, py::handle k, py::handle v, py::handle out, py::handle lse,
                        py::handle dqkv_, py::handle cu_seqlens, py::handle buckets, py::handle bias, py::handle query_scores,
                        py::handle key_scores, py::handle dbias_, py::handle dquery_scores_, py::handle dkey_scores_,
                        int64_t max_seqlen, int64_t window, float scale, int64_t threshold, int64_t seed, int64_t threads) {
  const Attention call(q, k, v, out, lse, cu_seqlens, buckets, bias, query_scores, key_scores, max_seqlen, window, scale,
                       threshold, seed, threads);
  const Dtype dtype = call.q.dtype();
  const int64_t tokens = call.tokens, heads = call.heads, count = call.count;
  const Tensor dout = argument("dout", dout_, dtype, {tokens, heads, call.head_dim});
  const Tensor dqkv = argument("dqkv", dqkv_, dtype, {tokens, 3, heads, call.head_dim});
  const Tensor dbias = argument("dbias", dbias_, dtype, {heads, count});
  const Tensor dquery_scores = argument("dquery_scores", dquery_scores_, dtype, {tokens, heads, count});
  const Tensor dkey_scores = argument("dkey_scores", dkey_scores_, dtype, {tokens, heads, count});
  for (const Tensor *x : {&dout, &dqkv}) x->there();
  for (const auto &[gradient, table] :
       {std::pair{&dbias, &call.bias}, {&dquery_scores, &call.query_scores}, {&dkey_scores, &call.key_scores}})
    REQUIRE(!*gradient || *table, std::string(gradient->name()) + " is given and its table is absent");
  std::vector<const Tensor *> read = call.read();
  for (const Tensor *x : {&dout, &call.out, &call.lse}) read.push_back(x);
  check_apart({&dqkv, &dbias, &dquery_scores, &dkey_scores}, read);
  if (call.q.elements() == 0) {
    // Of the tables' gradients only the bias's has elements: with no tokens, or no heads, it is zero.
    if (dbias) std::fill_n(dbias.data<char>(), dbias.elements() * dbias.item_bytes(), 0);
    return;
  }
  with_dtype(call.q, [&](auto tag) {
    using T = decltype(tag);
    const int64_t row = heads * call.head_dim;
    ops<T>().attention_backward({call.arguments<T>(),
                                 dout.data<const T>(),
                                 dqkv.data<T>(),
                                 dqkv.data<T>() + row,
                                 dqkv.data<T>() + 2 * row,
                                 {3 * row, call.head_dim},
                                 dbias.data<T>(),
                                 dquery_scores.data<T>(),
                                 dkey_scores.data<T>()});
  });
}

}  // namespace

void bind_attention(py::module_ &module) {
  module.def("attention_forward", &attention_forward, py::kw_only(), py::arg("q"), py::arg("k"), py::arg("v"), py::arg("out"),
             py::arg("lse"), py::arg("cu_seqlens"), py::arg("buckets"), py::arg("bias"), py::arg("query_scores"),
             py::arg("key_scores"), py::arg("max_seqlen"), py::arg("window"), py::arg("scale"), py::arg("threshold"),
             py::arg("seed"), py::arg("threads"));
  module.def("attention_backward", &attention_backward, py::kw_only(), py::arg("dout"), py::arg("q"), py::arg("k"), py::arg("v"),
             py::arg("out"), py::arg("lse"), py::arg("dqkv"), py::arg("cu_seqlens"), py::arg("buckets"), py::arg("bias"),
             py::arg("query_scores"), py::arg("key_scores"), py::arg("dbias"), py::arg("dquery_scores"), py::arg("dkey_scores"),
             py::arg("max_seqlen"), py::arg("window"), py::arg("scale"), py::arg("threshold"), py::arg("seed"),
             py::arg("threads"));
}

}  // namespace bertfast
