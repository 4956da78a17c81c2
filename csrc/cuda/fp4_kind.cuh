// The compile-time parameters of fp4_experts.cu, and a thread block's shared memory.
#pragma once

#include "exchange.cuh"
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
// Whether a warp has all scores at once, and their order is that of the choice
#ifndef IS_QUICK
#define IS_QUICK 0
#endif
// How often the threads go over the row, 8 inputs each; experts whose logits a block computes, at most
#ifndef STEPS
#define STEPS 1
#endif
#ifndef OWN_LOGITS
#define OWN_LOGITS 1
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

constexpr int kApart = 4;  // in sectors of their own: whoever looks at one does not keep others from being written

// Beside `Launch`
struct Route {
  const ELEMENT* weight;  // [experts][depth]
  const float* norm;      // of the row, or null
  float* logits;          // for whoever looks
  uint64_t* posted;       // logits, kApart words apart
  uint32_t* count;        // of this product's blocks
  float eps;
};

struct Shared {
  uint8_t ring[kWarps][ENTRIES][kStageBytes];  // [matrix][span][output][128 bytes, swizzled by 16]
  uint8_t x[kRows][kSpans][512];               // see fp4_rows.cuh
  uint8_t zeros[512];                          // for lanes that read no x
  float x_scales[kRows][kSpans][8];            // of groups of 32 inputs
  float sums[IS_DOWN ? kMostOuts : 2][kWarps][IS_DOWN ? 8 : 16];  // gate_up: gate and up; down: 8 outputs
  float parts[kWarps][1 + OWN_LOGITS];
  int num_tiles, tile_expert[CHOSEN], tile_pair[CHOSEN];
  float tile_weight[CHOSEN];
  uint64_t full[kWarps][ENTRIES];
};

// The span of all that is a warp's at this step
__device__ __forceinline__ int span_at(int step) {
  return (step / SPANS * kTeam + int(threadIdx.x) / 32 % kTeam) * SPANS + step % SPANS;
}

}  // namespace
}  // namespace octavo
