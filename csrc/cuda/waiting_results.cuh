// A tile's results, which wait in registers, as 16 bits, while the next tile's products run: their stores, and a gate's
// arithmetic, cost the matrix units nothing then.
//
//   products of tile 1 | rounded | products of tile 2 ...
//                                | a part of tile 1's results a stage: gated, stored
#pragma once

#include "activate.cuh"
#include "ptx.cuh"

namespace octavo {

// A thread's: two rows, of each 8 neighbouring outputs of every 32, as grouped_linear.cu deals them. kGate: as `gated`
// numbers them, -1: none; then outputs come in halves, of the gate and of up
template <typename Element, int kGate, bool kHasScales, bool kHasBias>
struct WaitingResults {
  static constexpr bool kIsGated = kGate >= 0;
  static constexpr int kParts = 8, kOutputParts = kIsGated ? kParts / 2 : kParts;
  uint32_t words[kParts][2][4];
  int pairs[2], column;
  bool are_there = false;

  // From the sums of an expert's tile; pairs: of the rows, -1: none. first: the thread's first output
  template <typename Launch>
  __device__ __forceinline__ void keep(const Launch& launch, const float (&sums)[32][4], const int (&of)[2], int expert,
                                       int first) {
    are_there = true, column = first;
    float row_scale[2] = {1, 1};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      pairs[half] = of[half];
      if (kHasScales) row_scale[half] = launch.row_scales[max(of[half], 0) / launch.rows_of];
    }
    const int64_t matrix = int64_t(expert) * (kIsGated ? 2 : 1) * launch.columns;
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const int output = column + i % kOutputParts * 32;
      const int64_t at = matrix + output + (i < kOutputParts ? 0 : launch.columns);
      Eight scale = {}, bias = {};
      if (kHasScales && output < launch.columns) scale = eight(launch.scales + at);
      if (kHasBias && output < launch.columns) bias = eight(launch.bias + at);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          float y[2];
#pragma unroll
          for (int b = 0; b < 2; ++b) {
            y[b] = sums[i * 4 + j][half * 2 + b];
            if (kHasScales) y[b] *= row_scale[half] * scale.x[2 * j + b];
            if (kHasBias) y[b] += bias.x[2 * j + b];
          }
          words[i][half][j] = pack<Element>(y[0], y[1]);
        }
      }
    }
  }

  // One of kParts
  template <typename Launch>
  __device__ __forceinline__ void store(const Launch& launch, int part) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (kIsGated && half != part % 2) continue;
      const int i = kIsGated ? part / 2 : part, output = column + i * 32;
      uint32_t y[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        y[j] = words[i][half][j];
        if (!kIsGated) continue;
        const uint32_t up = words[(i + kOutputParts) % kParts][half][j];
        y[j] = pack<Element>(
            gated(low_half<Element>(y[j]), low_half<Element>(up), kGate, launch.alpha, launch.limit),
            gated(high_half<Element>(y[j]), high_half<Element>(up), kGate, launch.alpha, launch.limit));
      }
      if (pairs[half] < 0 || output >= launch.columns) continue;
      *reinterpret_cast<uint4*>(launch.out + pairs[half] * launch.out_stride + output) = {y[0], y[1], y[2], y[3]};
    }
  }
};

}  // namespace octavo
