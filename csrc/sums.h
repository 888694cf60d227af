// SPDX-License-Identifier: MIT
// Sums over a tensor or a row, in launches that need no synchronisation within a block: each thread
// leaves its part, and the next launch adds the parts in their order.
#pragma once

#include "kernels.h"

namespace emanest::device {

// The parts of a tensor's chunks, thread by thread; a block for each tensor. The sums replace the
// parts of its first chunk.
struct SumChunks {
  EMANEST_INLINE void operator()(int64_t block, int thread) const {
    const Entry& entry = table.entries[block];
    const int64_t chunks = table.chunks_of(entry.tensors);
    if (table.skipped() || !chunks) return;
    double* const own = parts + entry.first * kThreads + thread;
    double sum = 0;
    for (int64_t k = 0; k < chunks; k++) sum += own[k * kThreads];
    *own = sum;
  }

  Table table;
  double* parts;
};

// Then the threads' sums; a block for each tensor.
struct SumThreads {
  EMANEST_INLINE void operator()(int64_t block, int thread) const {
    if (table.skipped() || thread != 0) return;
    const Entry& entry = table.entries[block];
    const double* const own = parts + entry.first * kThreads;
    double sum = 0;
    for (int k = 0; k < (entry.tensors.size ? kThreads : 0); k++) sum += own[k];
    sums[block] = sum;
  }

  Table table;
  const double* parts;
  double* sums;
};

// ---- rows: y is a matrix, `size` counts its rows, `run` the elements of one ---------------------

// threads that share a row, and rows of a block
constexpr int kSharers = 32, kRows = kThreads / kSharers;

// The squares of a row: a part for each thread that shares it.
struct RowSquares {
  EMANEST_INLINE void operator()(int64_t block, int thread) const {
    if (table.skipped()) return;
    const Chunk chunk = table.chunks[block];
    const Tensors& tensors = table.entries[chunk.entry].tensors;
    const int64_t row = chunk.begin + thread / kSharers;
    if (row >= tensors.size) return;
    const Values<double> values(tensors.address[kY], tensors.dtype[kY]);
    double sum = 0;
    for (int64_t j = thread % kSharers; j < tensors.run; j += kSharers) {
      const double value = values.load(row * tensors.run + j);
      sum += value * value;
    }
    parts[block * kThreads + thread] = sum;
  }

  Table table;
  double* parts;
};

// What a block leaves of a matrix.
struct Norms { double before, after; };

// The row rule, and each thread's part of the norms before and after it; a block for each matrix.
template <class T, class R>
struct RowFactors {
  EMANEST_INLINE void operator()(int64_t block, int thread) const {
    if (table.skipped()) return;
    const Entry& entry = table.entries[block];
    const Tensors& tensors = entry.tensors;
    typename R::Numbers numbers;
    given.load<R::numbers>(tensors, numbers);
    T* const factors = tensors.as<T>(kState + R::states);
    Norms part{0, 0};
    for (int64_t row = thread; row < tensors.size; row += kThreads) {
      const double* const own = parts + (entry.first * kRows + row) * kSharers;
      double sum = 0;
      for (int k = 0; k < kSharers; k++) sum += own[k];
      Row<T, R::states> state;
      for (int k = 0; k < R::states; k++) state[k] = tensors.as<T>(kState + k)[row];
      const int64_t columns = tensors.run > 0 ? tensors.run : 1;
      const T factor = R::apply(T(sum / double(columns)), state, numbers);
      for (int k = 0; k < R::states; k++) tensors.as<T>(kState + k)[row] = state[k];
      factors[row] = factor;
      part.before += sum;
      part.after += evened(double(factor), sum);
    }
    norms[block * kThreads + thread] = part;
  }

  Table table;
  Given given;
  const double* parts;
  Norms* norms;
};

// Keeps the norm of a matrix and applies its scale; a block for each matrix.
template <class T, class R>
struct KeepNorms {
  EMANEST_INLINE void operator()(int64_t block, int thread) const {
    if (table.skipped()) return;
    const Tensors& tensors = table.entries[block].tensors;
    T* const factors = tensors.as<T>(kState + R::states);
    Norms sum{0, 0};
    for (int k = 0; k < kThreads; k++) {
      sum.before += norms[block * kThreads + k].before;
      sum.after += norms[block * kThreads + k].after;
    }
    typename R::Numbers numbers;
    given.load<R::numbers>(tensors, numbers);
    const double kept = Rows<T, R>::kept(sum.before, sum.after, numbers);
    const T scale = *static_cast<const T*>(tensors.scales);
    for (int64_t row = thread; row < tensors.size; row += kThreads) {
      factors[row] = T(double(factors[row]) * kept) * scale;
    }
  }

  Table table;
  Given given;
  const Norms* norms;
};

}  // namespace emanest::device
