// The CPU's passes around Newton-Schulz: momenta before it, factors for rows after it.
#include <cmath>
#include <numeric>

#include "cpu.h"

namespace emanest::cpu {
namespace {

// of a sum of squares: partial sums within a block of elements, all in fixed places, so that neither
// threads nor vector widths change a bit
constexpr int kLanes = 16;
constexpr int64_t kBlock = 16384;

template <class T, class M>
EMANEST_CLONES void momentum_loop(const double* given, T* u, T* g, Addresses<T> state,
                                  int64_t size) {
  const Number scale = given[0];
  typename M::Numbers numbers;
  copy<M>(given + 1, numbers);
#pragma GCC ivdep
  for (int64_t i = 0; i < size; i++) {
    Row<T, M::states> momentum;
    load<T, M>(momentum, state.data(), i);
    u[i] = M::apply(g[i] * scale, momentum, numbers);
    store<T, M>(momentum, state.data(), i);
  }
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

// The sum of squares of a dense block; f(values, begin, size) is called for parts of it as T, which
// it may change, and which are stored if it is to `write`.
template <class T, class F>
double block_squares(Values<T>& values, int64_t begin, int64_t end, bool write, F f) {
  double lanes[kLanes] = {};
  // a multiple of the lanes: parts of a block continue each other
  static_assert(kTile % kLanes == 0);
  for (int64_t size; begin < end; begin += size) {
    size = std::min(kTile, end - begin);
    T* const part = f(values, begin, size);
    squares_loop(part, lanes, size);
    if (write) values.store(size);
    values.advance(size);
  }
  return std::accumulate(lanes, lanes + kLanes, 0.0);
}

template <class T, class M>
void momentum(const Bucket& bucket, const double* numbers, double* squares) {
  struct Block { size_t tensor; int64_t begin; };
  std::vector<Block> blocks;
  for (size_t i = 0; i < bucket.tensors.size(); i++) {
    for (int64_t begin = 0; begin < bucket.tensors[i].size; begin += kBlock) {
      blocks.push_back({i, begin});
    }
  }
  std::vector<double> sums(blocks.size());
  at::parallel_for(0, int64_t(blocks.size()), 1, [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; k++) {
      const Block block = blocks[size_t(k)];
      const Tensors& t = bucket.tensors[block.tensor];
      const int64_t end = std::min(t.size, block.begin + kBlock);
      Values<T> g(t.input, t.input_dtype, block.begin);
      const auto update = [&](Values<T>& u, int64_t begin, int64_t size) {
        Addresses<T> state;
        for (int j = 0; j < kStates; j++) state[j] = static_cast<T*>(t.state[j]) + begin;
        momentum_loop<T, M>(numbers, u.here(), g.load(size), state, size);
        g.advance(size);
        return u.here();
      };
      Values<T> u(t.y, bucket.y_dtype, block.begin);
      sums[size_t(k)] = block_squares<T>(u, block.begin, end, true, update);
    }
  });
  std::fill_n(squares, bucket.tensors.size(), 0.0);
  for (size_t k = 0; k < blocks.size(); k++) squares[blocks[k].tensor] += sums[k];
}

template <class T, class R>
void rows(const Bucket& bucket, const double* given) {
  using N = typename R::norm;
  typename R::Numbers numbers;
  typename N::Numbers norm_numbers;
  copy<R>(given, numbers);
  copy<N>(given + R::numbers - N::numbers, norm_numbers);
  std::vector<int64_t> firsts;
  int64_t total = 0;
  for (const Tensors& t : bucket.tensors) {
    firsts.push_back(total);
    total += t.size;
  }
  std::vector<double> squares(size_t(total), 0.0);
  const auto read = [](Values<double>& values, int64_t, int64_t size) { return values.load(size); };
  at::parallel_for(0, total, 16, [&](int64_t begin, int64_t end) {
    size_t i = size_t(std::upper_bound(firsts.begin(), firsts.end(), begin) - firsts.begin()) - 1;
    for (; begin < end; i++) {
      const Tensors& t = bucket.tensors[i];
      for (; begin < std::min(end, firsts[i] + t.size); begin++) {
        const int64_t start = (begin - firsts[i]) * t.run;
        Values<double> row(t.y, bucket.y_dtype, start);
        squares[size_t(begin)] = block_squares<double>(row, 0, t.run, false, read);
      }
    }
  });
  for (size_t i = 0; i < bucket.tensors.size(); i++) {
    const Tensors& t = bucket.tensors[i];
    const double* const sums = squares.data() + firsts[i];
    T* const factors = static_cast<T*>(t.state[R::states]);
    double before = 0, after = 0;
    for (int64_t k = 0; k < t.size; k++) {
      Row<T, R::states> state;
      load<T, R>(state, reinterpret_cast<T* const*>(t.state), k);
      factors[k] = R::apply(T(sums[k] / double(std::max<int64_t>(t.run, 1))), state, numbers);
      store<T, R>(state, reinterpret_cast<T* const*>(t.state), k);
      before += sums[k];
      after += evened(double(factors[k]), sums[k]);
    }
    const double kept = N::apply(before, after, norm_numbers);
    const T scale = *static_cast<const T*>(t.scales);
    for (int64_t k = 0; k < t.size; k++) factors[k] = T(factors[k] * kept) * scale;
  }
}

}  // namespace

void momentum(const Momentum& rule, const Bucket& bucket, const double* numbers, double* squares) {
  std::visit(
      [&](auto m) {
        using M = decltype(m);
        bucket.in_double ? momentum<double, M>(bucket, numbers, squares)
                         : momentum<float, M>(bucket, numbers, squares);
      },
      rule);
}

void rows(const RowRule& rule, const Bucket& bucket, const double* numbers) {
  std::visit(
      [&](auto r) {
        using R = decltype(r);
        bucket.in_double ? rows<double, R>(bucket, numbers) : rows<float, R>(bucket, numbers);
      },
      rule);
}

}  // namespace emanest::cpu
