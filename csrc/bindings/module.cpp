// bertfast._C: the instruction set, picked at run time, and the ops of the files beside this one.
#include <cstdlib>

#include "call.h"
#include "spin.h"

namespace bertfast {

const Kernels *kernels_baseline();
#ifdef BERTFAST_X86
const Kernels *kernels_avx2();
const Kernels *kernels_avx512();
const Kernels *kernels_avx512bf16();
#endif

namespace {

// Those that were compiled and that this processor (and its operating system) runs, best first.
std::vector<const Kernels *> runnable() {
  std::vector<const Kernels *> found;
#ifdef BERTFAST_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma")) {
    if (__builtin_cpu_supports("avx512bf16")) found.push_back(kernels_avx512bf16());
    found.push_back(kernels_avx512());
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(kernels_avx2());
#endif
  found.push_back(kernels_baseline());
  return found;
}

const Kernels *find(const std::string &name) {
  std::string names;
  for (const Kernels *kernels : runnable()) {
    if (name == kernels->name) return kernels;
    names += (names.empty() ? "" : ", ") + std::string(kernels->name);
  }
  fail("instruction set '" + name + "' is not to be had here; there are " + names);
}

const Kernels *selected = nullptr;

py::dict capabilities() {
  py::list names;
  for (const Kernels *kernels : runnable()) names.append(kernels->name);
  py::dict result;
  result["runnable"] = names;
  result["selected"] = kernels().name;
#ifdef _OPENMP
  result["openmp"] = true;
#else
  result["openmp"] = false;
#endif
  return result;
}

}  // namespace

const Kernels &kernels() {
  if (!selected) {
    const char *forced = std::getenv("BERTFAST_CPU_ISA");
    selected = forced && *forced ? find(forced) : runnable().front();
  }
  return *selected;
}

PYBIND11_MODULE(_C, module) {
  module.doc() =
      "The C++ kernels. Arguments go by name; tensors are torch's, or any that speak DLPack, and are checked before they are read. "
      "bertfast.kernels is the interface to them.";
  bind_adamw(module);
  bind_add_layer_norm(module);
  bind_attention(module);
  bind_bias_gelu(module);
  bind_dropout(module);
  bind_embed(module);
  bind_gather_rows(module);
  bind_linear_cross_entropy(module);
  bind_mask_tokens(module);
  bind_rotary(module);
  bind_widened_product(module);
  module.def("capabilities", &capabilities, "The instruction sets that run here, best first, and the one that is used.");
  module.def("set_pressure_file", &set_pressure_file, py::arg("path"),
             "Names the kernel's file of Pressure Stall Information by which OpenMP's threads spin or sleep; empty: none.");
  module.def(
      "spin_state",
      [] {
        const SpinState state = spin_state();
        py::dict result;
        result["watching"] = state.watching;
        result["sleeping"] = state.sleeping;
        result["switches"] = state.switches;
        return result;
      },
      "Whether that file is watched; whether threads sleep at once by now; how often that began.");
  module.def("set_isa", [](const std::string &name) { selected = find(name); }, "Uses that instruction set from now on.",
             py::arg("name"));
}

}  // namespace bertfast
