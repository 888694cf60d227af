// SPDX-License-Identifier: MIT
// The CPU back end: one parallel region for a bucket, the work split by elements.
#include "cpu.h"

#include <atomic>
#include <cmath>
#include <numeric>

namespace emanest::cpu {
namespace {

// ---- an operation on every element --------------------------------------------------------------

// What a loop is given: numbers, a further factor of the input, 1 where there is none, and where the
// streams are.
template <class T>
using Loop = void (*)(const double* given, T factor, const Addresses<T>& at, int64_t size);

template <class Operation, class T = typename Operation::T>
EMANEST_CLONES void loop(const double* given, T factor, const Addresses<T>& at, int64_t size) {
  // copied to the stack: the compiler then knows that no store changes them
  typename Operation::Numbers numbers;
  copy<Operation::numbers>(given, numbers);
  const Addresses<T> streams = at;
#pragma GCC ivdep
  for (int64_t i = 0; i < size; i++) {
    typename Operation::Values values{};
    for (int k = 0; k < Operation::streams; k++) {
      if (has(Operation::reads, k)) values[k] = streams[k][i];
    }
    Operation::apply(values, factor, numbers);
    for (int k = 0; k < Operation::streams; k++) {
      if (has(Operation::writes, k)) streams[k][i] = values[k];
    }
  }
}

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

// T is the type of the arithmetic.
template <class T>
void run_loop(Loop<T> loop, const Bucket& bucket, const double* numbers, Set reads, Set writes) {
  for_each_piece(bucket, [&](const Tensors& t, int64_t first, int64_t last) {
    for_each_run<T>(t, first, last, [&](int64_t begin, int64_t end, T factor) {
      for_each_tile<T>(t, begin, end, reads, writes, [&](const Addresses<T>& at, int64_t size) {
        loop(numbers + t.numbers, factor, at, size);
      });
    });
  });
}

template <class Operation>
void perform(Operation, const Bucket& bucket, const double* numbers, void*) {
  run_loop<typename Operation::T>(loop<Operation>, bucket, numbers, Operation::reads,
                                  Operation::writes);
}

// ---- sums of squares: partial sums within a block of elements, all in fixed places, so that -------
// ---- neither threads nor vector widths change a bit ---------------------------------------------

constexpr int kLanes = 16;
// parts of a block continue each other
static_assert(kTile % kLanes == 0);
constexpr int64_t kBlock = 16384;

// How many of some items, that have so many elements in all, are worth a thread.
int64_t grain(size_t items, int64_t elements) {
  return std::max<int64_t>(1, int64_t(items) * kBlock / std::max<int64_t>(elements, 1));
}

// Adds squares to lanes, of which element i has lane i % kLanes: sums in one order, in vectors.
template <class T>
EMANEST_CLONES void squares_loop(const T* from, double* to, int64_t size) {
  double lanes[kLanes];
  for (int j = 0; j < kLanes; j++) lanes[j] = to[j];
  const int64_t even = size - size % kLanes;
  for (int64_t i = 0; i < even; i += kLanes) {
    for (int j = 0; j < kLanes; j++) lanes[j] += double(from[i + j]) * double(from[i + j]);
  }
  for (int64_t i = even; i < size; i++) lanes[i - even] += double(from[i]) * double(from[i]);
  for (int j = 0; j < kLanes; j++) to[j] = lanes[j];
}

template <class T, class M>
void perform(Average<T, M> average, const Bucket& bucket, const double* numbers, void* out) {
  if (!out) {
    return run_loop<T>(loop<Average<T, M>>, bucket, numbers, average.reads, average.writes);
  }
  struct Block { size_t tensor; int64_t begin; };
  std::vector<Block> blocks;
  int64_t total = 0;
  for (size_t i = 0; i < bucket.tensors.size(); i++) {
    for (int64_t begin = 0; begin < bucket.tensors[i].size; begin += kBlock) {
      blocks.push_back({i, begin});
    }
    total += bucket.tensors[i].size;
  }
  std::vector<double> sums(blocks.size());
  const int64_t worth = grain(blocks.size(), total);
  at::parallel_for(0, int64_t(blocks.size()), worth, [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; k++) {
      const Block block = blocks[size_t(k)];
      const Tensors& t = bucket.tensors[block.tensor];
      const int64_t stop = std::min(t.size, block.begin + kBlock);
      double lanes[kLanes] = {};
      const auto update = [&](const Addresses<T>& at, int64_t size) {
        loop<Average<T, M>>(numbers + t.numbers, T(1), at, size);
        // a loop that summed its squares would not be in vectors; here updates are in the cache
        squares_loop(at[kY], lanes, size);
      };
      for (int64_t begin = block.begin; begin < stop; begin += kTile) {
        const int64_t end = std::min(stop, begin + kTile);
        for_each_tile<T>(t, begin, end, average.reads, average.writes, update);
      }
      sums[size_t(k)] = std::accumulate(lanes, lanes + kLanes, 0.0);
    }
  });
  auto* const squares = static_cast<double*>(out);
  std::fill_n(squares, bucket.tensors.size(), 0.0);
  for (size_t k = 0; k < blocks.size(); k++) squares[blocks[k].tensor] += sums[k];
}

template <class T, class R>
void perform(Rows<T, R>, const Bucket& bucket, const double* given, void*) {
  std::vector<int64_t> firsts;
  int64_t total = 0, elements = 0;
  for (const Tensors& t : bucket.tensors) {
    firsts.push_back(total);
    total += t.size;
    elements += t.size * t.run;
  }
  std::vector<double> squares(size_t(total), 0.0);
  at::parallel_for(0, total, grain(size_t(total), elements), [&](int64_t begin, int64_t end) {
    size_t i = size_t(std::upper_bound(firsts.begin(), firsts.end(), begin) - firsts.begin()) - 1;
    for (; begin < end; i++) {
      const Tensors& t = bucket.tensors[i];
      for (; begin < std::min(end, firsts[i] + t.size); begin++) {
        const int64_t start = (begin - firsts[i]) * t.run;
        double lanes[kLanes] = {};
        const auto add = [&](const Addresses<double>& at, int64_t size) {
          squares_loop(at[kY], lanes, size);
        };
        for_each_tile<double>(t, start, start + t.run, only(kY), 0, add);
        squares[size_t(begin)] = std::accumulate(lanes, lanes + kLanes, 0.0);
      }
    }
  });
  for (size_t i = 0; i < bucket.tensors.size(); i++) {
    const Tensors& t = bucket.tensors[i];
    const double* const sums = squares.data() + firsts[i];
    typename R::Numbers numbers;
    copy<R::numbers>(given + t.numbers, numbers);
    T* const factors = t.as<T>(kState + R::states);
    double before = 0, after = 0;
    for (int64_t k = 0; k < t.size; k++) {
      Row<T, R::states> state;
      for (int j = 0; j < R::states; j++) state[j] = t.as<T>(kState + j)[k];
      factors[k] = R::apply(T(sums[k] / double(std::max<int64_t>(t.run, 1))), state, numbers);
      for (int j = 0; j < R::states; j++) t.as<T>(kState + j)[k] = state[j];
      before += sums[k];
      after += evened(double(factors[k]), sums[k]);
    }
    const double kept = Rows<T, R>::kept(before, after, numbers);
    const T scale = *static_cast<const T*>(t.scales);
    for (int64_t k = 0; k < t.size; k++) factors[k] = T(factors[k] * kept) * scale;
  }
}

// ---- NaN and infinities -------------------------------------------------------------------------

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

template <class T>
void perform(Nonfinite<T>, const Bucket& bucket, const double*, void* out) {
  std::atomic<bool> found{false};
  for_each_piece(bucket, [&](const Tensors& t, int64_t begin, int64_t end) {
    if (found.load(std::memory_order_relaxed)) return;
    if (kNonfinite[int(t.dtype[kInput])](t.address[kInput], begin, end)) found.store(true);
  });
  *static_cast<float*>(out) = found.load();
}

}  // namespace

void run(const Pass& pass, const Bucket& bucket, const double* numbers, void* out) {
  visit(pass, bucket.in_double, [&](auto each) { perform(each, bucket, numbers, out); });
}

}  // namespace emanest::cpu
