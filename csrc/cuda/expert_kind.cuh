// The compile-time parameters of experts.cu, a thread block's shared memory, and its way through the work.
#pragma once

#include "expert_choice.cuh"
#include "expert_launch.cuh"
#include "expert_rows.cuh"

#ifndef FORMAT
#define FORMAT kDense
#endif
// Inputs that share a scale, at most a span's; 0: all of an output's
#ifndef GROUP
#define GROUP 0
#endif
#ifndef HAS_ZEROS
#define HAS_ZEROS 0
#endif
#ifndef IS_DOWN
#define IS_DOWN 0
#endif
#ifndef ROWS
#define ROWS 1
#endif
#ifndef EXPERTS
#define EXPERTS 128
#endif
#ifndef IS_GROUPED
#define IS_GROUPED 0
#endif
#ifndef COMPUTERS
#define COMPUTERS 8
#endif
#ifndef TEAM
#define TEAM 2
#endif
#ifndef SPANS
#define SPANS 8
#endif
#ifndef ENTRIES
#define ENTRIES 4
#endif
#ifndef IS_CHAINED
#define IS_CHAINED 0
#endif
namespace octavo {
namespace {

constexpr int kComputers = COMPUTERS, kTeam = TEAM, kTeams = kComputers / kTeam;  // warps
constexpr int kThreads = kComputers * 32 + 32;
constexpr int kHalves = IS_DOWN ? 1 : 2, kRows = ROWS;
constexpr int kBits = FORMAT == kDense ? 16 : FORMAT == kInt8 || FORMAT == kFp8 ? 8 : 4;
constexpr int kInputs = kSpanInputs<kBits>;
constexpr int kGroup = GROUP, kGroups = kGroup ? kInputs / kGroup : 1;  // of a span
constexpr bool kIsRaised = (FORMAT == kFp4 || FORMAT == kFp8) && !is_half<ELEMENT>;
constexpr float kRest = kIsRaised && FORMAT == kFp8 ? 72057594037927936.0f : 1.0f;  // 2^56, which rows and numbers lack
constexpr int kHalfBytes = SPANS * 1024, kWeightBytes = kHalves * kHalfBytes;
// After a row of x, so that lanes of different rows use different banks
constexpr int kRowBytes = SPANS * kInputs * 2 + (kBits == 4 ? 64 : 16);
constexpr int kStageBytes = (kWeightBytes + kRows * kRowBytes + 1023) / 1024 * 1024;
constexpr int kMostRows = kRows < 8 ? kRows : 32;  // of a step

struct Shared {
  uint8_t ring[ENTRIES][kStageBytes];
  float sums[2][kComputers][IS_DOWN ? kMostRows : kRows][kHalves * 8];
  Choices<EXPERTS, kRows, IS_GROUPED> choices;
  uint64_t full[ENTRIES], free[ENTRIES];
  uint32_t num_begun;  // stages. A barrier tells odd phases from even ones only: whoever is far ahead looks here first
};

// A block's stages, one after another, in groups of a unit for each team
struct Walk {
  const int num_tiles, num_outs, num_spans;
  int out = 0, first, end;    // of `down`: tiles of 8 outputs; otherwise units
  int end_out = 0, place = 0, span = 0;

  __device__ Walk(const Launch& launch, int num_tiles)
      : num_tiles(num_tiles), num_outs(launch.columns / 8), num_spans((launch.depth + kInputs - 1) / kInputs) {
    const unsigned all = IS_DOWN ? num_outs : num_outs * num_tiles;
    first = all * blockIdx.x / gridDim.x;
    end = all * (blockIdx.x + 1) / gridDim.x;
    if (IS_DOWN) out = first * 8, end_out = end * 8, first = 0, end = num_tiles;
  }
  __device__ __forceinline__ bool has_more() const { return IS_DOWN ? num_tiles > 0 && out < end_out : first < end; }
  __device__ __forceinline__ int count() const { return min(kTeams, end - first); }
  __device__ __forceinline__ int tile(int place) const { return IS_DOWN ? first + place : (first + place) / num_outs; }
  __device__ __forceinline__ int output(int place) const { return IS_DOWN ? out : (first + place) % num_outs * 8; }
  __device__ __forceinline__ bool begins_group() const { return place == 0 && span == 0; }
  __device__ __forceinline__ int stages() const { return (num_spans + SPANS - 1) / SPANS; }
  __device__ __forceinline__ int spans(int span) const { return min(SPANS, num_spans - span); }
  __device__ __forceinline__ void next_group() {
    first += kTeams;
    if (IS_DOWN && first >= end) first = 0, out += 8;
  }
  __device__ __forceinline__ void next_stage() {
    if (++place < count()) return;
    place = 0;
    span += SPANS;
    if (span < num_spans) return;
    span = 0;
    next_group();
  }
};

}  // namespace
}  // namespace octavo
