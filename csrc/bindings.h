// SPDX-License-Identifier: MIT
// What a file registers with Python itself; bindings.cpp registers all else.
#pragma once

#include <pybind11/pybind11.h>

namespace emanest {

void bind_guards(pybind11::module_& m);  // what emanest/backends/guards.py documents

}  // namespace emanest
