// SPDX-License-Identifier: MIT
// Generated from emanest/rules.py, whose comments say why, by csrc/generate_rules.py: `make rules`
// writes it anew.
//
// A rule reads and writes its state in place and returns the update (bases), what is orthogonalised
// (momenta), a factor (rows, norms), the next gradient point (lookaheads), or the point moved to
// (points). T is float or double.
#pragma once

#include <cmath>
#include <variant>

#include "number.h"

namespace emanest {

// An average after a further gradient.
template <class T>
EMANEST_INLINE T averaged(T a, T g, Number weight) {
  a = (weight < Number(1.0)) * a;
  return a + weight * (g - a);
}

// An average of squares after a further gradient.
template <class T>
EMANEST_INLINE T averaged_squares(T a, T g, Number weight) {
  return a - weight * a + weight * g * g;
}

// A row's sum of squares after its factor.
template <class T>
EMANEST_INLINE T evened(T factor, T square) {
  return factor * factor * square;
}

namespace bases {

// Gradient descent; ``weight_decay`` is an L2 penalty, added to the gradient.
struct sgd {
  EMANEST_RULE("sgd", 0, 2);
  template <class T>
  EMANEST_INLINE static T apply(T y, T g, T*, const Numbers& numbers) {
    const auto& [lr, weight_decay] = numbers;
    return -lr * (g + weight_decay * y);
  }
};

// SGD with a momentum buffer (heavy ball); ``friction`` is 1 - momentum.
struct momentum {
  EMANEST_RULE("momentum", 1, 4);
  template <class T>
  EMANEST_INLINE static T apply(T y, T g, T* state, const Numbers& numbers) {
    T momentum_buffer = state[0];
    const auto& [lr, weight_decay, friction, weight] = numbers;
    g = g + weight_decay * y;
    momentum_buffer = momentum_buffer + (weight * g - friction * momentum_buffer);
    return leave(state, {momentum_buffer}, -lr * momentum_buffer);
  }
};

// SGD with Nesterov momentum in PyTorch's form: the buffer, then one step beyond it.
struct nesterov {
  EMANEST_RULE("nesterov", 1, 4);
  template <class T>
  EMANEST_INLINE static T apply(T y, T g, T* state, const Numbers& numbers) {
    T momentum_buffer = state[0];
    const auto& [lr, weight_decay, friction, weight] = numbers;
    g = g + weight_decay * y;
    momentum_buffer = momentum_buffer + (weight * g - friction * momentum_buffer);
    return leave(state, {momentum_buffer}, -lr * (g + (momentum_buffer - friction *
        momentum_buffer)));
  }
};

// AdamW; ``decay`` is lr * weight_decay, ``scale`` undoes the bias of the second moment.
struct adamw {
  EMANEST_RULE("adamw", 2, 6);
  template <class T>
  EMANEST_INLINE static T apply(T y, T g, T* state, const Numbers& numbers) {
    T exp_avg = state[0], exp_avg_sq = state[1];
    const auto& [step_size, decay, weight1, weight2, scale, eps] = numbers;
    exp_avg = averaged(exp_avg, g, weight1);
    exp_avg_sq = averaged_squares(exp_avg_sq, g, weight2);
    auto u = -step_size * exp_avg / (std::sqrt(exp_avg_sq) * scale + eps) - decay * y;
    return leave(state, {exp_avg, exp_avg_sq}, u);
  }
};

// AdamW that divides by the largest second moment so far.
struct amsgrad {
  EMANEST_RULE("amsgrad", 3, 6);
  template <class T>
  EMANEST_INLINE static T apply(T y, T g, T* state, const Numbers& numbers) {
    T exp_avg = state[0], exp_avg_sq = state[1], max_exp_avg_sq = state[2];
    const auto& [step_size, decay, weight1, weight2, scale, eps] = numbers;
    exp_avg = averaged(exp_avg, g, weight1);
    exp_avg_sq = averaged_squares(exp_avg_sq, g, weight2);
    auto grown = exp_avg_sq > max_exp_avg_sq;
    max_exp_avg_sq = grown * exp_avg_sq + (exp_avg_sq <= max_exp_avg_sq) * max_exp_avg_sq;
    auto u = -step_size * exp_avg / (std::sqrt(max_exp_avg_sq) * scale + eps) - decay * y;
    return leave(state, {exp_avg, exp_avg_sq, max_exp_avg_sq}, u);
  }
};

// Step along a direction that was computed elsewhere; the decay is decoupled.
struct direction {
  EMANEST_RULE("direction", 0, 2);
  template <class T>
  EMANEST_INLINE static T apply(T y, T g, T*, const Numbers& numbers) {
    const auto& [step_size, decay] = numbers;
    return -step_size * g - decay * y;
  }
};

}  // namespace bases

namespace momenta {

// Average gradients; ``blend`` moves the result on, towards the newest (Muon's "nesterov").
struct ema {
  EMANEST_RULE("ema", 1, 2);
  template <class T>
  EMANEST_INLINE static T apply(T g, T* state, const Numbers& numbers) {
    T momentum_buffer = state[0];
    const auto& [weight, blend] = numbers;
    momentum_buffer = averaged(momentum_buffer, g, weight);
    return leave(state, {momentum_buffer}, momentum_buffer + blend * (g - momentum_buffer));
  }
};

// Adam's direction, whose averages are those of ``adamw``: no bias is undone (SOAP).
struct adam {
  EMANEST_RULE("adam", 2, 3);
  template <class T>
  EMANEST_INLINE static T apply(T g, T* state, const Numbers& numbers) {
    T exp_avg = state[0], exp_avg_sq = state[1];
    const auto& [weight1, weight2, eps] = numbers;
    exp_avg = averaged(exp_avg, g, weight1);
    exp_avg_sq = averaged_squares(exp_avg_sq, g, weight2);
    return leave(state, {exp_avg, exp_avg_sq}, exp_avg / (std::sqrt(exp_avg_sq) + eps));
  }
};

}  // namespace momenta

namespace norms {

// Factor that gives a matrix its norm back; sums of squares before and after rows' factors.
struct kept {
  EMANEST_RULE("kept", 0, 1);
  template <class T>
  EMANEST_INLINE static T apply(T before, T after, const Numbers& numbers) {
    const auto& [eps] = numbers;
    return std::sqrt(before) / (std::sqrt(after) + eps);
  }
};

}  // namespace norms

namespace rows {

// Factor that evens rows out: one over the root of the average of their mean squares.
struct normuon {
  EMANEST_RULE("normuon", 1, 2);
  using norm = norms::kept;
  template <class T>
  EMANEST_INLINE static T apply(T mean_square, T* state, const Numbers& numbers) {
    T second_momentum_buffer = state[0];
    const auto& [weight, eps] = numbers;
    auto delta = mean_square - second_momentum_buffer;
    second_momentum_buffer = second_momentum_buffer + weight * delta;
    return leave(state, {second_momentum_buffer}, Number(1.0) / (std::sqrt(second_momentum_buffer)
        + eps));
  }
};

}  // namespace rows

namespace lookaheads {

// No lookahead: the next gradient is taken where the base optimizer arrived.
struct none {
  EMANEST_RULE("none", 0, 0);
  template <class T>
  EMANEST_INLINE static T apply(T w, T, T*, const Numbers&) {
    return w;
  }
};

// Look ahead along the average of past displacements (EMA-Nesterov).
struct ema_nesterov {
  EMANEST_RULE("ema_nesterov", 1, 3);
  template <class T>
  EMANEST_INLINE static T apply(T w, T u, T* state, const Numbers& numbers) {
    T exp_avg_update = state[0];
    const auto& [weight, lookahead, next_lookahead] = numbers;
    auto delta = lookahead * exp_avg_update + u;
    exp_avg_update = exp_avg_update + weight * (delta - exp_avg_update);
    return leave(state, {exp_avg_update}, w + next_lookahead * exp_avg_update);
  }
};

// Look ahead along the last displacement (Nesterov's accelerated gradient, canonical form).
struct nag {
  EMANEST_RULE("nag", 1, 2);
  template <class T>
  EMANEST_INLINE static T apply(T w, T u, T* state, const Numbers& numbers) {
    T velocity = state[0];
    const auto& [lookahead, next_lookahead] = numbers;
    velocity = lookahead * velocity + u;
    return leave(state, {velocity}, w + next_lookahead * velocity);
  }
};

// Pull the slow weights x towards the fast ones and restart from there (Lookahead).
struct lookahead {
  EMANEST_RULE("lookahead", 1, 1);
  template <class T>
  EMANEST_INLINE static T apply(T w, T, T* state, const Numbers& numbers) {
    T x = state[0];
    const auto& [alpha] = numbers;
    auto near = (alpha < Number(0.5)) * Number(1.0);
    x = near * x + (Number(1.0) - near) * w + (alpha - (Number(1.0) - near)) * (w - x);
    return leave(state, {x}, x);
  }
};

// Look ahead along the displacement since the last sync (long-horizon lookahead).
struct long_horizon {
  EMANEST_RULE("long_horizon", 1, 1);
  template <class T>
  EMANEST_INLINE static T apply(T w, T, T* state, const Numbers& numbers) {
    T x = state[0];
    const auto& [stepsize] = numbers;
    return leave(state, {w}, w + stepsize * (w - x));
  }
};

// One Nesterov SGD step of the slow weights on the displacement since the last sync (SNOO).
struct snoo {
  EMANEST_RULE("snoo", 2, 2);
  template <class T>
  EMANEST_INLINE static T apply(T w, T, T* state, const Numbers& numbers) {
    T x = state[0], outer_momentum_buffer = state[1];
    const auto& [outer_lr, outer_momentum] = numbers;
    auto delta = w - x;
    outer_momentum_buffer = outer_momentum * outer_momentum_buffer + delta;
    x = x + outer_lr * (delta + outer_momentum * outer_momentum_buffer);
    return leave(state, {x, outer_momentum_buffer}, x);
  }
};

// Average z into x and take gradients between the two (GPA; Schedule-Free).
struct gpa {
  EMANEST_RULE("gpa", 1, 3);
  template <class T>
  EMANEST_INLINE static T apply(T w, T u, T* state, const Numbers& numbers) {
    T z = state[0];
    const auto& [weight, gain, decay] = numbers;
    auto shrinkage = decay * z;
    w = w - shrinkage;
    u = u - shrinkage;
    return leave(state, {z + u}, w + weight * (z - w) + gain * u);
  }
};

// Move to the point whose gradient NALA takes next; the slow weights x stay.
struct extrapolate {
  EMANEST_RULE("extrapolate", 1, 1);
  template <class T>
  EMANEST_INLINE static T apply(T w, T, T* state, const Numbers& numbers) {
    T x = state[0];
    const auto& [mu] = numbers;
    return leave(state, {x}, w + mu * (w - x));
  }
};

// Make the point just reached the slow weights (the end of NALA's outer step).
struct anchor {
  EMANEST_RULE("anchor", 1, 0);
  template <class T>
  EMANEST_INLINE static T apply(T w, T, T* state, const Numbers&) {
    return leave(state, {w}, w);
  }
};

}  // namespace lookaheads

namespace points {

// Take back the lookahead along m.
struct x_along {
  EMANEST_RULE("x_along", 1, 1);
  template <class T>
  EMANEST_INLINE static T apply(T y, T* state, const Numbers& numbers) {
    T m = state[0];
    const auto& [lookahead] = numbers;
    return y - lookahead * m;
  }
};

// Look ahead along m.
struct y_along {
  EMANEST_RULE("y_along", 1, 1);
  template <class T>
  EMANEST_INLINE static T apply(T x, T* state, const Numbers& numbers) {
    T m = state[0];
    const auto& [lookahead] = numbers;
    return x + lookahead * m;
  }
};

// Read the slow weights.
struct x_slow {
  EMANEST_RULE("x_slow", 1, 1);
  template <class T>
  EMANEST_INLINE static T apply(T, T* state, const Numbers&) {
    T x = state[0];
    return x;
  }
};

// Extrapolate from z through y to x.
struct x_between {
  EMANEST_RULE("x_between", 1, 1);
  template <class T>
  EMANEST_INLINE static T apply(T y, T* state, const Numbers& numbers) {
    T z = state[0];
    const auto& [lookahead] = numbers;
    return y - lookahead * (z - y);
  }
};

// Interpolate between x and z.
struct y_between {
  EMANEST_RULE("y_between", 1, 1);
  template <class T>
  EMANEST_INLINE static T apply(T x, T* state, const Numbers& numbers) {
    T z = state[0];
    const auto& [lookahead] = numbers;
    return x + lookahead / (Number(1.0) + lookahead) * (z - x);
  }
};

}  // namespace points

// the tables, in the order of rules.py
using Base = std::variant<bases::sgd, bases::momentum, bases::nesterov, bases::adamw,
                          bases::amsgrad, bases::direction>;
using Momentum = std::variant<momenta::ema, momenta::adam>;
using Norm = std::variant<norms::kept>;
using RowRule = std::variant<rows::normuon>;
using Lookahead = std::variant<lookaheads::none, lookaheads::ema_nesterov, lookaheads::nag,
                               lookaheads::lookahead, lookaheads::long_horizon, lookaheads::snoo,
                               lookaheads::gpa, lookaheads::extrapolate, lookaheads::anchor>;
using Point = std::variant<points::x_along, points::y_along, points::x_slow, points::x_between,
                           points::y_between>;

// One whole optimizer step: gradient -> base update -> lookahead.
template <class T, class base, class lookahead>
EMANEST_INLINE T step(T y, T g, T* base_state, T* lookahead_state,
                      const typename base::Numbers& base_numbers,
                      const typename lookahead::Numbers& lookahead_numbers) {
  auto u = base::apply(y, g, base_state, base_numbers);
  y = lookahead::apply(y + u, u, lookahead_state, lookahead_numbers);
  return y;
}

// The lookahead after a step that another optimizer took, from a snapshot to w.
template <class T, class lookahead>
EMANEST_INLINE T follow(T w, T snapshot, T* state, const typename lookahead::Numbers& numbers) {
  return lookahead::apply(w, w - snapshot, state, numbers);
}

// From y to x, or back; the state is only read.
template <class T, class point>
EMANEST_INLINE T move(T y, T* state, const typename point::Numbers& numbers) {
  return point::apply(y, state, numbers);
}

// A gradient's momentum, before it is orthogonalised.
template <class T, class momentum>
EMANEST_INLINE T average(T g, T* state, const typename momentum::Numbers& numbers) {
  return momentum::apply(g, state, numbers);
}

}  // namespace emanest
