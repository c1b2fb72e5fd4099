#include "call.h"

namespace bertfast {

namespace {

// The strides of a matrix of which one is 1 and the other reaches over the first's size. A size of 1 has the stride that suits.
std::array<int64_t, 2> matrix_strides(const Tensor &x) {
  const int64_t rows = x.size(0), columns = x.size(1);
  const int64_t along = columns <= 1 ? 1 : x.stride(1), down = rows > 1 ? x.stride(0) : along == 1 ? columns : 1;
  REQUIRE((along == 1 && down >= columns) || (down == 1 && along >= rows),
          std::string("neither the rows nor the columns of ") + x.name() + " are contiguous; make a copy of it");
  return {down, along};
}

Elements elements_of(const Tensor &x) { return x.dtype() == Dtype::float32 ? Elements::kWide : Elements::kNarrow; }

void widened_product(py::handle a_, py::handle b_, py::handle out_, py::handle bias_, bool accumulate, int64_t threads) {
  const Tensor a("a", a_), b("b", b_), out("out", out_);
  a.there().of_floats().with_dims("rows, inner", 2);
  b.there().of_floats().with_dims("inner, columns", 2);
  out.there().of_floats().shaped({a.size(0), b.size(1)});
  REQUIRE(b.size(0) == a.size(1), "a has " + std::to_string(a.size(1)) + " columns and b " + std::to_string(b.size(0)) +
                                      " rows; they must be the same");
  const Tensor bias("bias", bias_);
  bias.of_floats().shaped({b.size(1)}).contiguous();
  const Tensor *narrow = &a;
  for (const Tensor *x : {&a, &b, &out, &bias}) {
    if (!*x || x->dtype() == Dtype::float32) continue;
    if (narrow->dtype() != Dtype::float32) x->of(narrow->dtype());
    narrow = x;
  }
  const auto a_strides = matrix_strides(a), b_strides = matrix_strides(b), out_strides = matrix_strides(out);
  check_apart({&out}, {&a, &b, &bias});
  const int count = thread_count(threads);
  with_dtype(*narrow, [&](auto tag) {
    using T = decltype(tag);
    ops<T>().widened_product({a.data<const void>(), b.data<const void>(), bias.data<const void>(), out.data<void>(),
                              elements_of(a), elements_of(b), elements_of(bias), elements_of(out), a.size(0), a.size(1), b.size(1),
                              {a_strides[0], a_strides[1]}, {b_strides[0], b_strides[1]}, {out_strides[0], out_strides[1]},
                              accumulate, count});
  });
}

}  // namespace

void bind_widened_product(py::module_ &module) {
  module.def("widened_product", &widened_product, py::kw_only(), py::arg("a"), py::arg("b"), py::arg("out"), py::arg("bias"),
             py::arg("accumulate"), py::arg("threads"));
}

}  // namespace bertfast
