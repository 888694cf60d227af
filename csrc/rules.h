// Every formula of emanest/rules.py, line for line; a test compares the two texts.
//
// A rule reads and writes its state in place and returns the update (bases), what is orthogonalised
// (momenta), a factor (row rules), the next gradient point (lookaheads), or the point moved to
// (points). T is float or double.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <variant>

#ifdef __CUDACC__
#define EMANEST_INLINE __host__ __device__ __forceinline__
#else
#define EMANEST_INLINE inline __attribute__((always_inline))
#endif

namespace emanest {

// What a rule calls a number: as in Python, double among its like, and rounded to T on meeting one.
struct Number {
  double value;
  constexpr EMANEST_INLINE Number(double value = 0.0) : value(value) {}
};

constexpr EMANEST_INLINE Number operator""_n(long double value) { return double(value); }

EMANEST_INLINE Number operator-(Number a) { return -a.value; }
EMANEST_INLINE Number operator+(Number a, Number b) { return a.value + b.value; }
EMANEST_INLINE Number operator-(Number a, Number b) { return a.value - b.value; }
EMANEST_INLINE Number operator*(Number a, Number b) { return a.value * b.value; }
EMANEST_INLINE Number operator/(Number a, Number b) { return a.value / b.value; }
EMANEST_INLINE bool operator<(Number a, Number b) { return a.value < b.value; }

template <class T>
using Array = std::enable_if_t<std::is_floating_point_v<T>, T>;

template <class T>
EMANEST_INLINE Array<T> operator*(Number a, T b) { return T(a.value) * b; }
template <class T>
EMANEST_INLINE Array<T> operator*(T a, Number b) { return a * T(b.value); }
template <class T>
EMANEST_INLINE Array<T> operator+(T a, Number b) { return a + T(b.value); }
template <class T>
EMANEST_INLINE Array<T> operator/(Number a, T b) { return T(a.value) / b; }

// an array of at least one element: a rule without state takes no part of it
template <class T, int size>
using Row = T[size ? size : 1];

#define EMANEST_RULE(name_, states_, numbers_)       \
  static constexpr const char* name = name_;         \
  static constexpr int states = states_;             \
  static constexpr int numbers = numbers_;           \
  using Numbers = Row<Number, numbers_>;             \
  template <class T>                                 \
  using State = Row<T, states_>

// ---- base rules ---------------------------------------------------------------------------------

namespace bases {

struct sgd {
  EMANEST_RULE("sgd", 0, 2);
  template <class T>
  EMANEST_INLINE static T apply(T y, T g, State<T>&, const Numbers& numbers) {
    const auto& [lr, weight_decay] = numbers;
    return -lr * (g + weight_decay * y);
  }
};

struct momentum {
  EMANEST_RULE("momentum", 1, 4);
  template <class T>
  EMANEST_INLINE static T apply(T y, T g, State<T>& state, const Numbers& numbers) {
    auto& [momentum_buffer] = state;
    const auto& [lr, weight_decay, friction, weight] = numbers;
    g = g + weight_decay * y;
    momentum_buffer = momentum_buffer + (weight * g - friction * momentum_buffer);
    return -lr * momentum_buffer;
  }
};

struct nesterov {
  EMANEST_RULE("nesterov", 1, 4);
  template <class T>
  EMANEST_INLINE static T apply(T y, T g, State<T>& state, const Numbers& numbers) {
    auto& [momentum_buffer] = state;
    const auto& [lr, weight_decay, friction, weight] = numbers;
    g = g + weight_decay * y;
    momentum_buffer = momentum_buffer + (weight * g - friction * momentum_buffer);
    return -lr * (g + (momentum_buffer - friction * momentum_buffer));
  }
};

struct adamw {
  EMANEST_RULE("adamw", 2, 6);
  template <class T>
  EMANEST_INLINE static T apply(T y, T g, State<T>& state, const Numbers& numbers) {
    auto& [exp_avg, exp_avg_sq] = state;
    const auto& [step_size, decay, weight1, weight2, scale, eps] = numbers;
    exp_avg = (weight1 < 1.0_n) * exp_avg;
    exp_avg = exp_avg + weight1 * (g - exp_avg);
    exp_avg_sq = exp_avg_sq - weight2 * exp_avg_sq + weight2 * g * g;
    auto u = -step_size * exp_avg / (std::sqrt(exp_avg_sq) * scale + eps) - decay * y;
    return u;
  }
};

struct amsgrad {
  EMANEST_RULE("amsgrad", 3, 6);
  template <class T>
  EMANEST_INLINE static T apply(T y, T g, State<T>& state, const Numbers& numbers) {
    auto& [exp_avg, exp_avg_sq, max_exp_avg_sq] = state;
    const auto& [step_size, decay, weight1, weight2, scale, eps] = numbers;
    exp_avg = (weight1 < 1.0_n) * exp_avg;
    exp_avg = exp_avg + weight1 * (g - exp_avg);
    exp_avg_sq = exp_avg_sq - weight2 * exp_avg_sq + weight2 * g * g;
    auto grown = exp_avg_sq > max_exp_avg_sq;
    max_exp_avg_sq = grown * exp_avg_sq + (exp_avg_sq <= max_exp_avg_sq) * max_exp_avg_sq;
    auto u = -step_size * exp_avg / (std::sqrt(max_exp_avg_sq) * scale + eps) - decay * y;
    return u;
  }
};

struct direction {
  EMANEST_RULE("direction", 0, 2);
  template <class T>
  EMANEST_INLINE static T apply(T y, T g, State<T>&, const Numbers& numbers) {
    const auto& [step_size, decay] = numbers;
    return -step_size * g - decay * y;
  }
};

}  // namespace bases

// ---- momentum rules and row rules ---------------------------------------------------------------

namespace momenta {

struct ema {
  EMANEST_RULE("ema", 1, 2);
  template <class T>
  EMANEST_INLINE static T apply(T g, State<T>& state, const Numbers& numbers) {
    auto& [momentum_buffer] = state;
    const auto& [weight, blend] = numbers;
    momentum_buffer = (weight < 1.0_n) * momentum_buffer;
    momentum_buffer = momentum_buffer + weight * (g - momentum_buffer);
    return momentum_buffer + blend * (g - momentum_buffer);
  }
};

}  // namespace momenta

namespace rows {

struct normuon {
  EMANEST_RULE("normuon", 1, 2);
  template <class T>
  EMANEST_INLINE static T apply(T mean_square, State<T>& state, const Numbers& numbers) {
    auto& [second_momentum_buffer] = state;
    const auto& [weight, eps] = numbers;
    auto delta = mean_square - second_momentum_buffer;
    second_momentum_buffer = second_momentum_buffer + weight * delta;
    return 1.0_n / (std::sqrt(second_momentum_buffer) + eps);
  }
};

}  // namespace rows

// ---- lookahead rules ----------------------------------------------------------------------------

namespace lookaheads {

struct none {
  EMANEST_RULE("none", 0, 0);
  template <class T>
  EMANEST_INLINE static T apply(T w, T, State<T>&, const Numbers&) {
    return w;
  }
};

struct ema_nesterov {
  EMANEST_RULE("ema_nesterov", 1, 3);
  template <class T>
  EMANEST_INLINE static T apply(T w, T u, State<T>& state, const Numbers& numbers) {
    auto& [exp_avg_update] = state;
    const auto& [weight, lookahead, next_lookahead] = numbers;
    auto delta = lookahead * exp_avg_update + u;
    exp_avg_update = exp_avg_update + weight * (delta - exp_avg_update);
    return w + next_lookahead * exp_avg_update;
  }
};

struct nag {
  EMANEST_RULE("nag", 1, 2);
  template <class T>
  EMANEST_INLINE static T apply(T w, T u, State<T>& state, const Numbers& numbers) {
    auto& [velocity] = state;
    const auto& [lookahead, next_lookahead] = numbers;
    velocity = lookahead * velocity + u;
    return w + next_lookahead * velocity;
  }
};

struct lookahead {
  EMANEST_RULE("lookahead", 1, 1);
  template <class T>
  EMANEST_INLINE static T apply(T w, T, State<T>& state, const Numbers& numbers) {
    auto& [x] = state;
    const auto& [alpha] = numbers;
    auto near = (alpha < 0.5_n) * 1.0_n;
    x = near * x + (1.0_n - near) * w + (alpha - (1.0_n - near)) * (w - x);
    return x;
  }
};

struct long_horizon {
  EMANEST_RULE("long_horizon", 1, 1);
  template <class T>
  EMANEST_INLINE static T apply(T w, T, State<T>& state, const Numbers& numbers) {
    auto& [x] = state;
    const auto& [stepsize] = numbers;
    auto y = w + stepsize * (w - x);
    x = w;
    return y;
  }
};

struct snoo {
  EMANEST_RULE("snoo", 2, 2);
  template <class T>
  EMANEST_INLINE static T apply(T w, T, State<T>& state, const Numbers& numbers) {
    auto& [x, outer_momentum_buffer] = state;
    const auto& [outer_lr, outer_momentum] = numbers;
    auto delta = w - x;
    outer_momentum_buffer = outer_momentum * outer_momentum_buffer + delta;
    x = x + outer_lr * (delta + outer_momentum * outer_momentum_buffer);
    return x;
  }
};

struct gpa {
  EMANEST_RULE("gpa", 1, 3);
  template <class T>
  EMANEST_INLINE static T apply(T w, T u, State<T>& state, const Numbers& numbers) {
    auto& [z] = state;
    const auto& [weight, gain, decay] = numbers;
    auto shrinkage = decay * z;
    w = w - shrinkage;
    u = u - shrinkage;
    auto y = w + weight * (z - w) + gain * u;
    z = z + u;
    return y;
  }
};

struct extrapolate {
  EMANEST_RULE("extrapolate", 1, 1);
  template <class T>
  EMANEST_INLINE static T apply(T w, T, State<T>& state, const Numbers& numbers) {
    auto& [x] = state;
    const auto& [mu] = numbers;
    return w + mu * (w - x);
  }
};

struct anchor {
  EMANEST_RULE("anchor", 1, 0);
  template <class T>
  EMANEST_INLINE static T apply(T w, T, State<T>& state, const Numbers&) {
    auto& [x] = state;
    auto y = w;
    x = w;
    return y;
  }
};

}  // namespace lookaheads

// ---- between x and y ----------------------------------------------------------------------------

namespace points {

struct x_along {
  EMANEST_RULE("x_along", 1, 1);
  template <class T>
  EMANEST_INLINE static T apply(T y, const State<T>& state, const Numbers& numbers) {
    const auto& [m] = state;
    const auto& [lookahead] = numbers;
    return y - lookahead * m;
  }
};

struct y_along {
  EMANEST_RULE("y_along", 1, 1);
  template <class T>
  EMANEST_INLINE static T apply(T x, const State<T>& state, const Numbers& numbers) {
    const auto& [m] = state;
    const auto& [lookahead] = numbers;
    return x + lookahead * m;
  }
};

struct x_slow {
  EMANEST_RULE("x_slow", 1, 1);
  template <class T>
  EMANEST_INLINE static T apply(T, const State<T>& state, const Numbers&) {
    const auto& [x] = state;
    return x;
  }
};

struct x_between {
  EMANEST_RULE("x_between", 1, 1);
  template <class T>
  EMANEST_INLINE static T apply(T y, const State<T>& state, const Numbers& numbers) {
    const auto& [z] = state;
    const auto& [lookahead] = numbers;
    return y - lookahead * (z - y);
  }
};

struct y_between {
  EMANEST_RULE("y_between", 1, 1);
  template <class T>
  EMANEST_INLINE static T apply(T x, const State<T>& state, const Numbers& numbers) {
    const auto& [z] = state;
    const auto& [lookahead] = numbers;
    return x + lookahead / (1.0_n + lookahead) * (z - x);
  }
};

}  // namespace points

// ---- tables, in the order of rules.py -----------------------------------------------------------

using Base = std::variant<bases::sgd, bases::momentum, bases::nesterov, bases::adamw,
                          bases::amsgrad, bases::direction>;
using Momentum = std::variant<momenta::ema>;
using RowRule = std::variant<rows::normuon>;
using Lookahead = std::variant<lookaheads::none, lookaheads::ema_nesterov, lookaheads::nag,
                               lookaheads::lookahead, lookaheads::long_horizon, lookaheads::snoo,
                               lookaheads::gpa, lookaheads::extrapolate, lookaheads::anchor>;
using Point = std::variant<points::x_along, points::y_along, points::x_slow, points::x_between,
                           points::y_between>;

// the most state, and the most numbers, of a rule of a table
template <class Table>
struct Most;
template <class... Rules>
struct Most<std::variant<Rules...>> {
  static constexpr int states = std::max({Rules::states...});
  static constexpr int numbers = std::max({Rules::numbers...});
};

// columns of a call: state, and the factors that a row rule finds
constexpr int kStates = std::max({Most<Base>::states + Most<Lookahead>::states,
                                  Most<Momentum>::states, Most<RowRule>::states + 1,
                                  Most<Point>::states});
// numbers of a call: gradients have a factor besides the rules' own
constexpr int kNumbers = std::max({1 + Most<Base>::numbers + Most<Lookahead>::numbers,
                                   1 + Most<Momentum>::numbers, Most<RowRule>::numbers,
                                   Most<Point>::numbers});

// base update and lookahead: one optimizer step of one element
template <class T, class B, class L>
EMANEST_INLINE T step(T y, T g, typename B::template State<T>& base_state,
                      typename L::template State<T>& look_state,
                      const typename B::Numbers& base_numbers,
                      const typename L::Numbers& look_numbers) {
  T u = B::apply(y, g, base_state, base_numbers);
  return L::apply(y + u, u, look_state, look_numbers);
}

}  // namespace emanest
