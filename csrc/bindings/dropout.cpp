#include "call.h"

namespace bertfast {

namespace {

void dropout(py::handle x_, py::handle out_, int64_t threshold, int64_t seed, int64_t threads) {
  const Tensor x("x", x_), out("out", out_);
  x.there().of_floats().contiguous();
  const int64_t n = x.elements();
  out.there().of(x.dtype()).with_elements(n);
  check_apart({&out}, {&x});
  const uint32_t below = dropout_threshold(threshold);
  const int count = thread_count(threads);
  with_dtype(x, [&](auto tag) {
    using T = decltype(tag);
    ops<T>().dropout(x.data<const T>(), out.data<T>(), n, below, static_cast<uint64_t>(seed), count);
  });
}

}  // namespace

void bind_dropout(py::module_ &module) {
  module.def("dropout", &dropout, py::kw_only(), py::arg("x"), py::arg("out"), py::arg("threshold"), py::arg("seed"),
             py::arg("threads"));
}

}  // namespace bertfast
