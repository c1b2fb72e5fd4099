// Tensors as Python hands them over, and the checks that stand before the first pointer is followed.
//
// An argument is a Python object, never an address. Over DLPack its own library says where it lies, its shape, strides, dtype and device.
// So no caller, however wrong, can make a kernel read or write outside a tensor. DLPack needs no libtorch, and serves every release of
// torch and numpy. `Tensor.__dlpack__` is written in Python and takes 2.3 us. The function in C below it, `torch.utils.dlpack.to_dlpack`,
// takes 0.2 us and also serves tensors that require a gradient. It is called instead.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

namespace bertfast {

namespace py = pybind11;

[[noreturn]] void fail(const std::string &message);  // ValueError

// The message is made only where it is needed: checks of every element would otherwise cost more than the ops.
#define REQUIRE(condition, message)              \
  do {                                           \
    if (!(condition)) ::bertfast::fail(message); \
  } while (false)

enum class Dtype { float32, bfloat16, float16, int64, int32, uint8, other };

class Tensor {
 public:
  // None gives a tensor that is absent.
  Tensor(const char *name, py::handle object);

  explicit operator bool() const { return present_; }
  const char *name() const { return name_; }
  Dtype dtype() const { return dtype_; }
  int64_t item_bytes() const { return item_bytes_; }
  int64_t dims() const { return dims_; }
  int64_t size(int64_t dim) const { return shape_[dim]; }
  int64_t stride(int64_t dim) const { return strides_ ? strides_[dim] : product(dim + 1, dims_); }  // in elements
  int64_t elements() const { return product(0, dims_); }
  int64_t rows() const { return product(0, dims_ - 1); }  // of the last dimension

  // Null where the tensor is absent.
  template <typename T>
  T *data() const {
    return static_cast<T *>(data_);
  }

  // Each raises TypeError or ValueError, and returns the tensor; an absent one passes all but `there`.
  const Tensor &there() const;
  const Tensor &of(Dtype dtype) const;
  const Tensor &of_floats() const;  // float32, bfloat16 or float16
  const Tensor &with_dims(const char *names, int64_t count) const;
  const Tensor &shaped(std::initializer_list<int64_t> shape) const;
  const Tensor &with_elements(int64_t count) const;  // contiguous ones
  const Tensor &contiguous() const;
  const Tensor &adjacent() const;  // elements of the last dimension are adjacent, and no stride runs backwards

  // From the first byte to past the last; equal where there is no element.
  std::array<uintptr_t, 2> extent() const;

 private:
  const char *name_;
  bool present_ = false;
  py::object capsule_;  // keeps the memory, whatever happens to the Python object while a kernel runs
  void *data_ = nullptr;
  Dtype dtype_ = Dtype::other;
  int64_t item_bytes_ = 1;
  int64_t dims_ = 0;
  const int64_t *shape_ = nullptr, *strides_ = nullptr;  // the capsule's; no strides: contiguous

  int64_t product(int64_t from, int64_t to) const;
};

// A contiguous tensor of that dtype and shape, which may be absent unless `there` is asked of it.
Tensor argument(const char *name, py::handle object, Dtype dtype, std::initializer_list<int64_t> shape);

// Raises ValueError where a tensor that a call writes shares memory with another one of the call. A kernel that overwrites its own indices
// would follow what it wrote.
void check_apart(const std::vector<const Tensor *> &written, const std::vector<const Tensor *> &read);

// An int from 1 to 1024: a library that cannot start a thread ends the process. More than one start the watch of spin.h.
int thread_count(int64_t threads);
uint32_t dropout_threshold(int64_t threshold, int64_t lane_range = 65536);
void check_least(const char *name, int64_t value, int64_t least);

// `name`[i] must be from `low` to `high`; for the values that become addresses.
[[noreturn]] void fail_value(const char *name, int64_t i, int64_t value, int64_t low, int64_t high);
void check_values(const Tensor &ids, int64_t low, int64_t high);

}  // namespace bertfast
