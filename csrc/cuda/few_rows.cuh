// What the products of a few rows with a quantised weight have in common: what they are given, a thread block's share of
// it, and how sums become outputs (csrc/cuda/fp8_linear.cu, int4_linear.cu, quantized_linear.cu).
#pragma once

#include "activate.cuh"
#include "ptx.cuh"

#ifndef ELEMENT
#define ELEMENT Bf16
#endif
#ifndef IS_GATED
#define IS_GATED 0
#endif
#ifndef IS_CHAINED
#define IS_CHAINED 0
#endif

namespace octavo {
namespace {

// A unit has 16 outputs, with a gate those that it lets through, too: `columns` further on
constexpr int kUnit = 16, kTiles = IS_GATED ? 2 : 1, kOutputs = kTiles * kUnit;

// As octavo/kernels/cuda_cpp/few_rows.py writes it. A kernel reads what concerns it
struct Launch {
  const ELEMENT* x;
  const uint8_t* weight;    // as quantized_weight.py lays it out
  const float* scales;      // [out], or [tile][group][8][2], outputs o and o + 8 of a tile side by side, or
                            // [out / 128][block_scales]
  const ELEMENT* zeros;     // as scales of groups: zero points; or null
  const ELEMENT* bias;      // or null
  const ELEMENT* residual;  // or null
  void* out;                // ELEMENT, or with several parts float
  const float* norm;        // or null
  int64_t x_stride, residual_stride, out_stride, part_stride;
  int num_rows, columns, depth, group_bits, block_scales, activation, num_parts, part_depth;
  int units_together;       // whose sums are added up at once
  float eps;
};

// A block's part of the work: some inputs of some units
struct Share {
  int begin, length, num_pieces;  // inputs
  int first_unit, step, num_units;

  // piece: inputs
  __device__ Share(const Launch& launch, int piece) {
    const int part = blockIdx.x % launch.num_parts;
    begin = part * launch.part_depth;
    length = min(launch.part_depth, launch.depth - begin);
    num_pieces = (length + piece - 1) / piece;
    first_unit = blockIdx.x / launch.num_parts;
    step = gridDim.x / launch.num_parts;
    num_units = launch.columns / kUnit;
  }
};

// What makes an output of its sum. It may be loaded before the sum is there
struct Ends {
  float scales[kTiles], biases[kTiles], residual;

  // factor: of the row
  __device__ __forceinline__ Ends times(float factor) const {
    Ends ends = *this;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) ends.scales[tile] *= factor;
    return ends;
  }
};

// factor: of the row. kHasScales: each output has one
template <bool kHasScales>
__device__ __forceinline__ Ends ends_of(const Launch& launch, int row, int output, float factor = 1) {
  Ends ends = {};
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    const int own = output + tile * launch.columns;
    ends.scales[tile] = kHasScales ? factor * launch.scales[own] : factor;
    if (launch.bias != nullptr) ends.biases[tile] = to_float(launch.bias[own]);
  }
  if (launch.residual != nullptr) ends.residual = to_float(launch.residual[row * launch.residual_stride + output]);
  return ends;
}

// all: what each warp left, [row][output] of the unit, so many floats apart. place: the output within the unit
template <int kWarps>
__device__ __forceinline__ void store_output(const Launch& launch, int row, int output, const Ends& ends,
                                             const float* all, int apart, int place) {
  float results[kTiles] = {};
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < kWarps; ++i) results[tile] += all[i * apart + row * kOutputs + tile * kUnit + place];
    results[tile] = results[tile] * ends.scales[tile] + ends.biases[tile];
  }
  const float y = IS_GATED ? activate(results[0], launch.activation) * results[kTiles - 1] : results[0];
  if (launch.num_parts > 1) {
    const int64_t at = blockIdx.x % launch.num_parts * launch.part_stride + row * launch.out_stride + output;
    static_cast<float*>(launch.out)[at] = y;
  } else {
    const ELEMENT rounded{uint16_t(pack<ELEMENT>(y + ends.residual, 0))};
    static_cast<ELEMENT*>(launch.out)[row * launch.out_stride + output] = rounded;
  }
}

}  // namespace
}  // namespace octavo
