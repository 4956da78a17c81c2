// Pairs of rows and experts as the tiles of a persistent grid: an expert's pairs are a list, of which a tile has some.
#pragma once

#include <stdint.h>

namespace octavo {

constexpr int kMostExperts = 512;

// Of one launch, in shared memory
struct ExpertTiles {
  int counts[kMostExperts], before[kMostExperts + 1];

  // How many tiles of so many pairs each expert has; by one warp
  __device__ void count(const int* pairs, int num_experts, int tile_pairs) {
    const int lane = threadIdx.x % 32;
    int so_far = 0;
    for (int base = 0; base < num_experts; base += 32) {
      const int expert = base + lane, own = expert < num_experts ? pairs[expert] : 0;
      int upto = (own + tile_pairs - 1) / tile_pairs;
      for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(~0u, upto, step);
        if (lane >= step) upto += other;
      }
      if (expert < num_experts) counts[expert] = own, before[expert + 1] = so_far + upto;
      so_far += __shfl_sync(~0u, upto, 31);
    }
    if (lane == 0) before[0] = 0;
  }
};

// A block's tiles of kPairs pairs and kColumns outputs. Those of the same pairs follow each other
template <int kPairs, int kColumns>
struct Walk {
  const ExpertTiles& tiles;
  const int* order;  // [experts][max_rows]: each expert's pairs
  const int max_rows, num_blocks, end;
  int tile, expert = 0;

  __device__ Walk(const ExpertTiles& tiles, const int* order, int max_rows, int num_experts, int columns)
      : tiles(tiles), order(order), max_rows(max_rows), num_blocks((columns + kColumns - 1) / kColumns),
        end(tiles.before[num_experts] * num_blocks), tile(blockIdx.x) {}

  __device__ __forceinline__ bool has_tile() {
    if (tile >= end) return false;
    while (tile / num_blocks >= tiles.before[expert + 1]) ++expert;
    return true;
  }
  __device__ __forceinline__ void next() { tile += gridDim.x; }
  __device__ __forceinline__ int column() const { return tile % num_blocks * kColumns; }
  __device__ __forceinline__ int first_place() const { return (tile / num_blocks - tiles.before[expert]) * kPairs; }
  // Of the tile; at most kPairs
  __device__ __forceinline__ int num_pairs() const { return min(tiles.counts[expert] - first_place(), kPairs); }
  // Row `at` of the tile: its pair, or -1
  __device__ __forceinline__ int pair(int at) const {
    const int place = first_place() + at;
    return place < tiles.counts[expert] ? order[int64_t(expert) * max_rows + place] : -1;
  }
};

}  // namespace octavo
