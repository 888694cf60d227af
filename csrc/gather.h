// From lists of Python tensors to addresses.
#pragma once

#include <ATen/core/Tensor.h>
#include <pybind11/pybind11.h>

#include <optional>
#include <string>
#include <vector>

#include "bucket.h"

namespace emanest {

using Column = const pybind11::list&;
using Columns = const std::vector<pybind11::list>&;

void check_count(const char* what, size_t found, size_t expected);

// A bucket made of the tensors of a call; empty if some of them must be copied first, because of
// their memory order or format. `input`, of as many tensors as `ys`, may be empty, and so may
// `scales`: for each y one of its own or one for each row, whose elements then follow each other in
// memory. All are on one device, or it is an error.
std::optional<Bucket> gather(Column ys, Column input, Columns state, bool in_double,
                             Column scales = pybind11::list());

// The same of matrices, with columns of one value for each row, and a scale for each matrix.
std::optional<Bucket> gather_rows(Column matrices, Columns columns, bool in_double, Column scales);

// The same of gradients alone.
std::optional<Bucket> gather(Column gs);

// Tensors were written behind autograd's back: tell it, or a stale backward would go unnoticed.
void count_writes(Column tensors);

// Where a list has its tensors.
at::Device device_of(Column tensors);

}  // namespace emanest
