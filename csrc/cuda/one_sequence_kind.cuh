// What one_sequence_attention.cu is launched with, which tokens a thread block reads, and its shared memory.
#pragma once

#include "attention_kind.cuh"
#include "cluster.cuh"

namespace octavo {
namespace {

constexpr int kClusterBlocks = 8;
constexpr int kWarps = 8;  // that compute; one more copies
constexpr int kOneThreads = 32 * (kWarps + 1);
constexpr int kOneStage = kBox * kWarps;  // tokens
constexpr int kOneSlabBytes = kOneStage * 128, kOneEntryBytes = kSlabs * kOneSlabBytes;
constexpr int kOneEntries = (96 << 10) / kOneEntryBytes;  // of a stage's keys or values
constexpr int kRows = 8;          // of a product; GROUP of them are query heads
constexpr int kLaneDims = kDim / 32;
constexpr int kOwnDims = kDim / kClusterBlocks;  // of which a block of the cluster ends the sums
constexpr int kSumWarps = kDim / 16;             // that have sums
constexpr int kSteps = kDim / 16;
static_assert(GROUP <= kRows, "a product has eight columns");
static_assert(kDim == 64 || kDim == 128, "a lane has two or four dims of a head");
static_assert(!Hooks::kHasCodes && !Hooks::kChangesScores, "for caches of 16-bit numbers, and scores as they are");

// Where the step has its sequence, and what the clusters of a kv head tell each other
struct Sequence {
  const int* query_start_loc;  // [2]
  const int* seq_lens;         // [1]
  const int* rows;             // [1] of the block table
  float* values;   // [cluster of a kv head, kv head, block, 32, kOwnDims / 4]: as threads of a product have them
  float* max_sum;  // [cluster of a kv head, kv head, block, kRows, 2]
  int* done;       // [kv head, block] clusters; 0 between launches
  int most_alone;  // boxes that one cluster reads alone
  int num_clusters;  // of each kv head
};

// Four sums of a thread for kOwnDims 16, two for 8
template <int>
struct OwnSums {
  using type = float4;
};
template <>
struct OwnSums<8> {
  using type = float2;
};
using Sums = OwnSums<kOwnDims>::type;

struct OneShared {
  unsigned char ring[kOneEntries][kOneEntryBytes];  // keys and values in turn
  unsigned char q[kSlabs][kRows * 128];
  uint16_t weights[2][kRows][kOneStage + 8];  // of a stage's tokens; rows begin in different banks
  float box_max_sum[2][kWarps][kRows][2];
  Sums sums[kClusterBlocks][32];  // from each block of the cluster
  float max_sum[kClusterBlocks][kRows][2];
  uint64_t full[kOneEntries], free[kOneEntries], newest, arrived;
};

// Where 16 bytes of a stage's token lie in an entry
__device__ __forceinline__ uint32_t stage_offset(int token, int chunk) {
  return chunk / 8 * kOneSlabBytes + token * 128 + ((chunk % 8) ^ (token & 7)) * 16;
}

__device__ __forceinline__ uint32_t row_offset(int row, int chunk) {
  return chunk / 8 * (kRows * 128) + row * 128 + ((chunk % 8) ^ row) * 16;
}

// The boxes of tokens that a thread block reads: of short contexts one cluster has all, and needs no other.
struct Share {
  int kv_head, block, cluster, num_clusters;  // with work, of the kv head
  int tokens;                                 // of the sequence
  int begin, end;                             // the block's tokens; begin is a multiple of kBox
  bool has_work, has_newest;

  __device__ Share(const Launch& launch, const Sequence& sequence) {
    block = blockIdx.x % kClusterBlocks;
    kv_head = blockIdx.x / kClusterBlocks % launch.num_kv_heads;
    cluster = blockIdx.x / kClusterBlocks / launch.num_kv_heads;
    tokens = sequence.seq_lens[0];
    const int queries = sequence.query_start_loc[1] - sequence.query_start_loc[0];
    const int first = window_begin(launch) / kBox * kBox;
    const int boxes = (tokens - first + kBox - 1) / kBox;
    num_clusters = boxes <= sequence.most_alone ? 1 : sequence.num_clusters;
    const int parts = num_clusters * kClusterBlocks, part = cluster * kClusterBlocks + block;
    has_work = tokens > 0 && queries == 1 && cluster < num_clusters;
    has_newest = part == parts - 1;
    begin = first + boxes * part / parts * kBox;
    end = min(first + boxes * (part + 1) / parts * kBox, tokens);
  }

  __device__ __forceinline__ int window_begin(const Launch& launch) const {
    return HAS_WINDOW ? max(tokens - launch.window, 0) : 0;
  }
  __device__ __forceinline__ int num_boxes() const { return max(end - begin + kBox - 1, 0) / kBox; }
};

__device__ __forceinline__ int entry_of(int use) { return use % kOneEntries; }
__device__ __forceinline__ uint32_t parity_of(int use) { return use / kOneEntries & 1; }

}  // namespace
}  // namespace octavo
