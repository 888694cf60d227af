// The CPU back end: one parallel region for a bucket, the work split by elements.
#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <stdexcept>
#include <string>

#include "clones.h"
#include "convert.h"
#include "step.h"

namespace emanest::cpu {
namespace {

// elements converted at a time: two buffers of this size stay in the first-level cache
constexpr int64_t kTile = 2048;
// elements worth a thread
constexpr int64_t kGrain = 32768;

template <class T>
using Addresses = std::array<T*, kStates>;

// ---- loops over elements, each a formula of rules.h ----------------------------------------------

// The numbers are copied to the stack: the compiler then knows that no store changes them.
template <class Rule>
EMANEST_INLINE void copy(const double* from, typename Rule::Numbers& to) {
  for (int k = 0; k < Rule::numbers; k++) to[k] = from[k];
}

template <class T, class Rule>
EMANEST_INLINE void load(Row<T, Rule::states>& state, T* const* from, int64_t i) {
  for (int k = 0; k < Rule::states; k++) state[k] = from[k][i];
}

template <class T, class Rule>
EMANEST_INLINE void store(const Row<T, Rule::states>& state, T* const* to, int64_t i) {
  for (int k = 0; k < Rule::states; k++) to[k][i] = state[k];
}

// What a loop is given: y, what stands beside it (gradient or snapshot), the state, the size.
template <class T>
using Loop = void (*)(const double* numbers, T* y, T* beside, Addresses<T> state, int64_t size);

template <class T, class B, class L>
EMANEST_CLONES void step_loop(const double* numbers, T* y, T* g, Addresses<T> state,
                              int64_t size) {
  const Number scale = numbers[0];
  typename B::Numbers base_numbers;
  typename L::Numbers look_numbers;
  copy<B>(numbers + 1, base_numbers);
  copy<L>(numbers + 1 + B::numbers, look_numbers);
  T* const* const look_from = state.data() + B::states;
#pragma GCC ivdep
  for (int64_t i = 0; i < size; i++) {
    Row<T, B::states> base_state;
    Row<T, L::states> look_state;
    load<T, B>(base_state, state.data(), i);
    load<T, L>(look_state, look_from, i);
    y[i] = step<T, B, L>(y[i], g[i] * scale, base_state, look_state, base_numbers, look_numbers);
    store<T, B>(base_state, state.data(), i);
    store<T, L>(look_state, look_from, i);
  }
}

template <class T, class L>
EMANEST_CLONES void follow_loop(const double* given, T* y, T* snapshot, Addresses<T> state,
                                int64_t size) {
  typename L::Numbers numbers;
  copy<L>(given, numbers);
#pragma GCC ivdep
  for (int64_t i = 0; i < size; i++) {
    Row<T, L::states> look_state;
    load<T, L>(look_state, state.data(), i);
    y[i] = snapshot[i] = L::apply(y[i], y[i] - snapshot[i], look_state, numbers);
    store<T, L>(look_state, state.data(), i);
  }
}

template <class T, class P>
EMANEST_CLONES void move_loop(const double* given, T* y, T*, Addresses<T> state, int64_t size) {
  typename P::Numbers numbers;
  copy<P>(given, numbers);
#pragma GCC ivdep
  for (int64_t i = 0; i < size; i++) {
    Row<T, P::states> point_state;
    load<T, P>(point_state, state.data(), i);
    y[i] = P::template apply<T>(y[i], point_state, numbers);
  }
}

// ---- formats ------------------------------------------------------------------------------------

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

template <class From, class T>
EMANEST_CLONES void widen_loop(const void* from, T* to, int64_t size) {
  for (int64_t i = 0; i < size; i++) to[i] = T(widen(static_cast<const From*>(from)[i]));
}

template <class To, class T>
EMANEST_CLONES void narrow_loop(const T* from, void* to, int64_t size) {
  for (int64_t i = 0; i < size; i++) static_cast<To*>(to)[i] = narrow<To>(float(from[i]));
}

template <class T>
struct Format {
  int64_t itemsize;
  void (*widen)(const void* from, T* to, int64_t size);
  void (*narrow)(const T* from, void* to, int64_t size);
};

// in the order of Dtype
template <class T>
const Format<T> kFormats[] = {
    {sizeof(float), widen_loop<float, T>, narrow_loop<float, T>},
    {sizeof(double), widen_loop<double, T>, nullptr},
    {sizeof(bfloat16), widen_loop<bfloat16, T>, narrow_loop<bfloat16, T>},
    {sizeof(float16), widen_loop<float16, T>, narrow_loop<float16, T>},
};

// Values of any format as T: in place if that is what they are, else in a buffer.
template <class T>
class Values {
 public:
  Values(void* memory, Dtype dtype, int64_t begin)
      : format_(kFormats<T>[int(dtype)]),
        wide_(dtype == (std::is_same_v<T, double> ? Dtype::float64 : Dtype::float32)),
        memory_(memory ? static_cast<char*>(memory) + begin * format_.itemsize : nullptr) {}

  bool wide() const { return wide_ || !memory_; }

  T* load(int64_t size) {
    if (wide()) return reinterpret_cast<T*>(memory_);
    format_.widen(memory_, buffer_, size);
    return buffer_;
  }

  void store(int64_t size) {
    if (!wide()) format_.narrow(buffer_, memory_, size);
  }

  void advance(int64_t size) {
    if (memory_) memory_ += size * format_.itemsize;
  }

 private:
  const Format<T>& format_;
  const bool wide_;
  char* memory_;
  T buffer_[kTile];
};

// ---- the work -----------------------------------------------------------------------------------

// The hardware sees a stream coming only after its first lines, which many small tensors are made of.
void prefetch(const Tensors& t) {
  const auto lines = [](const void* from) {
    for (int line = 0; line < 4; line++) {
      __builtin_prefetch(static_cast<const char*>(from) + 64 * line);
    }
  };
  lines(t.y);
  lines(t.beside);
  for (const void* each : t.state) lines(each);
}

// Calls f(tensors, begin, end) for pieces of all tensors, from as many threads as torch uses.
template <class F>
void for_each_piece(const Bucket& bucket, F f) {
  const auto& tensors = bucket.tensors;
  std::vector<int64_t> ends(tensors.size());
  int64_t total = 0;
  for (size_t i = 0; i < tensors.size(); i++) ends[i] = total += tensors[i].size;
  at::parallel_for(0, total, kGrain, [&](int64_t begin, int64_t end) {
    size_t i = std::upper_bound(ends.begin(), ends.end(), begin) - ends.begin();
    for (; begin < end; i++) {
      const int64_t start = ends[i] - tensors[i].size;
      const int64_t stop = std::min(end, ends[i]);
      if (i + 1 < tensors.size()) prefetch(tensors[i + 1]);
      if (begin < stop) f(tensors[i], begin - start, stop - start);
      begin = std::max(begin, stop);
    }
  });
}

// T is the type of the arithmetic and of the state.
template <class T>
void run(Loop<T> loop, const Bucket& bucket, const double* numbers, bool writes_beside = false) {
  for_each_piece(bucket, [&](const Tensors& t, int64_t begin, int64_t end) {
    Values<T> y(t.y, bucket.y_dtype, begin), beside(t.beside, t.beside_dtype, begin);
    Addresses<T> state;
    for (int k = 0; k < kStates; k++) state[k] = static_cast<T*>(t.state[k]) + begin;
    const int64_t tile = y.wide() && beside.wide() ? end - begin : kTile;
    for (int64_t size; begin < end; begin += size) {
      size = std::min(tile, end - begin);
      loop(numbers, y.load(size), beside.load(size), state, size);
      y.store(size);
      if (writes_beside) beside.store(size);
      y.advance(size);
      beside.advance(size);
      for (T*& each : state) each += size;
    }
  });
}

}  // namespace

void step(const Base& base, const Lookahead& look, const Bucket& bucket, const double* numbers) {
  std::visit(
      [&](auto b, auto l) {
        using B = decltype(b);
        using L = decltype(l);
        bucket.in_double ? run<double>(step_loop<double, B, L>, bucket, numbers)
                         : run<float>(step_loop<float, B, L>, bucket, numbers);
      },
      base, look);
}

void follow(const Lookahead& look, const Bucket& bucket, const double* numbers) {
  std::visit(
      [&](auto l) {
        using L = decltype(l);
        bucket.in_double ? run<double>(follow_loop<double, L>, bucket, numbers, true)
                         : run<float>(follow_loop<float, L>, bucket, numbers, true);
      },
      look);
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
    if (kNonfinite[int(t.beside_dtype)](t.beside, begin, end)) found.store(true);
  });
  return found.load();
}

}  // namespace emanest::cpu
