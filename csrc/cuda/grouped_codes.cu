// Many rows times the experts that they chose, whose weights are codes with scales, on Hopper's matrix units.
//
//   y[pair] = x[pair / rows_of] W[expert]^T, or act(gate) * up; a pair is a row and one of its experts
//
// An expert's pairs are a list. A tile is 256 rows of its matrix, or 128 of the gate and their 128 of up, and up to PAIRS
// pairs: 128, or as few as experts have. A persistent grid, BLOCKS a multiprocessor, takes every gridDim-th tile.
//
//   1 warpgroup loads     128 inputs a stage: codes by the copy engine, rows of the list, which lie apart, 16 bytes a
//                         thread ──> a ring in shared memory
//   2 warpgroups multiply 128 rows of the matrix each, as the first operand, which is in registers: sums are outputs by
//                         pairs. Codes become numbers there; meanwhile the matrix units have the step before
//
// So numbers are made once for all pairs of a tile, and pairs are multiplied by 32, or by 16.
//
// A thread of four has a unit of 32 inputs of each of its rows of the matrix. A product of 16 inputs takes four of each
// such unit, as a word of codes has them. So the rows' inputs have been dealt (grouped_codes.py), 128 at a time:
//
//   place 16 s + 8 e + 2 q + b   <──   input 32 q + 4 s + 2 b + e
//
// What a gate lets through is written in this order, for the product that follows, with zeros up to 128.

#include "activate.cuh"
#include "code_fragments.cuh"
#include "grouped_tiles.cuh"
#include "narrow_product.cuh"
#include "ring.cuh"

#ifndef ELEMENT
#define ELEMENT Bf16
#endif
#ifndef FORMAT
#define FORMAT kFp4
#endif
#ifndef HAS_ZEROS
#define HAS_ZEROS 0
#endif
// Whether scales are numbers of ELEMENT, and zero points 8
#ifndef HAS_SHORT_SCALES
#define HAS_SHORT_SCALES 0
#endif
// Of a tile: 16, 32 or 128
#ifndef PAIRS
#define PAIRS 128
#endif
// That share a multiprocessor: 1, or 2 with few pairs
#ifndef BLOCKS
#define BLOCKS 1
#endif
// The gate's kind, as `gated` numbers them
#ifndef GATE
#define GATE -1
#endif
#ifndef IS_CHAINED
#define IS_CHAINED 0
#endif

namespace octavo {
namespace {

constexpr bool kIsGated = GATE >= 0;
constexpr int kPairs = PAIRS, kWidth = kPairs < 32 ? kPairs : 32, kMatrixRows = 256, kInputs = 128;  // of a tile; of a stage
constexpr int kColumns = kIsGated ? kMatrixRows / 2 : kMatrixRows;
using Codes = Fragments<FORMAT, ELEMENT, HAS_ZEROS, HAS_SHORT_SCALES>;
constexpr int kCodeBytes = kMatrixRows * Codes::kRowBytes, kPanelBytes = kPairs * 128;
constexpr int kSharedBytes = (BLOCKS == 1 ? 227 : 113) * 1024, kBesideRing = 4864;
constexpr int kMostEntries = (kSharedBytes - kBesideRing) / (kCodeBytes + 2 * kPanelBytes);
constexpr int kEntries = kMostEntries < 8 ? kMostEntries : 8;
constexpr int kLoaders = 128, kThreads = 384;
// As many in all as the threads begin with
constexpr int kLoaderRegisters = BLOCKS == 1 ? 56 : 32, kMultiplierRegisters = BLOCKS == 1 ? 224 : 104;

struct Launch {
  const int* counts;  // pairs of each expert
  const int* order;   // [experts][max_rows]: each expert's pairs
  const ELEMENT* x;   // [rows][x_stride], dealt
  const void* scales;
  const int8_t* zeros;  // HAS_ZEROS: in the same places; otherwise they are 8
  const ELEMENT* bias;  // [experts][outputs], or null
  ELEMENT* out;         // [pairs][out_stride]
  int64_t x_stride, out_stride;
  int max_rows, num_experts, rows_of, columns, depth, group, row_block, num_matrix_rows;
  float alpha, limit;
};

struct Shared {
  uint8_t rows[kEntries][2][kPanelBytes];  // two panels of 64 places, swizzled by 128 bytes
  uint8_t codes[kEntries][kCodeBytes];
  RingBarriers<kEntries> ring;
  ExpertTiles tiles;
  int pairs[2][kPairs];  // of a tile, and of the one before it
};

static_assert(sizeof(Shared) <= kSharedBytes);

using Tiles = Walk<kPairs, kColumns>;

__device__ __forceinline__ int num_stages(const Launch& launch) { return (launch.depth + kInputs - 1) / kInputs; }

// Pairs that are multiplied
__device__ __forceinline__ int padded_pairs(const Tiles& walk) { return (walk.num_pairs() + kWidth - 1) / kWidth * kWidth; }

// A stage: eight threads have the 128 bytes of a panel's row
struct Loader {
  static constexpr int kTurns = kPairs / (kLoaders / 8);
  const Launch& launch;
  const TensorMap& map;
  Shared& shared;
  const int chunk = threadIdx.x % 8, first = threadIdx.x / 8;

  __device__ void run(Tiles walk) {
    int count = 0;
    for (; walk.has_tile(); walk.next()) {
      const uint8_t* from[kTurns];
      uint32_t there = 0;
#pragma unroll
      for (int i = 0; i < kTurns; ++i) {
        const int pair = walk.pair(first + i * (kLoaders / 8));
        there |= uint32_t(pair >= 0) << i;
        from[i] = reinterpret_cast<const uint8_t*>(launch.x + max(pair, 0) / launch.rows_of * launch.x_stride) + chunk * 16;
      }
      const int first_row = walk.expert * (kIsGated ? 2 : 1) * launch.columns + walk.column();
      const int second_row = first_row + (kIsGated ? launch.columns : kMatrixRows / 2);
      const int num_rows = padded_pairs(walk), stages = num_stages(launch);
      for (int stage = 0; stage < stages; ++stage, ++count) {
        const int entry = shared.ring.entry(count);
        const uint32_t full = shared.ring.filled(count);
        shared.ring.wait_until_free(count);
        if (threadIdx.x == 0) copy_codes(shared_address(shared.codes[entry]), stage, first_row, second_row, full);
        const uint32_t to = shared_address(shared.rows[entry]);
#pragma unroll
        for (int i = 0; i < kTurns; ++i) {
          const int row = first + i * (kLoaders / 8);
          if (i * (kLoaders / 8) >= num_rows) break;
          const uint32_t at = to + row * 128 + (chunk ^ row % 8) * 16;
          copy_16(at, from[i] + stage * 256, there >> i & 1);
          copy_16(at + kPanelBytes, from[i] + stage * 256 + 128, there >> i & 1);
        }
        arrive_when_copied(full);
      }
    }
  }

  __device__ __forceinline__ void copy_codes(uint32_t to, int stage, int first_row, int second_row, uint32_t full) {
    constexpr int kRowBytes = Codes::kRowBytes;
    barrier_arrive_expecting(full, kCodeBytes);
    copy_box(to, &map, stage * kRowBytes, first_row, full);
    copy_box(to + kCodeBytes / 2, &map, stage * kRowBytes, second_row, full);
  }
};

struct Multiplier {
  const Launch& launch;
  Shared& shared;
  const int lane = threadIdx.x % 32, group = (threadIdx.x - kLoaders) / 128, warp = threadIdx.x / 32 % 4;
  const int q = lane % 4, g = lane / 4;
  // Places in a row of results that the thread has, from this one on: two if gated, else four
  const int place = kIsGated ? (group * 4 + warp) * 16 + g * 2 : (group * 4 + warp) * 32 + g * 4;
  int count = 0;
  float sums[2][kPairs / 8][4];

  __device__ void run(Tiles walk) {
    for (int turn = 0; walk.has_tile(); walk.next(), turn ^= 1) {
      const int num_pairs = padded_pairs(walk), at = threadIdx.x - kLoaders;
      const int pair = at < kPairs ? walk.pair(at) : -1;
      if constexpr (kPairs == kWidth) {
        multiply<kWidth>(walk);
      } else {
        if (num_pairs == 32) multiply<32>(walk);
        else if (num_pairs == 64) multiply<64>(walk);
        else if (num_pairs == 96) multiply<96>(walk);
        else multiply<128>(walk);
      }
      if (at < kPairs) shared.pairs[turn][at] = pair;
      named_barrier(1, kThreads - kLoaders);
      finish(walk, shared.pairs[turn]);
    }
  }

  // Of the tile's rows of the matrix, the one that is row lane / 4 of a product, or lane / 4 + 8
  __device__ __forceinline__ int row_of(int product, int half) const {
    if (kIsGated) return g % 4 * 32 + (group * 4 + warp) * 4 + g / 4 + product * 2 + half * (kMatrixRows / 2);
    return place + product * 2 + half;
  }

  template <int kOfPairs>
  __device__ __forceinline__ void multiply(const Tiles& walk) {
    int rows[2][2];  // where their scales begin
    begin(walk, rows);
    typename Codes::Raw next[2][2];
    load(rows, 0, next);
    const int stages = num_stages(launch);
    for (int stage = 0; stage < stages; ++stage, ++count) {
      const int entry = shared.ring.entry(count);
      typename Codes::Scale scales[2][2];
#pragma unroll
      for (int i = 0; i < 4; ++i) scales[i / 2][i % 2] = Codes::scale(next[i / 2][i % 2]);
      load(rows, stage + 1, next);
      shared.ring.wait_until_full(count);
      async_fence();  // rows came by ordinary copies
      multiply_stage<kOfPairs>(shared_address(shared.codes[entry]), shared_address(shared.rows[entry]), scales, stage > 0);
    }
    products_end(sums[0]);
    products_end(sums[1]);
    release(count - 1);
  }

  __device__ __forceinline__ void begin(const Tiles& walk, int (&rows)[2][2]) {
    const int groups = (launch.depth + launch.group - 1) / launch.group;
    const int first = walk.expert * (kIsGated ? 2 : 1) * launch.columns + walk.column();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int own = row_of(i / 2, i % 2), in_second = kIsGated && i % 2 == 1 ? launch.columns - kMatrixRows / 2 : 0;
      rows[i / 2][i % 2] = min(first + own + in_second, launch.num_matrix_rows - 1) / launch.row_block * groups;
    }
  }

  // A stage's scales of the thread's unit
  __device__ __forceinline__ void load(const int (&rows)[2][2], int stage, typename Codes::Raw (&to)[2][2]) {
    const int at = min(stage * 4 + q, launch.depth / 32 - 1) / (launch.group / 32);
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i / 2][i % 2] = Codes::load(launch.scales, launch.zeros, rows[i / 2][i % 2] + at);
  }

  // Numbers of a step are made while the products of the step before run
  template <int kOfPairs>
  __device__ __forceinline__ void multiply_stage(uint32_t codes, uint32_t x, const typename Codes::Scale (&scales)[2][2],
                                                 bool has_before) {
    uint4 words[2][2];
    uint32_t numbers[2][2][4];
#pragma unroll
    for (int step = 0; step < 8; ++step) {
#pragma unroll
      for (int i = 0; step % Codes::kStepsOfWords == 0 && i < 4; ++i) {
        words[i / 2][i % 2] =
            load_words_now(Codes::address(codes, row_of(i / 2, i % 2), q, step / Codes::kStepsOfWords));
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int product = i / 4, odd = i / 2 % 2, half = i % 2;
        numbers[step % 2][product][odd * 2 + half] =
            Codes::pair(words[product][half], step, odd, scales[product][half]);
      }
      const uint64_t inputs = matrix(x + step / 4 * kPanelBytes + step % 4 * 32);
      products_begin();
      multiply_add_narrow<ELEMENT, kOfPairs, kPairs>(sums[0], numbers[step % 2][0], inputs, step > 0 || has_before);
      multiply_add_narrow<ELEMENT, kOfPairs, kPairs>(sums[1], numbers[step % 2][1], inputs, step > 0 || has_before);
      products_end_group();
      products_wait<1>();
      if (step == 0 && has_before) release(count - 1);
    }
  }

  __device__ __forceinline__ void release(int count) {
    if (lane == 0) shared.ring.release(count);
  }

  // A pair's results at a time
  __device__ __forceinline__ void finish(const Tiles& walk, const int* pairs) {
    const int num_pairs = walk.num_pairs();
    const int64_t first = int64_t(walk.expert) * (kIsGated ? 2 : 1) * launch.columns + walk.column();
    float bias[2][2] = {};
    bool is_there[2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = row_of(i / 2, i % 2), in_second = kIsGated && i % 2 == 1 ? launch.columns - kMatrixRows / 2 : 0;
      is_there[i / 2] = walk.column() + row_of(i / 2, 0) < launch.columns;
      if (launch.bias != nullptr && is_there[i / 2]) bias[i / 2][i % 2] = to_float(launch.bias[first + row + in_second]);
    }
    if (!kIsGated && !is_there[0]) return;  // outputs are four at a time
#pragma unroll
    for (int i = 0; i < kPairs / 4; ++i) {
      const int column = i / 2 * 8 + q * 2 + i % 2;
      if (i / 2 * 8 >= num_pairs) break;
      if (column >= num_pairs) continue;
      float y[2][2];
#pragma unroll
      for (int j = 0; j < 4; ++j) y[j / 2][j % 2] = sums[j / 2][i / 2][j % 2 * 2 + i % 2] * Codes::kRaised + bias[j / 2][j % 2];
      ELEMENT* to = launch.out + pairs[column] * launch.out_stride + walk.column() + place;
      if constexpr (kIsGated) {
        const float one = gated(y[0][0], y[0][1], GATE, launch.alpha, launch.limit);
        const float other = gated(y[1][0], y[1][1], GATE, launch.alpha, launch.limit);
        *reinterpret_cast<uint32_t*>(to) = pack<ELEMENT>(is_there[0] ? one : 0, is_there[1] ? other : 0);
      } else {
        *reinterpret_cast<uint2*>(to) = {pack<ELEMENT>(y[0][0], y[0][1]), pack<ELEMENT>(y[1][0], y[1][1])};
      }
    }
  }
};

}  // namespace
}  // namespace octavo

extern "C" __device__ const int octavo_shared_bytes = sizeof(octavo::Shared);

extern "C" __global__ void __launch_bounds__(octavo::kThreads, BLOCKS)
    octavo_grouped_codes(const __grid_constant__ octavo::Launch launch, const __grid_constant__ octavo::TensorMap map) {
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
  if (threadIdx.x < 32) shared.tiles.count(launch.counts, launch.num_experts, kPairs);
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
