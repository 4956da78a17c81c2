// What csrc/cuda/fp8_linear.cu is compiled for and given, and how its weights come into shared memory.
#pragma once

#include "fp8_products.cuh"

#ifndef IS_GATED
#define IS_GATED 0
#endif
#ifndef HAS_BLOCKS
#define HAS_BLOCKS 0
#endif
#ifndef ROWS
#define ROWS 1
#endif
#ifndef WARPGROUPS
#define WARPGROUPS 4
#endif
#ifndef ENTRIES
#define ENTRIES 8
#endif
#ifndef IS_CHAINED
#define IS_CHAINED 0
#endif

namespace octavo {
namespace {

constexpr int kGroups = WARPGROUPS, kWarps = kGroups * 4, kComputers = kWarps * 32, kThreads = kComputers + 32;
constexpr int kTiles = IS_GATED ? 2 : 1, kOutputs = kTiles * 16, kRows = ROWS;
constexpr int kSpan = 128, kPiece = 4 * kSpan;  // inputs with one scale; of a product's tile
constexpr int kTileBytes = 16 * kPiece;           // [span][output][128 inputs, swizzled by 16 bytes]
constexpr int kRowBytes = 8 * kSpan;            // of a piece: [span][high, low][128 inputs, swizzled]
constexpr int kRowWarps = kWarps / kRows, kRowThreads = kRowWarps * 32;  // that split a row
static_assert(ENTRIES % kGroups == 0, "an entry is always the same warpgroup's, so none misses a phase of its barrier");

struct Launch {
  const Bf16* x;
  const float* scales;       // [out], or [out / 128][block_scales]
  const Bf16* bias;          // or null
  const Bf16* residual;      // or null
  void* out;                 // Bf16, or with several parts float
  const float* norm;         // or null
  int64_t x_stride, residual_stride, out_stride, part_stride;
  int num_rows, columns, depth, block_scales, activation, num_parts, part_depth;
  float eps;
};

struct alignas(64) TensorMap {
  char content[128];
};

struct alignas(1024) Shared {
  uint8_t ring[ENTRIES][kTiles * kTileBytes];
  float sums[2][kWarps * kRows * kOutputs];
  float squares[kRows * kRowWarps];
  float block_scales[ENTRIES][kTiles][4];
  uint64_t full[ENTRIES], free[ENTRIES];
  // then the rows: [piece][row][kRowBytes], then the scales of their spans: [piece][row][4]
};

// A block's part of the work
struct Share {
  int begin, length, num_pieces;  // inputs
  int first_unit, step, num_units;
  __device__ explicit Share(const Launch& launch) {
    const int part = blockIdx.x % launch.num_parts;
    begin = part * launch.part_depth;
    length = min(launch.part_depth, launch.depth - begin);
    num_pieces = (length + kPiece - 1) / kPiece;
    first_unit = blockIdx.x / launch.num_parts;
    step = gridDim.x / launch.num_parts;
    num_units = launch.columns / 16;
  }
};

// A piece of a unit at a time, by one thread; with a gate, tile 1 has the outputs that tile 0's activation multiplies.
// Spans beyond the inputs are zero
struct Loader {
  const Launch& launch;
  const TensorMap& map;
  Shared& shared;
  const Share& share;
  int count = 0, unit = share.first_unit, piece = 0;

  // What the ring holds
  __device__ void begin() {
    while (count < ENTRIES && unit < share.num_units) copy_next();
  }

  __device__ void go_on() {
    while (unit < share.num_units) {
      barrier_wait(shared_address(&shared.free[count % ENTRIES]), (count / ENTRIES & 1) ^ 1);
      copy_next();
    }
  }

  __device__ __forceinline__ void copy_next() {
    const int entry = count % ENTRIES, span = share.begin / kSpan + piece * 4;
    const uint32_t full = shared_address(&shared.full[entry]);
    barrier_arrive_expecting(full, kTiles * (kTileBytes + (HAS_BLOCKS ? 16 : 0)));
    copy_box_once(shared_address(shared.ring[entry]), &map, 0, unit * 16, span, 0, full);
    for (int tile = 0; HAS_BLOCKS && tile < kTiles; ++tile) {
      const int block = (unit * 16 + tile * launch.columns) / 128;
      const float* from = launch.scales + int64_t(block) * launch.block_scales + span;
      copy_bytes(shared_address(shared.block_scales[entry][tile]), from, 16, full);
    }
    ++count;
    if (++piece == share.num_pieces) {
      piece = 0;
      unit += share.step;
    }
  }
};

}  // namespace
}  // namespace octavo
