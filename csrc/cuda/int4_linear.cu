// A few rows times a weight of int4: y = x W^T, at the speed of reading the weight.
//
// A persistent grid of one thread block per multiprocessor. A block has units of 16 outputs, or twice as many for a gate
// and what it multiplies, one after another. Its warps share the inputs of a unit, a piece of 128 or 256 at a time:
//
//   weights    each warp copies what it will multiply into a ring of its own in shared memory, without a pause between
//              units, so no warp waits for another; it begins before the previous kernel has ended
//   rows       all warps, once ──> shared memory, if wanted times an RMSNorm's weight
//   products   mma 16 x 8 x 16, the weights are the 16 rows of the first operand and x the second
//   sums       each warp leaves those of some units in shared memory; then the block adds them up in a fixed order:
//              scale, 1 / rms, bias, gate, residual
//
// Instructions are as scarce as the memory's bandwidth: a nibble takes one and a half. So weights stay raised by what
// makes them numbers, and zero points wait, until a span of 64 or 128 inputs is summed.
//
// Where the rows do not fit into shared memory, blocks share the inputs of a unit, too, and leave float32 sums that the
// next kernel, a norm, adds up.
//
// A product's depth may be in any order, so a thread takes neighbouring inputs and needs no shuffling of weights: for each
// of two outputs 8 of 32 inputs, from 8 t on, t = lane % 4. Weights are packed for this kernel (quantized_weight.py).

#include "activate.cuh"
#include "int4_load.cuh"

namespace octavo {
namespace {

struct Product {
  const Launch& launch;
  Shared& shared;
  const Share& share;
  Ring& ring;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int pitch = launch.part_depth + kRowGap;
  const int unit_sums = kWarps * launch.num_rows * kOutputs;
  ELEMENT* const x = reinterpret_cast<ELEMENT*>(shared.rest + 2 * launch.units_together * unit_sums);
  float* const input_sums = reinterpret_cast<float*>(x + launch.num_rows * pitch);
  float sums[kTiles][ROW_TILES][4];

  const ELEMENT* own_x[ROW_TILES];
  const float* own_sums = input_sums + lane % 4 * 2;

  __device__ void run() {
#pragma unroll
    for (int i = 0; i < ROW_TILES; ++i) {  // a row that is not there gives sums that nobody reads
      own_x[i] = x + min(i * 8 + lane / 4, launch.num_rows - 1) * pitch + lane % 4 * 8;
    }
    stage_rows();
    __syncthreads();
    float* left = shared.rest;
    int turn = 0, count = 0;
    for (int unit = share.first_unit; unit < share.num_units; unit += share.step) {
      multiply_unit();
      leave(left + count * unit_sums);
      if (++count < launch.units_together && unit + share.step < share.num_units) continue;
      __syncthreads();
      finish(unit - (count - 1) * share.step, count, left);
      count = 0;
      turn ^= 1;
      left = shared.rest + turn * launch.units_together * unit_sums;
    }
  }

  // The rows into shared memory; with a norm also the sums of their squares, by warp
  __device__ void stage_rows() {
    constexpr int kBatch = 4;  // loads on their way at once
    const int num_chunks = share.length / 8;
    for (int row = 0; row < launch.num_rows; ++row) {
      const ELEMENT* from = launch.x + row * launch.x_stride + share.begin;
      float square = 0;
      for (int start = threadIdx.x; start < num_chunks; start += kBatch * kThreads) {
        uint4 raw[kBatch];
        Eight norm[kBatch];
#pragma unroll
        for (int j = 0; j < kBatch; ++j) {
          const int i = start + j * kThreads;
          if (i < num_chunks) {
            raw[j] = *reinterpret_cast<const uint4*>(from + i * 8);
            if (launch.norm != nullptr) norm[j] = eight(launch.norm + i * 8);
          }
        }
#pragma unroll
        for (int j = 0; j < kBatch; ++j) {
          const int i = start + j * kThreads;
          if (i < num_chunks) stage(row, i, raw[j], norm[j], square);
        }
      }
      if (launch.norm != nullptr) {
        for (int step = 16; step > 0; step /= 2) square += __shfl_xor_sync(~0u, square, step);
        if (lane == 0) shared.squares[row * kWarps + warp] = square;
      }
    }
  }

  // Eight inputs of a row
  __device__ __forceinline__ void stage(int row, int i, uint4 raw, Eight norm, float& square) {
    const ELEMENT* numbers = reinterpret_cast<const ELEMENT*>(&raw);
    if (launch.norm != nullptr) {
      float y[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float each = to_float(numbers[j]);
        square += each * each;
        y[j] = each * norm.x[j];
      }
      raw = {pack<ELEMENT>(y[0], y[1]), pack<ELEMENT>(y[2], y[3]), pack<ELEMENT>(y[4], y[5]),
             pack<ELEMENT>(y[6], y[7])};
    }
    float sum = 0;
#pragma unroll
    for (int j = 0; j < 8; ++j) sum += to_float(numbers[j]);
    constexpr int kLanes = kSpan / 8;
    const uint32_t together = ((1u << kLanes) - 1) << (lane / kLanes * kLanes);
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(together, sum, step);
    if (lane % kLanes == 0) input_sums[i / kLanes * kRows + row] = sum;
    *reinterpret_cast<uint4*>(x + row * pitch + i * 8) = raw;
  }

  __device__ __forceinline__ void multiply_unit() {
#pragma unroll
    for (int i = 0; i < kTiles * ROW_TILES * 4; ++i) (&sums[0][0][0])[i] = 0;
#pragma unroll 1
    for (int piece = warp; piece < share.num_pieces; piece += kWarps) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        multiply(sums[tile], ring.front(), piece * kPiece);
        ring.pop();
      }
    }
  }

  // at: the piece's first input
  __device__ __forceinline__ void multiply(float (&sum)[ROW_TILES][4], const uint8_t* entry, int at) const {
#pragma unroll
    for (int span = 0; span < kPiece / kSpan; ++span) {
      float parts[ROW_TILES][4];
      begin_parts(parts, entry, span, at);
#pragma unroll
      for (int j = 0; j < kSpan / 32; ++j) {  // a thread has 8 of 32 inputs
        const int part = span * (kSpan / 32) + j;
        uint32_t a[2][4];
        fragments(a, entry, part);
#pragma unroll
        for (int i = 0; i < ROW_TILES; ++i) {
          const uint4 b = *reinterpret_cast<const uint4*>(own_x[i] + at + part * 32);
          multiply_add_any_time<ELEMENT>(parts[i], a[0], b.x, b.y);
          multiply_add_any_time<ELEMENT>(parts[i], a[1], b.z, b.w);
        }
      }
      const float2 scales = scales_of(entry, span);
#pragma unroll
      for (int i = 0; i < ROW_TILES; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] += parts[i][j] * (j < 2 ? scales.x : scales.y);
      }
    }
  }

  // What is too much: the products of all inputs with zero points, and with what raises the numbers
  __device__ __forceinline__ void begin_parts(float (&parts)[ROW_TILES][4], const uint8_t* entry, int span, int at) const {
    float low = -(Numbers<ELEMENT>::kRaised + 8), high = low;
    if constexpr (HAS_ZEROS) {
      const ELEMENT* zeros = reinterpret_cast<const ELEMENT*>(entry + kWeightBytes + kScaleBytes) + group_of(span) * 16;
      low = -to_float(zeros[lane / 4 * 2]);
      high = -to_float(zeros[lane / 4 * 2 + 1]);
    }
#pragma unroll
    for (int i = 0; i < ROW_TILES; ++i) {
      const float2 sum = *reinterpret_cast<const float2*>(own_sums + (at / kSpan + span) * kRows + i * 8);
      parts[i][0] = low * sum.x;
      parts[i][1] = low * sum.y;
      parts[i][2] = high * sum.x;
      parts[i][3] = high * sum.y;
    }
  }

  // The group of a span, among the entry's
  __device__ __forceinline__ int group_of(int span) const { return span * kSpan >> launch.group_bits; }

  // Of outputs lane / 4 and that + 8
  __device__ __forceinline__ float2 scales_of(const uint8_t* entry, int span) const {
    if (!HAS_GROUPS) return {1, 1};  // they scale the result
    return reinterpret_cast<const float2*>(entry + kWeightBytes)[group_of(span) * 8 + lane / 4];
  }

  // The weights of two products of depth 16. Rows of a fragment: output lane / 4, then that + 8
  __device__ __forceinline__ void fragments(uint32_t (&a)[2][4], const uint8_t* entry, int part) const {
    const uint4 words = reinterpret_cast<const uint4*>(entry + part / 2 * 512)[lane];  // of two parts
    const uint32_t low = part % 2 ? words.z : words.x, high = part % 2 ? words.w : words.y;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a[i / 2][i % 2 * 2] = int4_pair<ELEMENT>(low, i);
      a[i / 2][i % 2 * 2 + 1] = int4_pair<ELEMENT>(high, i);
    }
  }

  // Leaves the warp's sums of a unit at [warp][row][output]
  __device__ __forceinline__ void leave(float* all) const {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < ROW_TILES; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int row = i * 8 + lane % 4 * 2 + j % 2, output = tile * 16 + j / 2 * 8 + lane / 4;
          if (row < launch.num_rows) all[(warp * launch.num_rows + row) * kOutputs + output] = sums[tile][i][j];
        }
      }
    }
  }

  // The outputs of some units, for all rows
  __device__ void finish(int first_unit, int count, const float* all) const {
    for (int i = threadIdx.x; i < count * launch.num_rows * 16; i += kThreads) {
      const int place = i % 16, row = i / 16 % launch.num_rows, turn = i / 16 / launch.num_rows;
      const int output = (first_unit + turn * share.step) * 16 + place;
      const float* own = all + turn * unit_sums + row * kOutputs + place;
      if (launch.num_parts > 1) {
        const int64_t at = blockIdx.x % launch.num_parts * launch.part_stride + row * launch.out_stride + output;
        static_cast<float*>(launch.out)[at] = scaled(own, output);
        continue;
      }
      float factor = 1;
      if (launch.norm != nullptr) {
        float square = 0;
#pragma unroll
        for (int j = 0; j < kWarps; ++j) square += shared.squares[row * kWarps + j];
        factor = rsqrtf(square / launch.depth + launch.eps);
      }
      float y = with_bias(scaled(own, output) * factor, output);
      if constexpr (IS_GATED) {
        const int other = launch.columns + output;
        y = activate(y, launch.activation) * with_bias(scaled(own + 16, other) * factor, other);
      }
      if (launch.residual != nullptr) y += to_float(launch.residual[row * launch.residual_stride + output]);
      static_cast<ELEMENT*>(launch.out)[row * launch.out_stride + output] = ELEMENT{uint16_t(pack<ELEMENT>(y, 0))};
    }
  }

  // The warps' sums of one output
  __device__ __forceinline__ float scaled(const float* own, int output) const {
    float y = 0;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) y += own[i * launch.num_rows * kOutputs];
    return HAS_GROUPS ? y : y * launch.scales[output];
  }

  __device__ __forceinline__ float with_bias(float y, int output) const {
    return launch.bias == nullptr ? y : y + to_float(launch.bias[output]);
  }
};

// What is needed beside weights and rows comes into the cache
__device__ void prefetch_vectors(const Launch& launch, const Share& share) {
  if (launch.norm != nullptr) {
    for (int i = threadIdx.x * 32; i < share.length; i += kThreads * 32) prefetch(launch.norm + i);
  }
  if constexpr (!HAS_GROUPS) {
    for (int i = share.first_unit + threadIdx.x * share.step; i < share.num_units; i += kThreads * share.step) {
      for (int tile = 0; tile < kTiles; ++tile) prefetch(launch.scales + i * 16 + tile * launch.columns);
    }
  }
}

}  // namespace
}  // namespace octavo

extern "C" __global__ void __launch_bounds__(octavo::kThreads, 2)
    octavo_int4_linear(const __grid_constant__ octavo::Launch launch) {
  using namespace octavo;
  extern __shared__ __align__(128) uint8_t memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const Share share(launch);
  Ring ring{launch, share, &shared.rings[threadIdx.x / 32][0][0]};
  ring.fill();
  prefetch_vectors(launch, share);
#if IS_CHAINED
  wait_for_previous();
  allow_next();
#endif
  Product{launch, shared, share, ring}.run();
}
