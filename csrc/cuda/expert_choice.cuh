// The experts of a few rows, and each expert's rows: every thread block finds them by itself, from the router's logits.
//
// That takes less time than a kernel that does it once for all, which the others would have to wait for.
//
//   choose   a warp a row (row_choice.cuh)
//   list     each expert's rows, at most ROWS in a tile; a tile is an expert and some of its rows
//
// A pair is a row and one of its chosen experts, numbered row * num_chosen + place. A tile's pairs ascend, and so do the
// tiles' experts, unless there is one row alone: then they are in the order of its choice.
#pragma once

#include "row_choice.cuh"

namespace octavo {

// In shared memory. kRows: of a tile, and of the step if that is less than 8
template <int kExperts, int kRows, bool kIsGrouped>
struct Choices {
  static constexpr int kMostRows = kRows < 8 ? kRows : 32, kPairs = kMostRows * kMostChosen;
  int num_tiles;
  int ids[kPairs];
  float weights[kPairs];
  uint32_t rows_of[kExperts];
  int first_tile[kExperts];
  int16_t expert_of[kPairs], rows_in[kPairs], pair_at[kPairs][kRows], row_at[kPairs][kRows];  // by tile

  // By the whole block. is_told: also in global memory
  template <typename Element>
  __device__ void make(const Routing& routing, bool is_told) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, num_warps = blockDim.x / 32;
    if (kRows > 1) {
      for (int e = threadIdx.x; e < kExperts; e += blockDim.x) rows_of[e] = 0;
    }
    for (int row = warp; row < routing.num_rows; row += num_warps) {
      RowChoice<kExperts, kIsGrouped> choice{routing, lane};
      int id;
      float weight;
      choice.template load<Element>(row);
      choice.choose(id, weight);
      const int pair = row * routing.num_chosen + lane;
      if (lane < routing.num_chosen) {
        ids[pair] = id - routing.first_expert;
        weights[pair] = weight;
        if (is_told) routing.ids[pair] = id, routing.weights[pair] = weight;
      }
      if (kRows == 1) list_one(routing, lane, id - routing.first_expert);
    }
    __syncthreads();
    if (kRows > 1) list_all(routing);
  }

  __device__ __forceinline__ void list_one(const Routing& routing, int lane, int expert) {
    const bool is_own = lane < routing.num_chosen && expert >= 0 && expert < routing.num_own;
    const uint32_t all = __ballot_sync(~0u, is_own);
    const int tile = __popc(all & ((1u << lane) - 1));
    if (is_own) expert_of[tile] = expert, rows_in[tile] = 1, pair_at[tile][0] = lane, row_at[tile][0] = 0;
    if (lane == 0) num_tiles = __popc(all);
  }

  __device__ __forceinline__ void list_all(const Routing& routing) {
    const int num_pairs = routing.num_rows * routing.num_chosen;
    for (int pair = threadIdx.x; pair < num_pairs; pair += blockDim.x) {
      const int expert = ids[pair];
      if (expert >= 0 && expert < routing.num_own) atomicOr(&rows_of[expert], 1u << pair / routing.num_chosen);
    }
    __syncthreads();
    if (threadIdx.x < 32) make_tiles(routing);
    __syncthreads();
    for (int pair = threadIdx.x; pair < num_pairs; pair += blockDim.x) {
      const int expert = ids[pair];
      if (expert < 0 || expert >= routing.num_own) continue;
      const int row = pair / routing.num_chosen, rank = __popc(rows_of[expert] & ((1u << row) - 1));
      pair_at[first_tile[expert] + rank / kRows][rank % kRows] = pair;
      row_at[first_tile[expert] + rank / kRows][rank % kRows] = row;
    }
    __syncthreads();
  }

  __device__ __forceinline__ void make_tiles(const Routing& routing) {
    const int lane = threadIdx.x;
    int before = 0;
    for (int base = 0; base < routing.num_own; base += 32) {
      const int expert = base + lane, rows = expert < routing.num_own ? __popc(rows_of[expert]) : 0;
      const int tiles = (rows + kRows - 1) / kRows;
      int upto = tiles;
      for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(~0u, upto, step);
        if (lane >= step) upto += other;
      }
      const int first = before + upto - tiles;
      if (rows > 0) first_tile[expert] = first;
      for (int i = 0; i < tiles; ++i) {
        expert_of[first + i] = expert;
        rows_in[first + i] = min(kRows, rows - i * kRows);
      }
      before += __shfl_sync(~0u, upto, 31);
    }
    if (lane == 0) num_tiles = before;
  }
};

}  // namespace octavo
