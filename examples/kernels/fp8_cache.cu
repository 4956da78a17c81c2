// Decode attention over a cache of one byte a number: e4m3 keys and values, with a scale for each kv head.
//
//   e4m3   s eeee mmm          its exponent is biased by 7, that of a half by 15. So the same bits, moved to
//   half   s 0eeee mmm0000000  a half's places, are the number divided by 2^8, subnormal ones included
//
// The loader reads bytes, and writes 16-bit numbers to the ring; computers do not know. No instruction of a newer GPU is
// needed. The copy engine cannot convert, so HAS_COPY_ENGINE must be 0.
#include "hooks.cuh"

namespace octavo {

struct Fp8Cache : PlainHooks {
  const float* key_scales;  // of each kv head: what a stored 1 means
  const float* value_scales;

  static constexpr bool kConverts = true;
  template <typename Element>
  using Stored = uint8_t;
  using StoredEight = uint2;

  __device__ float scale(int kv_head, bool is_value) const {
    return __ldg((is_value ? value_scales : key_scales) + kv_head);
  }

  template <typename Element>
  __device__ uint4 from_stored(uint2 stored, int kv_head, bool is_value) const {
    const float factor = 256 * scale(kv_head, is_value);
    return {two<Element>(stored.x, 0x1404, factor), two<Element>(stored.x, 0x3424, factor),
            two<Element>(stored.y, 0x1404, factor), two<Element>(stored.y, 0x3424, factor)};
  }

  // Two bytes of four, as chosen: each to the upper half of 16 bits, then to its places
  template <typename Element>
  __device__ static uint32_t two(uint32_t bytes, uint32_t choice, float factor) {
    const uint32_t high = __byte_perm(bytes, 0, choice);
    const uint32_t halves = (high & 0x80008000) | ((high & 0x7f007f00) >> 1);
    const Fp16 low = {uint16_t(halves)}, next = {uint16_t(halves >> 16)};
    return pack<Element>(to_float(low) * factor, to_float(next) * factor);
  }

  template <typename Element>
  __device__ uint2 to_stored(uint4 elements, int kv_head, bool is_value) const {
    const Eight x = eight(reinterpret_cast<const Element*>(&elements));
    const float factor = 1 / scale(kv_head, is_value);
    uint32_t words[2] = {};
#pragma unroll
    for (int i = 0; i < 8; ++i) words[i / 4] |= rounded(x.x[i] * factor) << i % 4 * 8;
    return {words[0], words[1]};
  }

  // To the nearest of e4m3, ties to even; 448 at most. Times 2^-120 its exponent is biased as in e4m3
  __device__ static uint32_t rounded(float x) {
    const uint32_t bits = __float_as_uint(fminf(fabsf(x), 448.0f) * 0x1p-120f);
    const uint32_t magnitude = (bits + 0x7ffff + (bits >> 20 & 1)) >> 20;
    return magnitude | (__float_as_uint(x) >> 24 & 0x80);
  }
};

}  // namespace octavo

#define HOOKS Fp8Cache
#include "decode_attention.cu"
