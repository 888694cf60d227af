// The CPU back end: one parallel region for a bucket, the work split by elements.
#include <atomic>

#include "cpu.h"

namespace emanest::cpu {
namespace {

// ---- loops over elements, each a formula of rules.h ----------------------------------------------

// What a loop is given: y, what stands beside it (gradient or snapshot), the state, the size; and a
// further factor of what stands beside, 1 where there is none.
template <class T>
using Loop = void (*)(const double* numbers, T factor, T* y, T* input, Addresses<T> state,
                      int64_t size);

template <class T, class B, class L>
EMANEST_CLONES void step_loop(const double* numbers, T factor, T* y, T* g, Addresses<T> state,
                              int64_t size) {
  const Number scale = numbers[0];
  typename B::Numbers base_numbers;
  typename L::Numbers lookahead_numbers;
  copy<B>(numbers + 1, base_numbers);
  copy<L>(numbers + 1 + B::numbers, lookahead_numbers);
  T* const* const look_from = state.data() + B::states;
#pragma GCC ivdep
  for (int64_t i = 0; i < size; i++) {
    Row<T, B::states> base_state;
    Row<T, L::states> lookahead_state;
    load<T, B>(base_state, state.data(), i);
    load<T, L>(lookahead_state, look_from, i);
    y[i] = emanest::step<T, B, L>(y[i], g[i] * scale * factor, base_state, lookahead_state,
                                  base_numbers, lookahead_numbers);
    store<T, B>(base_state, state.data(), i);
    store<T, L>(lookahead_state, look_from, i);
  }
}

template <class T, class L>
EMANEST_CLONES void follow_loop(const double* given, T, T* y, T* snapshot, Addresses<T> state,
                                int64_t size) {
  typename L::Numbers numbers;
  copy<L>(given, numbers);
#pragma GCC ivdep
  for (int64_t i = 0; i < size; i++) {
    Row<T, L::states> lookahead_state;
    load<T, L>(lookahead_state, state.data(), i);
    y[i] = snapshot[i] = emanest::follow<T, L>(y[i], snapshot[i], lookahead_state, numbers);
    store<T, L>(lookahead_state, state.data(), i);
  }
}

template <class T, class P>
EMANEST_CLONES void move_loop(const double* given, T, T* y, T*, Addresses<T> state, int64_t size) {
  typename P::Numbers numbers;
  copy<P>(given, numbers);
#pragma GCC ivdep
  for (int64_t i = 0; i < size; i++) {
    Row<T, P::states> point_state;
    load<T, P>(point_state, state.data(), i);
    y[i] = P::template apply<T>(y[i], point_state, numbers);
  }
}

template <class Bits, Bits exponent>
EMANEST_CLONES bool nonfinite_loop(const void* from, int64_t begin, int64_t end) {
  // all bits of the exponent are set in NaN and in infinities
  int found = 0;
  for (int64_t i = begin; i < end; i++) {
    found |= (static_cast<const Bits*>(from)[i] & exponent) == exponent;
  }
  return found;
}

// in the order of Dtype
bool (*const kNonfinite[])(const void*, int64_t, int64_t) = {
    nonfinite_loop<uint32_t, 0x7f800000u>,
    nonfinite_loop<uint64_t, 0x7ff0000000000000u>,
    nonfinite_loop<uint16_t, 0x7f80u>,
    nonfinite_loop<uint16_t, 0x7c00u>,
};

// ---- the work -----------------------------------------------------------------------------------

// Calls f(begin, end, factor) for those parts of a piece that share a scale.
template <class T, class F>
void for_each_run(const Tensors& t, int64_t begin, int64_t end, F f) {
  if (!t.scales) return f(begin, end, T(1));
  for (int64_t stop; begin < end; begin = stop) {
    const int64_t k = begin / t.run;
    stop = std::min(end, (k + 1) * t.run);
    f(begin, stop, static_cast<const T*>(t.scales)[k]);
  }
}

// T is the type of the arithmetic and of the state.
template <class T>
void run(Loop<T> loop, const Bucket& bucket, const double* numbers, bool writes_input = false) {
  const auto part = [&](const Tensors& t, int64_t begin, int64_t end, T factor) {
    Values<T> y(t.y, bucket.y_dtype, begin), input(t.input, t.input_dtype, begin);
    Addresses<T> state;
    for (int k = 0; k < kStates; k++) state[k] = static_cast<T*>(t.state[k]) + begin;
    const int64_t tile = y.wide() && input.wide() ? end - begin : kTile;
    for (int64_t size; begin < end; begin += size) {
      size = std::min(tile, end - begin);
      loop(numbers, factor, y.load(size), input.load(size), state, size);
      y.store(size);
      if (writes_input) input.store(size);
      y.advance(size);
      input.advance(size);
      for (T*& each : state) each += size;
    }
  };
  for_each_piece(bucket, [&](const Tensors& t, int64_t begin, int64_t end) {
    for_each_run<T>(t, begin, end, [&](int64_t from, int64_t to, T factor) {
      part(t, from, to, factor);
    });
  });
}

}  // namespace

void step(const Base& base, const Lookahead& lookahead, const Bucket& bucket,
          const double* numbers) {
  std::visit(
      [&](auto b, auto l) {
        using B = decltype(b);
        using L = decltype(l);
        bucket.in_double ? run<double>(step_loop<double, B, L>, bucket, numbers)
                         : run<float>(step_loop<float, B, L>, bucket, numbers);
      },
      base, lookahead);
}

void follow(const Lookahead& lookahead, const Bucket& bucket, const double* numbers) {
  std::visit(
      [&](auto l) {
        using L = decltype(l);
        bucket.in_double ? run<double>(follow_loop<double, L>, bucket, numbers, true)
                         : run<float>(follow_loop<float, L>, bucket, numbers, true);
      },
      lookahead);
}

void move(const Point& point, const Bucket& bucket, const double* numbers) {
  std::visit(
      [&](auto p) {
        using P = decltype(p);
        bucket.in_double ? run<double>(move_loop<double, P>, bucket, numbers)
                         : run<float>(move_loop<float, P>, bucket, numbers);
      },
      point);
}

bool nonfinite(const Bucket& bucket) {
  std::atomic<bool> found{false};
  for_each_piece(bucket, [&](const Tensors& t, int64_t begin, int64_t end) {
    if (found.load(std::memory_order_relaxed)) return;
    if (kNonfinite[int(t.input_dtype)](t.input, begin, end)) found.store(true);
  });
  return found.load();
}

}  // namespace emanest::cpu
