// SPDX-License-Identifier: MIT
// What a pass does, on any processor: a formula of rules.h to one element, with the numbers of the
// call.
#pragma once

#include <algorithm>
#include <tuple>

#include "rules.h"

namespace emanest {

template <int count, class From, class To>
EMANEST_INLINE void copy(const From& from, To* to) {
  for (int k = 0; k < count; k++) to[k] = from[k];
}

// Streams of a tensor by their numbers: y; its input, which is the gradient, for `Follow` the
// snapshot, for `Move` none; the state, of the base rule, then of the lookahead rule.
constexpr int kY = 0, kInput = 1, kState = 2;

// A set of streams, a bit for each.
using Set = unsigned;
constexpr Set only(int stream) { return 1u << stream; }
constexpr EMANEST_INLINE bool has(Set set, int stream) { return set >> stream & 1; }

// What operations have in common, unless they say otherwise. T is the type of the arithmetic.
template <class T_, int states_, int numbers_, Set reads_ = ~0u, Set writes_ = ~only(kInput)>
struct Operation {
  using T = T_;
  using Values = T[kState + states_];  // an element of each stream
  using Numbers = Row<Number, numbers_>;
  static constexpr int streams = kState + states_, numbers = numbers_;
  static constexpr Set all = only(streams) - 1, reads = reads_ & all, writes = writes_ & all;
  // those that are of type T; the format of others is known at run time only
  static constexpr Set plain = all & ~only(kY) & ~only(kInput);
  // whether elements have a factor of their own
  static constexpr bool scaled = false;
  // what is found beside what is written: the sum of the squares of each y, or a flag for all
  static constexpr bool squared = false, flagged = false;
  // whether y is a matrix, and the state has a value for each of its rows
  static constexpr bool by_rows = false;
};

// numbers: a factor of the gradients, then the base's, then the lookahead's; state likewise
template <class T, class B, class L>
struct Step : Operation<T, B::states + L::states, 1 + B::numbers + L::numbers> {
  static constexpr bool scaled = true;

  EMANEST_INLINE static void apply(typename Step::Values& values, T factor,
                                   const typename Step::Numbers& numbers) {
    typename B::Numbers base_numbers;
    typename L::Numbers lookahead_numbers;
    copy<B::numbers>(numbers + 1, base_numbers);
    copy<L::numbers>(numbers + 1 + B::numbers, lookahead_numbers);
    T* const state = values + kState;
    values[kY] = emanest::step<T, B, L>(values[kY], values[kInput] * numbers[0] * factor, state,
                                        state + B::states, base_numbers, lookahead_numbers);
  }
};

// the input of y: the snapshot, which follows it
template <class T, class L>
struct Follow : Operation<T, L::states, L::numbers, ~0u, ~0u> {
  EMANEST_INLINE static void apply(typename Follow::Values& values, T,
                                   const typename Follow::Numbers& numbers) {
    values[kY] = values[kInput] =
        emanest::follow<T, L>(values[kY], values[kInput], values + kState, numbers);
  }
};

template <class T, class P>
struct Move : Operation<T, P::states, P::numbers, ~only(kInput), only(kY)> {
  EMANEST_INLINE static void apply(typename Move::Values& values, T,
                                   const typename Move::Numbers& numbers) {
    values[kY] = emanest::move<T, P>(values[kY], values + kState, numbers);
  }
};

// y is an update, written only; numbers: a factor of the gradients, then the rule's
template <class T, class M>
struct Average : Operation<T, M::states, 1 + M::numbers, ~only(kY)> {
  static constexpr bool squared = true;

  EMANEST_INLINE static void apply(typename Average::Values& values, T,
                                   const typename Average::Numbers& numbers) {
    typename M::Numbers own;
    copy<M::numbers>(numbers + 1, own);
    values[kY] = emanest::average<T, M>(values[kInput] * numbers[0], values + kState, own);
  }
};

// ---- passes that are more than an operation on every element ------------------------------------

// state: that of the rule, then the factors, which are written
template <class T, class R>
struct Rows : Operation<T, R::states + 1, R::numbers, ~only(kInput), ~only(kY) & ~only(kInput)> {
  static constexpr bool by_rows = true;

  // The factor that keeps a matrix's norm; the norm's numbers are the rule's last.
  EMANEST_INLINE static double kept(double before, double after,
                                    const typename Rows::Numbers& numbers) {
    using N = typename R::norm;
    typename N::Numbers own;
    copy<N::numbers>(numbers + R::numbers - N::numbers, own);
    return N::apply(before, after, own);
  }
};

// whether an input holds NaN or an infinity; it has no rules (nvcc takes it for a pass of rules
// only if it could have some)
template <class T, class... NoRules>
struct Nonfinite : Operation<T, 0, 0, only(kInput), 0> {
  static constexpr bool flagged = true;
};

// ---- passes by the names of their rules ---------------------------------------------------------

// An operation, with rules of these tables.
template <template <class... TypeAndRules> class Operation_, class... Tables>
struct PassOf {
  std::tuple<Tables...> rules;

  template <class F>
  void visit(bool in_double, F f) const {
    const auto with = [&](auto... rule) {
      in_double ? f(Operation_<double, decltype(rule)...>{})
                : f(Operation_<float, decltype(rule)...>{});
    };
    std::apply([&](const auto&... each) { std::visit(with, each...); }, rules);
  }
};

using Pass = std::variant<PassOf<Step, Base, Lookahead>, PassOf<Follow, Lookahead>,
                          PassOf<Move, Point>, PassOf<Average, Momentum>, PassOf<Rows, RowRule>,
                          PassOf<Nonfinite>>;

// Calls f with the operation of a pass, in float64 arithmetic or in that of float32.
template <class F>
void visit(const Pass& pass, bool in_double, F f) {
  std::visit([&](const auto& each) { each.visit(in_double, f); }, pass);
}

// ---- the most streams, and the most numbers, of any pass ----------------------------------------

template <class Table>
struct Most;
template <class... Rules>
struct Most<std::variant<Rules...>> {
  static constexpr int states = std::max({Rules::states...});
  static constexpr int numbers = std::max({Rules::numbers...});
};

constexpr int kStreams = kState + std::max({Most<Base>::states + Most<Lookahead>::states,
                                            Most<Momentum>::states, Most<RowRule>::states + 1,
                                            Most<Point>::states});
constexpr int kNumbers = std::max({1 + Most<Base>::numbers + Most<Lookahead>::numbers,
                                   1 + Most<Momentum>::numbers, Most<RowRule>::numbers,
                                   Most<Point>::numbers});

}  // namespace emanest
