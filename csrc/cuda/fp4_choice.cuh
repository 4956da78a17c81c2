// The experts that fp4_experts.cu multiplies by, which one warp of each block finds from the posted logits; and its units
// of work.
#pragma once

#include "fp4_kind.cuh"

namespace octavo {
namespace {

// A tile is a chosen expert that this rank has; a warp has them all, that of tile i in lane i
struct Tiles {
  int num_tiles, expert, pair;
  float weight;

  // By one warp. waits: else it finds something, so that its instructions are there when it has to
  __device__ __forceinline__ void choose(const Routing& routing, const Route& route, uint32_t number, bool waits) {
    const int lane = threadIdx.x % 32;
    const bool is_told = !IS_DOWN && blockIdx.x == 0 && waits;
    RowChoice<EXPERTS, IS_GROUPED> choice{routing, lane};
    float bias = 0;
    if (IS_QUICK && routing.router_bias != nullptr && lane < routing.num_experts) {
      bias = to_float(static_cast<const ELEMENT*>(routing.router_bias)[lane]);
    }
#pragma unroll
    for (int i = 0; i < choice.kEach; ++i) {
      const bool is_there = choice.expert(i) < routing.num_experts;
      choice.score[i] = is_there ? posted_logit(route, choice.expert(i), number, waits) : -INFINITY;
    }
    __syncwarp();
    if constexpr (IS_QUICK) {
      choice.score[0] += bias;
      choose_quickly(routing, choice.score[0]);
      if (IS_DOWN || is_told) weigh(routing, choice.score[0]);
    } else {
      choice.template begin<ELEMENT>();
      choice.choose(expert, weight);
    }
    if (is_told && lane < routing.num_chosen) routing.ids[lane] = expert, routing.weights[lane] = weight;
    keep_own(routing);
  }

  static __device__ __forceinline__ float posted_logit(const Route& route, int expert, uint32_t number, bool waits) {
    Word word;
    do {
      word = look(route.posted + expert * kApart);
    } while (waits && word.number != number);
    return __uint_as_float(word.value);
  }

  // Lane i has the score of expert i, and their order is that of the choice. Of equal experts the first
  __device__ __forceinline__ void choose_quickly(const Routing& routing, float score) {
    const int lane = threadIdx.x % 32;
    uint32_t rank = lane < routing.num_experts ? max(rank_of(score), 1u) : 0;
    expert = 0;
#pragma unroll 1
    for (int place = 0; place < routing.num_chosen; ++place) {
      const uint32_t most = __reduce_max_sync(~0u, rank);
      const int best = __ffs(__ballot_sync(~0u, rank == most)) - 1;
      if (lane == place) expert = best;
      if (lane == best) rank = 0;
    }
  }

  __device__ __forceinline__ void weigh(const Routing& routing, float score) {
    const int lane = threadIdx.x % 32;
    const bool is_chosen = lane < routing.num_chosen;
    const float own = __shfl_sync(~0u, score, expert), most = __shfl_sync(~0u, own, 0);
    weight = routing.is_sigmoid ? 1 / (1 + __expf(-own)) : __expf(own - most);
    float total = is_chosen ? weight : 0;
    if (!routing.renormalises) total = lane < routing.num_experts ? __expf(score - most) : 0;
    for (int step = 16; step > 0; step /= 2) total += __shfl_xor_sync(~0u, total, step);
    if (routing.renormalises) total += 1e-20f;
    weight *= routing.renormalises || !routing.is_sigmoid ? routing.scale / total : routing.scale;
  }

  __device__ __forceinline__ void keep_own(const Routing& routing) {
    const int lane = threadIdx.x % 32;
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

  // From one warp to the others
  __device__ __forceinline__ void leave(Shared& shared) const {
    const int lane = threadIdx.x % 32;
    if (lane == 0) shared.num_tiles = num_tiles;
    if (lane < CHOSEN) shared.tile_expert[lane] = expert, shared.tile_pair[lane] = pair, shared.tile_weight[lane] = weight;
  }

  __device__ __forceinline__ void take(const Shared& shared) {
    const int i = min(int(threadIdx.x) % 32, CHOSEN - 1);
    num_tiles = shared.num_tiles, expert = shared.tile_expert[i], pair = shared.tile_pair[i];
    weight = shared.tile_weight[i];
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
