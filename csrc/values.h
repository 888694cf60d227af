// SPDX-License-Identifier: MIT
// The values of a stream, of any format: one, or four in a single access.
#pragma once

#include "bucket.h"
#include "convert.h"

namespace emanest::device {

// Read and written as a whole, so that an access is as wide as a GPU can make it.
struct alignas(16) Words { uint32_t bits[4]; };

// Says of a pointer, which could point anywhere, that it points into the memory of the device: a
// GPU has faster instructions for that.
template <class Item>
EMANEST_INLINE Item* global(Item* memory) {
#ifdef __CUDA_ARCH__
  __builtin_assume(__isGlobal(memory));
#endif
  return memory;
}

// T is the type of the arithmetic.
template <class T>
class Values {
 public:
  EMANEST_INLINE Values(void* memory, Dtype dtype)
      : memory_(global(static_cast<char*>(memory))), dtype_(dtype) {}

  EMANEST_INLINE T load(int64_t i) const {
    switch (dtype_) {
      case Dtype::float32: return T(at<float>(i));
      case Dtype::float64: return T(at<double>(i));
      case Dtype::bfloat16: return T(widen(at<bfloat16>(i)));
      default: return T(widen(at<float16>(i)));
    }
  }

  EMANEST_INLINE void store(int64_t i, T value) const {
    switch (dtype_) {
      case Dtype::float32: at<float>(i) = float(value); return;
      case Dtype::float64: at<double>(i) = double(value); return;
      case Dtype::bfloat16: at<bfloat16>(i) = narrow<bfloat16>(float(value)); return;
      default: at<float16>(i) = narrow<float16>(float(value));
    }
  }

  // ---- four at once, T is float -----------------------------------------------------------------

  // Whether the format and the address allow it.
  EMANEST_INLINE bool in_fours() const {
    const uintptr_t bytes = narrow_format() ? sizeof(uint64_t) : sizeof(Words);
    return dtype_ != Dtype::float64 && reinterpret_cast<uintptr_t>(memory_) % bytes == 0;
  }

  // As they are. Converted later, no load waits for another.
  EMANEST_INLINE Words load_four(int64_t i) const {
    if (!narrow_format()) return at<Words>(i / 4);
    const uint64_t halves = at<uint64_t>(i / 4);
    return {{uint32_t(halves), uint32_t(halves >> 32)}};
  }

  EMANEST_INLINE void widen_four(const Words& from, T (&to)[4]) const {
    if (dtype_ == Dtype::float32) {
      for (int j = 0; j < 4; j++) to[j] = bit_cast<float>(from.bits[j]);
    } else if (dtype_ == Dtype::bfloat16) {
      for (int j = 0; j < 4; j++) to[j] = widen(bfloat16{half(from, j)});
    } else {
      for (int j = 0; j < 4; j++) to[j] = widen(float16{half(from, j)});
    }
  }

  EMANEST_INLINE void store_four(int64_t i, const T (&from)[4]) const {
    if (dtype_ == Dtype::float32) {
      Words words;
      for (int j = 0; j < 4; j++) words.bits[j] = bit_cast<uint32_t>(from[j]);
      at<Words>(i / 4) = words;
    } else {
      uint64_t halves = 0;
      for (int j = 0; j < 4; j++) {
        const uint16_t bits = dtype_ == Dtype::bfloat16 ? narrow<bfloat16>(from[j]).bits
                                                        : narrow<float16>(from[j]).bits;
        halves |= uint64_t(bits) << (16 * j);
      }
      at<uint64_t>(i / 4) = halves;
    }
  }

 private:
  EMANEST_INLINE bool narrow_format() const {
    return dtype_ == Dtype::bfloat16 || dtype_ == Dtype::float16;
  }

  EMANEST_INLINE static uint16_t half(const Words& words, int j) {
    return uint16_t(words.bits[j / 2] >> (j % 2 * 16));
  }

  template <class Item>
  EMANEST_INLINE Item& at(int64_t i) const {
    return reinterpret_cast<Item*>(memory_)[i];
  }

  char* memory_;
  Dtype dtype_;
};

}  // namespace emanest::device
