// What each file registers with Python.
#pragma once

#include <pybind11/pybind11.h>

namespace emanest {

void bind_guards(pybind11::module_& m);    // what emanest/backends/guards.py documents
void bind_info(pybind11::module_& m);      // how the extension was built
void bind_products(pybind11::module_& m);  // the products of Newton-Schulz
void bind_storage(pybind11::module_& m);   // the error of a tensor that is not in its storage
void bind_target(pybind11::module_& m);    // where a call runs

}  // namespace emanest
