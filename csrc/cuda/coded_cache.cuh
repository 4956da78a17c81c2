// Hooks of decode_attention.cu for a cache of one byte a number: e4m3 or int8, with a scale for each kv head.
//
//   e4m3   s eeee mmm             its exponent is biased by 7, that of a half by 15, that of a bfloat16 by 127. So the
//   half   s 0eeee mmm0000000     same bits, moved to the others' places, are the number divided by 2^8, or by 2^120,
//   bf16   s 0000eeee mmm0000     subnormal ones included
//
// The loader reads bytes, and writes 16-bit numbers to the ring, still without their scales; computers multiply the scale
// of keys into the scores, and that of values into the result. No instruction of a newer GPU is needed. The copy engine
// cannot convert, so HAS_COPY_ENGINE must be 0.
#pragma once

#include "hooks.cuh"

namespace octavo {

template <typename Code>
struct CodedCache : PlainHooks {
  const float* scales;  // of each kv head: what a stored 1 means, for keys, then for values

  static constexpr bool kConverts = true;
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
  __device__ uint4 from_stored(uint2 stored) const {
    return {Code::template two<Element, 0>(stored.x), Code::template two<Element, 2>(stored.x),
            Code::template two<Element, 0>(stored.y), Code::template two<Element, 2>(stored.y)};
  }

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
  // What the elements of `two` are to be multiplied by
  template <typename Element>
  __device__ static float factor() {
    return is_half<Element> ? 256.0f : 1.0f;
  }

  // Bytes kFirst and kFirst + 1 of four: each to the upper half of 16 bits, then to its places
  template <typename Element, int kFirst>
  __device__ static uint32_t two(uint32_t bytes) {
    const uint32_t high = __byte_perm(bytes, 0, kFirst == 0 ? 0x1404 : 0x3424), sign = high & 0x80008000;
    if constexpr (is_half<Element>) return sign | ((high & 0x7f007f00) >> 1);
    uint32_t scaled = sign | ((high & 0x7f007f00) >> 4);
    asm("fma.rn.bf16x2 %0, %0, %1, %2;" : "+r"(scaled) : "r"(0x7b807b80), "r"(0x80008000));  // times 2^120, minus 0
    return scaled;
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
  __device__ static float factor() {
    return 1.0f;
  }

  template <typename Element, int kFirst>
  __device__ static uint32_t two(uint32_t bytes) {
    const uint32_t biased = bytes ^ 0x80808080;  // by 128, so that none is negative
    return pack<Element>(number<kFirst>(biased), number<kFirst + 1>(biased));
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
