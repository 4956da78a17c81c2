// Rows as the kernels for experts read them: which place an input has in a row.
//
// A span is 128 bytes of an output's weights. A thread of a warp, t = lane % 4, multiplies of each span the inputs that
// its own words hold, and finds the numbers of x that belong to them in runs of 16 bytes:
//
//   16 bits   64 inputs; 8 from 16 t on, then the next 8: x is as it is
//   8 bits    128 inputs; 16 from 32 t on, then the next 16. Pairs come out of a word as 0 2, then 1 3, and a run of x is
//             half of what 16 bytes of weights are multiplied by: first all first halves, then all second ones
//   4 bits    256 inputs in units of 32; of a unit 4 from 4 t on, and 4 from 16 + 4 t on; 0 2, then 1 3
//
// Rows end with a whole span, in zeros. To be multiplied by fp4 or fp8 in bfloat16, they are times 2^64: of the 2^126
// or 2^120 that these numbers lack, the rest follows in their scales.
#pragma once

#include "quantized_weights.cuh"

namespace octavo {

template <int kBits>
constexpr int kSpanInputs = 1024 / kBits;

template <int kBits>
__host__ __device__ constexpr int padded(int inputs) {
  return (inputs + kSpanInputs<kBits> - 1) / kSpanInputs<kBits> * kSpanInputs<kBits>;
}

constexpr int kRaisedBits = 64;
constexpr float kRaise = 18446744073709551616.0f;  // 2^64

// Where inputs i to i + 7 are, i a multiple of 8: the first four, and the other four so much further on
template <int kBits>
__device__ __forceinline__ int place_of_eight(int i) {
  if (kBits == 16) return i;
  if (kBits == 8) return i / 128 * 128 + (i / 8 % 2 * 8 + i % 128 / 16) * 8;
  return i / 32 * 32 + i % 16 / 4 * 8 + i % 32 / 16 * 4;
}
template <int kBits>
constexpr int kOtherFour = kBits == 4 ? 8 : 4;

// Where input i is
template <int kBits>
__device__ __forceinline__ int place_of(int i) {
  const int r = kBits == 16 ? i % 4 : i % 4 / 2 + i % 2 * 2;
  return place_of_eight<kBits>(i / 8 * 8) + (i / 4 % 2 ? kOtherFour<kBits> : 0) + r;
}

// Four neighbouring inputs in the order in which they are kept
template <int kBits, typename Element>
__device__ __forceinline__ uint2 pack_four(float a, float b, float c, float d) {
  if (kBits == 16) return {pack<Element>(a, b), pack<Element>(c, d)};
  return {pack<Element>(a, c), pack<Element>(b, d)};
}

}  // namespace octavo
