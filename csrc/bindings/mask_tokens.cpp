#include "call.h"

namespace bertfast {

namespace {

void mask_tokens(py::handle ids_, py::handle special_, py::handle counters_, py::handle choices_, py::handle masked_,
                 py::handle labels_, int64_t mask_id, int64_t first_random_id, int64_t random_ids, int64_t choose_below,
                 int64_t mask_below, int64_t random_below, int64_t ignore_index, int64_t seed, int64_t threads) {
  const Tensor ids("ids", ids_);
  ids.there().of(Dtype::int64).with_dims("tokens", 1).contiguous();
  const int64_t tokens = ids.size(0);
  const Tensor special = argument("special", special_, Dtype::uint8, {tokens});
  const Tensor counters = argument("counters", counters_, Dtype::int64, {tokens});
  const Tensor choices = argument("choices", choices_, Dtype::int64, {tokens});
  const Tensor masked = argument("masked", masked_, Dtype::int64, {tokens});
  const Tensor labels = argument("labels", labels_, Dtype::int64, {tokens});
  special.there(), masked.there(), labels.there();
  check_apart({&masked, &labels}, {&ids, &special, &counters, &choices});
  check_least("random_ids", random_ids, 0), check_least("choose_below", choose_below, 0);
  check_least("mask_below", mask_below, 0), check_least("random_below", random_below, 0);
  REQUIRE(random_ids <= int64_t{1} << 32, "random_ids must be at most 2^32");
  REQUIRE(first_random_id >= 0 && first_random_id < int64_t{1} << 62, "first_random_id must be from 0 to 2^62 - 1");
  const MaskTokens arguments{ids.data<const int64_t>(),
                             special.data<const uint8_t>(),
                             counters.data<const int64_t>(),
                             choices.data<const int64_t>(),
                             masked.data<int64_t>(),
                             labels.data<int64_t>(),
                             tokens,
                             mask_id,
                             first_random_id,
                             static_cast<uint64_t>(random_ids),
                             static_cast<uint64_t>(choose_below),
                             static_cast<uint64_t>(mask_below),
                             static_cast<uint64_t>(random_below),
                             ignore_index,
                             static_cast<uint64_t>(seed),
                             thread_count(threads)};
  const Kernels &table = kernels();
  py::gil_scoped_release release;
  table.plain.mask_tokens(arguments);
}

}  // namespace

void bind_mask_tokens(py::module_ &module) {
  module.def("mask_tokens", &mask_tokens, py::kw_only(), py::arg("ids"), py::arg("special"), py::arg("counters"),
             py::arg("choices"), py::arg("masked"), py::arg("labels"), py::arg("mask_id"), py::arg("first_random_id"),
             py::arg("random_ids"), py::arg("choose_below"), py::arg("mask_below"), py::arg("random_below"),
             py::arg("ignore_index"), py::arg("seed"), py::arg("threads"));
}

}  // namespace bertfast
