// float32 to and from the formats of KV blocks, rounding to nearest even.
//
// bfloat16 is the upper half of a float32. float16 uses the processor's conversion instructions if the
// build has them, else integer arithmetic. The two formats of 8 bits hold codes, which become their largest where a
// number is greater: e4m3 (a sign, four bits of exponent with bias 7, three of mantissa) and int8.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "vectors.h"
#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace octavo {

inline uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

inline float bits_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline uint16_t to_bfloat16(float value) {
  const uint32_t bits = float_bits(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16 | 0x40);  // NaN stays NaN
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float from_bfloat16(uint16_t half) { return bits_float(uint32_t(half) << 16); }

#if defined(__F16C__)

inline uint16_t to_float16(float value) { return uint16_t(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT)); }
inline float from_float16(uint16_t half) { return _cvtsh_ss(half); }

#elif defined(__aarch64__)

inline uint16_t to_float16(float value) {
  const __fp16 half = static_cast<__fp16>(value);
  uint16_t bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}

inline float from_float16(uint16_t bits) {
  __fp16 half;
  std::memcpy(&half, &bits, 2);
  return float(half);
}

#else

inline uint16_t to_float16(float value) {
  const uint32_t bits = float_bits(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (magnitude >= 0x47800000) return uint16_t(sign | 0x7c00);
  if (magnitude < 0x38800000) {  // subnormal: let a float addition do the rounding
    const float rounded = bits_float(magnitude) + 0.5f;
    return uint16_t(sign | (float_bits(rounded) - 0x3f000000));
  }
  return uint16_t(sign | ((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13));
}

inline float from_float16(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, magnitude = uint32_t(half & 0x7fff) << 13;
  if (magnitude >= 0x0f800000) return bits_float(sign | 0x70000000 | magnitude);
  const float scaled = bits_float(magnitude) * 5.192296858534828e33f;  // 2^112 moves the exponent's bias
  return bits_float(sign | float_bits(scaled));
}

#endif

// Runs of values, simple enough for the compiler to vectorise.
inline void from_bfloat16(const uint16_t* source, int64_t count, float* target) {
  for (int64_t i = 0; i < count; ++i) target[i] = from_bfloat16(source[i]);
}

inline void from_float16(const uint16_t* source, int64_t count, float* target) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= count; i += 8) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i));
    _mm256_storeu_ps(target + i, _mm256_cvtph_ps(halves));
  }
#endif
  for (; i < count; ++i) target[i] = from_float16(source[i]);
}

// Element types of a KV block, for kernel templates.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};
struct Float8 {
  uint8_t bits;
};
struct Int8 {
  int8_t code;
};

// An e4m3's bits, shifted, are a float16's, whose exponent has another bias: loading gives the number divided by this.
inline constexpr float kFloat8Factor = 256.0f;

inline Float8 to_float8(float value) {
  constexpr float kLargest = 448.0f, kSmallestNormal = 0x1p-6f;
  const uint8_t sign = uint8_t(float_bits(value) >> 24 & 0x80);
  const float magnitude = std::fabs(value) > kLargest ? kLargest : std::fabs(value);
  if (magnitude < kSmallestNormal) {  // the addition rounds to multiples of the smallest e4m3, and counts them
    return {uint8_t(sign | (float_bits(magnitude + 0x1p14f) & 0x0f))};
  }
  const uint32_t bits = float_bits(magnitude);
  const uint32_t rounded = (bits + 0x7ffff + (bits >> 20 & 1)) >> 20;
  return {uint8_t(sign | std::min<uint32_t>(rounded - (120 << 3), 0x7f))};  // 0x7f: NaN stays NaN
}

inline Int8 to_int8(float value) {
  const float rounded = std::nearbyint(value);
  return {int8_t(rounded > 127.0f ? 127.0f : rounded > -127.0f ? rounded : -127.0f)};
}

template <int W>
inline Floats<W> load(const BFloat16* p) {
  Halves<W> halves;
  std::memcpy(&halves, p, sizeof halves);
  return (Floats<W>)(__builtin_convertvector(halves, Ints<W>) << 16);
}

template <int W>
inline Floats<W> load(const Float16* p) {
#if defined(__AVX512F__)
  if constexpr (W == 16) {
    return (Floats<W>)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
#endif
#if defined(__F16C__)
  if constexpr (W == 8) {
    return (Floats<W>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
#endif
  Floats<W> v;
  for (int i = 0; i < W; ++i) v[i] = from_float16(p[i].bits);
  return v;
}

template <int W>
inline Floats<W> load(const Float8* p) {
  UnsignedBytes<W> codes;
  std::memcpy(&codes, p, sizeof codes);
  const Halves<W> wide = __builtin_convertvector(codes, Halves<W>);
  const Halves<W> halves = (wide & 0x80) << 8 | (wide & 0x7f) << 7;
  return load<W>(reinterpret_cast<const Float16*>(&halves));
}

template <int W>
inline Floats<W> load(const Int8* p) {
  SignedBytes<W> codes;
  std::memcpy(&codes, p, sizeof codes);
  return __builtin_convertvector(codes, Floats<W>);
}

// Codes to floats, without their scale and factor; the count is a multiple of 8.
template <class Code>
inline void from_codes(const Code* source, int64_t count, float* target) {
  for (int64_t i = 0; i < count; i += 8) store<8>(target + i, load<8>(source + i));
}

}  // namespace octavo
