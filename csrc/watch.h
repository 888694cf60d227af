// Registers `versions` and `Guard`, which emanest/backends/guards.py documents.
#pragma once

#include <pybind11/pybind11.h>

namespace emanest {

void bind_watch(pybind11::module_& m);

}  // namespace emanest
