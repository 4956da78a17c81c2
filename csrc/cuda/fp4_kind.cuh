// The compile-time parameters of fp4_experts.cu, a thread block's shared memory, and its units of work.
#pragma once

#include "expert_launch.cuh"

#ifndef IS_DOWN
#define IS_DOWN 0
#endif
#ifndef EXPERTS
#define EXPERTS 128
#endif
#ifndef IS_GROUPED
#define IS_GROUPED 0
#endif
// Experts that a row chooses
#ifndef CHOSEN
#define CHOSEN 8
#endif
// As activate.cuh numbers them
#ifndef GATE
#define GATE 0
#endif
#ifndef WARPS
#define WARPS 12
#endif
#ifndef TEAM
#define TEAM 2
#endif
// Of 256 inputs, in a stage
#ifndef SPANS
#define SPANS 1
#endif
// Of a warp, for a unit
#ifndef STAGES
#define STAGES 4
#endif
#ifndef ENTRIES
#define ENTRIES 3
#endif
#ifndef IS_CHAINED
#define IS_CHAINED 0
#endif

namespace octavo {
namespace {

constexpr int kWarps = WARPS, kThreads = kWarps * 32, kTeam = TEAM, kTeams = kWarps / kTeam;  // warps
constexpr int kSteps = STAGES * SPANS;  // spans of a warp, of a unit
constexpr int kSpans = kTeam * kSteps;  // of a row, with those that no input reaches
constexpr int kRows = IS_DOWN ? CHOSEN : 1;
constexpr int kMatrixBytes = SPANS * 1024, kStageBytes = 2 * kMatrixBytes;
constexpr int kMostOuts = 8;   // of a block, of `down`

struct Shared {
  uint8_t ring[kWarps][ENTRIES][kStageBytes];  // [matrix][span][output][128 bytes, swizzled by 16]
  uint8_t x[kRows][kSpans][512];               // see fp4_rows.cuh
  uint8_t zeros[512];                          // for lanes that read no x
  float x_scales[kRows][kSpans][8];            // of groups of 32 inputs
  float sums[IS_DOWN ? kMostOuts : 2][kWarps][IS_DOWN ? 8 : 16];  // gate_up: gate and up; down: 8 outputs
  uint64_t full[kWarps][ENTRIES], rows_full;
};

// The span of all that is a warp's at this step
__device__ __forceinline__ int span_at(int step) {
  return (step / SPANS * kTeam + int(threadIdx.x) / 32 % kTeam) * SPANS + step % SPANS;
}

// A tile is a chosen expert that this rank has; a warp has them all, that of tile i in lane i
struct Tiles {
  int num_tiles, expert, pair;
  float weight;

  __device__ __forceinline__ void choose(const Routing& routing, bool is_told) {
    const int lane = threadIdx.x % 32;
    RowChoice<EXPERTS, IS_GROUPED> choice{routing, lane};
    choice.template load<ELEMENT>(0);
    choice.choose(expert, weight);
    if (is_told && lane < routing.num_chosen) routing.ids[lane] = expert, routing.weights[lane] = weight;
    expert -= routing.first_expert;
    const bool is_own = lane < routing.num_chosen && expert >= 0 && expert < routing.num_own;
    uint32_t own = __ballot_sync(~0u, is_own);
    num_tiles = __popc(own);
#pragma unroll 1
    for (int i = 0; i < min(lane, num_tiles - 1); ++i) own &= own - 1;
    pair = max(__ffs(own) - 1, 0);
    expert = __shfl_sync(~0u, expert, pair);
    weight = __shfl_sync(~0u, weight, pair);
  }
};

// Eight outputs of two matrices: of an expert's gate and up; of the second products of two experts, the second of which
// may be missing. A warp has those of its team, its unit i in lane i
struct Units {
  int num_units, first_out = 0, num_outs = 0;  // outs: of a block, of `down`
  int out, first_matrix, second_matrix, tile;  // tile: the first
  bool has_second = true;

  __device__ __forceinline__ Units(const Launch& launch, const Tiles& tiles) {
    const unsigned outs = launch.columns / 8, pairs = (tiles.num_tiles + 1) / 2;
    const unsigned all = IS_DOWN ? outs : outs * tiles.num_tiles;
    const int first = all * blockIdx.x / gridDim.x, end = all * (blockIdx.x + 1) / gridDim.x;
    const int team = threadIdx.x / 32 / kTeam, count = IS_DOWN ? (end - first) * pairs : end - first;
    const int i = threadIdx.x % 32 * kTeams + team;
    num_units = (count - team + kTeams - 1) / kTeams;
    if (IS_DOWN) {
      first_out = first, num_outs = end - first;
      const int row = pairs > 0 ? i / pairs : 0;
      tile = (i - row * pairs) * 2;
      out = (first + row) * 8;
      has_second = tile + 1 < tiles.num_tiles;
      first_matrix = __shfl_sync(~0u, tiles.expert, tile);
      second_matrix = __shfl_sync(~0u, tiles.expert, tile + has_second);
    } else {
      tile = (first + i) / outs;
      out = (first + i - tile * outs) * 8;
      first_matrix = __shfl_sync(~0u, tiles.expert, tile) * 2;
      second_matrix = first_matrix + 1;
    }
  }

  // An output of a unit's first matrix, or its second, among those of all matrices
  __device__ __forceinline__ int64_t row(const Launch& launch, int unit, bool is_second, int output) const {
    const int first = __shfl_sync(~0u, first_matrix, unit), second = __shfl_sync(~0u, second_matrix, unit);
    return int64_t(is_second ? second : first) * launch.columns + __shfl_sync(~0u, out, unit) + output;
  }
};

}  // namespace
}  // namespace octavo
