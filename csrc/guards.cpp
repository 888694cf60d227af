// emanest/backends/guards.py's loops over all parameters, which every step makes.
#include "registers.h"

#include <ATen/core/Tensor.h>
#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <vector>

#include "storage.h"

namespace py = pybind11;

namespace emanest {
namespace {

std::vector<int64_t> versions(const py::list& tensors) {
  std::vector<int64_t> found;
  found.reserve(tensors.size());
  for (py::handle each : tensors) found.push_back(THPVariable_Unpack(each.ptr())._version());
  return found;
}

py::list gradients(const py::function& waited, const py::list& params) {
  py::list found(params.size());
  for (size_t i = 0; i < params.size(); i++) {
    const at::Tensor& p = THPVariable_Unpack(PyList_GET_ITEM(params.ptr(), Py_ssize_t(i)));
    const at::Tensor& grad = p.grad();
    PyObject* given = THPVariable_Wrap(grad);
    if (grad.defined() && is_subclass(grad)) {
      given = waited(py::reinterpret_steal<py::object>(given)).release().ptr();
    }
    PyList_SET_ITEM(found.ptr(), Py_ssize_t(i), given);
  }
  return found;
}

// What a step depends on besides values.
struct Facts {
  std::vector<int64_t> shape;
  at::ScalarType dtype;
  at::Device device;
  std::optional<at::Layout> gradient;
  bool subclass;  // a DTensor, say: whoever watches looks at what is inside

  explicit Facts(const at::Tensor& p)
      : shape(p.sizes().vec()), dtype(p.scalar_type()), device(p.device()), gradient(layout(p.grad())),
        subclass(is_subclass(p)) {}

  bool hold(const at::Tensor& p) const {
    const at::Tensor& grad = p.grad();
    // the class first: that of another may be slow to say the rest
    return is_subclass(p) == subclass && p.sizes() == shape && p.scalar_type() == dtype &&
           p.device() == device && layout(grad) == gradient &&
           (subclass || (in_storage(p) && (gradient != at::kStrided || in_storage(grad))));
  }

  static std::optional<at::Layout> layout(const at::Tensor& grad) {
    return grad.defined() ? std::optional(grad.layout()) : std::nullopt;
  }
};

class Guard {
 public:
  Guard(const py::list& lists, const py::list& mappings, const py::list& entries) {
    for (py::handle params : lists) {
      for (py::handle p : params) {
        params_.push_back(py::reinterpret_borrow<py::object>(p));
        facts_.emplace_back(THPVariable_Unpack(p.ptr()));
      }
    }
    for (py::handle each : mappings) {
      auto mapping = py::reinterpret_borrow<py::dict>(each);
      Items items;
      for (auto [key, value] : mapping) {
        items.emplace_back(py::reinterpret_borrow<py::object>(key),
                           py::reinterpret_borrow<py::object>(value));
      }
      items_.emplace_back(std::move(mapping), std::move(items));
    }
    for (py::handle each : entries) {
      const auto [row, fixed] = each.cast<std::pair<py::dict, py::dict>>();
      Items items;
      for (auto [key, value] : row) {
        items.emplace_back(py::reinterpret_borrow<py::object>(key),
                           fixed.contains(key) ? py::object(fixed[key]) : py::object());
      }
      rows_.emplace_back(row, std::move(items));
    }
  }

  bool unchanged(const py::list& lists, const py::list& mappings) const {
    size_t i = 0;
    for (py::handle params : lists) {
      for (py::handle p : params) {
        if (i == params_.size() || !p.is(params_[i])) return false;
        if (!facts_[i].hold(THPVariable_Unpack(p.ptr()))) return false;
        i++;
      }
    }
    if (i != params_.size()) return false;
    if (mappings.size() != items_.size()) return false;
    for (size_t k = 0; k < items_.size(); k++) {
      const auto& [mapping, items] = items_[k];
      if (PyList_GET_ITEM(mappings.ptr(), k) != mapping.ptr() || !same(mapping, items)) return false;
    }
    return std::all_of(rows_.begin(), rows_.end(),
                       [](const auto& each) { return same(each.first, each.second); });
  }

 private:
  using Items = std::vector<std::pair<py::object, py::object>>;

  // a null value stands for any
  static bool same(const py::dict& mapping, const Items& items) {
    if (mapping.size() != items.size()) return false;
    PyObject *key, *value;
    Py_ssize_t position = 0;
    for (size_t i = 0; PyDict_Next(mapping.ptr(), &position, &key, &value); i++) {
      const PyObject* expected = items[i].second.ptr();
      if (key != items[i].first.ptr() || (expected && value != expected)) return false;
    }
    return true;
  }

  std::vector<py::object> params_;
  std::vector<Facts> facts_;
  std::vector<std::pair<py::dict, Items>> items_;
  std::vector<std::pair<py::dict, Items>> rows_;
};

}  // namespace

void bind_guards(py::module_& m) {
  m.def("versions", &versions);
  m.def("gradients", &gradients);
  py::class_<Guard>(m, "Guard")
      .def(py::init<py::list, py::list, py::list>())
      .def("unchanged", &Guard::unchanged);
}

}  // namespace emanest
