// Weights of one byte or half a byte in the form that tensor cores take: pairs of 16-bit numbers.
//
// Each format gives, for a word of 32 bits, pairs of numbers of which one instruction or two make 16 bits each. No
// number is rounded: all are integers of at most 8 bits, or have 4 bits of significand.
//
//   int8   16 * (128 + high nibble) + ...       two nibbles, each plus 128
//   fp8    sign, exponent and significand are shifted into place, which leaves a factor of 2^120 for the exponent's bias
//   fp4    (e2m1) the same, with 2^126 in bfloat16. Whoever multiplies by such numbers multiplies that factor in later
#pragma once

#include "ptx.cuh"

namespace octavo {

enum Format { kInt4 = 0, kInt8 = 1, kFp8 = 2, kDense = 3, kFp4 = 4 };

template <typename Element>
struct Numbers;  // how integers and e4m3 look in a 16-bit type; pairs, low half first

template <>
struct Numbers<Bf16> {
  static constexpr uint32_t kIntegers = 0x43004300;  // 128: the last bit is worth 1
  static constexpr uint32_t kMinusIntegers = 0xc300c300;  // -128
  static constexpr uint32_t kMinusIntegersAnd8 = 0xc308c308;  // -136; also less the zero point of symmetric int4
  static constexpr uint32_t kSixteen = 0x41804180;
  static constexpr uint32_t kOne = 0x3f803f80;
  static constexpr uint32_t kFp8Mask = 0x07f007f0, kFp8Scale = 0x7b807b80;  // 2^120
  static constexpr int kFp8Shift = 4;
  static __device__ __forceinline__ uint32_t fma(uint32_t a, uint32_t b, uint32_t c) { return fma_pair<Bf16>(a, b, c); }
};

template <>
struct Numbers<Fp16> {
  static constexpr uint32_t kIntegers = 0x64006400;  // 1024
  static constexpr uint32_t kMinusIntegers = 0xe400e400;  // -1024
  static constexpr uint32_t kMinusIntegersAnd8 = 0xe408e408;  // -1032; also less the zero point of symmetric int4
  static constexpr uint32_t kSixteen = 0x4c004c00;
  static constexpr uint32_t kOne = 0x3c003c00;
  static constexpr uint32_t kFp8Mask = 0x3f803f80, kFp8Scale = 0x5c005c00;  // 2^8
  static constexpr int kFp8Shift = 1;
  static __device__ __forceinline__ uint32_t fma(uint32_t a, uint32_t b, uint32_t c) { return fma_pair<Fp16>(a, b, c); }
};

// Bytes 0 and 2 of the word, or 1 and 3; each is the number plus 128
template <typename Element>
__device__ __forceinline__ uint32_t int8_pair(uint32_t word, bool is_odd) {
  using N = Numbers<Element>;
  const uint32_t low = (word >> (is_odd ? 8 : 0) & 0x000f000f) | N::kIntegers;
  const uint32_t high = (word >> (is_odd ? 12 : 4) & 0x000f000f) | N::kIntegers;
  const uint32_t rest = N::fma(low, N::kOne, N::kMinusIntegers);
  return N::fma(N::fma(high, N::kOne, N::kMinusIntegersAnd8), N::kSixteen, rest);
}

template <typename Element>
__device__ __forceinline__ uint32_t fp8_pair(uint32_t word, bool is_odd) {
  using N = Numbers<Element>;
  const uint32_t bytes = is_odd ? word : word << 8;
  const uint32_t placed = (bytes & 0x80008000) | (bytes >> N::kFp8Shift & N::kFp8Mask);
  return N::fma(placed, N::kFp8Scale, 0x80008000);
}

// Nibbles i and i + 4 of the word, times 2^-126 in bfloat16, where half a unit is a subnormal number; in half as they are
template <typename Element>
__device__ __forceinline__ uint32_t fp4_pair(uint32_t word, int i) {
  constexpr uint32_t kMask = is_half<Element> ? 0x0e000e00 : 0x01c001c0;
  constexpr int kShift = is_half<Element> ? 9 : 6;  // of the significand, to the left
  const int up = kShift - 4 * i;
  const uint32_t rest = (up > 0 ? word << (up & 31) : word >> (-up & 31)) & kMask;
  const uint32_t placed = (word << (12 - 4 * i) & 0x80008000) | rest;
  return is_half<Element> ? Numbers<Fp16>::fma(placed, 0x74007400, 0x80008000) : placed;  // 2^14
}

}  // namespace octavo
