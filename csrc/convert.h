// SPDX-License-Identifier: MIT
// Between the narrow formats and float, in plain integer arithmetic that compilers vectorise.
#pragma once

#include <cstdint>
#include <cstring>

#include "rules.h"

namespace emanest {

struct bfloat16 { uint16_t bits; };
struct float16 { uint16_t bits; };

template <class To, class From>
EMANEST_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

EMANEST_INLINE float widen(float value) { return value; }
EMANEST_INLINE double widen(double value) { return value; }
EMANEST_INLINE float widen(bfloat16 value) { return bit_cast<float>(uint32_t(value.bits) << 16); }

EMANEST_INLINE float widen(float16 value) {
  const uint32_t sign = uint32_t(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = uint32_t(value.bits & 0x7fffu) << 13;
  // a product moves the exponent from bias 15 to 127, subnormal numbers included
  const uint32_t finite = bit_cast<uint32_t>(bit_cast<float>(magnitude) * 0x1p112f);
  const uint32_t special = magnitude | 0x7f800000u;
  return bit_cast<float>(sign | (magnitude >= 0x0f800000u ? special : finite));
}

// to the nearest, ties to even
template <class To, class T>
EMANEST_INLINE To narrow(T value);

template <>
EMANEST_INLINE float narrow<float>(float value) { return value; }
template <>
EMANEST_INLINE double narrow<double>(double value) { return value; }

template <>
EMANEST_INLINE bfloat16 narrow<bfloat16>(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return {uint16_t(nan ? 0x7fc0u : rounded)};
}

template <>
EMANEST_INLINE float16 narrow<float16>(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // 0.5f has its last bit where a subnormal half has it, so the sum rounds there
  const uint32_t half = bit_cast<uint32_t>(0.5f);
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - half;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  // from 65520 on the nearest is infinity
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  return {uint16_t(sign | (magnitude >= 0x477ff000u ? special : finite))};
}

}  // namespace emanest
