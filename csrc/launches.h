// SPDX-License-Identifier: MIT
// A call of a back end as launches of kernels, for whatever launches them: a GPU, or a test.
#pragma once

#include <algorithm>
#include <functional>
#include <memory>

#include "sums.h"

namespace emanest::device {

using Memory = std::shared_ptr<void>;
using Allocate = std::function<Memory(size_t bytes)>;

// The table of a bucket in the memory of a device, kept up to date.
class Tables {
 public:
  // launch(kernel, blocks): entries that changed are sent; all of them, and chunks, if a size did.
  // The length of chunks is always the same.
  template <class Launch>
  Table update(const std::vector<Tensors>& tensors, const Allocate& allocate,
               const Launch& launch, int64_t length = kChunk) {
    table_.length = length;
    // forgotten until everything is sent: an error in between leaves nothing half known
    const std::vector<Tensors> known = std::move(known_);
    known_.clear();
    const bool fits = same_sizes(known, tensors);
    if (!fits) lay_out(tensors, allocate);
    size_t first = 0, last = tensors.size();
    if (fits) {
      while (first < last && same(known[first], tensors[first])) first++;
      while (first < last && same(known[last - 1], tensors[last - 1])) last--;
    }
    WriteEntries batch{};
    for (; first < last; first += batch.count) {
      batch.count = int(std::min(last - first, size_t(kBatch)));
      batch.to = table_.entries + first;
      for (int k = 0; k < batch.count; k++) {
        batch.entries[k] = {tensors[first + k], firsts_[first + k]};
      }
      launch(batch, 1);
    }
    if (!fits && chunks_) launch(WriteChunks{table_}, int64_t(tensors.size()));
    known_ = tensors;
    return table_;
  }

  int64_t chunks() const { return chunks_; }

 private:
  void lay_out(const std::vector<Tensors>& tensors, const Allocate& allocate) {
    firsts_.clear();
    chunks_ = 0;
    for (const Tensors& each : tensors) {
      firsts_.push_back(chunks_);
      chunks_ += table_.chunks_of(each);
    }
    const size_t bytes = tensors.size() * sizeof(Entry);
    memory_ = allocate(bytes + size_t(chunks_) * sizeof(Chunk));
    auto* begin = static_cast<char*>(memory_.get());
    table_.entries = reinterpret_cast<Entry*>(begin);
    table_.chunks = reinterpret_cast<Chunk*>(begin + bytes);
  }

  static bool same_sizes(const std::vector<Tensors>& a, const std::vector<Tensors>& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                      [](const Tensors& x, const Tensors& y) { return x.size == y.size; });
  }

  static bool same(const Tensors& a, const Tensors& b) {
    return std::equal(a.address, a.address + kStreams, b.address) &&
           std::equal(a.dtype, a.dtype + kStreams, b.dtype) && a.scales == b.scales &&
           a.run == b.run && a.numbers == b.numbers;
  }

  std::vector<Tensors> known_;
  std::vector<int64_t> firsts_;  // chunk of each tensor
  int64_t chunks_ = 0;
  Memory memory_;
  Table table_{};
};

// What all calls have in common.
struct Call {
  Tables& tables;
  Allocate allocate;
  const double* numbers;  // on the host, unless there is a vector
  const double* vector;   // on the device
  const float* skip;      // on the device; null: never
  int device = 0;         // of CUDA
  void* stream = nullptr;

  // The first numbers of a call: those of the host by value.
  Given given(int count) const {
    Given all{{}, vector};
    if (!vector) std::copy_n(numbers, count, all.values);
    return all;
  }

  // An item for each thread of so many blocks.
  template <class Item>
  std::shared_ptr<Item> parts(int64_t blocks) const {
    return std::static_pointer_cast<Item>(allocate(size_t(blocks) * kThreads * sizeof(Item)));
  }
};

// Calls f(table, chunks) for a bucket. What is captured for a graph gets a table of its own, which
// every replay writes again: the kept one could have changed until then.
template <class Launch, class F>
void with_table(const Bucket& bucket, const Call& call, const Launch& launch, F f,
                int64_t length = kChunk) {
  Tables own;
  Tables& tables = launch.capturing() ? own : call.tables;
  Table table = tables.update(bucket.tensors, call.allocate, launch, length);
  table.skip = call.skip;
  f(table, tables.chunks());
}

template <class Operation, class Launch>
void enqueue(Operation, const Bucket& bucket, void* out, const Call& call, const Launch& launch) {
  const Given numbers = call.given(Operation::numbers);
  const bool sums = Operation::squared && out;
  with_table(bucket, call, launch, [&](Table table, int64_t chunks) {
    std::shared_ptr<double> parts;
    if (sums) parts = call.parts<double>(chunks);
    const Elements<Operation> all{table, numbers, parts.get()};
    if (chunks) launch(all, chunks);
    if (sums) {
      const auto tensors = int64_t(bucket.tensors.size());
      launch(SumChunks{table, parts.get()}, tensors);
      launch(SumThreads{table, parts.get(), static_cast<double*>(out)}, tensors);
    }
  });
}

template <class T, class R, class Launch>
void enqueue(Rows<T, R>, const Bucket& bucket, void*, const Call& call, const Launch& launch) {
  const Given numbers = call.given(R::numbers);
  const auto work = [&](Table table, int64_t chunks) {
    const auto matrices = int64_t(bucket.tensors.size());
    const auto parts = call.parts<double>(chunks);
    const auto norms = call.parts<Norms>(matrices);
    if (chunks) launch(RowSquares{table, parts.get()}, chunks);
    launch(RowFactors<T, R>{table, numbers, parts.get(), norms.get()}, matrices);
    launch(KeepNorms<T, R>{table, numbers, norms.get()}, matrices);
  };
  with_table(bucket, call, launch, work, kRows);
}

template <class T, class Launch>
void enqueue(Nonfinite<T>, const Bucket& bucket, void* out, const Call& call, const Launch& launch) {
  with_table(bucket, call, launch, [&](Table table, int64_t chunks) {
    if (chunks) launch(FindNonfinite{table, static_cast<float*>(out)}, chunks);
  });
}

template <class Launch>
void run(const Pass& pass, const Bucket& bucket, void* out, const Call& call,
         const Launch& launch) {
  visit(pass, bucket.in_double, [&](auto each) { enqueue(each, bucket, out, call, launch); });
}

}  // namespace emanest::device
