// Hooks of decode_attention.cu for a cache of one byte a number: e4m3 or int8, with a scale for each kv head.
//
//   e4m3   s eeee mmm             its exponent is biased by 7, that of a half by 15. So the same bits, moved to the others'
//   half   s 0eeee mmm0000000     places, are the number divided by 2^8, subnormal ones included
//
// The ring has bytes, as the cache has them, and computers make halves of two at a time, still without their scales: that
// of keys is multiplied into the queries, and that of values into the result. Where the GPU has an instruction for it, it
// makes the halves of e4m3.
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

  __device__ float unit(int kv_head, bool is_value, int num_kv_heads) const {
    return scale(kv_head, is_value, num_kv_heads) * Code::factor();
  }

  __device__ static uint2 in_order(uint32_t word) { return Code::in_order(word); }
  __device__ static uint2 turned(uint32_t word) { return Code::turned(word); }

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
#if __CUDA_ARCH__ >= 890
  __device__ static float factor() { return 1.0f; }

  __device__ static uint2 in_order(uint32_t word) { return halves_of_e4m3(word); }
  __device__ static uint2 turned(uint32_t word) { return halves_of_e4m3(__byte_perm(word, 0, 0x3120)); }
#else
  __device__ static float factor() { return 0x1p8f; }

  __device__ static uint2 in_order(uint32_t word) { return turned(__byte_perm(word, 0, 0x3120)); }
  __device__ static uint2 turned(uint32_t word) { return {placed(word << 8), placed(word)}; }

  // The upper byte of each 16 bits
  __device__ static uint32_t placed(uint32_t word) { return (word & 0x80008000) | (word >> 1 & 0x3f803f80); }
#endif

  // To the nearest, ties to even; 448 at most. Times 2^-120 its exponent is biased as in e4m3
  __device__ static uint32_t rounded(float x) {
    const uint32_t bits = __float_as_uint(fminf(fabsf(x), 448.0f) * 0x1p-120f);
    const uint32_t magnitude = (bits + 0x7ffff + (bits >> 20 & 1)) >> 20;
    return magnitude | (__float_as_uint(x) >> 24 & 0x80);
  }
};

struct Int8 {
  __device__ static float factor() { return 1.0f; }

  __device__ static uint2 in_order(uint32_t word) { return {numbers(word, 0x4140), numbers(word, 0x4342)}; }
  __device__ static uint2 turned(uint32_t word) { return {numbers(word, 0x4240), numbers(word, 0x4341)}; }

  // Two bytes, biased by 128 so that none is negative: in the last places of 1024 they add themselves
  __device__ static uint32_t numbers(uint32_t word, uint32_t places) {
    return subtract_halves(__byte_perm(word ^ 0x80808080, 0x64, places), 0x64806480);
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
