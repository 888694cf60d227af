// SPDX-License-Identifier: MIT
// Python's tensors. The header of torch that knows them takes longer to compile than a whole file
// without it: bindings.cpp, which defines these, is alone in including it.
#pragma once

#include <ATen/core/Tensor.h>

// as Python.h has it
typedef struct _object PyObject;

namespace emanest {

bool is_tensor(PyObject* object);

// The tensor in an object, which must be one.
const at::Tensor& unpack(PyObject* object);

// A new reference to the object of a tensor; to None if it is undefined.
PyObject* wrap(const at::Tensor& t);

}  // namespace emanest
