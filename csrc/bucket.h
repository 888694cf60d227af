// What a back end is given: addresses, sizes and numbers. No torch header: the CUDA file needs none.
#pragma once

#include <cstdint>
#include <vector>

#include "passes.h"

namespace emanest {

enum class Dtype : int8_t { float32, float64, bfloat16, float16 };

// One parameter: everything dense and in one memory order.
struct Tensors {
  void* y;
  void* input;          // gradient; for `Follow` the snapshot; for `Move` null
  void* state[kStates];  // of the base rule, then of the lookahead rule
  int64_t size;          // elements; for `Rows` rows
  Dtype input_dtype;
  const void* scales = nullptr;  // further factors of the gradient, of the arithmetic's type; or null
  int64_t run = 0;               // elements, in memory order, that share a scale; those of a row
  int64_t numbers = 0;           // how far from those of the call its numbers begin
};

// The parameters of one call: they share a dtype, and the state has that of the arithmetic.
struct Bucket {
  std::vector<Tensors> tensors;
  Dtype y_dtype;
  bool in_double;  // arithmetic and state are float64, else float32
};

namespace cpu {

// out: for `Average` the sum of squares of each tensor, a double; for `Nonfinite` one float, 1 or 0
void run(const Pass& pass, const Bucket& bucket, const double* numbers, void* out);

}  // namespace cpu

}  // namespace emanest
