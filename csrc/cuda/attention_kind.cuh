// The compile-time parameters of decode_attention.cu, its launch arguments, and a thread block's shared memory.
//
// Compile-time parameters are macros, one build for each kind of layer; features that a kind lacks cost nothing.
#pragma once

#include "attention_plan.h"
#include "coded_cache.cuh"
#include "ptx.cuh"

#ifndef HEAD_DIM
#define HEAD_DIM 128
#define GROUP 4          // query heads per kv head
#define BLOCK_SIZE 16
#define ELEMENT Bf16
#define MAX_QUERIES 1    // new tokens per sequence, at most
#define HAS_WINDOW 0
#define HAS_SOFTCAP 0
#define IS_FUSED 1       // q is the projection's output: norm, rotate, write the new key and value
#define ROTARY_DIM 128
#define HAS_NORM 1
#define IS_CHAINED 1
#define HAS_COPY_ENGINE 1
#define HAS_WGMMA 1      // four warps multiply together; needs the copy engine
#define RING_ENTRIES 5   // of 64 tokens' keys or values
#define BLOCKS_PER_MULTIPROCESSOR 2
#endif
#ifndef HOOKS
#define HOOKS PlainHooks  // hooks.cuh; Fp8Cache, Int8Cache: coded_cache.cuh
#endif

namespace octavo {
namespace {

template <bool, typename First, typename>
struct Choice {
  using type = First;
};
template <typename First, typename Second>
struct Choice<false, First, Second> {
  using type = Second;
};

using Element = ELEMENT;
using Hooks = HOOKS;
using Stored = Hooks::Stored<Element>;
using Product = Choice<Hooks::kHasCodes, Fp16, Element>::type;  // of what products are

constexpr int kDim = HEAD_DIM;
constexpr int kSlabs = (kDim + 63) / 64;
constexpr int kPaddedDim = 64 * kSlabs;
constexpr int kSlabBytes = 64 * 128;  // of 64 tokens or query rows
constexpr int kSlabDims = 128 / sizeof(Stored), kRingSlabs = (kDim + kSlabDims - 1) / kSlabDims;  // of keys and values
constexpr int kChunkDims = 16 / sizeof(Stored);
constexpr int kStageBoxes = 4;
constexpr int kStage = kBox * kStageBoxes;  // tokens
constexpr int kEntryBytes = kRingSlabs * kSlabBytes;
constexpr int kEntries = RING_ENTRIES;
constexpr int kTileQueries = MAX_QUERIES < kTileRows / GROUP ? MAX_QUERIES : kTileRows / GROUP;
constexpr int kMemberRows = kTileQueries * GROUP;
constexpr int kTileMembers = kTileRows / kMemberRows;
constexpr int kComputers = 4;  // warps
constexpr int kThreads = 32 * (kComputers + 1);
constexpr float kLowest = -1e30f;  // of scores times log2(e)
// Weights of values are multiplied by 2^kRaise: halves begin at 2^-24, so that those down to 2^-39 are not lost
constexpr int kRaise = Hooks::kHasCodes ? 15 : 0;
static_assert(GROUP <= kTileRows, "a token's queries of one kv head must fit a tile");
static_assert(!Hooks::kHasCodes || !HAS_WGMMA, "codes become numbers in registers, which wgmma does not read");
static_assert(sizeof(Hooks) <= 32, "the host passes 32 bytes for hooks");
static_assert(kDim % 8 == 0 && kDim <= 256, "heads are read 16 bytes at a time");

struct Launch {
  Plan plan;
  const Element* q;       // [tokens, ...], q_stride elements from one to the next
  Element* out;
  Stored* pool;           // the layer's first key in block 0
  const int* block_table;
  float* part_values;     // [part row, kv head, member row, kDim]
  float* part_max_sum;    // [part row, kv head, member row, 2]
  int* done;              // [sequence, kv head] parts; 0 between launches
  const float* row_scales;     // [tokens]; null: q has its scales
  const float* column_scales;  // of q, as wide as it
  const float* q_norm;    // [kDim]
  const float* k_norm;
  const float* cos;       // [positions, ROTARY_DIM / 2]
  const float* sin;
  int64_t q_stride, out_stride, table_stride;
  int64_t block_stride, value_offset;  // elements
  int layer_row, block_rows;           // in rows of kDim elements, of the whole pool
  int num_kv_heads, num_stretches, window;
  float scale_log2, softcap_log2, eps;
  Hooks hooks;
};

struct Piece {
  int begin, end;          // tokens; end 0: no more pieces
  int num_members;
  int part_row;            // where the first member's partial result goes
  bool writes;             // whether it writes the new token's key and value
  alignas(16) Member members[kTileMembers];
};

struct Shared {
  unsigned char ring[kEntries][kEntryBytes];  // keys and values in turn
  union {
    unsigned char q[kSlabs * kSlabBytes];
    float sums[kComputers][8][kPaddedDim];
  };
  Piece pieces[2];
  float max_sum[kComputers][16][2];
  int joins[kTileMembers];
  uint64_t full[kEntries], free[kEntries], piece_full[2], piece_free[2];
};

// Where 16 bytes of a token (or a query row) lie in an entry of 64.
__device__ __forceinline__ uint32_t chunk_offset(int token, int chunk) {
  return chunk / 8 * kSlabBytes + token * 128 + ((chunk % 8) ^ (token & 7)) * 16;
}

__device__ __forceinline__ float cap(float score, float softcap_log2) {
#if HAS_SOFTCAP
  // c * tanh(score / c), both times log2(e)
  const float e = exp2_fast(-2.885390081777927f * fabsf(score / softcap_log2));
  return copysignf((1.0f - e) / (1.0f + e) * softcap_log2, score);
#else
  return score;
#endif
}

__device__ __forceinline__ uint32_t address(const uint64_t& barrier) { return shared_address(&barrier); }

}  // namespace
}  // namespace octavo
