#include "call.h"

namespace bertfast {

namespace {

void cross_entropy_rows(py::handle logits_, py::handle bias_, py::handle labels_, py::handle loss_,
                        py::handle correct_, py::handle grad_scale_, py::handle dbias_, int64_t ignore_index,
                        float label_smoothing, float z_loss, int64_t threads) {
  const Tensor logits("logits", logits_);
  logits.there().of_floats().with_dims("masked, vocab", 2).contiguous();
  const int64_t rows = logits.size(0), vocab = logits.size(1);
  REQUIRE(vocab > 0, "vocab must be above 0");
  const Tensor bias = argument("bias", bias_, Dtype::float32, {vocab});
  const Tensor labels = argument("labels", labels_, Dtype::int64, {rows});
  const Tensor loss = argument("loss", loss_, Dtype::float32, {rows});
  const Tensor correct = argument("correct", correct_, Dtype::uint8, {rows});
  const Tensor grad_scale = argument("grad_scale", grad_scale_, Dtype::float32, {rows});
  const Tensor dbias = argument("dbias", dbias_, Dtype::float32, {vocab});
  labels.there(), loss.there(), correct.there();
  REQUIRE(!dbias || grad_scale, "dbias needs grad_scale");
  check_apart({&logits, &loss, &correct, &dbias}, {&bias, &labels, &grad_scale});
  const int64_t *values = labels.data<const int64_t>();
  for (int64_t row = 0; row < rows; ++row)
    REQUIRE(values[row] == ignore_index || (values[row] >= 0 && values[row] < vocab),
            "labels[" + std::to_string(row) + "] is " + std::to_string(values[row]) + "; it must be from 0 to " +
                std::to_string(vocab - 1) + ", or " + std::to_string(ignore_index) + " to be ignored");
  const int count = thread_count(threads);
  if (rows == 0) return;  // dbias is added to
  with_dtype(logits, [&](auto tag) {
    using T = decltype(tag);
    ops<T>().cross_entropy_rows(logits.data<T>(), bias.data<const float>(), values, loss.data<float>(),
                                correct.data<uint8_t>(), rows, vocab, ignore_index, label_smoothing, z_loss,
                                grad_scale.data<const float>(), dbias.data<float>(), count);
  });
}

}  // namespace

void bind_linear_cross_entropy(py::module_ &module) {
  module.def("cross_entropy_rows", &cross_entropy_rows, py::kw_only(), py::arg("logits"), py::arg("bias"), py::arg("labels"),
             py::arg("loss"), py::arg("correct"), py::arg("grad_scale"), py::arg("dbias"),
             py::arg("ignore_index"), py::arg("label_smoothing"), py::arg("z_loss"), py::arg("threads"));
}

}  // namespace bertfast
