// SPDX-License-Identifier: MIT
// What Python calls: lists of tensors in, addresses out to the back ends.
#include "bindings.h"

#include <c10/core/DeviceGuard.h>
#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_variable.h>

#include "gather.h"
#include "info.h"
#include "products.h"
#include "storage.h"
#include "target.h"
#include "tensors.h"

namespace py = pybind11;

namespace emanest {

bool is_tensor(PyObject* object) { return THPVariable_Check(object); }
const at::Tensor& unpack(PyObject* object) { return THPVariable_Unpack(object); }
PyObject* wrap(const at::Tensor& t) { return THPVariable_Wrap(t); }

namespace {

Use use_of(const Pass& pass) {
  Use use;
  visit(pass, false, [&](auto each) {
    use = {each.streams, each.numbers, each.reads,   each.writes,
           each.plain,   each.squared, each.flagged, each.by_rows};
  });
  return use;
}

at::Tensor tensor_or_none(const py::object& given) {
  return is_tensor(given.ptr()) ? unpack(given.ptr()) : at::Tensor();
}

// Gathers the tensors, works on them without Python's lock (the caller holds the tensors, so their
// memory stays), and counts what it wrote. False: nothing has changed, and some tensors must be
// copied first: the caller gives copies in place of the columns, which are parameters, their
// inputs, and state. out: on the device what the pass finds, of those that find something; sums of
// squares are not found where it is None.
bool run(const Pass& pass, bool in_double, const Target& target, Column scales,
         const py::object& out, Columns columns) {
  const Use use = use_of(pass);
  check_count("columns (y, input, state)", columns.size(), size_t(use.streams));
  const at::Device device = device_of(columns[use.first()]);
  target.check(device, size_t(use.numbers));
  void* to = nullptr;
  if (use.squared && !out.is_none()) {
    to = place("squares", tensor_or_none(out), device, at::kDouble, columns[kY].size());
  }
  if (use.flagged) to = place("flag", tensor_or_none(out), device, at::kFloat, 1);
  if (target.skipped()) return true;
  auto bucket = gather(use, columns, in_double, scales);
  if (!bucket) return false;
  target.distribute(*bucket);
  {
    py::gil_scoped_release release;
    const c10::DeviceGuard guard(device);
    target.on_gpu() ? cuda::run(pass, *bucket, to, target.call(device))
                    : cpu::run(pass, *bucket, target.numbers(), to);
  }
  for (int k = 0; k < use.streams; k++) {
    if (has(use.writes, k)) count_writes(columns[k]);
  }
  return true;
}

// The row of a table that has a name; the table is a std::variant of rules.
template <class Table, size_t i = 0>
Table find(std::string_view name) {
  if constexpr (i < std::variant_size_v<Table>) {
    using Rule = std::variant_alternative_t<i, Table>;
    return name == Rule::name ? Table(Rule{}) : find<Table, i + 1>(name);
  } else {
    throw std::invalid_argument("no rule is called " + std::string(name));
  }
}

template <class Table>
using Name = std::string;

template <template <class...> class Operation, class... Tables>
void bind(py::module_& m, const char* name) {
  m.def(name, [](const std::tuple<Name<Tables>...>& names, bool in_double, const Target& target,
                 Column scales, const py::object& out, Columns columns) {
    const auto rules = std::apply(
        [](const auto&... each) { return std::tuple<Tables...>(find<Tables>(each)...); }, names);
    const PassOf<Operation, Tables...> pass{rules};
    return run(pass, in_double, target, scales, out, columns);
  });
}

void bind_product(py::module_& m, const char* name, Kind kind) {
  const auto of_kind = [kind](const at::Tensor& out, const at::Tensor& c, const at::Tensor& a,
                              const at::Tensor& b, double beta, double alpha) {
    return product(kind, out, c, a, b, beta, alpha);
  };
  m.def(name, of_kind, py::call_guard<py::gil_scoped_release>());
}

Target make_target(const py::object& numbers, std::vector<int64_t> begins, const py::object& skip,
                   std::shared_ptr<device::Tables> tables, intptr_t stream) {
  const at::Tensor vector = tensor_or_none(numbers);
  std::vector<double> floats;
  if (!vector.defined()) floats = numbers.cast<std::vector<double>>();
  return {std::move(floats), vector, std::move(begins), tensor_or_none(skip), std::move(tables),
          stream};
}

void bind_target(py::module_& m) {
  // local, so that the extension of a test can have them too
  py::class_<device::Tables, std::shared_ptr<device::Tables>>(m, "Tables", py::module_local())
      .def(py::init<>());
  py::class_<Target>(m, "Target", py::module_local())
      .def(py::init(&make_target), py::arg("numbers"), py::arg("begins") = std::vector<int64_t>(),
           py::arg("skip") = py::none(), py::arg("tables") = nullptr, py::arg("stream") = 0);
}

py::dict build_info() {
  py::dict info;
  info["hash"] = kHash;
  info["built_for"] = kBuiltFor;
  info["cuda"] = !cuda::archs().empty();
  info["cuda_archs"] = cuda::archs();
  info["compiler"] = kCompiler;
  info["standard"] = kStandard;
  info["vector_widths"] = targets();
  info["chosen"] = chosen_target();
  return info;
}

// Python gets what emanest/backends/storage.py raises.
void translate(std::exception_ptr thrown) {
  try {
    if (thrown) std::rethrow_exception(thrown);
  } catch (const NotInStorage& error) {
    try {
      const auto tensor = py::reinterpret_steal<py::object>(wrap(error.tensor));
      py::module_::import("emanest.backends.storage").attr("refuse")("a tensor of this call", tensor);
    } catch (py::error_already_set& raised) {
      raised.restore();
    }
  }
}

}  // namespace
}  // namespace emanest

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using namespace emanest;
  py::register_local_exception_translator(&translate);
  m.def("build_info", &build_info);
  bind_guards(m);
  bind_target(m);
  bind_product(m, "symmetric_product", Kind::symmetric);
  bind_product(m, "product", Kind::plain);
  bind_product(m, "large_product", Kind::large);
  bind<Step, Base, Lookahead>(m, "step_");
  bind<Follow, Lookahead>(m, "follow_");
  bind<Move, Point>(m, "move_");
  bind<Average, Momentum>(m, "momentum_");
  bind<Rows, RowRule>(m, "rows_");
  bind<Nonfinite>(m, "nonfinite");
}
