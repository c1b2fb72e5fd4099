#include "tensor.h"

#include <algorithm>
#include <limits>

#include "spin.h"

namespace bertfast {

namespace {

// DLPack's public layout (dmlc/dlpack, dlpack.h), as far as it is read here.
struct DLDevice {
  int32_t type, id;
};
struct DLDataType {
  uint8_t code, bits;
  uint16_t lanes;
};
struct DLTensor {
  void *data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t *shape, *strides;  // no strides: contiguous
  uint64_t byte_offset;
};
constexpr int32_t kCpu = 1;
constexpr uint8_t kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kBool = 6;

Dtype dtype_of(const DLDataType &type) {
  if (type.lanes != 1) return Dtype::other;
  if (type.code == kFloat && type.bits == 32) return Dtype::float32;
  if (type.code == kBfloat && type.bits == 16) return Dtype::bfloat16;
  if (type.code == kFloat && type.bits == 16) return Dtype::float16;
  if (type.code == kInt && type.bits == 64) return Dtype::int64;
  if (type.code == kInt && type.bits == 32) return Dtype::int32;
  if ((type.code == kUInt || type.code == kBool) && type.bits == 8) return Dtype::uint8;
  return Dtype::other;
}

const char *name_of(Dtype dtype) {
  static const char *const names[] = {"float32", "bfloat16", "float16", "int64", "int32", "uint8", "of another dtype"};
  return names[static_cast<int>(dtype)];
}

// torch.Tensor and its DLPack function, of the torch that is loaded; both null where none is. Never given back: at exit the
// interpreter is gone before this is.
struct Torch {
  PyTypeObject *tensor = nullptr;
  PyObject *to_dlpack = nullptr;
};

const Torch &torch() {
  static Torch found;
  if (!found.tensor) {
    PyObject *module = PyDict_GetItemString(PyImport_GetModuleDict(), "torch");
    if (module && py::hasattr(module, "Tensor")) {
      found.to_dlpack = py::object(py::module_::import("torch.utils.dlpack").attr("to_dlpack")).release().ptr();
      found.tensor = reinterpret_cast<PyTypeObject *>(py::object(py::handle(module).attr("Tensor")).release().ptr());
    }
  }
  return found;
}

py::object capsule_of(const char *name, py::handle object) {
  const Torch &known = torch();
  PyObject *capsule = nullptr;
  if (known.tensor && PyObject_TypeCheck(object.ptr(), known.tensor))
    capsule = PyObject_CallOneArg(known.to_dlpack, object.ptr());
  else if (py::hasattr(object, "__dlpack__"))
    capsule = PyObject_CallMethod(object.ptr(), "__dlpack__", nullptr);
  else
    throw py::type_error(std::string(name) + " is a " + Py_TYPE(object.ptr())->tp_name + "; it must be a tensor");
  if (!capsule) {
    py::error_already_set error;
    fail(std::string(name) + " has no memory that a CPU kernel can read: " + std::string(py::str(error.value())));
  }
  return py::reinterpret_steal<py::object>(capsule);
}

std::string tuple_of(const int64_t *sizes, int64_t count) {
  std::string text = "(";
  for (int64_t i = 0; i < count; ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + (count == 1 ? ",)" : ")");
}

}  // namespace

void fail(const std::string &message) { throw py::value_error(message); }

Tensor::Tensor(const char *name, py::handle object) : name_(name) {
  if (object.is_none()) return;
  present_ = true;
  capsule_ = capsule_of(name, object);
  // The name stays, so that the capsule gives the memory back when it goes.
  const auto *x = static_cast<const DLTensor *>(PyCapsule_GetPointer(capsule_.ptr(), "dltensor"));
  if (!x) {
    PyErr_Clear();
    throw py::type_error(std::string(name) + " gives no DLPack tensor");
  }
  REQUIRE(x->device.type == kCpu,
          std::string(name) + " is on a device of DLPack's type " + std::to_string(x->device.type) + "; it must be on the CPU");
  dtype_ = dtype_of(x->dtype);
  const int64_t bits = int64_t{x->dtype.bits} * x->dtype.lanes;
  REQUIRE(bits && bits % 8 == 0 && x->ndim >= 0, std::string(name) + " has elements of no whole number of bytes");
  item_bytes_ = bits / 8;
  data_ = static_cast<char *>(x->data) + x->byte_offset;
  dims_ = x->ndim, shape_ = x->shape, strides_ = x->strides;
  for (int64_t i = 0; i < dims_; ++i) REQUIRE(shape_[i] >= 0, std::string(name) + " has a size below 0");
  REQUIRE(x->data || elements() == 0, std::string(name) + " has no memory (a fake tensor?)");
  const int64_t alignment = item_bytes_ & -item_bytes_;
  REQUIRE(elements() == 0 || reinterpret_cast<uintptr_t>(data_) % std::min<int64_t>(alignment, 8) == 0,
          std::string(name) + " lies at an address that is no multiple of its elements' size; make a copy of it");
}

// Sizes are multiplied as unsigned numbers, which wrap only where another size is 0: what lies in memory can be counted.
int64_t Tensor::product(int64_t from, int64_t to) const {
  uint64_t count = 1;
  for (int64_t i = from; i < to; ++i) count *= static_cast<uint64_t>(shape_[i]);
  return static_cast<int64_t>(count);
}

const Tensor &Tensor::there() const {
  if (!present_) throw py::type_error(std::string(name_) + " is None; it must be a tensor");
  return *this;
}

const Tensor &Tensor::of(Dtype dtype) const {
  if (present_ && dtype_ != dtype)
    throw py::type_error(std::string(name_) + " is " + name_of(dtype_) + "; it must be " + name_of(dtype));
  return *this;
}

const Tensor &Tensor::of_floats() const {
  if (present_ && dtype_ != Dtype::float32 && dtype_ != Dtype::bfloat16 && dtype_ != Dtype::float16)
    throw py::type_error(std::string(name_) + " is " + name_of(dtype_) + "; it must be float32, bfloat16 or float16");
  return *this;
}

const Tensor &Tensor::with_dims(const char *names, int64_t count) const {
  REQUIRE(!present_ || dims_ == count,
          std::string(name_) + " has shape " + tuple_of(shape_, dims_) + "; it must be (" + names + ")");
  return *this;
}

const Tensor &Tensor::shaped(std::initializer_list<int64_t> shape) const {
  REQUIRE(!present_ || (dims_ == static_cast<int64_t>(shape.size()) && std::equal(shape.begin(), shape.end(), shape_)),
          std::string(name_) + " has shape " + tuple_of(shape_, dims_) + "; it must be " +
              tuple_of(shape.begin(), static_cast<int64_t>(shape.size())));
  return *this;
}

const Tensor &Tensor::with_elements(int64_t count) const {
  contiguous();
  REQUIRE(!present_ || elements() == count,
          std::string(name_) + " has " + std::to_string(elements()) + " elements; it must have " + std::to_string(count));
  return *this;
}

const Tensor &Tensor::contiguous() const {
  if (!present_ || elements() == 0) return *this;
  int64_t step = 1;
  for (int64_t i = dims_ - 1; i >= 0; --i) {
    REQUIRE(shape_[i] == 1 || stride(i) == step, std::string(name_) + " is not contiguous; make a copy of it");
    step *= shape_[i];
  }
  return *this;
}

const Tensor &Tensor::adjacent() const {
  if (!present_ || elements() == 0) return *this;
  for (int64_t i = 0; i < dims_; ++i)
    REQUIRE(shape_[i] == 1 || stride(i) >= 0, std::string(name_) + " has a stride below 0; make a copy of it");
  REQUIRE(dims_ == 0 || shape_[dims_ - 1] == 1 || stride(dims_ - 1) == 1,
          std::string("the elements of ") + name_ + " are not adjacent along its last dimension; make a copy of it");
  return *this;
}

std::array<uintptr_t, 2> Tensor::extent() const {
  const uintptr_t first = reinterpret_cast<uintptr_t>(data_);
  if (!present_ || elements() == 0) return {first, first};
  int64_t last = 0;
  for (int64_t i = 0; i < dims_; ++i) last += (shape_[i] - 1) * stride(i);
  return {first, first + static_cast<uintptr_t>((last + 1) * item_bytes_)};
}

Tensor argument(const char *name, py::handle object, Dtype dtype, std::initializer_list<int64_t> shape) {
  Tensor x(name, object);
  x.of(dtype).shaped(shape).contiguous();
  return x;
}

void check_apart(const std::vector<const Tensor *> &written, const std::vector<const Tensor *> &read) {
  struct Piece {
    std::array<uintptr_t, 2> extent;
    const Tensor *tensor;
    bool written;
  };
  std::vector<Piece> pieces;
  pieces.reserve(written.size() + read.size());
  for (const auto *tensors : {&written, &read})
    for (const Tensor *x : *tensors)
      if (const auto extent = x->extent(); extent[0] != extent[1]) pieces.push_back({extent, x, tensors == &written});
  std::sort(pieces.begin(), pieces.end(), [](const Piece &a, const Piece &b) { return a.extent[0] < b.extent[0]; });
  // In order of their beginnings: what reaches furthest so far, of all and of those that are written.
  const Piece *furthest = nullptr, *furthest_written = nullptr;
  for (const Piece &piece : pieces) {
    const Piece *other = piece.written ? furthest : furthest_written;
    if (other && other->extent[1] > piece.extent[0]) {
      const Piece &out = piece.written ? piece : *other, &in = piece.written ? *other : piece;
      fail(std::string(out.tensor->name()) + " is written and shares memory with " + in.tensor->name() + "; give it memory of its own");
    }
    if (!furthest || piece.extent[1] > furthest->extent[1]) furthest = &piece;
    if (piece.written && (!furthest_written || piece.extent[1] > furthest_written->extent[1])) furthest_written = &piece;
  }
}

int thread_count(int64_t threads) {
  REQUIRE(threads >= 1 && threads <= 1024, "threads is " + std::to_string(threads) + "; it must be from 1 to 1024");
  if (threads > 1) watch_pressure(static_cast<int>(threads));
  return static_cast<int>(threads);
}

uint32_t dropout_threshold(int64_t threshold, int64_t lane_range) {
  REQUIRE(threshold >= 0 && threshold < lane_range,
          "threshold is " + std::to_string(threshold) + "; it must be from 0 to " + std::to_string(lane_range - 1));
  return static_cast<uint32_t>(threshold);
}

void check_least(const char *name, int64_t value, int64_t least) {
  REQUIRE(value >= least,
          std::string(name) + " is " + std::to_string(value) + "; it must be at least " + std::to_string(least));
}

void fail_value(const char *name, int64_t i, int64_t value, int64_t low, int64_t high) {
  fail(std::string(name) + "[" + std::to_string(i) + "] is " + std::to_string(value) + "; it must be from " + std::to_string(low) +
       " to " + std::to_string(high));
}

void check_values(const Tensor &ids, int64_t low, int64_t high) {
  const int64_t *values = ids.data<const int64_t>(), count = ids ? ids.elements() : 0;
  for (int64_t i = 0; i < count; ++i)
    if (values[i] < low || values[i] > high) fail_value(ids.name(), i, values[i], low, high);
}

}  // namespace bertfast
