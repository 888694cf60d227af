// What registers classes and functions for Python, each beside their code.
#pragma once

#include <pybind11/pybind11.h>

namespace emanest {

void bind_guards(pybind11::module_& m);    // versions, gradients and Guard
void bind_info(pybind11::module_& m);      // build_info and rules: what is in the extension
void bind_layout(pybind11::module_& m);    // Layout and count_writes
void bind_products(pybind11::module_& m);  // the products of Newton-Schulz

}  // namespace emanest
