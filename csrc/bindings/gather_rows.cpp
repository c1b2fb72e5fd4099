#include <algorithm>

#include "call.h"

namespace bertfast {

namespace {

constexpr int64_t kBitsAnIndex = 1024;  // rows an index up to which a bit a row is marked; beyond, the indices are sorted

// Raises unless each index is -1 or a row, and no row comes twice: the words of kernels/gather_rows.py.
void check_rows(const std::string &name, py::handle index_, const std::string &owner, int64_t rows) {
  const Tensor index("index", index_);
  index.there().of(Dtype::int64).with_dims("masked", 1).contiguous();
  check_least("rows", rows, 0);
  const int64_t *values = index.data<const int64_t>(), masked = index.size(0);
  for (int64_t m = 0; m < masked; ++m)
    REQUIRE(values[m] >= -1 && values[m] < rows, name + " holds " + std::to_string(values[m]) + "; " + owner + " has " +
                                                     std::to_string(rows) + " rows, so it must be from -1 to " +
                                                     std::to_string(rows - 1));
  const auto twice = [&](int64_t row) { return name + " holds " + std::to_string(row) + " twice; the rows must be unique"; };
  if (rows <= kBitsAnIndex * masked) {
    std::vector<bool> seen(rows);
    for (int64_t m = 0; m < masked; ++m) {
      if (values[m] == -1) continue;
      REQUIRE(!seen[values[m]], twice(values[m]));
      seen[values[m]] = true;
    }
  } else {
    std::vector<int64_t> sorted(values, values + masked);
    std::sort(sorted.begin(), sorted.end());
    for (int64_t m = 1; m < masked; ++m) REQUIRE(sorted[m] == -1 || sorted[m] != sorted[m - 1], twice(sorted[m]));
  }
}

// Rows of any dtype, moved as bytes. x may have any stride of rows.
void gather_rows(py::handle x_, py::handle index_, py::handle out_, int64_t threads) {
  const Tensor x("x", x_), index("index", index_), out("out", out_);
  x.there().with_dims("tokens, hidden", 2).adjacent();
  index.there().of(Dtype::int64).with_dims("masked", 1).contiguous();
  const int64_t masked = index.size(0), width = x.size(1) * x.item_bytes();
  out.there().shaped({masked, x.size(1)}).contiguous();
  if (out.item_bytes() != x.item_bytes()) throw py::type_error("out and x differ in dtype; they must not");
  check_values(index, -1, x.size(0) - 1);
  check_apart({&out}, {&x, &index});
  const int count = thread_count(threads);
  if (out.elements() == 0) return;
  const Kernels &table = kernels();
  py::gil_scoped_release release;
  table.plain.gather_rows(x.data<const char>(), index.data<const int64_t>(), out.data<char>(), masked, width,
                          x.stride(0) * x.item_bytes(), count);
}

void scatter_rows(py::handle dout_, py::handle index_, py::handle dx_, int64_t threads) {
  const Tensor dout("dout", dout_), index("index", index_), dx("dx", dx_);
  index.there().of(Dtype::int64).with_dims("masked", 1).contiguous();
  dx.there().with_dims("tokens, hidden", 2).contiguous();
  const int64_t masked = index.size(0), rows = dx.size(0), width = dx.size(1) * dx.item_bytes();
  dout.there().shaped({masked, dx.size(1)}).contiguous();
  if (dout.item_bytes() != dx.item_bytes()) throw py::type_error("dx and dout differ in dtype; they must not");
  check_values(index, -1, rows - 1);
  check_apart({&dx}, {&dout, &index});
  const int count = thread_count(threads);
  if (dx.elements() == 0) return;
  const Kernels &table = kernels();
  py::gil_scoped_release release;
  table.plain.scatter_rows(dout.data<const char>(), index.data<const int64_t>(), dx.data<char>(), rows, masked, width, count);
}

}  // namespace

void bind_gather_rows(py::module_ &module) {
  module.def("check_rows", &check_rows, py::kw_only(), py::arg("name"), py::arg("index"), py::arg("owner"), py::arg("rows"));
  module.def("gather_rows", &gather_rows, py::kw_only(), py::arg("x"), py::arg("index"), py::arg("out"), py::arg("threads"));
  module.def("scatter_rows", &scatter_rows, py::kw_only(), py::arg("dout"), py::arg("index"), py::arg("dx"), py::arg("threads"));
}

}  // namespace bertfast
