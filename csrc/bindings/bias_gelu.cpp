#include "call.h"

namespace bertfast {

namespace {

// `half` is what has `features` columns: the output, or its gradient. x has as many, or twice as many when gated.
template <typename T>
BiasGelu<T> arguments(const Tensor &x, const Tensor &bias, T *out, const Tensor &half, bool tanh, bool gated, int threads) {
  return {x.data<const T>(), bias.data<const float>(), out, half.rows(), half.size(half.dims() - 1), tanh, gated, threads};
}

// The columns of x, after `x`, `bias` and `half` are found to fit.
int64_t check(const Tensor &x, const Tensor &bias, const Tensor &half, bool gated) {
  x.there().of_floats().contiguous();
  half.there().of(x.dtype()).contiguous();
  REQUIRE(x.dims() > 0 && half.dims() == x.dims(), std::string("x and ") + half.name() + " must have the same dimensions");
  const int64_t last = x.dims() - 1, columns = x.size(last), features = half.size(last);
  REQUIRE(features > 0 && x.rows() == half.rows() && (gated ? columns % 2 == 0 && columns / 2 == features : columns == features),
          std::string("x and ") + half.name() + " must have as many rows, and as many columns, or x twice as many when gated");
  bias.of(Dtype::float32).shaped({columns}).contiguous();
  return columns;
}

void bias_gelu_forward(py::handle x_, py::handle bias_, py::handle out_, bool tanh, bool gated, int64_t threads) {
  const Tensor x("x", x_), bias("bias", bias_), out("out", out_);
  check(x, bias, out, gated);
  check_apart({&out}, {&x, &bias});
  const int count = thread_count(threads);
  with_dtype(x, [&](auto tag) {
    using T = decltype(tag);
    ops<T>().bias_gelu_forward(arguments<T>(x, bias, out.data<T>(), out, tanh, gated, count));
  });
}

void bias_gelu_backward(py::handle dout_, py::handle x_, py::handle bias_, py::handle dx_, py::handle dbias_, bool tanh,
                        bool gated, int64_t threads) {
  const Tensor dout("dout", dout_), x("x", x_), bias("bias", bias_), dx("dx", dx_);
  const int64_t columns = check(x, bias, dout, gated);
  dx.there().of(x.dtype()).with_elements(x.elements());
  const Tensor dbias = argument("dbias", dbias_, Dtype::float32, {columns});
  check_apart({&dx, &dbias}, {&dout, &x, &bias});
  const int count = thread_count(threads);
  with_dtype(x, [&](auto tag) {
    using T = decltype(tag);
    ops<T>().bias_gelu_backward({arguments<T>(x, bias, nullptr, dout, tanh, gated, count), dout.data<const T>(), dx.data<T>(),
                                 dbias.data<float>()});
  });
}

}  // namespace

void bind_bias_gelu(py::module_ &module) {
  module.def("bias_gelu_forward", &bias_gelu_forward, py::kw_only(), py::arg("x"), py::arg("bias"), py::arg("out"),
             py::arg("tanh"), py::arg("gated"), py::arg("threads"));
  module.def("bias_gelu_backward", &bias_gelu_backward, py::kw_only(), py::arg("dout"), py::arg("x"), py::arg("bias"),
             py::arg("dx"), py::arg("dbias"), py::arg("tanh"), py::arg("gated"), py::arg("threads"));
}

}  // namespace bertfast
