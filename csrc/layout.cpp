// emanest/backends/guards.py's loops over all tensors of a call.
#include "registers.h"

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "gather.h"
#include "storage.h"

namespace py = pybind11;

namespace emanest {
namespace {

using Facts = std::vector<int64_t>;

// What is the same of every tensor of a kind.
int64_t kind(const at::Tensor& t, bool contiguous) {
  const int64_t bits[] = {int64_t(t.scalar_type()), int64_t(t.device().type()),
                          int64_t(t.device().index()) & 0xff, t.is_neg(), t.is_conj(), contiguous};
  int64_t found = 0;
  for (int64_t each : bits) found = found << 8 | each;
  return found;
}

// All that work on a tensor's memory depends on. False: its values are elsewhere.
bool describe(const at::Tensor& t, Facts& facts) {
  if (!in_storage(t) || t.layout() != at::kStrided) return false;
  const bool contiguous = t.is_contiguous();
  // not a constant address: memory that is shared until it is written gets its own
  facts.insert(facts.end(), {int64_t(t.data_ptr()), t.numel(), kind(t, contiguous)});
  // in the usual order the number of elements says it all
  if (contiguous) return true;
  facts.push_back(t.dim());
  facts.insert(facts.end(), t.sizes().begin(), t.sizes().end());
  facts.insert(facts.end(), t.strides().begin(), t.strides().end());
  return true;
}

// Hands the facts of each column and each tensor to `next`, until that is false. False: so it was,
// or a tensor's values are elsewhere.
template <class Next>
bool describe(const py::list& columns, Next next) {
  Facts facts;
  for (py::handle each : columns) {
    const py::list column(py::reinterpret_borrow<py::object>(each));
    facts.assign(1, int64_t(column.size()));
    if (!next(facts)) return false;
    for (py::handle t : column) {
      facts.clear();
      if (!describe(THPVariable_Unpack(t.ptr()), facts) || !next(facts)) return false;
    }
  }
  return true;
}

class Layout {
 public:
  explicit Layout(const py::list& columns) {
    Facts found;
    const bool all = describe(columns, [&](const Facts& facts) {
      found.insert(found.end(), facts.begin(), facts.end());
      return true;
    });
    if (all) facts_ = Facts(found);  // a copy has no room to spare
  }

  bool unchanged(const py::list& columns) const {
    if (!facts_) return false;
    auto expected = facts_->begin();
    const bool same = describe(columns, [&](const Facts& facts) {
      if (facts_->end() - expected < ptrdiff_t(facts.size())) return false;
      const bool equal = std::equal(facts.begin(), facts.end(), expected);
      expected += ptrdiff_t(facts.size());
      return equal;
    });
    return same && expected == facts_->end();
  }

 private:
  std::optional<Facts> facts_;
};

}  // namespace

void bind_layout(py::module_& m) {
  m.def("count_writes", [](const py::object& tensors) { count_writes(py::list(tensors)); });
  py::class_<Layout>(m, "Layout")
      .def(py::init<py::list>())
      .def("unchanged", &Layout::unchanged);
}

}  // namespace emanest
