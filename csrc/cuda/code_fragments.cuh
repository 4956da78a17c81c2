// Codes with scales as the first operand of products, in registers (grouped_codes.cu): 16 bits, four inputs at a time.
//
// A thread has a unit of 32 inputs of a row: 16 or 32 bytes, of which a word and half of its nibbles, or a word of bytes,
// are four neighbouring inputs. It makes pairs of the first and third, and of the second and fourth.
//
//   int4         (code - zero) as an exact number, from codes in the lower or in the higher half of a byte
//   int8         as an exact number
//   fp8, e2m1    shifted into place, which leaves a power of two (quantized_weights.cuh)
//
// Then it is multiplied by the scale, which has two parts of 16 bits, together nearly as exact as float32; a power of two
// is in them. What the numbers lack or have too much for their type's range, sums are multiplied by.
#pragma once

#include "quantized_weights.cuh"

namespace octavo {

// In bfloat16 fp8 and e2m1 lack 2^40: so one factor makes numbers of what is in place. In float16 numbers are 16 times
// as large: scales of small weights are no subnormal numbers then, and weights may be 4,094
template <Format kFormat, typename Element, bool kHasShortScales>
constexpr float kSumsBy = is_half<Element>                         ? 0x1p-4f
                          : kFormat == kFp8 || kFormat == kFp4     ? 0x1p40f
                          : kFormat == kInt4 && kHasShortScales    ? 0x1p24f
                                                                   : 1;

template <Format kFormat, typename Element, bool kHasZeros, bool kHasShortScales>
struct Fragments {
  static constexpr float kRaised = kSumsBy<kFormat, Element, kHasShortScales>;  // what sums are multiplied by
  // A number of int4 is one fma then: code x scale - zero x scale
  static constexpr bool kIsFused = kFormat == kInt4 && kHasShortScales && !is_half<Element>;
  using N = Numbers<Element>;
  static constexpr int kBits = kFormat == kInt4 || kFormat == kFp4 ? 4 : 8;
  static constexpr int kRowBytes = 128 * kBits / 8;       // of 128 inputs, in shared memory
  static constexpr int kStepsOfWords = kBits == 4 ? 8 : 4;  // that four words are for

  // Of a row's unit as they are read: a float's bits, or of fp4 an exponent of two plus 127
  struct Raw {
    uint32_t scale;
    int zero;
  };

  // Pairs that numbers are multiplied by, in two parts, and that are added to codes in the lower half and in the higher
  struct Scale {
    uint32_t factor, rest, minus, minus_high;
  };

  static __device__ __forceinline__ Raw load(const void* scales, const int8_t* zeros, int at) {
    Raw raw = {0, 8};
    raw.scale = kFormat == kFp4 ? static_cast<const uint8_t*>(scales)[at] : static_cast<const uint32_t*>(scales)[at];
    if (kHasZeros) raw.zero = zeros[at];
    return raw;
  }

  static __device__ __forceinline__ Scale scale(const Raw& raw) {
    if constexpr (kFormat == kFp4) {  // 2^(exponent - 127), and what numbers lack in both types
      if constexpr (is_half<Element>) return {twice(__uint_as_float(min(raw.scale + 4, 254u) << 23)), 0, 0, 0};
      return {(min(raw.scale + 86, 254u) << 7) * 0x10001, 0, 0, 0};
    }
    if constexpr (kIsFused) {
      const float fused = __uint_as_float(raw.scale);
      return {twice(fused * 0x1p109f), twice(fused * 0x1p105f), twice(fused * raw.zero * -0x1p-24f), 0};
    }
    const float factor = __uint_as_float(raw.scale) * kLacks, zero = raw.zero;
    const uint32_t rounded = twice(factor), rest = twice(factor - low_half<Element>(rounded));
    if constexpr (is_half<Element>) return {rounded, rest, twice(-1024 - zero), twice(-64 - zero)};
    return {rounded, rest, twice(zero * -0x1p-6f), 0};
  }

  // The address of the first or second four words of a thread's unit; rows of bytes are swizzled by 128 bytes
  static __device__ __forceinline__ uint32_t address(uint32_t codes, int row, int q, int words) {
    if (kBits == 4) return codes + row * kRowBytes + q * 16;
    return codes + row * kRowBytes + ((q * 2 + words) ^ row % 8) * 16;
  }

  // Of the unit's inputs from 4 step on, the first and third, or the second and fourth
  static __device__ __forceinline__ uint32_t pair(const uint4& words, int step, bool is_odd, const Scale& scale) {
    const uint32_t all[4] = {words.x, words.y, words.z, words.w}, word = all[step % 4];
    const int nibble = is_odd * 2 + step / 4;
    if constexpr (kFormat == kFp4) return N::fma(fp4_pair<Element>(word, nibble), scale.factor, 0x80008000);
    if constexpr (kIsFused) {
      const uint32_t code = word >> (is_odd * 8) & (nibble % 2 ? 0x00f000f0 : 0x000f000f);
      return N::fma(code, nibble % 2 ? scale.rest : scale.factor, scale.minus);
    } else {
      uint32_t numbers;
      if constexpr (kFormat == kInt4) {
        numbers = nibble_pair(word >> (is_odd * 8), nibble % 2, scale);
      } else {
        numbers = kFormat == kInt8 ? int8_pair<Element>(word ^ 0x80808080, is_odd) : fp8_placed(word, is_odd);
      }
      if (kHasShortScales) return N::fma(numbers, scale.factor, 0x80008000);
      return N::fma(numbers, scale.factor, N::fma(numbers, scale.rest, 0x80008000));
    }
  }

 private:
  // Besides what sums are multiplied by: of fp8 its bias, 2^120 or 2^8; int4 in bfloat16 is divided by 64
  static constexpr float kLacks = (kFormat == kFp8 ? is_half<Element> ? 0x1p8f : 0x1p120f
                                                   : kFormat == kInt4 && !is_half<Element> ? 64.0f : 1.0f) /
                                  kRaised;

  static __device__ __forceinline__ uint32_t twice(float x) { return pack<Element>(x, x); }

  // A code that is the lowest 4 bits of a half, or the 4 above them, less the zero point; in bfloat16 divided by 64. There
  // these bits alone are the code times 2^-133 or 2^-129
  static __device__ __forceinline__ uint32_t nibble_pair(uint32_t word, bool is_high, const Scale& scale) {
    const uint32_t code = word & (is_high ? 0x00f000f0 : 0x000f000f);
    if (!is_half<Element>) return N::fma(code, is_high ? 0x7d007d00 : 0x7f007f00, scale.minus);  // 2^123, 2^127
    return N::fma(code | 0x64006400, is_high ? 0x2c002c00 : 0x3c003c00, is_high ? scale.minus_high : scale.minus);
  }

  // Bytes 0 and 2 of the word, or 1 and 3, without the bias of their exponents
  static __device__ __forceinline__ uint32_t fp8_placed(uint32_t word, bool is_odd) {
    const uint32_t bytes = is_odd ? word : word << 8;
    return (bytes & 0x80008000) | (bytes >> N::kFp8Shift & N::kFp8Mask);
  }
};

}  // namespace octavo
