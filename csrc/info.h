// Registers `build_info` and `rules`: what is in the extension.
#pragma once

#include <pybind11/pybind11.h>

namespace emanest {

void bind_info(pybind11::module_& m);

}  // namespace emanest
