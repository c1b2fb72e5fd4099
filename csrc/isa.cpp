// The table of one instruction set's kernels.
#include "kernels.h"

#define BERTFAST_TEXT_(x) #x
#define BERTFAST_TEXT(x) BERTFAST_TEXT_(x)
#define BERTFAST_JOIN_(a, b) a##b
#define BERTFAST_JOIN(a, b) BERTFAST_JOIN_(a, b)

namespace bertfast {

template <typename T>
static constexpr Ops<T> ops() {
  using namespace BERTFAST_ISA;
  return {attention_forward<T>,  attention_backward<T>,     dropout<T>,
          cross_entropy_rows<T>, add_layer_norm_forward<T>, add_layer_norm_backward<T>,
          bias_gelu_forward<T>,  bias_gelu_backward<T>,     embed_forward<T>,
          embed_backward<T>,     sum_row_groups<T>,         adamw<T>,
          sum_of_squares<T>,     rotary<T>,             widened_product<T>};
}

const Kernels *BERTFAST_JOIN(kernels_, BERTFAST_ISA)() {
  using namespace BERTFAST_ISA;
  static const Kernels kernels = {
      BERTFAST_TEXT(BERTFAST_ISA), ops<float>(), ops<bf16>(), ops<f16>(), {gather_rows, scatter_rows, mask_tokens}};
  return &kernels;
}

}  // namespace bertfast
