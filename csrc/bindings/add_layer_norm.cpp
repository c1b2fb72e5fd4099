#include "call.h"

namespace bertfast {

namespace {

// What both passes read: x and the residual (..., hidden), the weight (hidden,), mean and rstd, one a row.
struct Norm {
  const Tensor x, residual, weight, mean, rstd;
  int64_t rows = 0, hidden = 0;

  Norm(py::handle x_, py::handle residual_, py::handle weight_, py::handle mean_, py::handle rstd_)
      : x("x", x_), residual("residual", residual_), weight("weight", weight_), mean("mean", mean_), rstd("rstd", rstd_) {
    x.there().of_floats().contiguous();
    REQUIRE(x.dims() > 0 && x.size(x.dims() - 1) > 0, "x must be (..., hidden) with at least one column");
    rows = x.rows(), hidden = x.size(x.dims() - 1);
    like_x(residual);
    weight.there().of(Dtype::float32).shaped({hidden}).contiguous();
    mean.there().of(Dtype::float32).with_elements(rows), rstd.there().of(Dtype::float32).with_elements(rows);
  }

  void like_x(const Tensor &other) const {
    other.of(x.dtype()).contiguous();
    REQUIRE(!other || (other.dims() > 0 && other.rows() == rows && other.size(other.dims() - 1) == hidden),
            std::string(other.name()) + " and x differ in shape; they must not");
  }

  template <typename T>
  AddLayerNorm<T> arguments(const float *bias, T *out, T *summed, float eps, bool rms, uint32_t threshold, int64_t seed,
                            int threads) const {
    return {x.data<const T>(), residual.data<const T>(), weight.data<const float>(), bias, out, summed, mean.data<float>(),
            rstd.data<float>(), rows, hidden, eps, rms, threshold, static_cast<uint64_t>(seed), threads};
  }
};

void add_layer_norm_forward(py::handle x, py::handle residual, py::handle weight, py::handle bias_, py::handle out_,
                            py::handle summed_, py::handle mean, py::handle rstd, float eps, bool rms, int64_t threshold,
                            int64_t seed, int64_t threads) {
  const Norm norm(x, residual, weight, mean, rstd);
  const Tensor bias = argument("bias", bias_, Dtype::float32, {norm.hidden}), out("out", out_), summed("summed", summed_);
  norm.like_x(out.there()), norm.like_x(summed);
  check_apart({&out, &summed, &norm.mean, &norm.rstd}, {&norm.x, &norm.residual, &norm.weight, &bias});
  const uint32_t below = dropout_threshold(threshold);
  const int count = thread_count(threads);
  if (norm.rows == 0) return;
  with_dtype(norm.x, [&](auto tag) {
    using T = decltype(tag);
    ops<T>().add_layer_norm_forward(
        norm.arguments<T>(bias.data<const float>(), out.data<T>(), summed.data<T>(), eps, rms, below, seed, count));
  });
}

void add_layer_norm_backward(py::handle dout_, py::handle dsummed_, py::handle x, py::handle residual, py::handle weight,
                             py::handle mean, py::handle rstd, py::handle dx_, py::handle dresidual_, py::handle dparameters_,
                             bool rms, int64_t threshold, int64_t seed, int64_t threads) {
  const Norm norm(x, residual, weight, mean, rstd);
  const Tensor dout("dout", dout_), dsummed("dsummed", dsummed_), dx("dx", dx_), dresidual("dresidual", dresidual_);
  norm.like_x(dout.there()), norm.like_x(dsummed), norm.like_x(dx.there()), norm.like_x(dresidual);
  const Tensor dparameters = argument("dparameters", dparameters_, Dtype::float32, {2, norm.hidden});
  check_apart({&dx, &dresidual, &dparameters.there()},
              {&dout, &dsummed, &norm.x, &norm.residual, &norm.weight, &norm.mean, &norm.rstd});
  const uint32_t below = dropout_threshold(threshold);
  const int count = thread_count(threads);
  with_dtype(norm.x, [&](auto tag) {
    using T = decltype(tag);
    ops<T>().add_layer_norm_backward({norm.arguments<T>(nullptr, nullptr, nullptr, 0, rms, below, seed, count),
                                      dout.data<const T>(), dsummed.data<const T>(), dx.data<T>(), dresidual.data<T>(),
                                      dparameters.data<float>()});
  });
}

}  // namespace

void bind_add_layer_norm(py::module_ &module) {
  module.def("add_layer_norm_forward", &add_layer_norm_forward, py::kw_only(), py::arg("x"), py::arg("residual"),
             py::arg("weight"), py::arg("bias"), py::arg("out"), py::arg("summed"), py::arg("mean"), py::arg("rstd"),
             py::arg("eps"), py::arg("rms"), py::arg("threshold"), py::arg("seed"), py::arg("threads"));
  module.def("add_layer_norm_backward", &add_layer_norm_backward, py::kw_only(), py::arg("dout"), py::arg("dsummed"),
             py::arg("x"), py::arg("residual"), py::arg("weight"), py::arg("mean"), py::arg("rstd"), py::arg("dx"),
             py::arg("dresidual"), py::arg("dparameters"), py::arg("rms"), py::arg("threshold"), py::arg("seed"),
             py::arg("threads"));
}

}  // namespace bertfast
