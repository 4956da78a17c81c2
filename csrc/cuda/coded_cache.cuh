// Hooks of decode_attention.cu for a cache of one byte a number: e4m3 or int8, with a scale for each kv head.
//
//   e4m3   s eeee mmm             its exponent is biased by 7, that of a half by 15, that of a bfloat16 by 127. So the
//   half   s 0eeee mmm0000000     same bits, moved to the others' places, are the number divided by 2^8, or by 2^120,
//   bf16   s 0000eeee mmm0000     subnormal ones included
//
// The ring has bytes, as the cache has them, and computers make 16-bit numbers of four at a time, still without their
// scales: they multiply that of keys into the scores, and that of values into the result. What a bfloat16 lacks, 2^120,
// comes in three parts: 2^64 into the queries and the weights, so that no product is a subnormal number; 2^56 with the
// scale; for values 2^64 once more, as their weights' sum has it, too. No instruction of a newer GPU is needed.
#pragma once

#include "hooks.cuh"

namespace octavo {

template <typename Code>
struct CodedCache : PlainHooks {
  const float* scales;  // of each kv head: what a stored 1 means, for keys, then for values

  static constexpr bool kHasCodes = true;
  template <typename Element>
  using Stored = uint8_t;
  using StoredEight = uint2;

  __device__ float scale(int kv_head, bool is_value, int num_kv_heads) const {
    return __ldg(scales + kv_head + (is_value ? num_kv_heads : 0));
  }

  static constexpr bool kHasUnits = true;
  template <typename Element>
  __device__ float unit(int kv_head, bool is_value, int num_kv_heads) const {
    return scale(kv_head, is_value, num_kv_heads) * Code::template factor<Element>();
  }

  template <typename Element>
  __device__ static uint32_t even(uint32_t word) {
    return Code::template even<Element>(word);
  }
  template <typename Element>
  __device__ static uint32_t odd(uint32_t word) {
    return Code::template odd<Element>(word);
  }

  template <typename Element>
  static constexpr int kRaise = Code::template kRaise<Element>;

  template <typename Element>
  __device__ uint2 to_stored(uint4 elements, int kv_head, bool is_value, int num_kv_heads) const {
    const Eight x = eight(reinterpret_cast<const Element*>(&elements));
    const float own = scale(kv_head, is_value, num_kv_heads);
    uint32_t words[2] = {};
#pragma unroll
    for (int i = 0; i < 8; ++i) words[i / 4] |= Code::rounded(x.x[i] / own) << i % 4 * 8;
    return {words[0], words[1]};
  }
};

struct E4M3 {
  template <typename Element>
  static constexpr int kRaise = is_half<Element> ? 0 : 64;

  // What is left to be multiplied
  template <typename Element>
  __device__ static float factor() {
    return is_half<Element> ? 0x1p8f : 0x1p56f;
  }

  template <typename Element>
  __device__ static uint32_t even(uint32_t word) {
    return placed<Element>(word << 8);
  }

  // The upper half of each 16 bits
  template <typename Element>
  __device__ static uint32_t odd(uint32_t word) {
    return placed<Element>(word);
  }

  template <typename Element>
  __device__ static uint32_t placed(uint32_t word) {
    const uint32_t moved = is_half<Element> ? word >> 1 & 0x3f803f80 : word >> 4 & 0x07f007f0;
    return (word & 0x80008000) | moved;
  }

  // To the nearest, ties to even; 448 at most. Times 2^-120 its exponent is biased as in e4m3
  __device__ static uint32_t rounded(float x) {
    const uint32_t bits = __float_as_uint(fminf(fabsf(x), 448.0f) * 0x1p-120f);
    const uint32_t magnitude = (bits + 0x7ffff + (bits >> 20 & 1)) >> 20;
    return magnitude | (__float_as_uint(x) >> 24 & 0x80);
  }
};

struct Int8 {
  template <typename Element>
  static constexpr int kRaise = 0;

  template <typename Element>
  __device__ static float factor() {
    return 1.0f;
  }

  template <typename Element>
  __device__ static uint32_t even(uint32_t word) {
    const uint32_t biased = word ^ 0x80808080;  // by 128, so that none is negative
    return pack<Element>(number<0>(biased), number<2>(biased));
  }

  template <typename Element>
  __device__ static uint32_t odd(uint32_t word) {
    const uint32_t biased = word ^ 0x80808080;
    return pack<Element>(number<1>(biased), number<3>(biased));
  }

  // A byte in the last places of 2^23 adds itself
  template <int kByte>
  __device__ static float number(uint32_t biased) {
    return __uint_as_float(__byte_perm(biased, 0x4b000000, 0x7440 + kByte)) - (0x1p23f + 128);
  }

  // To the nearest, ties to even; 127 at most
  __device__ static uint32_t rounded(float x) {
    return uint32_t(__float2int_rn(fminf(fmaxf(x, -127.0f), 127.0f))) & 0xff;
  }
};

using Fp8Cache = CodedCache<E4M3>;
using Int8Cache = CodedCache<Int8>;
using Fp8CacheAndSinks = LearnedSinks<Fp8Cache>;
using Int8CacheAndSinks = LearnedSinks<Int8Cache>;

}  // namespace octavo
