// SPDX-License-Identifier: MIT
// emanest/backends/guards.py's loops over all parameters, or all tensors of a call.
#include <ATen/core/Tensor.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "bindings.h"
#include "gather.h"
#include "storage.h"
#include "tensors.h"

namespace py = pybind11;

namespace emanest {
namespace {

std::vector<int64_t> versions(const py::list& tensors) {
  std::vector<int64_t> found;
  found.reserve(tensors.size());
  for (py::handle each : tensors) found.push_back(unpack(each.ptr())._version());
  return found;
}

py::list gradients(const py::function& waited, const py::list& params) {
  py::list found(params.size());
  for (size_t i = 0; i < params.size(); i++) {
    const at::Tensor& p = unpack(PyList_GET_ITEM(params.ptr(), Py_ssize_t(i)));
    const at::Tensor& grad = p.grad();
    PyObject* given = wrap(grad);
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
        facts_.emplace_back(unpack(p.ptr()));
      }
      ends_.push_back(params_.size());
    }
    for (py::handle each : mappings) {
      mappings_.push_back(py::reinterpret_borrow<py::dict>(each));
      remember(mappings_.back(), mappings_.back());
    }
    for (py::handle each : entries) {
      const auto [row, fixed] = each.cast<std::pair<py::dict, py::dict>>();
      remember(row, fixed);
    }
  }

  bool unchanged(const py::list& lists, const py::list& mappings) const {
    if (lists.size() != ends_.size() || mappings.size() != mappings_.size() || makes_fake()) {
      return false;
    }
    size_t i = 0, end = 0;
    for (py::handle params : lists) {
      // one that moves to the next list stays in its place among all
      if (py::len(params) != ends_[end++] - i) return false;
      for (py::handle p : params) {
        if (!p.is(params_[i]) || !facts_[i].hold(unpack(p.ptr()))) return false;
        i++;
      }
    }
    for (size_t k = 0; k < mappings_.size(); k++) {
      if (PyList_GET_ITEM(mappings.ptr(), k) != mappings_[k].ptr()) return false;
    }
    return std::all_of(dicts_.begin(), dicts_.end(),
                       [](const auto& each) { return same(each.first, each.second); });
  }

 private:
  using Items = std::vector<std::pair<py::object, py::object>>;

  // Whether tensors that are made now have no values: inside a FakeTensorMode.
  static bool makes_fake() {
    using c10::impl::TorchDispatchModeKey;
    return c10::impl::TorchDispatchModeTLS::get_mode(TorchDispatchModeKey::FAKE).has_value();
  }

  // The keys of a dict, and those of its values that must stay; a null value stands for any.
  void remember(const py::dict& mapping, const py::dict& fixed) {
    Items items;
    for (auto [key, value] : mapping) {
      items.emplace_back(py::reinterpret_borrow<py::object>(key),
                         fixed.contains(key) ? py::object(fixed[key]) : py::object());
    }
    dicts_.emplace_back(mapping, std::move(items));
  }

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
  std::vector<size_t> ends_;  // of the lists, among all parameters
  std::vector<py::dict> mappings_;
  std::vector<std::pair<py::dict, Items>> dicts_;
};

// What is the same of every tensor of a kind.
int64_t kind(const at::Tensor& t, bool contiguous) {
  const int64_t bits[] = {int64_t(t.scalar_type()), int64_t(t.device().type()),
                          int64_t(t.device().index()) & 0xff, t.is_neg(), t.is_conj(), contiguous};
  int64_t found = 0;
  for (int64_t each : bits) found = found << 8 | each;
  return found;
}

// The addresses of the tensors of a call, and all else that work on their memory depends on.
struct Position {
  std::vector<int64_t> addresses, rest;

  // False: the values of a tensor are elsewhere.
  bool add(const at::Tensor& t) {
    if (!in_storage(t) || t.layout() != at::kStrided) return false;
    const bool contiguous = t.is_contiguous();
    // not a constant address: memory that is shared until it is written gets its own
    addresses.push_back(int64_t(t.data_ptr()));
    rest.push_back(t.numel());
    rest.push_back(kind(t, contiguous));
    // in the usual order the number of elements says it all
    if (contiguous) return true;
    rest.push_back(t.dim());
    rest.insert(rest.end(), t.sizes().begin(), t.sizes().end());
    rest.insert(rest.end(), t.strides().begin(), t.strides().end());
    return true;
  }

  bool add(const py::list& columns) {
    for (py::handle each : columns) {
      const py::list column(py::reinterpret_borrow<py::object>(each));
      rest.push_back(int64_t(column.size()));
      for (py::handle t : column) {
        if (!add(unpack(t.ptr()))) return false;
      }
    }
    return true;
  }
};

class Layout {
 public:
  explicit Layout(const py::list& columns) {
    Position found;
    if (found.add(columns)) rest_ = std::vector(found.rest);  // a copy has no room to spare
  }

  py::object find(const py::list& columns) {
    Position found;
    if (rest_) {
      found.rest.reserve(rest_->size());
      found.addresses.reserve(rest_->size() / 2);  // each has at least two others
    }
    if (!found.add(columns) || found.rest != rest_) return py::none();
    const std::string_view bytes(reinterpret_cast<const char*>(found.addresses.data()),
                                 sizeof(int64_t) * found.addresses.size());
    if (std::string_view(addresses_) != bytes) addresses_ = py::bytes(bytes.data(), bytes.size());
    return addresses_;
  }

 private:
  std::optional<std::vector<int64_t>> rest_;
  py::bytes addresses_;
};

}  // namespace

void bind_guards(py::module_& m) {
  m.def("count_writes", [](const py::object& tensors) { count_writes(py::list(tensors)); });
  m.def("versions", &versions);
  m.def("gradients", &gradients);
  py::class_<Guard>(m, "Guard")
      .def(py::init<py::list, py::list, py::list>())
      .def("unchanged", &Guard::unchanged);
  py::class_<Layout>(m, "Layout")
      .def(py::init<py::list>())
      .def("find", &Layout::find);
}

}  // namespace emanest
