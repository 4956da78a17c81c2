// One row times a weight of 16-bit numbers: y = x W^T, at the speed of reading the weight.
//
// A persistent grid of one thread block per multiprocessor. Blocks have outputs in turns, so that rows of the weight that
// are read at a time lie together; with a gate those that it lets through, too. A block's warps share its rows evenly, end
// to end, in chunks of 512 inputs:
//
//   weights    each warp copies its chunks into a ring of its own in shared memory, and begins before the previous kernel
//              has ended: a quarter and more of the weight may be there when the row comes
//   row        all warps, once ──> float32 in shared memory, if wanted times an RMSNorm's weight
//   sums       each warp leaves what it has of a row of the weight; then the block adds them up in a fixed order:
//              1 / rms, bias, gate, residual

#include "few_rows.cuh"

#ifndef WARPS
#define WARPS 16
#endif
#ifndef ENTRIES
#define ENTRIES 6
#endif

namespace octavo {
namespace {

constexpr int kWarps = WARPS, kThreads = kWarps * 32;
constexpr int kChunk = 512, kHalf = kChunk / 2;  // inputs; a lane has 8 of each half
constexpr int kChunkBytes = kChunk * 2;

struct Shared {
  uint8_t rings[kWarps][ENTRIES][kChunkBytes];
  float squares[kWarps];
  // The row: [2][padded depth / 2], of 8 inputs the first four and the last; then sums: [16 outputs][warp][kOutputs]
  __align__(16) float rest[4];
};

// A block's outputs, and a warp's chunks of their rows of the weight
struct Own {
  int num_outputs, row_chunks, first_chunk, end_chunk;

  __device__ explicit Own(const Launch& launch) {
    const int block = blockIdx.x, num_blocks = gridDim.x;
    num_outputs = (launch.columns - block + num_blocks - 1) / num_blocks;
    row_chunks = (launch.depth + kChunk - 1) / kChunk;
    const unsigned all = max(num_outputs, 0) * kTiles * row_chunks, warp = threadIdx.x / 32;
    first_chunk = all * warp / kWarps;
    end_chunk = all * (warp + 1) / kWarps;
  }

  // The i-th output
  __device__ __forceinline__ int output(int i) const { return blockIdx.x + i * gridDim.x; }
};

// Where a warp is in its chunks
struct Place {
  int row, chunk;  // the row: output * kTiles + tile

  __device__ explicit Place(const Own& own) : row(own.first_chunk / own.row_chunks), chunk(own.first_chunk % own.row_chunks) {}

  __device__ __forceinline__ void advance(const Own& own) {
    if (++chunk == own.row_chunks) chunk = 0, ++row;
  }
};

struct Loader {
  const Launch& launch;
  const Own& own;
  uint8_t* const entries;
  const uint64_t policy = once_policy();
  const int lane = threadIdx.x % 32;
  Place place{own};
  int left = own.end_chunk - own.first_chunk, entry = 0;

  __device__ __forceinline__ void copy_next() {
    if (left > 0) {
      --left;
      const int64_t row = own.output(place.row / kTiles) + place.row % kTiles * launch.columns;
      const uint8_t* from = launch.weight + row * launch.depth * 2;
      const uint32_t to = shared_address(entries + entry * kChunkBytes) + lane * 16;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = place.chunk * kChunk + half * kHalf + lane * 8;
        const bool is_there = at < launch.depth;
        copy_16_once(to + half * kHalf * 2, from + (is_there ? at * 2 : 0), is_there, policy);
      }
      place.advance(own);
      entry = entry + 1 < ENTRIES ? entry + 1 : 0;
    }
    copies_end_group();
  }
};

struct Row {
  const Launch& launch;
  Shared& shared;
  const int padded = (launch.depth + kChunk - 1) / kChunk * kChunk;
  float* const low = shared.rest;
  float* const high = low + padded / 2;
  float* const sums = high + padded / 2;

  // Of the i-th 8 inputs
  __device__ __forceinline__ Eight norm_at(int i) const {
    return launch.norm != nullptr && i * 8 < launch.depth ? eight(launch.norm + i * 8) : Eight{};
  }

  // first: the norm of the thread's first inputs
  __device__ void stage(const Eight& first) const {
    float square = 0;
#pragma unroll 2
    for (int i = threadIdx.x; i < padded / 8; i += kThreads) {
      Eight x = {};
      if (i * 8 < launch.depth) {
        x = eight(reinterpret_cast<const ELEMENT*>(launch.x) + i * 8);
        if (launch.norm != nullptr) {
          const Eight norm = i == threadIdx.x ? first : norm_at(i);
#pragma unroll
          for (int j = 0; j < 8; ++j) {
            square += x.x[j] * x.x[j];
            x.x[j] *= norm.x[j];
          }
        }
      }
      *reinterpret_cast<float4*>(low + i * 4) = make_float4(x.x[0], x.x[1], x.x[2], x.x[3]);
      *reinterpret_cast<float4*>(high + i * 4) = make_float4(x.x[4], x.x[5], x.x[6], x.x[7]);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) square += __shfl_xor_sync(~0u, square, step);
    if (threadIdx.x % 32 == 0) shared.squares[threadIdx.x / 32] = square;
  }

  // 1 / rms
  __device__ __forceinline__ float norm_factor() const {
    if (launch.norm == nullptr) return 1;
    float square = 0;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) square += shared.squares[i];
    return rsqrtf(square / launch.depth + launch.eps);
  }
};

__device__ __forceinline__ void add_products(float (&sums)[4], const uint4& words, const float4& low, const float4& high) {
  sums[0] = fmaf(low_half<ELEMENT>(words.x), low.x, sums[0]);
  sums[1] = fmaf(high_half<ELEMENT>(words.x), low.y, sums[1]);
  sums[2] = fmaf(low_half<ELEMENT>(words.y), low.z, sums[2]);
  sums[3] = fmaf(high_half<ELEMENT>(words.y), low.w, sums[3]);
  sums[0] = fmaf(low_half<ELEMENT>(words.z), high.x, sums[0]);
  sums[1] = fmaf(high_half<ELEMENT>(words.z), high.y, sums[1]);
  sums[2] = fmaf(low_half<ELEMENT>(words.w), high.z, sums[2]);
  sums[3] = fmaf(high_half<ELEMENT>(words.w), high.w, sums[3]);
}

__device__ __forceinline__ void multiply(const Own& own, Loader& loader, const Row& row) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  Place place(own);
  float sums[4] = {};
  int entry = 0;
#pragma unroll 1
  for (int i = own.first_chunk; i < own.end_chunk; ++i) {
    copies_wait<ENTRIES - 1>();
    __syncwarp();
    const uint4* words = reinterpret_cast<const uint4*>(loader.entries + entry * kChunkBytes) + lane;
    const float4* low = reinterpret_cast<const float4*>(row.low + place.chunk * kHalf) + lane;
    const float4* high = reinterpret_cast<const float4*>(row.high + place.chunk * kHalf) + lane;
    add_products(sums, words[0], low[0], high[0]);
    add_products(sums, words[32], low[32], high[32]);
    __syncwarp();
    loader.copy_next();
    entry = entry + 1 < ENTRIES ? entry + 1 : 0;
    if (place.chunk == own.row_chunks - 1 || i == own.end_chunk - 1) {
      float sum = sums[0] + sums[1] + (sums[2] + sums[3]);
#pragma unroll
      for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
      const int output = place.row / kTiles, tile = place.row % kTiles;
      if (lane == 0) row.sums[(output / kUnit * kWarps + warp) * kOutputs + tile * kUnit + output % kUnit] = sum;
      sums[0] = sums[1] = sums[2] = sums[3] = 0;
    }
    place.advance(own);
  }
}

}  // namespace
}  // namespace octavo

// With 12 warps it has 56 registers a thread, so that a block leaves the multiprocessor those that one of attention needs
extern "C" __global__ void __launch_bounds__(octavo::kThreads, WARPS > 12 ? 2 : 3)
    octavo_dense_linear(const __grid_constant__ octavo::Launch launch) {
  using namespace octavo;
  extern __shared__ __align__(128) uint8_t memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const Own own(launch);
  Loader loader{launch, own, &shared.rings[threadIdx.x / 32][0][0]};
#pragma unroll 1
  for (int i = 0; i < ENTRIES; ++i) loader.copy_next();
  const Row row{launch, shared};
  for (int i = threadIdx.x; i < (own.num_outputs + kUnit - 1) / kUnit * kWarps * kOutputs; i += kThreads) row.sums[i] = 0;
  if (launch.norm != nullptr) {
    for (int i = threadIdx.x * 32; i < launch.depth; i += kThreads * 32) prefetch(launch.norm + i);
  }
  const Eight norm = row.norm_at(threadIdx.x);
#if IS_CHAINED
  wait_for_previous();
  allow_next();
#endif
  Ends first;  // comes with the row
  if (threadIdx.x < own.num_outputs) first = ends_of<false>(launch, 0, own.output(threadIdx.x));
  row.stage(norm);
  __syncthreads();
  multiply(own, loader, row);
  __syncthreads();
  for (int i = threadIdx.x; i < own.num_outputs; i += kThreads) {
    const int output = own.output(i);
    const Ends ends = i == threadIdx.x ? first : ends_of<false>(launch, 0, output);
    const float* all = row.sums + i / kUnit * kWarps * kOutputs;
    store_output<kWarps>(launch, 0, output, ends.times(row.norm_factor()), all, kOutputs, i % kUnit);
  }
}
