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
#ifndef WARPS
#define WARPS 8
#endif
#ifndef TEAM
#define TEAM 4
#endif
// Of 256 inputs, in a stage
#ifndef SPANS
#define SPANS 1
#endif
// Of a warp, for a unit
#ifndef STAGES
#define STAGES 2
#endif
#ifndef ENTRIES
#define ENTRIES 4
#endif
#ifndef IS_CHAINED
#define IS_CHAINED 0
#endif

namespace octavo {
namespace {

constexpr int kWarps = WARPS, kThreads = kWarps * 32, kTeam = TEAM, kTeams = kWarps / kTeam;  // warps
constexpr int kSpans = TEAM * STAGES * SPANS;  // of a row, with those that no input reaches
constexpr int kRows = IS_DOWN ? CHOSEN : 1;
constexpr int kMatrixBytes = SPANS * 1024, kStageBytes = 2 * kMatrixBytes;
constexpr int kMostOuts = 16;  // of a block, of `down`

struct Shared {
  uint8_t ring[kWarps][ENTRIES][kStageBytes];  // [matrix][span][output][128 bytes, swizzled by 16]
  uint8_t x[kRows][kSpans][4][2][2][32];       // [row][span][group % 4][group / 4][high, low]
  uint8_t zeros[512];                          // for lanes that read no x
  float x_scales[kRows][kSpans][8];
  float sums[IS_DOWN ? kMostOuts : 2][kWarps][IS_DOWN ? 8 : 16];  // gate_up: gate and up; down: 8 outputs
  uint64_t full[kWarps][ENTRIES];
};

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
    for (int i = 0; i < min(lane, num_tiles - 1); ++i) own &= own - 1;
    pair = max(__ffs(own) - 1, 0);
    expert = __shfl_sync(~0u, expert, pair);
    weight = __shfl_sync(~0u, weight, pair);
  }
};

// Eight outputs of two matrices: of an expert's gate and up; of the second products of two experts
struct Unit {
  int out, first_matrix, second_matrix, first_tile, second_tile;
  bool has_second;

  // By a whole warp
  __device__ __forceinline__ Unit(const Launch& launch, const Tiles& all, int first_out, int i) {
    const int num_outs = launch.columns / 8, num_pairs = (all.num_tiles + 1) / 2;
    if (IS_DOWN) {
      first_tile = i % num_pairs * 2;
      has_second = first_tile + 1 < all.num_tiles;
      second_tile = first_tile + has_second;
      out = (first_out + i / num_pairs) * 8;
      first_matrix = __shfl_sync(~0u, all.expert, first_tile);
      second_matrix = __shfl_sync(~0u, all.expert, second_tile);
    } else {
      first_tile = second_tile = i / num_outs;
      has_second = true;
      out = i % num_outs * 8;
      first_matrix = __shfl_sync(~0u, all.expert, first_tile) * 2;
      second_matrix = first_matrix + 1;
    }
  }

  __device__ __forceinline__ int matrix(bool is_second) const { return is_second ? second_matrix : first_matrix; }
  __device__ __forceinline__ int tile(bool is_second) const { return is_second ? second_tile : first_tile; }
};

// A block's units
struct Share {
  int first_out = 0, num_outs = 0, first, end;

  __device__ __forceinline__ Share(const Launch& launch, int num_tiles) {
    const unsigned outs = launch.columns / 8, all = IS_DOWN ? outs : outs * num_tiles;
    first = all * blockIdx.x / gridDim.x;
    end = all * (blockIdx.x + 1) / gridDim.x;
    if (!IS_DOWN) return;
    first_out = first, num_outs = end - first;
    first = 0, end = num_outs * ((num_tiles + 1) / 2);
  }
};

}  // namespace
}  // namespace octavo
