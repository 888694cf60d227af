// What Python calls: lists of tensors in, addresses out to the back ends.
#include <c10/core/DeviceGuard.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "gather.h"
#include "info.h"
#include "target.h"
#include "watch.h"

namespace py = pybind11;

namespace emanest {
namespace {

// Gathers the tensors, calls `work` on them without Python's lock (the caller holds the tensors, so
// their memory stays), and counts what it wrote. False: nothing has changed, and some tensors must
// be copied first.
template <class Work>
bool run(Column ys, Column beside, Columns state, Columns written, bool in_double,
         const Target& target, size_t numbers, Work work) {
  const at::Device device = device_of(ys);
  target.check(device, numbers);
  if (target.skipped()) return true;
  const auto bucket = gather(ys, beside, state, in_double);
  if (!bucket) return false;
  {
    py::gil_scoped_release release;
    const c10::DeviceGuard guard(device);
    work(*bucket, device);
  }
  for (Column column : written) count_writes(column);
  return true;
}

bool step_(const std::string& base, const std::string& look, Column ys, Column gs,
           Columns base_state, Columns look_state, bool in_double, const Target& target) {
  const auto b = find<Base>(base);
  const auto l = find<Lookahead>(look);
  check_count("columns of base state", base_state.size(), sizes(b).first);
  check_count("columns of lookahead state", look_state.size(), sizes(l).first);
  const size_t numbers = 1 + sizes(b).second + sizes(l).second;
  std::vector<py::list> state = base_state;
  state.insert(state.end(), look_state.begin(), look_state.end());
  auto written = state;
  written.push_back(ys);
  const auto work = [&](const Bucket& bucket, auto on) {
    target.on_gpu() ? cuda::step(b, l, bucket, target.call(on), target.place(on))
                    : cpu::step(b, l, bucket, target.numbers());
  };
  return run(ys, gs, state, written, in_double, target, numbers, work);
}

bool follow_(const std::string& look, Column ys, Column snapshots, Columns state, bool in_double,
             const Target& target) {
  const auto l = find<Lookahead>(look);
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

bool move_(const std::string& point, Column ys, Columns state, bool in_double,
           const Target& target) {
  const auto p = find<Point>(point);
  const auto [states, numbers] = sizes(p);
  check_count("columns of state", state.size(), states);
  const auto work = [&](const Bucket& bucket, auto on) {
    target.on_gpu() ? cuda::move(p, bucket, target.call(on), target.place(on))
                    : cpu::move(p, bucket, target.numbers());
  };
  return run(ys, py::list(), state, {ys}, in_double, target, numbers, work);
}

// found: address, on the device, of a float that is 0 and receives 1 if a gradient holds NaN or an
// infinity. False: some must be copied first.
bool nonfinite(Column gs, intptr_t found, const Target& target) {
  const at::Device device = device_of(gs);
  target.check(device, 0);
  const auto bucket = gather(gs);
  if (!bucket) return false;
  py::gil_scoped_release release;
  const c10::DeviceGuard guard(device);
  auto* to = reinterpret_cast<float*>(found);
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
  emanest::bind_target(m);
  emanest::bind_watch(m);
  emanest::bind_info(m);
  m.def("step_", &emanest::step_);
  m.def("follow_", &emanest::follow_);
  m.def("move_", &emanest::move_);
  m.def("nonfinite", &emanest::nonfinite);
}
