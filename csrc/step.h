// What a back end is given: addresses, sizes and numbers. No torch header: the CUDA file needs none.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "sizes.h"

namespace emanest {

enum class Dtype : int8_t { float32, float64, bfloat16, float16 };

// One parameter: everything dense and in one memory order.
struct Tensors {
  void* y;
  void* input;          // gradient; for `follow` the snapshot; for `move` null
  void* state[kStates];  // of the base rule, then of the lookahead rule
  int64_t size;          // elements; for `rows` rows
  Dtype input_dtype;
  const void* scales = nullptr;  // further factors of the gradient, of the arithmetic's type; or null
  int64_t run = 0;               // elements, in memory order, that share a scale; those of a row
};

// The parameters of one call: they share a dtype, and the state has that of the arithmetic.
struct Bucket {
  std::vector<Tensors> tensors;
  Dtype y_dtype;
  bool in_double;  // arithmetic and state are float64, else float32
};

// The row of a table that has a name; the table is a std::variant of rules.
template <class Table, size_t i = 0>
Table find(std::string_view name) {
  if constexpr (i < std::variant_size_v<Table>) {
    using Rule = std::variant_alternative_t<i, Table>;
    return name == Rule::name ? Table(Rule{}) : find<Table, i + 1>(name);
  } else {
    throw std::invalid_argument("no rule is called " + std::string(name));
  }
}

// How much state and how many numbers a rule has.
template <class Table>
std::pair<size_t, size_t> sizes(const Table& rule) {
  return std::visit([](auto r) { return std::pair<size_t, size_t>(r.states, r.numbers); }, rule);
}

namespace cpu {

// numbers: a factor of the gradients, then the base's, then the lookahead's
void step(const Base& base, const Lookahead& lookahead, const Bucket& bucket,
          const double* numbers);
void follow(const Lookahead& lookahead, const Bucket& bucket, const double* numbers);
void move(const Point& point, const Bucket& bucket, const double* numbers);
// y receives the update, squares the sum of its squares for each tensor; numbers: a factor of the
// gradients, then the rule's
void momentum(const Momentum& rule, const Bucket& bucket, const double* numbers, double* squares);
// y is a matrix, state: that of the rule, then the factors, which are written
void rows(const RowRule& rule, const Bucket& bucket, const double* numbers);
// whether a gradient holds NaN or an infinity
bool nonfinite(const Bucket& bucket);

}  // namespace cpu

}  // namespace emanest
