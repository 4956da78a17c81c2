// What wide_int4.cu is compiled for, its parameters and shared memory, which tile is whose, and how tiles come.
#pragma once

#include "int4_numbers.cuh"
#include "narrow_product.cuh"
#include "ring.cuh"

// Rows of x in a tile: 128, 192 or 256
#ifndef ROW_TILE
#define ROW_TILE 128
#endif
#ifndef IS_CHAINED
#define IS_CHAINED 0
#endif

namespace octavo {
namespace {

constexpr bool kIsTall = ROW_TILE > 128;
constexpr int kRows = ROW_TILE, kInputs = kIsTall ? 64 : 128, kPanels = kInputs / 64;  // of a tile; of a stage
constexpr int kStageBytes = 16 * kInputs / 2;  // of 16 outputs' codes
constexpr int kOutputs = kIsTall ? 128 : 256, kLoaders = 128, kThreads = 384;
constexpr int kEntries = kRows == 128 ? 4 : kRows == 192 ? 7 : 5;
constexpr int kPanelBytes = kRows * 128;
constexpr int kOnce = kIsTall ? kRows / 16 : kRows / 8;  // of 8 rows at a time, those that are handed over together
constexpr int kLoaderRegisters = 40, kMultiplierRegisters = 232;

struct Launch {
  const uint8_t* codes;  // [outputs / 16][depth / 64][32][16]
  const float* scales;   // [outputs / 16][groups][8][2]
  const Bf16* zeros;     // in the same places, or null: they are 8
  const Bf16* bias;      // or null
  Bf16* out;
  int64_t out_stride;
  int num_rows, columns, depth, group_bits;
  int whole_tiles, num_tiles, is_split;  // tiles of kOutputs, then of half as many; or all of 64
};

struct Shared {
  uint8_t rows[kEntries][kPanels][kPanelBytes];  // two panels of 64 inputs, swizzled by 128 bytes
  uint8_t codes[kEntries][kOutputs / 16 * kStageBytes];
  RingBarriers<kEntries> ring;
  float sums[kOnce * 4][128];  // of the second half of the inputs, by thread
};

// A tile: some rows of x, and some outputs, of which a stage has so many sixteens. Neighbouring tiles share their outputs'
// codes
struct Tile {
  int output, row, sixteens;

  __device__ __forceinline__ Tile(const Launch& launch, int tile) {
    const int blocks = (launch.num_rows + kRows - 1) / kRows, after = tile - launch.whole_tiles;
    const int own = after < 0 ? tile : after, of_part = own / blocks;
    const int unit = after < 0 ? of_part * 2 : launch.whole_tiles / blocks * 2 + of_part;
    sixteens = launch.is_split ? 4 : after < 0 ? kOutputs / 16 : kOutputs / 32;
    output = unit * (launch.is_split ? 64 : kOutputs / 2);
    row = own % blocks * kRows;
  }
};

struct Loader {
  const Launch& launch;
  const TensorMap& map;
  Shared& shared;
  const int lane = threadIdx.x;

  // By one warp
  __device__ void run() {
    const int stages = launch.depth / kInputs;
    int count = 0;
    bool has_waited = false;
    for (int at = blockIdx.x; at < launch.num_tiles; at += gridDim.x) {
      const Tile tile(launch, at);
      const int tiles = max(0, min(tile.sixteens, (launch.columns - tile.output) / 16));
      const uint8_t* from = launch.codes + (int64_t(tile.output / 16) + lane) * launch.depth * 8;
      for (int stage = 0; stage < stages; ++stage, ++count) {
        const int entry = shared.ring.entry(count);
        const uint32_t full = shared.ring.filled(count), rows = shared_address(shared.rows[entry][0]);
        shared.ring.wait_until_free(count);
        if (lane == 0) barrier_arrive_expecting(full, tiles * kStageBytes + kPanels * kPanelBytes);
        __syncwarp();
        if (lane < tiles) {
          copy_bytes(shared_address(shared.codes[entry]) + lane * kStageBytes, from + stage * kStageBytes, kStageBytes, full);
        }
        if (!has_waited) wait();  // codes do not depend on the kernel before
        has_waited = true;
        if (lane == 0) {
#pragma unroll
          for (int i = 0; i < kPanels; ++i) copy_box(rows + i * kPanelBytes, &map, stage * kInputs + i * 64, tile.row, full);
        }
      }
    }
    if (!has_waited) wait();
  }

  static __device__ __forceinline__ void wait() {
#if IS_CHAINED
    wait_for_previous();
    allow_next();
#endif
  }
};

}  // namespace
}  // namespace octavo
