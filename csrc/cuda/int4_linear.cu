// A few rows times a weight of int4: y = x W^T, at the speed of reading the weight.
//
// A persistent grid of one thread block per multiprocessor. A block has units of 16 outputs, or twice as many for a gate
// and what it multiplies, one after another. Its warps share the inputs of a unit, a piece of 128 or 256 at a time:
//
//   weights    each warp copies what it will multiply into a ring of its own in shared memory, without a pause between
//              units, so no warp waits for another; it begins before the previous kernel has ended
//   rows       all warps, once ──> integers of 16 bits in shared memory (int4_rows.cuh), if wanted times an RMSNorm's
//              weight
//   products   mma 16 x 8 x 32 of bytes, the weights are the 16 rows of the first operand; a row of x is two columns of
//              the second, its high bytes and its low ones
//   sums       each warp leaves those of some units in shared memory; then the block adds them up in a fixed order:
//              scale, 1 / rms, bias, gate, residual
//
// Instructions are as scarce as the memory's bandwidth: a quarter of one makes a byte of a nibble. So every second one stays
// 16 times what it is, and zero points wait, until a span of 64 or 128 inputs is summed. Till then sums are exact.
//
// Where the rows do not fit into shared memory, blocks share the inputs of a unit, too, and leave float32 sums that the
// next kernel, a norm, adds up.
//
// A product's depth may be in any order, so a thread takes neighbouring inputs and needs no shuffling of weights: for each
// of two outputs 8 of 32 inputs, from 8 t on, t = lane % 4. Weights are packed for this kernel (quantized_weight.py).

#include "int4_rows.cuh"

namespace octavo {
namespace {

constexpr uint32_t kEven = 0x0f0f0f0f;  // the nibbles of a word that are bytes as they are; the others are so times 16

struct Product {
  const Launch& launch;
  Shared& shared;
  const Share& share;
  Ring& ring;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int unit_sums = kWarps * launch.num_rows * kOutputs;
  const Rows rows{launch, share, reinterpret_cast<uint8_t*>(shared.rest + 2 * launch.units_together * unit_sums)};
  float sums[kTiles][ROW_TILES][2];

  const uint8_t* own_x[ROW_TILES];
  const Span* const own_spans = rows.spans + lane % 4;

  __device__ void run() {
#pragma unroll
    for (int i = 0; i < ROW_TILES; ++i) {  // a row that is not there gives sums that nobody reads
      const int row = min(i * 4 + lane / 8, launch.num_rows - 1);
      own_x[i] = rows.x + (2 * row + lane / 4 % 2) * rows.pitch + lane % 4 * 16;
    }
    rows.stage();
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

  __device__ __forceinline__ void multiply_unit() {
#pragma unroll
    for (int i = 0; i < kTiles * ROW_TILES * 2; ++i) (&sums[0][0][0])[i] = 0;
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
  __device__ __forceinline__ void multiply(float (&sum)[ROW_TILES][2], const uint8_t* entry, int at) const {
#pragma unroll
    for (int span = 0; span < kPiece / kSpan; ++span) {
      int even[ROW_TILES][4] = {}, odd[ROW_TILES][4] = {};  // by the word's nibbles; odd: 16 times the sums
#pragma unroll
      for (int j = 0; j < kSpan / 64; ++j) {  // a thread has 16 of 64 inputs
        const int part = span * (kSpan / 64) + j;
        const uint4 words = reinterpret_cast<const uint4*>(entry + part * 512)[lane];
        const uint32_t low[4] = {words.x & kEven, words.y & kEven, words.z & kEven, words.w & kEven};
        const uint32_t high[4] = {words.x & ~kEven, words.y & ~kEven, words.z & ~kEven, words.w & ~kEven};
#pragma unroll
        for (int i = 0; i < ROW_TILES; ++i) {
          const uint4 b = *reinterpret_cast<const uint4*>(own_x[i] + at + part * 64);
          multiply_add_bytes(even[i], low, b.x, b.y);
          multiply_add_bytes(odd[i], high, b.z, b.w);
        }
      }
      const Span* const factors = own_spans + at / kSpan * kRows + span * kRows;
      const float2 scales = scales_of(entry, span), zeros = zeros_of(entry, span);
#pragma unroll
      for (int i = 0; i < ROW_TILES; ++i) add(sum[i], even[i], odd[i], factors[i * 4], scales, zeros);
    }
  }

  // A span's sums: 16 * 15 * 128 * 32639 fits into an integer, and so does half of it that zero points take
  __device__ __forceinline__ void add(float (&sum)[2], const int (&even)[4], const int (&odd)[4], const Span& span,
                                      float2 scales, float2 zeros) const {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int high = even[2 * j] * 16 + odd[2 * j], low = even[2 * j + 1] * 16 + odd[2 * j + 1];
      const int total = high * 256 + low;
      const float y = HAS_ZEROS ? total + __uint_as_float(span.taken) * (j == 0 ? zeros.x : zeros.y)
                                : total + int(span.taken);
      sum[j] += y * ((j == 0 ? scales.x : scales.y) * span.scale);
    }
  }

  // The group of a span, among the entry's
  __device__ __forceinline__ int group_of(int span) const { return span * kSpan >> launch.group_bits; }

  // Of outputs lane / 4 and that + 8
  __device__ __forceinline__ float2 scales_of(const uint8_t* entry, int span) const {
    if (!HAS_GROUPS) return {1, 1};  // they scale the result
    return reinterpret_cast<const float2*>(entry + kWeightBytes)[group_of(span) * 8 + lane / 4];
  }

  __device__ __forceinline__ float2 zeros_of(const uint8_t* entry, int span) const {
    if (!HAS_ZEROS) return {8, 8};
    const ELEMENT* own = reinterpret_cast<const ELEMENT*>(entry + kWeightBytes + kScaleBytes) + group_of(span) * 16;
    return {to_float(own[lane / 4 * 2]), to_float(own[lane / 4 * 2 + 1])};
  }

  // Leaves the warp's sums of a unit at [warp][row][output]
  __device__ __forceinline__ void leave(float* all) const {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < ROW_TILES; ++i) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int row = i * 4 + lane % 4, output = tile * 16 + j * 8 + lane / 4;
          if (row < launch.num_rows) all[(warp * launch.num_rows + row) * kOutputs + output] = sums[tile][i][j];
        }
      }
    }
  }

  // The outputs of some units, for all rows
  __device__ void finish(int first_unit, int count, const float* all) const {
    for (int i = threadIdx.x; i < count * launch.num_rows * kUnit; i += kThreads) {
      const int place = i % kUnit, row = i / kUnit % launch.num_rows, turn = i / kUnit / launch.num_rows;
      const int output = (first_unit + turn * share.step) * kUnit + place;
      const Ends ends = ends_of<!HAS_GROUPS>(launch, row, output, launch.norm == nullptr ? 1 : rows.norm_factor(row));
      store_output<kWarps>(launch, row, output, ends, all + turn * unit_sums, launch.num_rows * kOutputs, place);
    }
  }
};

// What is needed beside weights and rows comes into the cache
__device__ void prefetch_vectors(const Launch& launch, const Share& share) {
  if (launch.norm != nullptr) {
    for (int i = threadIdx.x * 32; i < share.length; i += kThreads * 32) prefetch(launch.norm + i);
  }
  if constexpr (!HAS_GROUPS) {
    for (int i = share.first_unit + threadIdx.x * share.step; i < share.num_units; i += kThreads * share.step) {
      for (int tile = 0; tile < kTiles; ++tile) prefetch(launch.scales + i * kUnit + tile * launch.columns);
    }
  }
}

}  // namespace
}  // namespace octavo

// Of up to four rows a block leaves the multiprocessor registers for one of attention: in each quarter 2 warps of 168
#if ROW_TILES == 1 && __CUDACC_VER_MAJOR__ >= 13
#define BOUNDS __maxnreg__(88)
#else
#define BOUNDS __launch_bounds__(octavo::kThreads, ROW_TILES > 2 ? 1 : 2)
#endif

extern "C" __global__ void BOUNDS octavo_int4_linear(const __grid_constant__ octavo::Launch launch) {
  using namespace octavo;
  extern __shared__ __align__(128) uint8_t memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const Share share(launch, kPiece);
  Ring ring{launch, share, &shared.rings[threadIdx.x / 32][0][0]};
  ring.fill();
  prefetch_vectors(launch, share);
#if IS_CHAINED
  wait_for_previous();
  allow_next();
#endif
  Product{launch, shared, share, ring}.run();
}
