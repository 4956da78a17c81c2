// What csrc/cuda/int4_linear.cu is compiled for and given, and how its weights come into shared memory.
#pragma once

#include "few_rows.cuh"

#ifndef HAS_GROUPS
#define HAS_GROUPS 1
#endif
#ifndef HAS_ZEROS
#define HAS_ZEROS 0
#endif
#ifndef ROW_TILES
#define ROW_TILES 1
#endif
#ifndef WARPS
#define WARPS 8
#endif
#ifndef ENTRIES
#define ENTRIES 4
#endif
#ifndef PIECE
#define PIECE 256
#endif
#ifndef SPAN
#define SPAN 128
#endif

namespace octavo {
namespace {

constexpr int kWarps = WARPS, kThreads = kWarps * 32;
constexpr int kRows = ROW_TILES * 4;
constexpr int kPiece = PIECE;  // inputs that a warp multiplies at a time
constexpr int kSpan = SPAN;    // inputs of a piece with one scale for each output
// An entry of a ring: the weights of a piece, then its scales, then its zero points
constexpr int kWeightBytes = kPiece * 8;
constexpr int kScaleBytes = HAS_GROUPS ? kPiece / kSpan * 64 : 0, kZeroBytes = HAS_ZEROS ? kPiece / kSpan * 32 : 0;
constexpr int kEntryBytes = kWeightBytes + kScaleBytes + kZeroBytes;

struct Shared {
  uint8_t rings[kWarps][ENTRIES][kEntryBytes];
  // Sums: 2 x [units_together][warp][row][output], then what int4_rows.cuh leaves of the rows
  __align__(16) float rest[4];
};

// A warp's pieces of all units on their way through its ring. Of a unit it has piece `warp` and each kWarps-th from there
// on, of each first the gate's
struct Ring {
  const Launch& launch;
  const Share& share;
  uint8_t* const entries;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int unit_groups = launch.depth >> launch.group_bits, turn_groups = kWarps * kPiece >> launch.group_bits;
  const int num_turns = (share.num_pieces - warp + kWarps - 1) / kWarps;  // through a unit
  const uint64_t policy = once_policy();  // so that what all layers read stays in the L2 cache
  int entry = 0;  // the oldest, in bytes
  // To be copied next
  int unit = num_turns > 0 ? share.first_unit : share.num_units, num_left = num_turns, tile = 0;
  const int first_input = share.begin + warp * kPiece;
  const uint8_t* weight = launch.weight + int64_t(unit) * launch.depth * 8 + first_input * 8 + lane * 16;
  int64_t group = int64_t(unit) * unit_groups + (first_input >> launch.group_bits);

  __device__ void fill() {
#pragma unroll 1
    for (int i = 0; i < ENTRIES; ++i) copy_next(i * kEntryBytes);
  }

  // The oldest entry, when it is there
  __device__ __forceinline__ const uint8_t* front() const {
    copies_wait<ENTRIES - 1>();
    __syncwarp();
    return entries + entry;
  }

  __device__ __forceinline__ void pop() {
    __syncwarp();
    copy_next(entry);
    entry = entry == (ENTRIES - 1) * kEntryBytes ? 0 : entry + kEntryBytes;
  }

  __device__ __forceinline__ void copy_next(int place) {
    if (unit < share.num_units) {
      copy(shared_address(entries + place));
      advance();
    }
    copies_end_group();
  }

  __device__ __forceinline__ void copy_once(uint32_t to, const void* from) const {
    copy_16_once(to, from, true, policy);
  }

  __device__ __forceinline__ void copy(uint32_t to) const {
    // with a gate, tile 1 has the outputs that tile 0's activation multiplies
    const uint8_t* from = weight + (tile == 0 ? 0 : int64_t(launch.columns) * launch.depth / 2);
#pragma unroll
    for (int i = 0; i < kPiece / 64; ++i) copy_once(to + i * 512 + lane * 16, from + i * 512);
    if constexpr (HAS_GROUPS) {
      const int64_t place = group + (tile == 0 ? 0 : launch.columns / 16 * unit_groups);
      const int chunks = 4 * max(1, kPiece >> launch.group_bits);
      if (lane < chunks) copy_once(to + kWeightBytes + lane * 16, launch.scales + place * 16 + lane * 4);
      if (HAS_ZEROS && lane >= 16 && lane < 16 + chunks / 2) {
        copy_once(to + kWeightBytes + kScaleBytes + (lane - 16) * 16, launch.zeros + place * 16 + (lane - 16) * 8);
      }
    }
  }

  __device__ __forceinline__ void advance() {
    if (++tile < kTiles) return;
    tile = 0;
    weight += kWarps * kPiece * 8;
    group += turn_groups;
    if (--num_left == 0) {
      num_left = num_turns;
      unit += share.step;
      weight += (int64_t(share.step) * launch.depth - num_turns * kWarps * kPiece) * 8;
      group += share.step * unit_groups - num_turns * turn_groups;
    }
  }
};

}  // namespace
}  // namespace octavo
