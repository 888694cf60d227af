#include "storage.h"

#include <torch/csrc/autograd/python_variable.h>

#include "bindings.h"

namespace py = pybind11;

namespace emanest {
namespace {

void translate(std::exception_ptr thrown) {
  try {
    if (thrown) std::rethrow_exception(thrown);
  } catch (const NotInStorage& error) {
    try {
      const auto tensor = py::reinterpret_steal<py::object>(THPVariable_Wrap(error.tensor));
      py::module_::import("emanest.backends.storage").attr("refuse")("a tensor of this call", tensor);
    } catch (py::error_already_set& raised) {
      raised.restore();
    }
  }
}

}  // namespace

void bind_storage(py::module_&) { py::register_local_exception_translator(&translate); }

}  // namespace emanest
