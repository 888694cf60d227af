// SPDX-License-Identifier: MIT
// From lists of Python tensors to addresses.
#pragma once

#include <ATen/core/Tensor.h>
#include <pybind11/pytypes.h>

#include <optional>
#include <string>
#include <vector>

#include "bucket.h"

namespace emanest {

using Column = const pybind11::list&;
using Columns = const std::vector<pybind11::list>&;

void check_count(const char* what, size_t found, size_t expected);

// How a pass uses the streams of a tensor, and how many numbers it is given.
struct Use {
  int streams = 0, numbers = 0;
  Set reads = 0, writes = 0, plain = 0;
  bool squared = false, flagged = false, by_rows = false;

  // The stream that others are like.
  int first() const { return has(reads | writes, kY) ? kY : kInput; }
};

// A bucket made of the tensors of a call, a column for each stream, empty where there is none; null
// if some tensors must be copied first, because of their memory order or format. `scales` may be
// empty: for each y one of its own or one for each row, whose elements then follow each other in
// memory; for each matrix one. All are on one device, or it is an error.
std::optional<Bucket> gather(const Use& use, Columns columns, bool in_double, Column scales);

// Tensors were written behind autograd's back: tell it, or a stale backward would go unnoticed.
void count_writes(Column tensors);

// Where a list has its tensors.
at::Device device_of(Column tensors);

}  // namespace emanest
