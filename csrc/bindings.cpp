// What Python calls: lists of tensors in, addresses out to the back ends.
#include <ATen/core/Tensor.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_variable.h>

#include <optional>

#include "step.h"
#include "watch.h"

namespace py = pybind11;

namespace emanest {
namespace {

using Column = const py::list&;
using Columns = const std::vector<py::list>&;

// by the C API: pybind11's accessor of list elements costs more than all the rest of `gather`
const at::Tensor& tensor(const py::list& list, size_t i) {
  return THPVariable_Unpack(PyList_GET_ITEM(list.ptr(), Py_ssize_t(i)));
}

void check_count(const char* what, size_t found, size_t expected) {
  if (found == expected) return;
  throw std::invalid_argument("expected " + std::to_string(expected) + " " + what + ", got " +
                              std::to_string(found));
}

std::optional<Dtype> dtype_of(const at::Tensor& t) {
  switch (t.scalar_type()) {
    case at::kFloat: return Dtype::float32;
    case at::kDouble: return Dtype::float64;
    case at::kBFloat16: return Dtype::bfloat16;
    case at::kHalf: return Dtype::float16;
    default: return std::nullopt;
  }
}

// Whether two tensors hold their elements in the same order without gaps, so that one index serves
// both, and as they are, not with a pending negation. The stride of a dimension of size 1 does not
// matter.
bool aligned(const at::Tensor& a, const at::Tensor& b) {
  if (b.is_neg()) return false;
  if (a.is_contiguous() && b.is_contiguous()) return a.sizes() == b.sizes();
  if (a.sizes() != b.sizes() || !a.is_non_overlapping_and_dense()) return false;
  for (int64_t i = 0; i < a.dim(); i++) {
    if (a.size(i) != 1 && a.stride(i) != b.stride(i)) return false;
  }
  return true;
}

// A bucket made of the tensors of a call; empty if some of them must be copied first, because of
// their memory order, format or device. `beside` may be empty.
std::optional<Bucket> gather(Column ys, Column beside, Columns state, bool in_double) {
  const bool alone = beside.empty();
  if (!alone) check_count("tensors beside the parameters", beside.size(), ys.size());
  for (Column column : state) check_count("tensors of state", column.size(), ys.size());
  Bucket bucket{{}, Dtype::float32, in_double};
  const auto wide = in_double ? at::kDouble : at::kFloat;
  bucket.tensors.reserve(ys.size());
  for (size_t i = 0; i < ys.size(); i++) {
    const at::Tensor& y = tensor(ys, i);
    const auto y_dtype = dtype_of(y);
    if (!y_dtype || !aligned(y, y)) return std::nullopt;
    if (i > 0 && *y_dtype != bucket.y_dtype) return std::nullopt;
    bucket.y_dtype = *y_dtype;
    Tensors row{y.data_ptr(), nullptr, {}, y.numel(), Dtype::float32};
    if (!alone) {
      const at::Tensor& g = tensor(beside, i);
      const auto g_dtype = dtype_of(g);
      if (!g_dtype || g.device() != y.device() || !aligned(y, g)) return std::nullopt;
      row.beside = g.data_ptr();
      row.beside_dtype = *g_dtype;
    }
    for (size_t k = 0; k < state.size(); k++) {
      const at::Tensor& s = tensor(state[k], i);
      if (s.scalar_type() != wide || s.device() != y.device() || !aligned(y, s)) return std::nullopt;
      row.state[k] = s.data_ptr();
    }
    bucket.tensors.push_back(row);
  }
  return bucket;
}

// Tensors were written behind autograd's back: tell it, or a stale backward would go unnoticed.
void count_writes(Column tensors) {
  for (size_t i = 0; i < tensors.size(); i++) {
    tensor(tensors, i).unsafeGetTensorImpl()->bump_version();
  }
}

void count_writes(Columns columns) {
  for (Column column : columns) count_writes(column);
}

// Gathers the tensors and calls `work` on them without Python's lock (the caller holds the tensors,
// so their memory stays). False: nothing has changed, and some tensors must be copied first.
template <class Work>
bool run(Column ys, Column beside, Columns state, bool in_double, Work work) {
  const auto bucket = gather(ys, beside, state, in_double);
  if (!bucket) return false;
  {
    py::gil_scoped_release release;
    work(*bucket);
  }
  count_writes(ys);
  return true;
}

// How much state and how many numbers a rule has.
template <class Table>
std::pair<size_t, size_t> sizes(const Table& rule) {
  return std::visit([](auto r) { return std::pair<size_t, size_t>(r.states, r.numbers); }, rule);
}

bool step_(const std::string& base, const std::string& look, Column ys, Column gs,
           Columns base_state, Columns look_state, const std::vector<double>& numbers,
           bool in_double) {
  const auto b = find<Base>(base);
  const auto l = find<Lookahead>(look);
  check_count("columns of base state", base_state.size(), sizes(b).first);
  check_count("columns of lookahead state", look_state.size(), sizes(l).first);
  check_count("numbers", numbers.size(), 1 + sizes(b).second + sizes(l).second);
  std::vector<py::list> state = base_state;
  state.insert(state.end(), look_state.begin(), look_state.end());
  const bool done = run(ys, gs, state, in_double, [&](const Bucket& bucket) {
    cpu::step(b, l, bucket, numbers.data());
  });
  if (done) count_writes(state);
  return done;
}

bool follow_(const std::string& look, Column ys, Column snapshots, Columns state,
             const std::vector<double>& numbers, bool in_double) {
  const auto l = find<Lookahead>(look);
  check_count("columns of state", state.size(), sizes(l).first);
  check_count("numbers", numbers.size(), sizes(l).second);
  const bool done = run(ys, snapshots, state, in_double, [&](const Bucket& bucket) {
    cpu::follow(l, bucket, numbers.data());
  });
  if (done) {
    count_writes(snapshots);
    count_writes(state);
  }
  return done;
}

bool move_(const std::string& point, Column ys, Columns state, const std::vector<double>& numbers,
           bool in_double) {
  const auto p = find<Point>(point);
  check_count("columns of state", state.size(), sizes(p).first);
  check_count("numbers", numbers.size(), sizes(p).second);
  return run(ys, py::list(), state, in_double,
             [&](const Bucket& bucket) { cpu::move(p, bucket, numbers.data()); });
}

// None: some tensors must be copied first.
std::optional<bool> nonfinite(Column gs) {
  const auto bucket = gather(gs, gs, {}, false);
  if (!bucket) return std::nullopt;
  py::gil_scoped_release release;
  return cpu::nonfinite(*bucket);
}

// A table as Python's rules.py has it: name -> (state tensors, numbers).
template <class Table, size_t... i>
py::dict describe(std::index_sequence<i...>) {
  py::dict rows;
  ((rows[std::variant_alternative_t<i, Table>::name] =
        sizes(Table(std::variant_alternative_t<i, Table>{}))),
   ...);
  return rows;
}

template <class Table>
py::dict describe() {
  return describe<Table>(std::make_index_sequence<std::variant_size_v<Table>>());
}

py::dict rules() {
  py::dict tables;
  tables["BASES"] = describe<Base>();
  tables["LOOKAHEADS"] = describe<Lookahead>();
  tables["POINTS"] = describe<Point>();
  return tables;
}

}  // namespace
}  // namespace emanest

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("step_", &emanest::step_);
  m.def("follow_", &emanest::follow_);
  m.def("move_", &emanest::move_);
  m.def("nonfinite", &emanest::nonfinite);
  m.def("rules", &emanest::rules);
  emanest::bind_watch(m);
}
