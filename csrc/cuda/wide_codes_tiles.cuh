// What wide_codes.cu is compiled for, its parameters and shared memory, what is whose, and how it comes.
#pragma once

#include "code_numbers.cuh"
#include "exchange.cuh"
#include "narrow_product.cuh"
#include "ring.cuh"

// Of a tile: rows of x, a multiple of 32 up to 256, and outputs, 128, or 256 of up to 128 rows
#ifndef ROW_TILE
#define ROW_TILE 128
#endif
#ifndef OUTPUT_TILE
#define OUTPUT_TILE 128
#endif
#ifndef IS_CHAINED
#define IS_CHAINED 0
#endif

namespace octavo {
namespace {

constexpr int kRows = ROW_TILE, kOutputs = OUTPUT_TILE;  // of a tile
constexpr int kInputs = kRows <= 128 ? 128 : 64, kPanels = kInputs / 64;  // of a stage
constexpr int kProducts = kOutputs / 128;  // of 64 outputs, that a warpgroup has at once
constexpr int kPanelBytes = kRows * 128;
constexpr int kPanelCodeBytes = kOutputs * (kAreBytes ? 64 : 32);
constexpr int kBlockBytes = kOutputs / 128 * 16;  // of a stage's scales of blocks: the one of 128 outputs is among four
constexpr int kScaleBytes = SCALES == kOfGroups ? kOutputs / 16 * kPanels * 64 : 128;  // at most; copies begin at multiples of 128
constexpr int kZeroBytes = HAS_ZEROS ? kScaleBytes / 2 : 0;
constexpr int kEntryBytes = kPanels * (kPanelBytes + kPanelCodeBytes) + kScaleBytes + kZeroBytes;
constexpr int kSharedBytes = 232448 - 2048, kEntries = kSharedBytes / kEntryBytes;
constexpr int kQuarters = 4, kSlices = kProducts * kRows / 8 / kQuarters;  // of a tile's sums; of 8 rows' of 64 outputs
constexpr int kLoaders = 128, kMultipliers = 256, kThreads = kLoaders + kMultipliers;
constexpr int kQuarterBytes = kRows * kOutputs * 4 / kQuarters;
constexpr int kLoaderRegisters = 40, kMultiplierRegisters = 232;

struct Launch {
  const ELEMENT* bias;  // or null
  const float* scales;  // if they are of outputs
  ELEMENT* out;
  float4* sums;            // what blocks leave for others: [blocks][kQuarters][kSlices][threads that multiply]
  uint32_t *told, *count;  // the launch in which each block did so; of blocks, see exchange.cuh
  int64_t out_stride;
  int num_rows, columns, depth, group_bits, num_tiles;
  int whole_turns;  // of tiles that each are of one block; the others are shared
  float lowered, raised;  // of float16: numbers are as much smaller, that none is infinite; and what sums are raised by

  __device__ __forceinline__ int stages() const { return depth / kInputs; }  // of a tile
  __device__ __forceinline__ int groups_at_once() const { return max(1, kInputs >> group_bits); }  // of a stage

  __device__ __forceinline__ int group(int stage) const { return stage * kInputs >> group_bits; }  // the stage's first

  // As soon as the kernel before has ended
  __device__ __forceinline__ uint32_t number() const {
#if IS_CHAINED
    wait_for_previous();
#endif
    return number_of_launch(count);
  }

  __device__ __forceinline__ float4* left(int block, int quarter) const {
    return sums + (int64_t(block) * kQuarters + quarter) * kSlices * kMultipliers;
  }

  __device__ __forceinline__ int shared_tiles() const { return num_tiles - whole_turns * int(gridDim.x); }
  __device__ __forceinline__ bool exchanges() const { return shared_tiles() % gridDim.x != 0; }

  // Of the shared tiles' stages, the first that is the block's
  __device__ __forceinline__ int first_stage(int block) const {
    return uint32_t(shared_tiles() * stages() * block) / uint32_t(gridDim.x);
  }

  __device__ __forceinline__ int block_of(int stage) const {
    return uint32_t((stage + 1) * gridDim.x - 1) / uint32_t(shared_tiles() * stages());
  }
};

struct Shared {
  uint8_t rows[kEntries][kPanels][kPanelBytes];  // panels of 64 inputs, swizzled by 128 bytes
  // Of 4 bits as pack_int4 deals them, swizzled, too; of 8 panels of 64 inputs, swizzled by 64 bytes
  uint8_t codes[kEntries][kPanels * kPanelCodeBytes];
  alignas(128) uint8_t scales[kEntries][kScaleBytes];  // [kOutputs / 16][groups of the stage][8][2] of float; [kOutputs / 128][4]
#if HAS_ZEROS
  uint8_t zeros[kEntries][kZeroBytes];  // of the rows' type; without them they are kZero
#endif
  RingBarriers<kEntries> ring;
};

// What a block has of a tile: some of its stages
struct Piece {
  int tile, begin, end;
};

// All that a block has to do
struct Work {
  const Launch& launch;
  int turn = 0, at, end;
  Piece piece;

  __device__ __forceinline__ explicit Work(const Launch& launch)
      : launch(launch), at(launch.first_stage(blockIdx.x)), end(launch.first_stage(blockIdx.x + 1)) {}

  __device__ __forceinline__ bool next() {
    const int stages = launch.stages(), whole = launch.whole_turns * int(gridDim.x);
    if (turn < launch.whole_turns) {
      piece = {turn++ * int(gridDim.x) + int(blockIdx.x), 0, stages};
      return true;
    }
    if (at == end) return false;
    piece = {whole + at / stages, at % stages, min(stages, at % stages + end - at)};
    at += piece.end - piece.begin;
    return true;
  }
};

// A tile: some rows of x, and some outputs. Neighbouring tiles share their outputs' codes
struct Tile {
  int output, row;

  __device__ __forceinline__ Tile(const Launch& launch, int tile) {
    const int blocks = (launch.num_rows + kRows - 1) / kRows;
    output = tile / blocks * kOutputs;
    row = tile % blocks * kRows;
  }
};

// Who adds up which quarters of a tile's sums: `count` blocks from `first` on, of which this one is `own`. It has those from
// `begin` to `end`
struct Shares {
  int first, count, own, begin, end, rows;

  __device__ __forceinline__ Shares(const Launch& launch, const Piece& piece, const Tile& tile) {
    const int stages = launch.stages(), at = (piece.tile - launch.whole_turns * int(gridDim.x)) * stages;
    const bool is_whole = piece.end - piece.begin == stages;
    first = is_whole ? blockIdx.x : launch.block_of(at);
    count = is_whole ? 1 : launch.block_of(at + stages - 1) - first + 1;
    own = blockIdx.x - first;
    const bool is_equal = !is_whole && gridDim.x % launch.shared_tiles() == 0;  // all end at once
    begin = is_equal ? own * kQuarters / count : 0;
    end = is_equal ? (own + 1) * kQuarters / count : own == 0 ? kQuarters : 0;
    rows = launch.num_rows - tile.row;
  }

  __device__ __forceinline__ bool is_own(int quarter) const { return begin <= quarter && quarter < end; }
  static __device__ __forceinline__ int first_row(int slice) { return slice % (kRows / 8) * 8; }
  __device__ __forceinline__ bool has_rows(int quarter) const { return first_row(quarter * kSlices) < rows; }
};

struct Loader {
  const Launch& launch;
  const TensorMap &rows, &codes, &scales, &zeros;  // [rows, depth]; of 16 outputs each, of bytes of one
  Shared& shared;

  // By one thread
  __device__ void run() {
    int count = 0;
    uint32_t number = 0;
    for (Work work(launch); work.next();) {
      const Tile tile(launch, work.piece.tile);
      for (int stage = work.piece.begin; stage < work.piece.end; ++stage, ++count) {
        const int entry = shared.ring.entry(count), groups = launch.groups_at_once();
        const int output = tile.output / 16, group = launch.group(stage);
        const uint32_t full = shared.ring.filled(count), to = shared_address(shared.rows[entry][0]);
        const uint32_t scale_bytes = SCALES == kOfGroups ? kOutputs / 16 * groups * (HAS_ZEROS ? 96 : 64)
                                     : SCALES == kOfBlocks ? kBlockBytes : 0;
        const uint32_t to_codes = shared_address(shared.codes[entry]), to_scales = shared_address(shared.scales[entry]);
        shared.ring.wait_until_free(count);
        barrier_arrive_expecting(full, sizeof shared.codes[0] + sizeof shared.rows[0] + scale_bytes);
        if constexpr (kAreBytes) {
          copy_box(to_codes, &codes, 0, tile.output, stage * kPanels, full);
        } else {
          copy_box(to_codes, &codes, 0, stage * (kInputs / 16), output, full);  // lines of 128 bytes, of 16 inputs
        }
        if constexpr (SCALES == kOfGroups) copy_box(to_scales, &scales, group * 16, output, full);
        if constexpr (SCALES == kOfBlocks) copy_box(to_scales, &scales, group / 4 * 4, tile.output / 128, full);
#if HAS_ZEROS
        copy_box(shared_address(shared.zeros[entry]), &zeros, group * 8, output, full);
#endif
        if (count == 0) {  // what is of the weight does not depend on the kernel before
          number = launch.number();
#if IS_CHAINED
          allow_next();
#endif
        }
#pragma unroll
        for (int i = 0; i < kPanels; ++i) copy_box(to + i * kPanelBytes, &rows, stage * kInputs + i * 64, tile.row, full);
      }
      load_sums(Shares(launch, work.piece, tile), number, count);
    }
  }

  // What other blocks left
  __device__ __forceinline__ void load_sums(const Shares& shares, uint32_t number, int& count) {
    for (int other = 0; other < shares.count; ++other) {
      const int block = shares.first + other;
      if (other == shares.own || shares.begin == shares.end) continue;
      wait_until_written(launch.told + block, number);
      for (int quarter = shares.begin; quarter < shares.end; ++quarter) {
        if (!shares.has_rows(quarter)) continue;
        const uint32_t full = shared.ring.filled(count), bytes = kQuarterBytes;
        shared.ring.wait_until_free(count);
        barrier_arrive_expecting(full, bytes);
        copy_bytes(shared_address(shared.rows[shared.ring.entry(count)][0]), launch.left(block, quarter), bytes, full);
        ++count;
      }
    }
  }
};

}  // namespace
}  // namespace octavo
