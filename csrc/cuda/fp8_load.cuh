// What csrc/cuda/fp8_linear.cu is compiled for and given, and how its weights come into shared memory.
#pragma once

#include "few_rows.cuh"
#include "fp8_products.cuh"
#include "ring.cuh"

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
// Loads of a row that a thread has on their way at once. More are more code, which comes to a multiprocessor late, too
#ifndef BATCH
#define BATCH 4
#endif

namespace octavo {
namespace {

constexpr int kGroups = WARPGROUPS, kWarps = kGroups * 4, kComputers = kWarps * 32, kThreads = kComputers + 32;
constexpr int kRows = ROWS;
constexpr int kSpan = 128, kPiece = 4 * kSpan;  // inputs with one scale; of a product's tile
constexpr int kTileBytes = 16 * kPiece;           // [span][output][128 inputs, swizzled by 16 bytes]
constexpr int kRowBytes = 8 * kSpan;            // of a piece: [span][high, low][128 inputs, swizzled]
constexpr int kRowWarps = kWarps / kRows, kRowThreads = kRowWarps * 32;  // that split a row
static_assert(ENTRIES % kGroups == 0, "an entry is always the same warpgroup's, so none misses a phase of its barrier");

struct alignas(1024) Shared {
  uint8_t ring[ENTRIES][kTiles * kTileBytes];
  float sums[2][kWarps * kRows * kOutputs];
  float squares[kRows * kRowWarps];
  float block_scales[ENTRIES][kTiles][4];
  RingBarriers<ENTRIES> barriers;
  // then the rows: [piece][row][kRowBytes], then the scales of their spans: [piece][row][4]
};

// A piece of a unit at a time, by one thread; with a gate, tile 1 has the outputs that tile 0's activation multiplies.
// Spans beyond the inputs are zero
struct Loader {
  const Launch& launch;
  const TensorMap& map;
  Shared& shared;
  const Share& share;
  int count = 0, unit = share.first_unit, piece = 0;

  // What the ring holds. Not unrolled: code comes from the L2 cache when a block begins
  __device__ void begin() {
#pragma unroll 1
    while (count < ENTRIES && unit < share.num_units) copy_next();
  }

  __device__ void go_on() {
    while (unit < share.num_units) {
      shared.barriers.wait_until_free(count);
      copy_next();
    }
  }

  __device__ __forceinline__ void copy_next() {
    const int entry = shared.barriers.entry(count), span = share.begin / kSpan + piece * 4;
    const uint32_t full = shared.barriers.filled(count);
    barrier_arrive_expecting(full, kTiles * (kTileBytes + (HAS_BLOCKS ? 16 : 0)));
    copy_box_once(shared_address(shared.ring[entry]), &map, 0, unit * kUnit, span, 0, full);
    for (int tile = 0; HAS_BLOCKS && tile < kTiles; ++tile) {
      const int block = (unit * kUnit + tile * launch.columns) / 128;
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
