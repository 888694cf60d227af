// SPDX-License-Identifier: MIT
// What the CPU's passes are made of: values of any format, and how the work is shared out.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <vector>

#include "bucket.h"
#include "convert.h"

namespace emanest::cpu {
namespace {

// elements converted at a time: their buffers stay in the first-level cache
constexpr int64_t kTile = 2048;
// elements worth a thread
constexpr int64_t kGrain = 32768;

// ---- formats ------------------------------------------------------------------------------------

template <class From, class T>
EMANEST_CLONES void widen_loop(const void* from, int64_t begin, T* to, int64_t size) {
  const From* const values = static_cast<const From*>(from) + begin;
  for (int64_t i = 0; i < size; i++) to[i] = T(widen(values[i]));
}

template <class To, class T>
EMANEST_CLONES void narrow_loop(const T* from, void* to, int64_t begin, int64_t size) {
  using Via = std::conditional_t<std::is_same_v<To, double>, double, float>;
  To* const values = static_cast<To*>(to) + begin;
  for (int64_t i = 0; i < size; i++) values[i] = narrow<To>(Via(from[i]));
}

template <class T>
struct Format {
  void (*widen)(const void* from, int64_t begin, T* to, int64_t size);
  void (*narrow)(const T* from, void* to, int64_t begin, int64_t size);
};

// in the order of Dtype
template <class T>
const Format<T> kFormats[] = {
    {widen_loop<float, T>, narrow_loop<float, T>},
    {widen_loop<double, T>, narrow_loop<double, T>},
    {widen_loop<bfloat16, T>, narrow_loop<bfloat16, T>},
    {widen_loop<float16, T>, narrow_loop<float16, T>},
};

// Where the values of each stream begin.
template <class T>
using Addresses = std::array<T*, kStreams>;

// Calls f(stream) for those of a set.
template <class F>
void for_each(Set set, const F& f) {
  for (; set; set &= set - 1) f(__builtin_ctz(set));
}

// Calls f(addresses, size) for parts of a tensor's elements, whose streams it has as T: all at once
// and in place if that is what they are; else a tile at a time, through buffers.
template <class T, class F>
void for_each_tile(const Tensors& t, int64_t begin, int64_t end, Set reads, Set writes, const F& f) {
  Set converted = 0;
  for (int k = 0; k < kStreams; k++) converted |= Set(t.dtype[k] != dtype_as<T>) << k;
  converted &= reads | writes;
  const int64_t tile = converted ? kTile : end - begin;
  alignas(64) T buffers[kStreams][kTile];  // no vector of theirs lies in two lines of the cache
  for (int64_t size; begin < end; begin += size) {
    size = std::min(tile, end - begin);
    Addresses<T> at;
    for (int k = 0; k < kStreams; k++) at[k] = t.as<T>(k) + begin;
    for_each(converted, [&](int k) {
      at[k] = buffers[k];
      if (has(reads, k)) kFormats<T>[int(t.dtype[k])].widen(t.address[k], begin, at[k], size);
    });
    f(at, size);
    for_each(converted & writes, [&](int k) {
      kFormats<T>[int(t.dtype[k])].narrow(at[k], t.address[k], begin, size);
    });
  }
}

// ---- the work -----------------------------------------------------------------------------------

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
      // the hardware sees a stream coming only after its first lines, which many small tensors are
      // made of; not a function, which gcc would find to do nothing
      for (int k = 0; i + 1 < tensors.size() && k < kStreams; k++) {
        const float* const next = tensors[i + 1].as<float>(k);
        const int64_t first = next ? std::min<int64_t>(tensors[i + 1].size, 64) : 0;
        for (int64_t at = 0; at < first; at += 16) __builtin_prefetch(next + at);
      }
      if (begin < stop) f(tensors[i], begin - start, stop - start);
      begin = std::max(begin, stop);
    }
  });
}

}  // namespace
}  // namespace emanest::cpu
