// A few rows times a weight of int8 or fp8: y = x W^T, at the speed of reading the weight.
//
// A persistent grid of one thread block per multiprocessor. A block has units of 16 outputs, or twice as many for a gate
// and what it multiplies, one after another:
//
//   1 loader       weights and their scales, stage after stage of all its units ──> a ring in shared memory; it begins
//                  before the previous kernel has ended
//   16 computers   the rows, once ──> shared memory, if wanted times an RMSNorm's weight
//                  each unit: 128 inputs at a time, in turns; mma 16 x 8 x 16, the weights are the 16 rows of the first
//                  operand and x the second; then the computers' sums are added up in a fixed order by one of them,
//                  while the others begin the next unit: scale, 1 / rms, bias, gate, residual
//
// On Hopper up to 8 bfloat16 rows times fp8 are fp8_linear.cu's.
//
// Where the rows do not fit into shared memory, blocks share the inputs of a unit, too, and leave float32 sums that the
// next kernel, a norm, adds up.
//
// A product's depth may be in any order, so a thread takes neighbouring inputs and needs no shuffling of weights. Of 128
// inputs it has 32, for each of two outputs, from 32 t on, t = lane % 4. Weights are row-major, as other kernels read them;
// the copy engine swizzles them. x is kept in the order in which pairs come out of a word: 0 2 1 3
//
// Weights that become fragments by masks, without a table or a conversion, are Marlin's idea (Frantar et al., 2024).

#include "few_rows.cuh"
#include "quantized_weights.cuh"
#include "ring.cuh"

#ifndef FORMAT
#define FORMAT kFp8
#endif
#ifndef ROW_TILES
#define ROW_TILES 1
#endif
#ifndef COMPUTERS
#define COMPUTERS 16
#endif
#ifndef STAGE_BYTES
#define STAGE_BYTES 16384
#endif
#ifndef ENTRIES
#define ENTRIES 4
#endif
#ifndef SCALES
#define SCALES kOfOutputs
#endif

namespace octavo {
namespace {

// A scale for each output; for each group of an output's inputs; for each block of 128 x 128
enum Scales { kOfOutputs = 0, kOfGroups = 1, kOfBlocks = 2 };

constexpr int kComputers = COMPUTERS, kThreads = kComputers * 32 + 32;  // warps
constexpr int kRows = ROW_TILES * 8;
constexpr int kPiece = 128;  // inputs that a warp multiplies at a time
// A stage is 16 KiB of weights, or more, then scales. Its pieces go to as many computers; these take
// turns
constexpr int kStage = STAGE_BYTES / 16 / kTiles, kPieces = kStage / kPiece, kTurns = kComputers / kPieces;
static_assert(kComputers % kPieces == 0, "computers take whole stages in turns");
static_assert(ENTRIES % kTurns == 0, "an entry is always the same computers', so none misses a phase of its barrier");
constexpr int kTileBytes = kStage * 16;
constexpr int kScaleBytes = SCALES == kOfGroups ? kStage / 64 * 64 : SCALES == kOfBlocks ? kStage / 128 * 4 : 0;
constexpr int kStageBytes = (kTiles * (kTileBytes + kScaleBytes) + 1023) / 1024 * 1024;
constexpr int kRowGap = 32;  // after a row of x: lanes of different rows use different banks
constexpr int kSums = kComputers * kRows * kOutputs;

struct Shared {
  uint8_t ring[ENTRIES][kStageBytes];
  float sums[2][kSums];
  float squares[kRows * kComputers];
  RingBarriers<ENTRIES> barriers;
  __align__(16) ELEMENT x[8];  // [rows][part_depth + kRowGap]
};

// With a gate, tile 1 has the outputs that tile 0's activation multiplies
__device__ __forceinline__ int first_output(const Launch& launch, int unit, int tile) {
  return unit * kUnit + tile * launch.columns;
}

struct Loader {
  const Launch& launch;
  const TensorMap& map;  // of the weights
  Shared& shared;
  const int lane = threadIdx.x % 32;

  __device__ void run(const Share& share) {
    int count = 0;
    for (int unit = share.first_unit; unit < share.num_units; unit += share.step) {
      for (int at = 0; at < share.length; at += kStage, ++count) {
        shared.barriers.wait_until_free(count);
        fill(count, unit, share.begin + at, min(kStage, share.length - at));
      }
    }
  }

  // The count-th stage, with so many inputs
  __device__ void fill(int count, int unit, int begin, int length) {
    const uint32_t full = shared.barriers.filled(count);
    const uint32_t stage = shared_address(shared.ring[shared.barriers.entry(count)]);
    const int num_groups = SCALES == kOfGroups ? (length + (1 << launch.group_bits) - 1) >> launch.group_bits : 0;
    const int num_blocks = SCALES == kOfBlocks ? (length + 511) / 512 * 4 : 0;
    const int weight_bytes = length * 16, scale_bytes = num_groups * 64 + num_blocks * 4;
#if __CUDA_ARCH__ >= 900
    if (lane == 0) barrier_arrive_expecting(full, kTiles * (weight_bytes + scale_bytes));
    __syncwarp();
#endif
    if (lane < (length + kPiece - 1) / kPiece) copy_tiles(stage + lane * kTiles * 2048, unit, begin + lane * kPiece, full);
    for (int tile = 0; tile < kTiles; ++tile) {
      const int first = first_output(launch, unit, tile);
      if (SCALES == kOfGroups && lane == 16) {
        const int64_t group = int64_t(first / kUnit) * (launch.depth >> launch.group_bits) + (begin >> launch.group_bits);
        copy(stage + kTiles * kTileBytes + tile * kScaleBytes, launch.scales + group * 16, scale_bytes, full);
      }
      if (SCALES == kOfBlocks && lane == 16) {
        const float* from = launch.scales + int64_t(first / 128) * launch.block_scales + begin / 128;
        copy(stage + kTiles * kTileBytes + tile * kScaleBytes, from, scale_bytes, full);
      }
    }
#if __CUDA_ARCH__ < 900
    arrive_when_copied(full);
#endif
  }

  // 128 inputs of all tiles: [tile][16 outputs][128], the chunks of 16 bytes swizzled by the output
  __device__ __forceinline__ void copy_tiles(uint32_t to, int unit, int begin, uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
    copy_box(to, &map, begin, unit * kUnit, 0, barrier);
#else
    for (int tile = 0; tile < kTiles; ++tile) {
      const uint8_t* from = launch.weight + int64_t(first_output(launch, unit, tile)) * launch.depth + begin;
      for (int i = 0; i < 128; ++i) {
        copy_16(to + tile * 2048 + i / 8 * 128 + (i % 8 ^ i / 8 % 8) * 16, from + i / 8 * int64_t(launch.depth) + i % 8 * 16,
                true);
      }
    }
#endif
  }

  static __device__ __forceinline__ void copy(uint32_t to, const void* from, int num_bytes, uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
    copy_bytes(to, from, num_bytes, barrier);
#else
    for (int i = 0; i < num_bytes; i += 16) copy_16(to + i, static_cast<const uint8_t*>(from) + i, true);
#endif
  }
};

struct Computer {
  const Launch& launch;
  Shared& shared;
  const Share& share;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int pitch = launch.part_depth + kRowGap;
  float sums[kTiles][ROW_TILES][4];

  __device__ void run() {
    stage_rows();
    named_barrier(1, kComputers * 32);
    int count = 0, turn = 0;
    for (int unit = share.first_unit; unit < share.num_units; unit += share.step, ++turn) {
#pragma unroll
      for (int i = 0; i < kTiles * ROW_TILES * 4; ++i) (&sums[0][0][0])[i] = 0;
      for (int at = 0; at < share.length; at += kStage, ++count) {
        if (count % kTurns != warp / kPieces) continue;
        shared.barriers.wait_until_full(count);
        const int inside = warp % kPieces * kPiece;
        if (at + inside < share.length) multiply(shared.ring[shared.barriers.entry(count)], inside, at + inside);
        __syncwarp();
        if (lane == 0) shared.barriers.release(count);
      }
      float* all = shared.sums[turn % 2];
      leave(all);
      named_barrier(1, kComputers * 32);
      if (warp == turn % kComputers) finish(unit, all);
    }
  }

  // The rows into shared memory; with a norm also the sums of their squares, by warp
  __device__ void stage_rows() {
    for (int row = 0; row < launch.num_rows; ++row) {
      float square = 0;
      for (int i = threadIdx.x; i < share.length / 8; i += kComputers * 32) {
        uint4 raw = *reinterpret_cast<const uint4*>(launch.x + row * launch.x_stride + share.begin + i * 8);
        if (launch.norm != nullptr) {
          const ELEMENT* x = reinterpret_cast<const ELEMENT*>(&raw);
          const Eight norm = eight(launch.norm + i * 8);
          float y[8];
#pragma unroll
          for (int j = 0; j < 8; ++j) {
            const float each = to_float(x[j]);
            square += each * each;
            y[j] = each * norm.x[j];
          }
          raw = {pack<ELEMENT>(y[0], y[1]), pack<ELEMENT>(y[2], y[3]), pack<ELEMENT>(y[4], y[5]),
                 pack<ELEMENT>(y[6], y[7])};
        }
        // 0 1 2 3 -> 0 2 1 3
        raw = {__byte_perm(raw.x, raw.y, 0x5410), __byte_perm(raw.x, raw.y, 0x7632),
               __byte_perm(raw.z, raw.w, 0x5410), __byte_perm(raw.z, raw.w, 0x7632)};
        // so that a quarter of a warp reads 64 neighbouring bytes of a row
        const int place = i / 16 * 16 + i % 4 * 4 + i / 4 % 4;
        *reinterpret_cast<uint4*>(shared.x + row * pitch + place * 8) = raw;
      }
      if (launch.norm != nullptr) {
        for (int step = 16; step > 0; step /= 2) square += __shfl_xor_sync(~0u, square, step);
        if (lane == 0) shared.squares[row * kComputers + warp] = square;
      }
    }
  }

  // inside: the piece's first input within the stage; at: within the rows
  __device__ __forceinline__ void multiply(const uint8_t* stage, int inside, int at) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {  // 64 inputs of the piece, of which a thread has 16
      float parts[kTiles][ROW_TILES][4] = {};
      uint4 words[kTiles][2];
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) load_words(words[tile], stage, tile, inside, half);
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        uint4 x[ROW_TILES];
#pragma unroll
        for (int i = 0; i < ROW_TILES; ++i) {
          const int row = i * 8 + lane / 4;
          x[i] = {};
          const ELEMENT* from = shared.x + row * pitch + at + (half * 2 + part) * 32 + lane % 4 * 8;
          if (row < launch.num_rows) x[i] = *reinterpret_cast<const uint4*>(from);
        }
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          uint32_t a[2][4];
          fragments(a, words[tile], part);
#pragma unroll
          for (int i = 0; i < ROW_TILES; ++i) {
            multiply_add_any_time<ELEMENT>(parts[tile][i], a[0], x[i].x, x[i].y);
            multiply_add_any_time<ELEMENT>(parts[tile][i], a[1], x[i].z, x[i].w);
          }
        }
      }
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const float2 scales = scales_of(stage, tile, inside + half * 64);
#pragma unroll
        for (int i = 0; i < ROW_TILES; ++i) {
#pragma unroll
          for (int j = 0; j < 4; ++j) sums[tile][i][j] += parts[tile][i][j] * (j < 2 ? scales.x : scales.y);
        }
      }
    }
  }

  // Half of a piece, for each of the two outputs
  __device__ __forceinline__ void load_words(uint4 (&words)[2], const uint8_t* stage, int tile, int inside, int half) {
    const uint8_t* box = stage + inside / kPiece * (kTiles * 2048) + tile * 2048;
    const int chunk = (lane % 4 * 2 + half) ^ lane / 4;
    words[0] = *reinterpret_cast<const uint4*>(box + lane / 4 * 128 + chunk * 16);
    words[1] = *reinterpret_cast<const uint4*>(box + 1024 + lane / 4 * 128 + chunk * 16);
  }

  // Of outputs lane / 4 and that + 8
  __device__ __forceinline__ float2 scales_of(const uint8_t* stage, int tile, int inside) const {
    const uint8_t* scales = stage + kTiles * kTileBytes + tile * kScaleBytes;
    if (SCALES == kOfOutputs) return {1, 1};  // they scale the result
    if (SCALES == kOfGroups) return reinterpret_cast<const float2*>(scales)[(inside >> launch.group_bits) * 8 + lane / 4];
    const float scale = reinterpret_cast<const float*>(scales)[inside / 128];
    return {scale, scale};
  }

  // The weights of two products of depth 16. Rows of a fragment: output lane / 4, then that + 8
  static __device__ __forceinline__ void fragments(uint32_t (&a)[2][4], const uint4 (&words)[2], int part) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t low = part ? (i ? words[0].w : words[0].z) : (i ? words[0].y : words[0].x);
      const uint32_t high = part ? (i ? words[1].w : words[1].z) : (i ? words[1].y : words[1].x);
#pragma unroll
      for (int odd = 0; odd < 2; ++odd) {
        a[i][odd * 2] = pair(low, odd);
        a[i][odd * 2 + 1] = pair(high, odd);
      }
    }
  }

  static __device__ __forceinline__ uint32_t pair(uint32_t word, bool is_odd) {
    if constexpr (FORMAT == kInt8) {
      return int8_pair<ELEMENT>(word, is_odd);
    } else {
      return fp8_pair<ELEMENT>(word, is_odd);
    }
  }

  // Leaves the warp's sums at [warp][row][output]
  __device__ __forceinline__ void leave(float* all) const {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < ROW_TILES; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int row = i * 8 + lane % 4 * 2 + j % 2, output = tile * 16 + j / 2 * 8 + lane / 4;
          if (row < launch.num_rows) all[(warp * kRows + row) * kOutputs + output] = sums[tile][i][j];
        }
      }
    }
  }

  // By one warp: the unit's outputs of all rows
  __device__ void finish(int unit, const float* all) const {
    for (int i = lane; i < kUnit * launch.num_rows; i += 32) {
      const int row = i / kUnit, place = i % kUnit, output = unit * kUnit + place;
      const Ends ends = ends_of<SCALES == kOfOutputs>(launch, row, output, norm_factor(row));
      store_output<kComputers>(launch, row, output, ends, all, kRows * kOutputs, place);
    }
  }

  // 1 / rms of a row, if it is to be normed
  __device__ __forceinline__ float norm_factor(int row) const {
    if (launch.norm == nullptr) return 1;
    float square = 0;
#pragma unroll
    for (int j = 0; j < kComputers; ++j) square += shared.squares[row * kComputers + j];
    return rsqrtf(square / launch.depth + launch.eps);
  }
};

}  // namespace
}  // namespace octavo

// All but the rows, whose size a launch knows
extern "C" __device__ const int octavo_shared_bytes = sizeof(octavo::Shared);

extern "C" __global__ void __launch_bounds__(octavo::kThreads)
    octavo_quantized_linear(const __grid_constant__ octavo::Launch launch, const __grid_constant__ octavo::TensorMap map) {
  using namespace octavo;
  extern __shared__ __align__(1024) uint8_t memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  if (threadIdx.x == 0) shared.barriers.init(0, 1, __CUDA_ARCH__ >= 900 ? 1 : 32, kPieces);
  __syncthreads();
  const Share share(launch, kStage);
  if (threadIdx.x >= kComputers * 32) {
    Loader{launch, map, shared}.run(share);
    return;
  }
#if IS_CHAINED
  wait_for_previous();
  allow_next();
#endif
  Computer{launch, shared, share}.run();
}
