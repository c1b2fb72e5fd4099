#include "call.h"

namespace bertfast {

namespace {

void rotary(py::handle q_, py::handle k_, py::handle q_out_, py::handle k_out_, py::handle position_ids_, py::handle cos_,
            py::handle sin_, bool inverse, int64_t threads) {
  const Tensor q("q", q_), k("k", k_), cos("cos", cos_);
  q.there().of_floats().with_dims("tokens, heads, head_dim", 3).adjacent();
  const int64_t tokens = q.size(0), heads = q.size(1), head_dim = q.size(2);
  REQUIRE(head_dim > 0 && head_dim % 2 == 0, "head_dim is " + std::to_string(head_dim) + "; it must be even and at least 2");
  k.there().of(q.dtype()).shaped({tokens, heads, head_dim}).adjacent();
  const Tensor q_out = argument("q_out", q_out_, q.dtype(), {tokens, heads, head_dim});
  const Tensor k_out = argument("k_out", k_out_, q.dtype(), {tokens, heads, head_dim});
  const Tensor position_ids = argument("position_ids", position_ids_, Dtype::int64, {tokens});
  cos.there().of(Dtype::float32).with_dims("positions, head_dim // 2", 2).shaped({cos.size(0), head_dim / 2}).contiguous();
  const Tensor sin = argument("sin", sin_, Dtype::float32, {cos.size(0), head_dim / 2});
  check_values(position_ids.there(), 0, cos.size(0) - 1);
  check_apart({&q_out.there(), &k_out.there()}, {&q, &k, &position_ids, &cos, &sin.there()});
  const int count = thread_count(threads);
  if (q.elements() == 0) return;
  with_dtype(q, [&](auto tag) {
    using T = decltype(tag);
    ops<T>().rotary({q.data<const T>(), k.data<const T>(), q_out.data<T>(), k_out.data<T>(), position_ids.data<const int64_t>(),
                     cos.data<const float>(), sin.data<const float>(), tokens, heads, head_dim / 2, {q.stride(0), q.stride(1)},
                     {k.stride(0), k.stride(1)}, inverse, count});
  });
}

}  // namespace

void bind_rotary(py::module_ &module) {
  module.def("rotary", &rotary, py::kw_only(), py::arg("q"), py::arg("k"), py::arg("q_out"), py::arg("k_out"),
             py::arg("position_ids"), py::arg("cos"), py::arg("sin"), py::arg("inverse"), py::arg("threads"));
}

}  // namespace bertfast
