// What Python calls: lists of tensors in, addresses out to the back ends.
#include "bindings.h"

#include <c10/core/DeviceGuard.h>
#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_variable.h>

#include "gather.h"
#include "storage.h"
#include "target.h"

namespace py = pybind11;

namespace emanest {
namespace {

Use use_of(const Pass& pass) {
  Use use;
  visit(pass, false, [&](auto each) {
    use = {each.streams, each.numbers, each.reads,   each.writes,
           each.plain,   each.squared, each.flagged, each.by_rows};
  });
  return use;
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
  if (use.squared && !out.is_none()) to = place("squares", out, device, at::kDouble, columns[kY].size());
  if (use.flagged) to = place("flag", out, device, at::kFloat, 1);
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

}  // namespace
}  // namespace emanest

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using namespace emanest;
  bind_guards(m);
  bind_info(m);
  bind_products(m);
  bind_storage(m);
  bind_target(m);
  bind<Step, Base, Lookahead>(m, "step_");
  bind<Follow, Lookahead>(m, "follow_");
  bind<Move, Point>(m, "move_");
  bind<Average, Momentum>(m, "momentum_");
  bind<Rows, RowRule>(m, "rows_");
  bind<Nonfinite>(m, "nonfinite");
}
