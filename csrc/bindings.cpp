// What Python calls: lists of tensors in, addresses out to the back ends.
#include <c10/core/DeviceGuard.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_variable.h>

#include "gather.h"
#include "registers.h"
#include "storage.h"
#include "target.h"

namespace py = pybind11;

namespace emanest {
namespace {

// Gathers the tensors, calls `work` on them without Python's lock (the caller holds the tensors, so
// their memory stays), and counts what it wrote. False: nothing has changed, and some tensors must
// be copied first.
template <class Gather, class Work>
bool run_on(Column first, Gather gather, Columns written, const Target& target, size_t numbers,
            Work work) {
  const at::Device device = device_of(first);
  target.check(device, numbers);
  if (target.skipped()) return true;
  const auto bucket = gather();
  if (!bucket) return false;
  {
    py::gil_scoped_release release;
    const c10::DeviceGuard guard(device);
    work(*bucket, device);
  }
  for (Column column : written) count_writes(column);
  return true;
}

template <class Work>
bool run(Column ys, Column input, Columns state, Columns written, bool in_double,
         const Target& target, size_t numbers, Work work, Column scales = py::list()) {
  return run_on(
      ys, [&] { return gather(ys, input, state, in_double, scales); }, written, target, numbers,
      work);
}

// A pass takes the names of its rules and what is no column, then the columns: parameters, what
// stands beside them, and state. After false the caller gives copies in place of columns.

// state: the base's, then the lookahead's
bool step_(const std::string& base, const std::string& lookahead, Column scales, bool in_double,
           const Target& target, Column ys, Column gs, Columns state) {
  const auto b = find<Base>(base);
  const auto l = find<Lookahead>(lookahead);
  check_count("columns of state", state.size(), sizes(b).first + sizes(l).first);
  const size_t numbers = 1 + sizes(b).second + sizes(l).second;
  auto written = state;
  written.push_back(ys);
  const auto work = [&](const Bucket& bucket, auto on) {
    target.on_gpu() ? cuda::step(b, l, bucket, target.call(on), target.place(on))
                    : cpu::step(b, l, bucket, target.numbers());
  };
  return run(ys, gs, state, written, in_double, target, numbers, work, scales);
}

bool follow_(const std::string& lookahead, bool in_double, const Target& target, Column ys,
             Column snapshots, Columns state) {
  const auto l = find<Lookahead>(lookahead);
  const auto [states, numbers] = sizes(l);
  check_count("columns of state", state.size(), states);
  auto written = state;
  written.insert(written.end(), {ys, snapshots});
  const auto work = [&](const Bucket& bucket, auto on) {
    target.on_gpu() ? cuda::follow(l, bucket, target.call(on), target.place(on))
                    : cpu::follow(l, bucket, target.numbers());
  };
  return run(ys, snapshots, state, written, in_double, target, numbers, work);
}

bool move_(const std::string& point, bool in_double, const Target& target, Column ys, Column none,
           Columns state) {
  const auto p = find<Point>(point);
  const auto [states, numbers] = sizes(p);
  check_count("columns of state", state.size(), states);
  const auto work = [&](const Bucket& bucket, auto on) {
    target.on_gpu() ? cuda::move(p, bucket, target.call(on), target.place(on))
                    : cpu::move(p, bucket, target.numbers());
  };
  return run(ys, none, state, {ys}, in_double, target, numbers, work);
}

// squares: on the device, a float64 for each tensor
bool momentum_(const std::string& name, const py::object& squares, bool in_double,
               const Target& target, Column us, Column gs, Columns state) {
  const auto rule = find<Momentum>(name);
  const auto [states, numbers] = sizes(rule);
  check_count("columns of state", state.size(), states);
  auto written = state;
  written.push_back(us);
  auto* to = static_cast<double*>(address(THPVariable_Unpack(squares.ptr())));
  const auto work = [&](const Bucket& bucket, auto on) {
    target.on_gpu() ? cuda::momentum(rule, bucket, to, target.call(on), target.place(on))
                    : cpu::momentum(rule, bucket, target.numbers(), to);
  };
  return run(us, gs, state, written, in_double, target, 1 + numbers, work);
}

bool rows_(const std::string& name, Column matrices, Columns state, Column scales, Column factors,
           bool in_double, const Target& target) {
  const auto rule = find<RowRule>(name);
  const auto [states, numbers] = sizes(rule);
  check_count("columns of state", state.size(), states);
  auto written = state;
  written.push_back(factors);
  const auto gather = [&] { return gather_rows(matrices, written, in_double, scales); };
  return run_on(matrices, gather, written, target, numbers, [&](const Bucket& bucket, auto on) {
    target.on_gpu() ? cuda::rows(rule, bucket, target.call(on), target.place(on))
                    : cpu::rows(rule, bucket, target.numbers());
  });
}

// found: on the device, a float that is 0 and receives 1 if a gradient holds NaN or an infinity.
// False: some must be copied first.
bool nonfinite(Column gs, const py::object& found, const Target& target) {
  const at::Device device = device_of(gs);
  target.check(device, 0);
  const auto bucket = gather(gs);
  if (!bucket) return false;
  auto* to = static_cast<float*>(address(THPVariable_Unpack(found.ptr())));
  py::gil_scoped_release release;
  const c10::DeviceGuard guard(device);
  if (target.on_gpu()) {
    cuda::nonfinite(*bucket, to, target.call(device), target.place(device));
  } else {
    *to = cpu::nonfinite(*bucket);
  }
  return true;
}

}  // namespace
}  // namespace emanest

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  emanest::bind_storage(m);
  emanest::bind_target(m);
  emanest::bind_guards(m);
  emanest::bind_layout(m);
  emanest::bind_info(m);
  emanest::bind_products(m);
  m.def("step_", &emanest::step_);
  m.def("follow_", &emanest::follow_);
  m.def("move_", &emanest::move_);
  m.def("momentum_", &emanest::momentum_);
  m.def("rows_", &emanest::rows_);
  m.def("nonfinite", &emanest::nonfinite);
}
