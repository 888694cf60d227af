// SPDX-License-Identifier: MIT
// What the rules in rules.h are written in: numbers, arrays of a rule's size, and its description.
//
// As in Python, numbers are double among their like, and rounded to T, which is float or double, on
// meeting one. Every operation of the rules is here, so that a new rule needs no line of C++.
#pragma once

#include <type_traits>

#ifdef __CUDACC__
#define EMANEST_INLINE __host__ __device__ __forceinline__
#else
#define EMANEST_INLINE inline __attribute__((always_inline))
#endif

// loops compiled for several CPUs, the best chosen when the program starts
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define EMANEST_TARGETS "default", "arch=x86-64-v3", "arch=x86-64-v4"
#define EMANEST_CLONES __attribute__((target_clones(EMANEST_TARGETS)))
#else
#define EMANEST_TARGETS "default"
#define EMANEST_CLONES
#endif

namespace emanest {

struct Number {
  double value;
  constexpr EMANEST_INLINE Number(double value = 0.0) : value(value) {}
};

template <class T, class Result = T>
using IfReal = std::enable_if_t<std::is_floating_point_v<T>, Result>;

#define EMANEST_OPERATOR(op, Among, WithT)                                                        \
  EMANEST_INLINE Among operator op(Number a, Number b) { return a.value op b.value; }             \
  template <class T>                                                                              \
  EMANEST_INLINE IfReal<T, WithT> operator op(Number a, T b) { return T(a.value) op b; }          \
  template <class T>                                                                              \
  EMANEST_INLINE IfReal<T, WithT> operator op(T a, Number b) { return a op T(b.value); }

EMANEST_OPERATOR(+, Number, T)
EMANEST_OPERATOR(-, Number, T)
EMANEST_OPERATOR(*, Number, T)
EMANEST_OPERATOR(/, Number, T)
EMANEST_OPERATOR(<, bool, bool)
EMANEST_OPERATOR(<=, bool, bool)
EMANEST_OPERATOR(>, bool, bool)
EMANEST_OPERATOR(>=, bool, bool)
#undef EMANEST_OPERATOR

EMANEST_INLINE Number operator-(Number a) { return -a.value; }

// an array of at least one element: a rule without state takes no part of it
template <class T, int size>
using Row = T[size ? size : 1];

// Writes a rule's state once all that reads the old one is computed, and returns the result.
template <class T, int size>
EMANEST_INLINE T leave(T* state, const T (&after)[size], T result) {
  for (int k = 0; k < size; k++) state[k] = after[k];
  return result;
}

#define EMANEST_RULE(name_, states_, numbers_)       \
  static constexpr const char* name = name_;         \
  static constexpr int states = states_;             \
  static constexpr int numbers = numbers_;           \
  using Numbers = Row<Number, numbers_>

}  // namespace emanest
