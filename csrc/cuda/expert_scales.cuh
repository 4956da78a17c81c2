// Weights as pairs of 16-bit numbers where experts.cu does not take them from quantized_weights.cuh, and what sums are scaled
// by.
#pragma once

#include "expert_kind.cuh"

namespace octavo {
namespace {

// How an integer q of 4 bits stands in a 16-bit type, as kRaised + q, and what is subtracted: pairs
template <typename Element>
struct Raised;
template <>
struct Raised<Bf16> {
  static constexpr uint32_t kNumber = 0x43004300, kMinus = 0xc300c300, kOne = 0x3f803f80;  // 128
};
template <>
struct Raised<Fp16> {
  static constexpr uint32_t kNumber = 0x64006400, kMinus = 0xe400e400, kOne = 0x3c003c00;  // 1024
};

// Nibbles i and i + 4 of the word, less a zero point. minus_zero: kMinus, plus the zero point in each half
__device__ __forceinline__ uint32_t integer_pair(uint32_t word, int i, uint32_t minus_zero) {
  const uint32_t raised = (word >> (4 * i) & 0x000f000f) | Raised<ELEMENT>::kNumber;
  return Numbers<ELEMENT>::fma(raised, Raised<ELEMENT>::kOne, minus_zero);
}

// Bytes 0 and 2 of the word, or 1 and 3, times 2^-120; bfloat16 has what is too small for it as subnormal numbers
__device__ __forceinline__ uint32_t fp8_placed(uint32_t word, bool is_odd) {
  const uint32_t bytes = is_odd ? word : word << 8;
  return (bytes & 0x80008000) | (bytes >> 4 & 0x07f007f0);
}

// What a span of a warp's outputs is scaled by, as it is read: before the weights have come
struct Scales {
  float of[kHalves][kGroups][2];  // outputs 2 (lane % 4) and the next
  uint32_t powers[kHalves];       // fp4: of two units of output lane / 4, from 2 (lane % 4) on; halves of floats
  uint32_t minus_zeros[kHalves][kGroups];  // of output lane / 4, twice

  __device__ __forceinline__ void load(const Launch& launch, int64_t first, int span) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      const int64_t output = first + half * launch.columns;
      if constexpr (FORMAT == kFp4) {
        const int unit = span * 8 + lane % 4 * 2;
        const uint8_t* from = static_cast<const uint8_t*>(launch.scales) + (output + lane / 4) * launch.num_groups + unit;
        powers[half] = unit < launch.num_groups ? power(from[0]) >> 16 : 0;
        if (unit + 1 < launch.num_groups) powers[half] |= power(from[1]);
      } else if constexpr (kGroup > 0) {
#pragma unroll
        for (int i = 0; i < kGroups; ++i) {
          const int group = min((span * kInputs + i * kGroup) / launch.group, launch.num_groups - 1);
          const float* scales = static_cast<const float*>(launch.scales) + group;
          of[half][i][0] = scales[(output + lane % 4 * 2) / launch.row_block * launch.num_groups] * kRest;
          of[half][i][1] = scales[(output + lane % 4 * 2 + 1) / launch.row_block * launch.num_groups] * kRest;
          if (HAS_ZEROS) {
            const int zero = launch.zeros[(output + lane / 4) * launch.num_groups + group];
            minus_zeros[half][i] = Raised<ELEMENT>::kMinus + zero * 0x10001;
          }
        }
      }
    }
  }

  // Of the first group of a pair, and of the second. By the whole warp
  __device__ __forceinline__ void of_pair(float2 (&scale)[2], int half, int group) const {
    if constexpr (FORMAT == kFp4) {
      const int from = threadIdx.x % 4 * 8 + group / 2;
      const uint32_t low = __shfl_sync(~0u, powers[half], from), high = __shfl_sync(~0u, powers[half], from + 4);
      scale[0] = {__uint_as_float(low << 16), __uint_as_float(high << 16)};
      scale[1] = {__uint_as_float(low & 0xffff0000), __uint_as_float(high & 0xffff0000)};
    } else {
      scale[0] = {of[half][group][0], of[half][group][1]};
      if (kGroups > 1) scale[1] = {of[half][(group + 1) % kGroups][0], of[half][(group + 1) % kGroups][1]};
    }
  }

  // The bits of 2^(exponent - 127), times what rows and numbers lack. A float has 2^-127 as half of its smallest normal
  // number
  static __device__ __forceinline__ uint32_t power(uint32_t exponent) {
    if (kIsRaised) return min(exponent + 126 - kRaisedBits, 255u) << 23;
    return exponent == 0 ? 1u << 22 : exponent << 23;
  }
};

// What follows a sum: of two outputs, and of up as well
struct Ends {
  float scale[kHalves][2], bias[kHalves][2];

  __device__ __forceinline__ void load(const Launch& launch, int64_t output) {
#pragma unroll
    for (int i = 0; i < kHalves * 2; ++i) {
      const int64_t at = output + i / 2 * launch.columns + i % 2;
      const bool scales = FORMAT != kDense && kGroup == 0;
      scale[i / 2][i % 2] = scales ? static_cast<const float*>(launch.scales)[at] * kRest : 1.0f;
      bias[i / 2][i % 2] = !IS_DOWN && launch.bias != nullptr ? to_float(launch.bias[at]) : 0.0f;
    }
  }
};

}  // namespace
}  // namespace octavo
