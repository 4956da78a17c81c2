// Numbers as two of e4m3, with a scale for each span of 128.
//
// A bfloat16 has 8 significant bits, and e4m3 four. So what e4m3 keeps of a number and what it leaves are the whole
// number, if both are large enough: the largest of a span becomes 128 to 256, and what is below 2^-17 of it is lost.
#pragma once

#include "fp8_products.cuh"

namespace octavo {

// A span's scale, by its largest magnitude
struct SpanScale {
  float to, from;  // multiplies inputs; sums
  __device__ explicit SpanScale(float largest) {
    const uint32_t exponent = __float_as_uint(largest) >> 23, held = max(exponent, 16u);
    to = __uint_as_float((261 - held) << 23);
    // if a number is infinite or none, all sums are none
    from = exponent == 255 ? largest - largest : __uint_as_float((held - 7) << 23);
  }
};

struct SplitPair {
  uint32_t high, low;
  __device__ SplitPair(float x, float y) : high(to_e4m3(x, y)) {
    const float2 kept = from_e4m3(uint16_t(high));
    low = to_e4m3(x - kept.x, y - kept.y);
  }
};

}  // namespace octavo
