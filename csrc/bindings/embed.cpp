#include "call.h"

namespace bertfast {

namespace {

// Tables with their ids (each within its table), the weight, and mean and rstd of the tokens.
struct Embedding {
  const Tensor word, position, segment, input_ids, position_ids, segment_ids, weight, mean, rstd;
  int64_t tokens = 0, hidden = 0;

  Embedding(py::handle word_, py::handle position_, py::handle segment_, py::handle input_ids_, py::handle position_ids_,
            py::handle segment_ids_, py::handle weight_, py::handle mean_, py::handle rstd_)
      : word("word", word_), position("position", position_), segment("segment", segment_), input_ids("input_ids", input_ids_),
        position_ids("position_ids", position_ids_), segment_ids("segment_ids", segment_ids_), weight("weight", weight_),
        mean("mean", mean_), rstd("rstd", rstd_) {
    word.there().of_floats().with_dims("vocab, hidden", 2);
    input_ids.there().of(Dtype::int64).with_dims("tokens", 1);
    hidden = word.size(1), tokens = input_ids.size(0);
    REQUIRE(hidden > 0, "word has no columns; it must have at least one");
    for (const auto &[table, ids] : {std::pair{&word, &input_ids}, {&position, &position_ids}, {&segment, &segment_ids}}) {
      REQUIRE(!*table == !*ids, std::string(table->name()) + " and " + ids->name() + " go together; one is None");
      if (!*table) continue;
      table->of(word.dtype()).with_dims("size, hidden", 2).shaped({table->size(0), hidden}).contiguous();
      ids->of(Dtype::int64).shaped({tokens}).contiguous();
      check_values(*ids, 0, table->size(0) - 1);
    }
    weight.there().of(Dtype::float32).shaped({hidden}).contiguous();
    mean.there().of(Dtype::float32).shaped({tokens}).contiguous(), rstd.there().of(Dtype::float32).shaped({tokens}).contiguous();
  }

  // All but mean and rstd, which the forward writes and the backward reads.
  std::vector<const Tensor *> read() const {
    return {&word, &position, &segment, &input_ids, &position_ids, &segment_ids, &weight};
  }

  template <typename T>
  Embed<T> arguments(const float *bias, T *out, float eps, uint32_t threshold, int64_t seed, int threads) const {
    return {{word.data<const T>(), position.data<const T>(), segment.data<const T>()},
            {input_ids.data<const int64_t>(), position_ids.data<const int64_t>(), segment_ids.data<const int64_t>()},
            weight.data<const float>(),
            bias,
            out,
            mean.data<float>(),
            rstd.data<float>(),
            tokens,
            hidden,
            eps,
            threshold,
            static_cast<uint64_t>(seed),
            threads};
  }
};

void embed_forward(py::handle word, py::handle position, py::handle segment, py::handle input_ids, py::handle position_ids,
                   py::handle segment_ids, py::handle weight, py::handle bias_, py::handle out_, py::handle mean, py::handle rstd,
                   float eps, int64_t threshold, int64_t seed, int64_t threads) {
  const Embedding embedding(word, position, segment, input_ids, position_ids, segment_ids, weight, mean, rstd);
  const Tensor bias = argument("bias", bias_, Dtype::float32, {embedding.hidden});
  const Tensor out = argument("out", out_, embedding.word.dtype(), {embedding.tokens, embedding.hidden});
  std::vector<const Tensor *> read = embedding.read();
  read.push_back(&bias);
  check_apart({&out.there(), &embedding.mean, &embedding.rstd}, read);
  const uint32_t below = dropout_threshold(threshold);
  const int count = thread_count(threads);
  if (embedding.tokens == 0) return;
  with_dtype(embedding.word, [&](auto tag) {
    using T = decltype(tag);
    ops<T>().embed_forward(embedding.arguments<T>(bias.data<const float>(), out.data<T>(), eps, below, seed, count));
  });
}

void embed_backward(py::handle dout_, py::handle word, py::handle position, py::handle segment, py::handle input_ids,
                    py::handle position_ids, py::handle segment_ids, py::handle weight, py::handle mean, py::handle rstd,
                    py::handle dsum_, py::handle dparameters_, int64_t threshold, int64_t seed, int64_t threads) {
  const Embedding embedding(word, position, segment, input_ids, position_ids, segment_ids, weight, mean, rstd);
  const int64_t tokens = embedding.tokens, hidden = embedding.hidden;
  const Tensor dout = argument("dout", dout_, embedding.word.dtype(), {tokens, hidden});
  const Tensor dsum = argument("dsum", dsum_, Dtype::float32, {tokens, hidden});
  const Tensor dparameters = argument("dparameters", dparameters_, Dtype::float32, {2, hidden});
  std::vector<const Tensor *> read = embedding.read();
  for (const Tensor *x : {&dout.there(), &embedding.mean, &embedding.rstd}) read.push_back(x);
  check_apart({&dsum.there(), &dparameters.there()}, read);
  const uint32_t below = dropout_threshold(threshold);
  const int count = thread_count(threads);
  with_dtype(embedding.word, [&](auto tag) {
    using T = decltype(tag);
    ops<T>().embed_backward({embedding.arguments<T>(nullptr, nullptr, 0, below, seed, count), dout.data<const T>(),
                             dsum.data<float>(), dparameters.data<float>()});
  });
}

// out[targets[g]] = the sum of rows[order[starts[g]]] to rows[order[starts[g + 1] - 1]].
void sum_row_groups(py::handle rows_, py::handle order_, py::handle starts_, py::handle targets_, py::handle out_,
                    int64_t threads) {
  const Tensor rows("rows", rows_), targets("targets", targets_), out("out", out_);
  rows.there().of(Dtype::float32).with_dims("count, hidden", 2).contiguous();
  targets.there().of(Dtype::int64).with_dims("groups", 1).contiguous();
  const int64_t count = rows.size(0), hidden = rows.size(1), groups = targets.size(0);
  out.there().of_floats().with_dims("size, hidden", 2).shaped({out.size(0), hidden}).contiguous();
  const Tensor order = argument("order", order_, Dtype::int64, {count});
  const Tensor starts = argument("starts", starts_, Dtype::int64, {groups + 1});
  order.there(), starts.there();
  check_values(order, 0, count - 1), check_values(starts, 0, count), check_values(targets, 0, out.size(0) - 1);
  const int64_t *start = starts.data<const int64_t>(), *target = targets.data<const int64_t>();
  for (int64_t g = 0; g < groups; ++g) {
    REQUIRE(start[g] <= start[g + 1], "starts must never fall");
    REQUIRE(g == 0 || target[g - 1] < target[g], "targets must rise");  // so that no two threads write one row
  }
  check_apart({&out}, {&rows, &order, &starts, &targets});
  const int number = thread_count(threads);
  if (out.elements() == 0) return;
  with_dtype(out, [&](auto tag) {
    using T = decltype(tag);
    ops<T>().sum_row_groups(rows.data<const float>(), order.data<const int64_t>(), start, target, out.data<T>(), groups, hidden,
                            number);
  });
}

}  // namespace

void bind_embed(py::module_ &module) {
  module.def("embed_forward", &embed_forward, py::kw_only(), py::arg("word"), py::arg("position"), py::arg("segment"),
             py::arg("input_ids"), py::arg("position_ids"), py::arg("segment_ids"), py::arg("weight"), py::arg("bias"),
             py::arg("out"), py::arg("mean"), py::arg("rstd"), py::arg("eps"), py::arg("threshold"), py::arg("seed"),
             py::arg("threads"));
  module.def("embed_backward", &embed_backward, py::kw_only(), py::arg("dout"), py::arg("word"), py::arg("position"),
             py::arg("segment"), py::arg("input_ids"), py::arg("position_ids"), py::arg("segment_ids"), py::arg("weight"),
             py::arg("mean"), py::arg("rstd"), py::arg("dsum"), py::arg("dparameters"), py::arg("threshold"), py::arg("seed"),
             py::arg("threads"));
  module.def("sum_row_groups", &sum_row_groups, py::kw_only(), py::arg("rows"), py::arg("order"), py::arg("starts"),
             py::arg("targets"), py::arg("out"), py::arg("threads"));
}

}  // namespace bertfast
