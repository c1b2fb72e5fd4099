// The instruction set in use, and a call of its kernels without the interpreter's lock.
#pragma once

#include "../ops.h"
#include "tensor.h"

namespace bertfast {

const Kernels &kernels();  // raises ValueError where BERTFAST_CPU_ISA names none that runs here

template <typename T>
const Ops<T> &ops();
template <>
inline const Ops<float> &ops<float>() {
  return kernels().float32;
}
template <>
inline const Ops<bf16> &ops<bf16>() {
  return kernels().bfloat16;
}
template <>
inline const Ops<f16> &ops<f16>() {
  return kernels().float16;
}

// Calls run(T{}) with the element type of a tensor of floats.
template <typename Run>
void with_dtype(const Tensor &x, Run run) {
  x.of_floats();
  kernels();  // may raise, so it comes before the lock is given up
  py::gil_scoped_release release;
  if (x.dtype() == Dtype::float32)
    run(float{});
  else if (x.dtype() == Dtype::bfloat16)
    run(bf16{});
  else
    run(f16{});
}

// What each op's file adds to the module.
void bind_adamw(py::module_ &module);
void bind_add_layer_norm(py::module_ &module);
void bind_attention(py::module_ &module);
void bind_bias_gelu(py::module_ &module);
void bind_dropout(py::module_ &module);
void bind_embed(py::module_ &module);
void bind_gather_rows(py::module_ &module);
void bind_linear_cross_entropy(py::module_ &module);
void bind_mask_tokens(py::module_ &module);
void bind_rotary(py::module_ &module);
void bind_widened_product(py::module_ &module);

}  // namespace bertfast
