#include "call.h"

namespace bertfast {

namespace {

// The tensors of a list, each contiguous, of the dtype, and of as many elements as `sizes` says where that is given.
std::vector<Tensor> list_of(const char *name, const py::list &objects, Dtype dtype, const std::vector<Tensor> *sizes) {
  REQUIRE(!sizes || objects.size() == sizes->size(), "there are " + std::to_string(objects.size()) + " " + name + " and " +
                                                         std::to_string(sizes->size()) + " weights; there must be as many");
  std::vector<Tensor> tensors;
  tensors.reserve(objects.size());
  for (size_t i = 0; i < objects.size(); ++i) {
    const Tensor &x = tensors.emplace_back(name, objects[i]);
    x.there().of(dtype).contiguous();
    REQUIRE(!sizes || x.elements() == (*sizes)[i].elements(),
            std::string(name) + "[" + std::to_string(i) + "] has " + std::to_string(x.elements()) + " elements and its weight " +
                std::to_string((*sizes)[i].elements()) + "; they must be the same");
  }
  return tensors;
}

Dtype first_dtype(const char *name, const py::list &objects) {
  return objects.empty() ? Dtype::float32 : Tensor(name, objects[0]).there().of_floats().dtype();
}

void adamw(const py::list &weights_, const py::list &gradients_, const py::list &means_, const py::list &squares_,
           const py::list &copies_, float lr, float correction1, float correction2, float gradient_scale, float beta1,
           float beta2, float eps, float weight_decay, int64_t threads) {
  const std::vector<Tensor> weights = list_of("weights", weights_, Dtype::float32, nullptr);
  const std::vector<Tensor> gradients = list_of("gradients", gradients_, first_dtype("gradients", gradients_), &weights);
  const std::vector<Tensor> means = list_of("means", means_, Dtype::float32, &weights);
  const std::vector<Tensor> squares = list_of("squares", squares_, Dtype::float32, &weights);
  const std::vector<Tensor> copies = list_of("copies", copies_, Dtype::bfloat16, copies_.empty() ? nullptr : &weights);
  std::vector<const Tensor *> written, read;
  for (const auto *tensors : {&weights, &means, &squares, &copies})
    for (const Tensor &x : *tensors) written.push_back(&x);
  for (const Tensor &x : gradients) read.push_back(&x);
  check_apart(written, read);
  const int count = thread_count(threads);
  if (weights.empty()) return;
  with_dtype(gradients[0], [&](auto tag) {
    using T = decltype(tag);
    std::vector<AdamwTensor<T>> tensors;
    tensors.reserve(weights.size());
    for (size_t i = 0; i < weights.size(); ++i)
      tensors.push_back({weights[i].data<float>(), gradients[i].data<const T>(), means[i].data<float>(), squares[i].data<float>(),
                         copies.empty() ? nullptr : copies[i].data<bf16>(), weights[i].elements()});
    ops<T>().adamw(tensors.data(), static_cast<int64_t>(tensors.size()),
                   {lr, correction1, correction2, gradient_scale, beta1, beta2, eps, weight_decay}, count);
  });
}

double sum_of_squares(const py::list &gradients_, int64_t threads) {
  const std::vector<Tensor> gradients = list_of("gradients", gradients_, first_dtype("gradients", gradients_), nullptr);
  const int count = thread_count(threads);
  double total = 0;
  if (gradients.empty()) return total;
  with_dtype(gradients[0], [&](auto tag) {
    using T = decltype(tag);
    std::vector<AdamwTensor<T>> tensors;
    tensors.reserve(gradients.size());
    for (const Tensor &x : gradients) tensors.push_back({nullptr, x.data<const T>(), nullptr, nullptr, nullptr, x.elements()});
    total = ops<T>().sum_of_squares(tensors.data(), static_cast<int64_t>(tensors.size()), count);
  });
  return total;
}

}  // namespace

void bind_adamw(py::module_ &module) {
  module.def("adamw", &adamw, py::kw_only(), py::arg("weights"), py::arg("gradients"), py::arg("means"), py::arg("squares"),
             py::arg("copies"), py::arg("lr"), py::arg("correction1"), py::arg("correction2"), py::arg("gradient_scale"),
             py::arg("beta1"), py::arg("beta2"), py::arg("eps"), py::arg("weight_decay"), py::arg("threads"));
  module.def("sum_of_squares", &sum_of_squares, py::kw_only(), py::arg("gradients"), py::arg("threads"));
}

}  // namespace bertfast
