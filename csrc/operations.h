// What a kernel does to one element: a formula of rules.h, with the numbers of the call.
#pragma once

#include "sizes.h"

namespace emanest::device {

// Numbers by value, or a vector in the memory of the device.
struct Given {
  double values[kNumbers];
  const double* vector;

  EMANEST_INLINE double operator[](int k) const { return vector ? vector[k] : values[k]; }
};

template <class Rule>
EMANEST_INLINE void copy(const Given& from, int first, typename Rule::Numbers& to) {
  for (int k = 0; k < Rule::numbers; k++) to[k] = from[first + k];
}

// What a thread leaves behind at its end; here: nothing.
struct Nothing {};

// What operations have in common, unless they say otherwise.
struct Operation {
  using Left = Nothing;
  static constexpr bool reads_y = true, reads_input = true, writes_input = false, scaled = false;

  EMANEST_INLINE void leave(Nothing, int64_t) const {}
};

template <class T_, class B, class L>
struct Step : Operation {
  using T = T_;
  static constexpr int states = B::states + L::states;
  static constexpr bool scaled = true;

  EMANEST_INLINE explicit Step(const Given& given) : scale(given[0]) {
    copy<B>(given, 1, base_numbers);
    copy<L>(given, 1 + B::numbers, lookahead_numbers);
  }

  EMANEST_INLINE void operator()(T& y, T& g, Row<T, states>& state, T factor) const {
    Row<T, B::states> base_state;
    Row<T, L::states> lookahead_state;
    for (int k = 0; k < B::states; k++) base_state[k] = state[k];
    for (int k = 0; k < L::states; k++) lookahead_state[k] = state[B::states + k];
    y = emanest::step<T, B, L>(y, g * scale * factor, base_state, lookahead_state, base_numbers,
                               lookahead_numbers);
    for (int k = 0; k < B::states; k++) state[k] = base_state[k];
    for (int k = 0; k < L::states; k++) state[B::states + k] = lookahead_state[k];
  }

  Number scale;
  typename B::Numbers base_numbers;
  typename L::Numbers lookahead_numbers;
};

template <class T_, class L>
struct Follow : Operation {
  using T = T_;
  static constexpr int states = L::states;
  static constexpr bool writes_input = true;

  EMANEST_INLINE explicit Follow(const Given& given) { copy<L>(given, 0, numbers); }

  EMANEST_INLINE void operator()(T& y, T& snapshot, Row<T, states>& state, T) const {
    y = snapshot = emanest::follow<T, L>(y, snapshot, state, numbers);
  }

  typename L::Numbers numbers;
};

template <class T_, class P>
struct Move : Operation {
  using T = T_;
  static constexpr int states = P::states;
  static constexpr bool reads_input = false;

  EMANEST_INLINE explicit Move(const Given& given) { copy<P>(given, 0, numbers); }

  EMANEST_INLINE void operator()(T& y, T&, Row<T, states>& state, T) const {
    y = P::template apply<T>(y, state, numbers);
  }

  typename P::Numbers numbers;
};

// y is an update, written only; its squares are added up, a sum for each thread.
template <class T_, class M>
struct Average : Operation {
  using T = T_;
  using Left = double*;
  static constexpr int states = M::states;
  static constexpr bool reads_y = false;

  EMANEST_INLINE explicit Average(const Given& given) : scale(given[0]) {
    copy<M>(given, 1, numbers);
  }

  EMANEST_INLINE void operator()(T& u, T& g, Row<T, states>& state, T) {
    u = M::apply(g * scale, state, numbers);
    squares += double(u) * double(u);
  }

  EMANEST_INLINE void leave(double* sums, int64_t thread) const { sums[thread] = squares; }

  Number scale;
  typename M::Numbers numbers;
  double squares = 0;
};

}  // namespace emanest::device
