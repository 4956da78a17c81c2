// Many rows times the experts that they chose, on Hopper's matrix units.
//
//   y[pair] = x[pair / rows_of] W[expert]^T, or act(gate) * up; a pair is a row and one of its experts
//
// An expert's pairs are a list. A tile is up to 128 pairs of one expert and 256 rows of its matrix: 256 outputs, or 128
// of the gate and their 128 of up. A persistent grid, one block a multiprocessor, takes every gridDim-th tile; blocks
// that run at once share their weights and rows in the L2 cache.
//
//   1 warpgroup loads     128 bytes of depth a stage: the rows of the list, which lie apart, 16 bytes a thread; weights
//                         by the copy engine ──> a ring in shared memory, under the 128-byte swizzle
//   2 warpgroups multiply, 64 pairs each: wgmma 64 x 256; a stage's products run while the next stage's are issued.
//                         Meanwhile the loader is ahead, also across tiles. A tile's results are stored beside the next
//                         one's products (waiting_results.cuh)
//
// The copy engine deals the matrix's rows so that a thread's sums are of 8 neighbouring outputs (grouped_linear.py):
//
//   column 8 j + 2 q + b of 32, as wgmma deals it to thread q of four   <──   output 8 q + 2 j + b

#include "grouped_tiles.cuh"
#include "ring.cuh"
#include "waiting_results.cuh"
#include "wide_product.cuh"

#ifndef ELEMENT
#define ELEMENT Bf16
#endif
// Of rows and weights: ELEMENT, or Fp8 with scales of rows and of outputs
#ifndef FACTOR
#define FACTOR ELEMENT
#endif
// The gate's kind, as `gated` numbers them. A variable one would be compiled 64 times over, which no cache of
// instructions holds
#ifndef GATE
#define GATE -1
#endif
#ifndef HAS_BIAS
#define HAS_BIAS 0
#endif
#ifndef IS_CHAINED
#define IS_CHAINED 0
#endif

namespace octavo {
namespace {

constexpr int kEntries = 4;
constexpr int kRows = 128, kMatrixRows = 256, kDepthBytes = 128;  // of a tile; of a stage
constexpr bool kIsGated = GATE >= 0;
constexpr int kColumns = kIsGated ? kMatrixRows / 2 : kMatrixRows;
constexpr int kRowBytes = kRows * kDepthBytes, kWeightBytes = kMatrixRows * kDepthBytes;
constexpr bool kIsFp8 = sizeof(FACTOR) == 1;
constexpr int kLoaders = 128, kThreads = 384;
constexpr int kLoaderRegisters = 56, kMultiplierRegisters = 224;  // as many in all as the threads begin with

struct Launch {
  const int* counts;  // pairs of each expert
  const int* order;   // [experts][max_rows]: each expert's pairs
  const FACTOR* x;    // [rows][x_stride]
  const float *row_scales, *scales;  // of fp8: of rows, and of outputs
  const ELEMENT* bias;               // [experts][outputs]
  ELEMENT* out;                      // [pairs][out_stride]
  int64_t x_stride, out_stride;
  int max_rows, num_experts, rows_of, columns, depth;
  float alpha, limit;
};

struct Shared {
  uint8_t rows[kEntries][kRowBytes], weights[kEntries][kWeightBytes];
  RingBarriers<kEntries> ring;
  ExpertTiles tiles;
};

using Tiles = Walk<kRows, kColumns>;

__device__ __forceinline__ int num_stages(const Launch& launch) {
  return (launch.depth * int(sizeof(FACTOR)) + kDepthBytes - 1) / kDepthBytes;
}

// A stage: eight threads have the 128 bytes of a row
struct Loader {
  static constexpr int kTurns = kRows / (kLoaders / 8);
  const Launch& launch;
  const TensorMap& map;  // [matrix rows / 32][4][4][2][bytes]: the second to fourth are j, q and b
  Shared& shared;
  const int chunk = threadIdx.x % 8, first = threadIdx.x / 8;

  __device__ void run(Tiles walk) {
    int count = 0;
    for (; walk.has_tile(); walk.next()) {
      const uint8_t* from[kTurns];
      bool is_there[kTurns];
#pragma unroll
      for (int i = 0; i < kTurns; ++i) {
        const int pair = walk.pair(first + i * (kLoaders / 8));
        is_there[i] = pair >= 0;
        from[i] = reinterpret_cast<const uint8_t*>(launch.x + max(pair, 0) / launch.rows_of * launch.x_stride) + chunk * 16;
      }
      const int first_row = walk.expert * (kIsGated ? 2 : 1) * launch.columns + walk.column();
      const int second_row = first_row + (kIsGated ? launch.columns : kMatrixRows / 2);
      for (int stage = 0; stage < num_stages(launch); ++stage, ++count) {
        const int entry = shared.ring.entry(count);
        const uint32_t full = shared.ring.filled(count), weights = shared_address(shared.weights[entry]);
        shared.ring.wait_until_free(count);
        if (threadIdx.x == 0) {
          barrier_arrive_expecting(full, kWeightBytes);
          copy_box(weights, &map, stage * kDepthBytes, 0, 0, 0, first_row / 32, full);
          copy_box(weights + kWeightBytes / 2, &map, stage * kDepthBytes, 0, 0, 0, second_row / 32, full);
        }
        const uint32_t to = shared_address(shared.rows[entry]);
        const bool is_inside = stage * kDepthBytes + chunk * 16 < launch.depth * int(sizeof(FACTOR));
#pragma unroll
        for (int i = 0; i < kTurns; ++i) {
          const int row = first + i * (kLoaders / 8);
          copy_16(to + row * kDepthBytes + (chunk ^ row % 8) * 16, from[i] + stage * kDepthBytes,
                  is_there[i] && is_inside);
        }
        arrive_when_copied(full);
      }
    }
  }
};

struct Multiplier {
  const Launch& launch;
  Shared& shared;
  const int lane = threadIdx.x % 32, group = (threadIdx.x - kLoaders) / 128, warp = threadIdx.x / 32 % 4;
  float sums[32][4];
  WaitingResults<ELEMENT, GATE, kIsFp8, HAS_BIAS> results;

  __device__ void run(Tiles walk) {
    int count = 0;
    for (; walk.has_tile(); walk.next()) {
      const int row = group * 64 + warp * 16 + lane / 4;
      const int pairs[2] = {walk.pair(row), walk.pair(row + 8)};
      const int stages = num_stages(launch);
      int stage = 0;
#pragma unroll
      for (int part = 0; part < results.kParts; ++part) {
        if (stage < stages) multiply(stage, count);
        if (results.are_there) results.store(launch, part);
        if (stage == stages) continue;
        if (part > 0) end_one_before(count);
        ++stage, ++count;
      }
      for (; stage < stages; ++stage, ++count) {
        multiply(stage, count);
        end_one_before(count);
      }
      products_end(sums);
      release(count - 1);
      results.keep(launch, sums, pairs, walk.expert, walk.column() + lane % 4 * 8);
    }
#pragma unroll
    for (int part = 0; part < results.kParts; ++part) {
      if (results.are_there) results.store(launch, part);
    }
  }

  // Starts a stage's products
  __device__ __forceinline__ void multiply(int stage, int count) {
    const int entry = shared.ring.entry(count);
    shared.ring.wait_until_full(count);
    async_fence();  // rows came by ordinary copies
    const uint32_t x = shared_address(shared.rows[entry]) + group * (kRowBytes / 2);
    const uint32_t w = shared_address(shared.weights[entry]);
    products_begin();
#pragma unroll
    for (int step = 0; step < kDepthBytes; step += 32) {
      multiply_add_256<FACTOR>(sums, matrix(x + step), matrix(w + step), stage > 0 || step > 0);
    }
    products_end_group();
  }

  __device__ __forceinline__ void end_one_before(int count) {
    products_wait<1>();
    release(count - 1);
  }

  __device__ __forceinline__ void release(int count) {
    if (lane == 0) shared.ring.release(count);
  }
};

}  // namespace
}  // namespace octavo

extern "C" __device__ const int octavo_shared_bytes = sizeof(octavo::Shared) + 1024;

extern "C" __global__ void __launch_bounds__(octavo::kThreads, 1)
    octavo_grouped_linear(const __grid_constant__ octavo::Launch launch, const __grid_constant__ octavo::TensorMap map) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  using namespace octavo;
  extern __shared__ __align__(1024) uint8_t memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  if (threadIdx.x == 0) {
    shared.ring.init(0, 1, kLoaders + 1, 8);
    prefetch_map(&map);
  }
#if IS_CHAINED
  wait_for_previous();
  allow_next();
#endif
  if (threadIdx.x < 32) shared.tiles.count(launch.counts, launch.num_experts, kRows);
  __syncthreads();
  const Tiles walk{shared.tiles, launch.order, launch.max_rows, launch.num_experts, launch.columns};
  if (threadIdx.x < kLoaders) {
    keep_registers<kLoaderRegisters>();
    Loader{launch, map, shared}.run(walk);
  } else {
    want_registers<kMultiplierRegisters>();
    Multiplier{launch, shared}.run(walk);
  }
#endif
}
