// A call of a back end as launches of kernels, for whatever launches them: a GPU, or a test.
#pragma once

#include <algorithm>
#include <functional>
#include <iterator>
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
      chunks_ += (each.size + table_.length - 1) / table_.length;
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
    return a.y == b.y && a.input == b.input && a.input_dtype == b.input_dtype &&
           a.scales == b.scales && a.run == b.run &&
           std::equal(std::begin(a.state), std::end(a.state), std::begin(b.state));
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
};

// Calls f(table, chunks) for a bucket. What is captured for a graph gets a table of its own, which
// every replay writes again: the kept one could have changed until then.
template <class Launch, class F>
void with_table(const Bucket& bucket, const Call& call, const Launch& launch, F f,
                int64_t length = kChunk) {
  Tables own;
  Tables& tables = launch.capturing() ? own : call.tables;
  const Table table = tables.update(bucket.tensors, call.allocate, launch, length);
  f(table, tables.chunks());
}

// Launches a kernel for the chunks of a bucket.
template <class Launch, class Make>
void run(const Bucket& bucket, const Call& call, const Launch& launch, Make make) {
  with_table(bucket, call, launch, [&](Table table, int64_t chunks) {
    if (chunks) launch(make(table), chunks);
  });
}

// The numbers of a call: those of the host by value.
inline Given given(const Call& call, int count) {
  Given numbers{{}, call.vector};
  if (!call.vector) std::copy_n(call.numbers, count, numbers.values);
  return numbers;
}

template <class T>
struct Type { using type = T; };

// An operation, and how many numbers it is given.
template <class T, int numbers_>
struct Counted {
  using type = T;
  static constexpr int numbers = numbers_;
};

template <template <class T, class... Rules> class Operation, class... Rules, class Launch>
void pass(const Bucket& bucket, int count, const Call& call, const Launch& launch) {
  const Given numbers = given(call, count);
  const auto with = [&](auto operation) {
    using Kernel = Pass<typename decltype(operation)::type>;
    run(bucket, call, launch,
        [&](Table table) { return Kernel{table, numbers, call.skip, bucket.y_dtype, {}}; });
  };
  if (bucket.in_double) {
    with(Type<Operation<double, Rules...>>{});
  } else {
    with(Type<Operation<float, Rules...>>{});
  }
}

template <class Launch>
void step(const Base& base, const Lookahead& lookahead, const Bucket& bucket, const Call& call,
          const Launch& launch) {
  std::visit(
      [&](auto b, auto l) {
        constexpr int count = 1 + b.numbers + l.numbers;
        pass<Step, decltype(b), decltype(l)>(bucket, count, call, launch);
      },
      base, lookahead);
}

template <class Launch>
void follow(const Lookahead& lookahead, const Bucket& bucket, const Call& call,
            const Launch& launch) {
  std::visit([&](auto l) { pass<Follow, decltype(l)>(bucket, l.numbers, call, launch); },
             lookahead);
}

template <class Launch>
void move(const Point& point, const Bucket& bucket, const Call& call, const Launch& launch) {
  std::visit([&](auto p) { pass<Move, decltype(p)>(bucket, p.numbers, call, launch); }, point);
}

// squares: on the device, one for each tensor
template <class Launch>
void momentum(const Momentum& rule, const Bucket& bucket, double* squares, const Call& call,
              const Launch& launch) {
  const auto with = [&](auto operation) {
    using Kernel = Pass<typename decltype(operation)::type>;
    using M = decltype(operation);
    const Given numbers = given(call, M::numbers);
    with_table(bucket, call, launch, [&](Table table, int64_t chunks) {
      const Memory memory = call.allocate(size_t(chunks) * kThreads * sizeof(double));
      auto* parts = static_cast<double*>(memory.get());
      const auto tensors = int64_t(bucket.tensors.size());
      if (chunks) launch(Kernel{table, numbers, call.skip, bucket.y_dtype, parts}, chunks);
      launch(SumChunks{table, call.skip, parts}, tensors);
      launch(SumThreads{table, call.skip, parts, squares}, tensors);
    });
  };
  std::visit(
      [&](auto m) {
        using M = decltype(m);
        if (bucket.in_double) {
          with(Counted<Average<double, M>, 1 + M::numbers>{});
        } else {
          with(Counted<Average<float, M>, 1 + M::numbers>{});
        }
      },
      rule);
}

template <class Launch>
void rows(const RowRule& rule, const Bucket& bucket, const Call& call, const Launch& launch) {
  const auto with = [&](auto type, auto r) {
    using T = typename decltype(type)::type;
    using R = decltype(r);
    const Given numbers = given(call, R::numbers);
    const auto work = [&](Table table, int64_t chunks) {
      const auto matrices = int64_t(bucket.tensors.size());
      const Memory sums = call.allocate(size_t(chunks) * kThreads * sizeof(double));
      const Memory whole = call.allocate(size_t(matrices) * kThreads * sizeof(Norms));
      auto* parts = static_cast<double*>(sums.get());
      auto* norms = static_cast<Norms*>(whole.get());
      if (chunks) launch(RowSquares{table, call.skip, bucket.y_dtype, parts}, chunks);
      launch(RowFactors<T, R>{table, numbers, call.skip, parts, norms}, matrices);
      launch(KeepNorms<T, R>{table, numbers, call.skip, norms}, matrices);
    };
    with_table(bucket, call, launch, work, kRows);
  };
  std::visit(
      [&](auto r) { bucket.in_double ? with(Type<double>{}, r) : with(Type<float>{}, r); }, rule);
}

// found: on the device, 0 before
template <class Launch>
void nonfinite(const Bucket& bucket, float* found, const Call& call, const Launch& launch) {
  run(bucket, call, launch, [&](Table table) { return Nonfinite{table, found}; });
}

}  // namespace emanest::device
