// Rows as csrc/cuda/fp4_experts.cu multiplies them, in shared memory: integers of 16 bits, times a scale for each 32 inputs.
//
// The largest of 32 inputs becomes 127 * 256 + 127 = 32,639, so none is off by more than a 65,278th of it. An integer is
// 256 times its high byte plus its low one, which both have a sign, and which are two columns of a product of bytes.
#pragma once

#include "fp4_kind.cuh"

namespace octavo {
namespace {

constexpr float kLargestCode = 32639, kLeastLargest = 1e-30f;
// Added to an integer of 16 bits, makes a float with that, plus 128, as its low bits: so the low byte, less 128, has a sign
constexpr float kCodeOffset = 12582912 + 128;

// Eight inputs of a group of 32, which meet one word of a weight: 4 w to 4 w + 3, and as many from 16 + 4 w on
struct Word {
  uint2 low = {}, high = {};
  float y[8], largest = kLeastLargest;
  uint32_t codes[8];

  __device__ __forceinline__ void load(const ELEMENT* from) {
    low = *reinterpret_cast<const uint2*>(from);
    high = *reinterpret_cast<const uint2*>(from + 16);
  }

  __device__ __forceinline__ void begin() {
    const uint32_t words[4] = {low.x, low.y, high.x, high.y};
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      y[j] = j % 2 ? high_half<ELEMENT>(words[j / 2]) : low_half<ELEMENT>(words[j / 2]);
      largest = larger(largest, fabsf(y[j]));  // NaN, if one is, and then so is the scale
    }
  }

  // Of half of an integer, since weights are doubled
  __device__ __forceinline__ float scale() const { return largest * (0.5f / kLargestCode); }

  __device__ __forceinline__ void round() {
    const float inverse = reciprocal(largest * (1 / kLargestCode));
#pragma unroll
    for (int j = 0; j < 8; ++j) codes[j] = __float_as_uint(fmaf(y[j], inverse, kCodeOffset));
  }

  // In the order of a word's nibbles. to: 8 high bytes; 32 bytes on the low ones
  __device__ __forceinline__ void store(uint8_t* to) const {
    uint2 high_bytes, low_bytes;
    bytes_of(codes[0], codes[4], codes[1], codes[5], high_bytes.x, low_bytes.x);
    bytes_of(codes[2], codes[6], codes[3], codes[7], high_bytes.y, low_bytes.y);
    *reinterpret_cast<uint2*>(to) = high_bytes;
    *reinterpret_cast<uint2*>(to + 32) = low_bytes;
  }

  static __device__ __forceinline__ void bytes_of(uint32_t a, uint32_t b, uint32_t c, uint32_t d, uint32_t& high_bytes,
                                                  uint32_t& low_bytes) {
    const uint32_t first = __byte_perm(a, b, 0x5140), second = __byte_perm(c, d, 0x5140);
    high_bytes = __byte_perm(first, second, 0x7632);
    low_bytes = __byte_perm(first, second, 0x5410) ^ 0x80808080;
  }
};

// By the whole block: rows come to shared memory, with zeros for what is beyond their inputs
struct Rows {
  static constexpr int kWords = kSpans * 32, kAll = kRows * kWords, kEach = (kAll + kThreads - 1) / kThreads;
  static constexpr int kBatch = kEach < 6 ? kEach : 6;  // words that a thread has at once, so that none waits for another
  const Launch& launch;
  Shared& shared;

  // pair: in lane i the number of row i of launch.x
  __device__ __forceinline__ void stage(int pair, int num_rows) const {
#pragma unroll 1
    for (int first = 0; first < kAll; first += kBatch * kThreads) {
      Word words[kBatch];
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const int i = first + j * kThreads + threadIdx.x, row = i / kWords, at = i % kWords;
        const int input = at / 4 * 32 + at % 4 * 4, own = __shfl_sync(~0u, pair, row);
        if (row < num_rows && input < launch.depth) words[j].load(launch.x + own * launch.x_stride + input);
      }
#pragma unroll
      for (int j = 0; j < kBatch; ++j) words[j].begin();
#pragma unroll
      for (int step = 1; step < 4; step *= 2) {
#pragma unroll
        for (int j = 0; j < kBatch; ++j) {
          words[j].largest = larger(words[j].largest, __shfl_xor_sync(~0u, words[j].largest, step));
        }
      }
#pragma unroll
      for (int j = 0; j < kBatch; ++j) words[j].round();
#pragma unroll
      for (int j = 0; j < kBatch; ++j) store(words[j], first + j * kThreads + threadIdx.x);
    }
  }

  __device__ __forceinline__ void store(const Word& word, int i) const {
    if (i >= kAll) return;
    const int row = i / kWords, at = i % kWords, span = at / 32, group = at / 4 % 8;
    word.store(shared.x[row][span][group % 4][group / 4][0] + at % 4 * 8);
    if (at % 4 == 0) shared.x_scales[row][span][group] = word.scale();
  }
};

}  // namespace
}  // namespace octavo
