// SPDX-License-Identifier: MIT
// What a back end is given: addresses, sizes and numbers. No torch header: the CUDA file needs none.
#pragma once

#include <cstdint>
#include <vector>

#include "passes.h"

namespace emanest {

enum class Dtype : int8_t { float32, float64, bfloat16, float16 };

template <class T>
constexpr Dtype dtype_as = std::is_same_v<T, double> ? Dtype::float64 : Dtype::float32;

// One parameter: its streams, dense and in one memory order.
struct Tensors {
  void* address[kStreams];  // null: there is none
  int64_t size;             // elements; for `Rows` rows
  Dtype dtype[kStreams];
  const void* scales;       // further factors of the gradient, of the arithmetic's type; or null
  int64_t run;              // elements, in memory order, that share a scale; those of a row
  int64_t numbers;          // how far from those of the call its numbers begin

  template <class T>
  EMANEST_INLINE T* as(int stream) const { return static_cast<T*>(address[stream]); }
};

// The parameters of one call.
struct Bucket {
  std::vector<Tensors> tensors;
  bool in_double;  // arithmetic is float64, else float32
};

namespace cpu {

// out: for `Average` the sum of squares of each tensor, a double, or null; for `Nonfinite` one float,
// 1 or 0
void run(const Pass& pass, const Bucket& bucket, const double* numbers, void* out);

}  // namespace cpu

}  // namespace emanest
