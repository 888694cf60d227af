// Registers `Layout` and `count_writes`, which emanest/backends/guards.py documents.
#pragma once

#include <pybind11/pybind11.h>

namespace emanest {

void bind_layout(pybind11::module_& m);

}  // namespace emanest
