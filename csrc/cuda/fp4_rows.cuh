// Rows as csrc/cuda/fp4_experts.cu multiplies them, in shared memory: integers of 16 bits, times a scale for each 32 inputs.
//
// The largest of 32 inputs becomes 127 * 256 + 127 = 32,639, so none is off by more than a 65,278th of it. An integer is
// 256 times its high byte plus its low one, which both have a sign, and which are two columns of a product of bytes.
//
// A warp turns a span of 256 inputs, 512 bytes, into as many bytes at the same place:
//
//   [group % 4][group / 4][high bytes, low ones][four words of a weight][8 inputs, in the order of the word's nibbles]
//
// Word w of a group has inputs 4 w to 4 w + 3 in its even nibbles, and 16 + 4 w to that + 3 in its odd ones.
#pragma once

#include "fp4_kind.cuh"

namespace octavo {
namespace {

constexpr float kLargestCode = 32639, kLeastLargest = 1e-30f;
// Added to an integer of 16 bits, makes a float with that, plus 128, as its low bits: so the low byte, less 128, has a sign
constexpr float kCodeOffset = 12582912 + 128;

struct Rows {
  const Launch& launch;
  Shared& shared;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = lane / 4, word = lane % 4;

  // What is beyond the inputs, of one row
  __device__ __forceinline__ void clear() const {
#pragma unroll 1
    for (int i = launch.depth * 2 + threadIdx.x * 16; i < kSpans * 512; i += kThreads * 16) {
      *reinterpret_cast<uint4*>(shared.x[0][0] + i) = uint4{};
    }
  }

  // The row that the router left in shared memory, by all warps but the first
  __device__ __forceinline__ void round() const {
#pragma unroll 1
    for (int i = warp - 1; i < kSpans; i += kWarps - 1) {
      uint8_t* span = shared.x[0][i];
      const uint2 even = *reinterpret_cast<const uint2*>(span + group * 64 + word * 8);
      const uint2 odd = *reinterpret_cast<const uint2*>(span + group * 64 + 32 + word * 8);
      round_span(span, shared.x_scales[0][i], even, odd);
    }
  }

  // From global memory. pair: in lane i the number of row i of launch.x
  __device__ __forceinline__ void load_and_round(int num_rows, int pair) const {
    constexpr int kEach = (kRows * kSpans + kWarps - 1) / kWarps, kBatch = kEach < 4 ? kEach : 4;
#pragma unroll 1
    for (int first = warp; first < kRows * kSpans; first += kBatch * kWarps) {
      uint2 even[kBatch] = {}, odd[kBatch] = {};
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const int i = first + j * kWarps, row = i / kSpans, at = i % kSpans * 256 + group * 32;
        const ELEMENT* from = launch.x + __shfl_sync(~0u, pair, row) * launch.x_stride + at + word * 4;
        if (row >= num_rows || at >= launch.depth) continue;
        even[j] = *reinterpret_cast<const uint2*>(from);
        odd[j] = *reinterpret_cast<const uint2*>(from + 16);
      }
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const int i = first + j * kWarps;
        if (i / kSpans < num_rows) round_span(shared.x[0][i], shared.x_scales[0][i], even[j], odd[j]);
      }
    }
  }

  __device__ __forceinline__ void round_span(uint8_t* span, float* scales, const uint2& even, const uint2& odd) const {
    const uint32_t pairs[4] = {even.x, even.y, odd.x, odd.y};
    float y[8], largest = kLeastLargest;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      y[j] = j % 2 ? high_half<ELEMENT>(pairs[j / 2]) : low_half<ELEMENT>(pairs[j / 2]);
      largest = larger(largest, fabsf(y[j]));  // NaN, if one is, and then so is the scale
    }
    largest = larger(largest, __shfl_xor_sync(~0u, largest, 1));
    largest = larger(largest, __shfl_xor_sync(~0u, largest, 2));  // all lanes have their words
    if (word == 0) scales[group] = largest * (0.5f / kLargestCode);  // half, since weights are doubled
    const float inverse = reciprocal(largest * (1 / kLargestCode));
    uint32_t codes[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) codes[j] = __float_as_uint(fmaf(y[j], inverse, kCodeOffset));
    uint8_t* to = span + group % 4 * 128 + group / 4 * 64 + word * 8;
    store_bytes(to, codes[0], codes[4], codes[1], codes[5]);
    store_bytes(to + 4, codes[2], codes[6], codes[3], codes[7]);
  }

  static __device__ __forceinline__ void store_bytes(uint8_t* to, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    const uint32_t first = __byte_perm(a, b, 0x5140), second = __byte_perm(c, d, 0x5140);
    *reinterpret_cast<uint32_t*>(to) = __byte_perm(first, second, 0x7632);
    *reinterpret_cast<uint32_t*>(to + 32) = __byte_perm(first, second, 0x5410) ^ 0x80808080;
  }
};

}  // namespace
}  // namespace octavo
