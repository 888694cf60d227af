// SPDX-License-Identifier: MIT
// What one thread of a GPU does. A CPU can do it too: a test runs all of it there.
#pragma once

#include "values.h"

namespace emanest::device {

// Numbers by value, or in the memory of the device, where tensors may have their own.
struct Given {
  double values[kNumbers];
  const double* vector;

  template <int count>
  EMANEST_INLINE void load(const Tensors& tensors, Number* to) const {
    for (int k = 0; k < count; k++) to[k] = vector ? vector[tensors.numbers + k] : values[k];
  }
};

// threads of a block
constexpr int kThreads = 256;
// elements that a block takes, all of one tensor
constexpr int64_t kChunk = 8192;

// One parameter, and the first of its chunks.
struct alignas(16) Entry {
  Tensors tensors;
  int64_t first;
};

// Elements, from `begin` on, of a parameter: as many as a table's chunks have, fewer at its end.
struct alignas(16) Chunk {
  int64_t entry;
  int64_t begin;
};

// Where the tensors are, in the memory of the device. Block i takes chunk i.
struct Table {
  Entry* entries;
  Chunk* chunks;
  int64_t length = kChunk;  // elements of a chunk; of a table for `Rows`, rows
  const float* skip = nullptr;  // nothing is done to the tensors unless this is 0, or null

  EMANEST_INLINE bool skipped() const { return skip && *skip != 0; }

  EMANEST_INLINE int64_t chunks_of(const Tensors& tensors) const {
    return (tensors.size + length - 1) / length;
  }
};

// What follows are kernels: functions of the numbers of a block and of a thread in it.

// The elements that a block takes of a tensor.
struct Range {
  EMANEST_INLINE Range(const Chunk& chunk, const Tensors& tensors)
      : begin(chunk.begin),
        end(tensors.size - begin < kChunk ? tensors.size : begin + kChunk) {}

  int64_t begin, end;
};

// An operation on every element of all tensors. Squares are summed by thread.
template <class Operation>
struct Elements {
  using T = typename Operation::T;
  using Numbers = typename Operation::Numbers;
  static constexpr int count = Operation::streams;

  struct Streams {
    EMANEST_INLINE Values<T> operator[](int k) const {
      return {tensors.address[k], has(Operation::plain, k) ? dtype_as<T> : tensors.dtype[k]};
    }

    // The factors of elements that follow each other.
    class Factors {
     public:
      EMANEST_INLINE Factors(const Tensors& t, int64_t i)
          : scales_(global(static_cast<const T*>(t.scales))), run_(t.run), k_(i / run_),
            next_((k_ + 1) * run_) {}

      EMANEST_INLINE T at(int64_t i) {
        for (; i >= next_; next_ += run_) k_++;
        return scales_[k_];
      }

     private:
      const T* scales_;
      int64_t run_, k_, next_;
    };

    EMANEST_INLINE bool in_fours() const {
      bool all = true;
      for (int k = 0; k < count; k++) {
        if (has(Operation::reads | Operation::writes, k)) all = all && (*this)[k].in_fours();
      }
      return all;
    }

    // copied: the compiler cannot know that no store changes it
    Tensors tensors;
  };

  EMANEST_INLINE void operator()(int64_t block, int thread) const {
    if (table.skipped()) return;
    double squares = 0;
    const Chunk chunk = table.chunks[block];
    const Streams streams{table.entries[chunk.entry].tensors};
    Numbers numbers;
    given.load<Operation::numbers>(streams.tensors, numbers);
    const Range range(chunk, streams.tensors);
    int64_t rest = range.begin;
    // float64 is rare on GPUs: half of the code is not worth it
    if constexpr (std::is_same_v<T, float>) {
      if (streams.in_fours()) {
        rest = range.end - range.end % 4;
        for (int64_t i = range.begin + thread * 4; i < rest; i += kThreads * 4) {
          four(streams, i, numbers, squares);
        }
      }
    }
    for (int64_t i = rest + thread; i < range.end; i += kThreads) {
      one(streams, i, numbers, squares);
    }
    if constexpr (Operation::squared) {
      if (parts) parts[block * kThreads + thread] = squares;
    }
  }

  EMANEST_INLINE static void one(const Streams& streams, int64_t i, const Numbers& numbers,
                                 double& squares) {
    typename Operation::Values values{};
    T factor(1);
    for (int k = 0; k < count; k++) {
      if (has(Operation::reads, k)) values[k] = streams[k].load(i);
    }
    if constexpr (Operation::scaled) {
      if (streams.tensors.scales) factor = typename Streams::Factors(streams.tensors, i).at(i);
    }
    Operation::apply(values, factor, numbers);
    if constexpr (Operation::squared) squares += double(values[kY]) * double(values[kY]);
    for (int k = 0; k < count; k++) {
      if (has(Operation::writes, k)) streams[k].store(i, values[k]);
    }
  }

  EMANEST_INLINE static void four(const Streams& streams, int64_t i, const Numbers& numbers,
                                  double& squares) {
    Words words[count];
    T fours[count][4]{}, factors[4] = {1, 1, 1, 1};
    for (int k = 0; k < count; k++) {
      if (has(Operation::reads, k)) words[k] = streams[k].load_four(i);
    }
    for (int k = 0; k < count; k++) {
      if (has(Operation::reads, k)) streams[k].widen_four(words[k], fours[k]);
    }
    if constexpr (Operation::scaled) {
      if (streams.tensors.scales) {
        typename Streams::Factors found(streams.tensors, i);
        for (int j = 0; j < 4; j++) factors[j] = found.at(i + j);
      }
    }
    for (int j = 0; j < 4; j++) {
      typename Operation::Values values;
      for (int k = 0; k < count; k++) values[k] = fours[k][j];
      Operation::apply(values, factors[j], numbers);
      if constexpr (Operation::squared) squares += double(values[kY]) * double(values[kY]);
      for (int k = 0; k < count; k++) fours[k][j] = values[k];
    }
    for (int k = 0; k < count; k++) {
      if (has(Operation::writes, k)) streams[k].store_four(i, fours[k]);
    }
  }

  Table table;
  Given given;
  double* parts;  // of sums of squares; null: they are not wanted
};

// Whether a gradient holds NaN or an infinity; `found` was 0 before.
struct FindNonfinite {
  EMANEST_INLINE void operator()(int64_t block, int thread) const {
    const Chunk chunk = table.chunks[block];
    const Tensors& tensors = table.entries[chunk.entry].tensors;
    const Range range(chunk, tensors);
    const void* from = tensors.address[kInput];
    bool bad = false;
    // all bits of the exponent are set in NaN and in infinities
    switch (tensors.dtype[kInput]) {
      case Dtype::float32: bad = any<uint32_t, 0x7f800000>(from, range, thread); break;
      case Dtype::float64: bad = any<uint64_t, 0x7ff0000000000000>(from, range, thread); break;
      case Dtype::bfloat16: bad = any<uint16_t, 0x7f80>(from, range, thread); break;
      case Dtype::float16: bad = any<uint16_t, 0x7c00>(from, range, thread); break;
    }
    if (bad) *found = 1;
  }

  template <class Bits, Bits exponent>
  EMANEST_INLINE static bool any(const void* memory, const Range& range, int thread) {
    constexpr int width = sizeof(Words) / sizeof(Bits);
    struct alignas(Words) Group { Bits bits[width]; };
    const auto* from = global(static_cast<const Bits*>(memory));
    bool bad = false;
    int64_t rest = range.begin;
    if (reinterpret_cast<uintptr_t>(from) % sizeof(Words) == 0) {
      rest = range.end - range.end % width;
      for (int64_t i = range.begin + thread * width; i < rest; i += kThreads * width) {
        const Group group = *reinterpret_cast<const Group*>(from + i);
        for (Bits bits : group.bits) bad |= (bits & exponent) == exponent;
      }
    }
    for (int64_t i = rest + thread; i < range.end; i += kThreads) {
      bad |= (from[i] & exponent) == exponent;
    }
    return bad;
  }

  Table table;
  float* found;
};

// Entries travel as arguments of a launch: there is no buffer on the host that must not be written
// before it has been read, and a captured graph has its own copy. A launch takes 4 KB, of which an
// address and a count take one unit of alignment.
constexpr int kBatch = int((4096 - alignof(Entry)) / sizeof(Entry));

struct WriteEntries {
  EMANEST_INLINE void operator()(int64_t, int thread) const {
    if (thread < count) to[thread] = entries[thread];
  }

  Entry entries[kBatch];
  Entry* to;
  int count;
};

// A block for each parameter.
struct WriteChunks {
  EMANEST_INLINE void operator()(int64_t block, int thread) const {
    const Entry& entry = table.entries[block];
    const int64_t count = table.chunks_of(entry.tensors);
    for (int64_t i = thread; i < count; i += kThreads) {
      table.chunks[entry.first + i] = {block, i * table.length};
    }
  }

  Table table;
};

}  // namespace emanest::device
