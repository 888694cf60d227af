// What the CPU's passes are made of: values of any format, and how the work is shared out.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "bucket.h"
#include "convert.h"

namespace emanest::cpu {
namespace {

// elements converted at a time: two buffers of this size stay in the first-level cache
constexpr int64_t kTile = 2048;
// elements worth a thread
constexpr int64_t kGrain = 32768;

// ---- formats ------------------------------------------------------------------------------------

template <class From, class T>
EMANEST_CLONES void widen_loop(const void* from, T* to, int64_t size) {
  for (int64_t i = 0; i < size; i++) to[i] = T(widen(static_cast<const From*>(from)[i]));
}

template <class To, class T>
EMANEST_CLONES void narrow_loop(const T* from, void* to, int64_t size) {
  using Via = std::conditional_t<std::is_same_v<To, double>, double, float>;
  for (int64_t i = 0; i < size; i++) static_cast<To*>(to)[i] = narrow<To>(Via(from[i]));
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
    {sizeof(double), widen_loop<double, T>, narrow_loop<double, T>},
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
    if (!wide()) format_.widen(memory_, buffer_, size);
    return here();
  }

  // Where values are, or go to.
  T* here() { return wide() ? reinterpret_cast<T*>(memory_) : buffer_; }

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
  lines(t.input);
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

}  // namespace
}  // namespace emanest::cpu
