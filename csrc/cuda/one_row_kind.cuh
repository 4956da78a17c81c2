// The compile-time parameters of one_row_experts.cu, its launch arguments, a block's shared memory, and its work.
#pragma once

#include "exchange.cuh"
#include "row_choice.cuh"

#ifndef ELEMENT
#define ELEMENT Bf16
#endif
#ifndef IS_FP8
#define IS_FP8 1
#endif
// Scales of fp8: of blocks of 128 outputs and 128 inputs, in place of outputs
#ifndef HAS_BLOCKS
#define HAS_BLOCKS 0
#endif
#ifndef EXPERTS
#define EXPERTS 128
#endif
#ifndef IS_GROUPED
#define IS_GROUPED 0
#endif
// Whether all warps choose, each of some experts; see one_row_choice.cuh
#ifndef IS_TOGETHER
#define IS_TOGETHER 1
#endif
// As activate.cuh numbers them
#ifndef GATE
#define GATE 0
#endif
// Experts that a row chooses
#ifndef CHOSEN
#define CHOSEN 8
#endif
// Warpgroups that multiply
#ifndef WARPGROUPS
#define WARPGROUPS 2
#endif
// Of the ring
#ifndef ENTRIES
#define ENTRIES 10
#endif
// Those that may be on their way at once for the first product
#ifndef FLIGHT
#define FLIGHT ENTRIES
#endif
// Of the first product, and of the second: spans in a stage, and stages of 8 outputs of a matrix
#ifndef FIRST_SPANS
#define FIRST_SPANS 8
#endif
#ifndef FIRST_STAGES
#define FIRST_STAGES 2
#endif
#ifndef SECOND_SPANS
#define SECOND_SPANS 6
#endif
#ifndef SECOND_STAGES
#define SECOND_STAGES 1
#endif
// How often the threads go over the row, 8 inputs each; experts whose logits a block computes, at most
#ifndef STEPS
#define STEPS 1
#endif
#ifndef OWN_LOGITS
#define OWN_LOGITS 1
#endif
// Times 8 outputs of the second product, of a block, at most
#ifndef OUTS
#define OUTS 2
#endif
#ifndef IS_CHAINED
#define IS_CHAINED 0
#endif

namespace octavo {
namespace {

constexpr int kGroups = WARPGROUPS, kWarps = kGroups * 4, kComputers = kWarps * 32, kThreads = kComputers + 32;
constexpr bool kIsFp8 = IS_FP8;
constexpr int kBlock = 128;  // outputs, and inputs, that share a scale
static_assert(!HAS_BLOCKS || IS_FP8, "a block is as wide as a span");
constexpr int kSpan = kIsFp8 ? 128 : 64;  // inputs, of 128 bytes of an output
constexpr int kColumns = kIsFp8 ? 2 : 1;  // of a span of x: numbers of fp8 are in two
constexpr int kXBytes = kColumns * 1024;  // x of a stage: [span][kColumns][128 bytes, swizzled]
constexpr int kMostSpans = FIRST_SPANS > SECOND_SPANS ? FIRST_SPANS : SECOND_SPANS;
constexpr int kStageBytes = kMostSpans * 1024;  // [span][output][128 bytes, swizzled]
constexpr int kMostX = FIRST_STAGES > CHOSEN * SECOND_STAGES ? FIRST_STAGES : CHOSEN * SECOND_STAGES;
static_assert(kMostSpans <= 8 && ENTRIES % kGroups == 0, "an entry is always the same warpgroup's");
static_assert(FLIGHT >= 2 * kGroups && FLIGHT <= ENTRIES, "a warpgroup waits for two stages at once");

constexpr int kApart = 4;  // in sectors of their own: whoever looks at one does not keep others from being written

struct Launch {
  Routing routing;
  const ELEMENT* x;
  const ELEMENT* router;    // [experts][hidden]
  const float* norm;        // or null
  const float *first_scales, *second_scales;  // of each output, as the biases; or [outputs / 128][inputs / 128]; or null
  const ELEMENT *first_bias, *second_bias;    // [expert][outputs], or null
  const ELEMENT* residual;  // or null
  ELEMENT* out;
  float* logits;            // for whoever looks
  uint64_t* posted_logits;  // kApart words apart
  uint64_t* posted_pairs;   // [tile][inner / 2]: two outputs of the first product in a word
  uint32_t* count;
  int hidden, inner;
  float eps, alpha, limit;
};

// Of the weights: [matrix][span][output][128 bytes]
struct Maps {
  TensorMap first, second;
};

// A tile is a chosen expert that this rank has
struct Tiles {
  int number;
  int expert[CHOSEN];
  float weight[CHOSEN];
};

struct alignas(1024) Shared {
  uint8_t ring[ENTRIES][kStageBytes];
  alignas(1024) uint8_t x[kMostX][kXBytes];  // of the first product: by stage; of the second: [tile][stage]
  float x_scales[kMostX][8];                 // of spans, if x is in fp8
  float sums[2][kWarps][2][8];
  float factors[CHOSEN][OUTS * 8];  // of the second product's sums: the tile's weight, and the output's scale
  float parts[kWarps][1 + OWN_LOGITS];
  alignas(16) uint32_t ranks[EXPERTS];
  int chosen_experts[CHOSEN];
  float chosen_scores[CHOSEN];
  float2 largest_scores[kWarps];  // of a warp's experts: the largest, and the sum of e^(score - largest)
  Tiles tiles;
  uint64_t full[ENTRIES], free[ENTRIES], chosen;
};

// A block's units of gate and up, of 8 outputs, tiles being the outer loop; and of the row after the mixture
struct Share {
  const int num_outs;
  int first, end, first_out, end_out;

  __device__ __forceinline__ explicit Share(const Launch& launch) : num_outs(launch.inner / 8) {
    cut(launch.hidden / 8, first_out, end_out);
  }
  __device__ __forceinline__ void set_units(int num_tiles) { cut(num_outs * num_tiles, first, end); }

  __device__ __forceinline__ int tile(int unit) const { return unit / num_outs; }
  __device__ __forceinline__ int output(int unit) const { return unit % num_outs * 8; }

  static __device__ __forceinline__ void cut(unsigned all, int& first, int& end) {
    first = all * blockIdx.x / gridDim.x;
    end = all * (blockIdx.x + 1) / gridDim.x;
  }
};

}  // namespace
}  // namespace octavo
