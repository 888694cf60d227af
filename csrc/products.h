// Registers the products of Newton-Schulz.
#pragma once

#include <pybind11/pybind11.h>

namespace emanest {

void bind_products(pybind11::module_& m);

}  // namespace emanest
