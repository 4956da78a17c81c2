// The experts that one_row_experts.cu multiplies by: every block finds them from all logits, once these are posted.
//
// A warp that looks for the best, then for the second, and so on, takes two microseconds. So all warps count for each
// expert how many are better, unless experts are in groups or their scores have a bias that needs the others' scores.
#pragma once

#include "one_row_kind.cuh"

namespace octavo {
namespace {

static_assert(!IS_TOGETHER || (!IS_GROUPED && EXPERTS <= kComputers), "a thread has an expert, or a part");

// By a warp that has place `lane`'s expert -> its weight is still to be set
__device__ __forceinline__ int list_tiles(const Launch& launch, Shared& shared, int expert) {
  const Routing& routing = launch.routing;
  const int lane = threadIdx.x % 32;
  if (blockIdx.x == 0 && lane < routing.num_chosen) routing.ids[lane] = expert;
  expert -= routing.first_expert;
  const bool is_own = lane < routing.num_chosen && expert >= 0 && expert < routing.num_own;
  const uint32_t own = __ballot_sync(~0u, is_own);
  const int tile = __popc(own & ((1u << lane) - 1));
  if (is_own) shared.tiles.expert[tile] = expert;
  if (lane == 0) shared.tiles.number = __popc(own);
  __syncwarp();
  return is_own ? tile : -1;
}

__device__ __forceinline__ void set_weight(const Launch& launch, Shared& shared, int tile, float weight) {
  const int lane = threadIdx.x % 32;
  if (tile >= 0) shared.tiles.weight[tile] = weight;
  if (blockIdx.x == 0 && lane < launch.routing.num_chosen) launch.routing.weights[lane] = weight;
}

__device__ __forceinline__ void tell_chosen(Shared& shared) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) barrier_arrive(shared_address(&shared.chosen));
}

__device__ __forceinline__ float posted_logit(const Launch& launch, int expert, uint32_t number) {
  Word word;
  do {
    word = look(launch.posted_logits + expert * kApart);
  } while (word.number != number);
  return __uint_as_float(word.value);
}

// By one warp
__device__ __forceinline__ void choose_alone(const Launch& launch, Shared& shared, uint32_t number) {
  const int lane = threadIdx.x % 32;
  RowChoice<EXPERTS, IS_GROUPED> choice{launch.routing, lane};
#pragma unroll
  for (int i = 0; i < choice.kEach; ++i) {
    const bool is_there = choice.expert(i) < launch.routing.num_experts;
    choice.score[i] = is_there ? posted_logit(launch, choice.expert(i), number) : -INFINITY;
  }
  __syncwarp();
  choice.template begin<ELEMENT>();
  int expert;
  float weight;
  choice.choose(expert, weight);
  set_weight(launch, shared, list_tiles(launch, shared, expert), weight);
  tell_chosen(shared);
}

// By all threads that multiply. Some neighbours have an expert, and compare it with a share of all each
struct Together {
  static constexpr int kShares = EXPERTS < kComputers ? kComputers / EXPERTS : 1;
  const Launch& launch;
  Shared& shared;
  const int expert = threadIdx.x / kShares, share = threadIdx.x % kShares;

  __device__ __forceinline__ void run(uint32_t number) const {
    const Routing& routing = launch.routing;
    const bool is_there = expert < routing.num_experts;
    float score = is_there ? posted_logit(launch, expert, number) : -INFINITY;
    if (is_there && routing.router_bias != nullptr) {
      score += to_float(static_cast<const ELEMENT*>(routing.router_bias)[expert]);
    }
    if (routing.is_sigmoid) score = 1 / (1 + __expf(-score));
    const bool has_bias = is_there && routing.bias != nullptr;
    const float ranked = has_bias ? fmaxf(score + routing.bias[expert], kLowest) : score;
    const uint32_t rank = is_there ? max(rank_of(ranked), 1u) : 0;
    if (share == 0 && expert < EXPERTS) shared.ranks[expert] = rank;
    named_barrier(1, kComputers);
    int place = better(rank);
#pragma unroll
    for (int distance = 1; distance < kShares; distance *= 2) place += __shfl_xor_sync(~0u, place, distance);
    if (share == 0 && is_there && place < routing.num_chosen) {
      shared.chosen_experts[place] = expert;
      shared.chosen_scores[place] = score;
    }
    if (!routing.is_sigmoid && !routing.renormalises) leave_sum(score);
    named_barrier(1, kComputers);
    if (threadIdx.x < 32) finish();
  }

  // Of this share of the experts, those that are better: of equal ones the first is
  __device__ __forceinline__ int better(uint32_t rank) const {
    int count = 0;
#pragma unroll 4
    for (int i = 0; i < (EXPERTS / 4 + kShares - 1) / kShares; ++i) {
      const int four = i * kShares + share;
      if (EXPERTS / 4 % kShares != 0 && four >= EXPERTS / 4) continue;
      const uint4 others = *reinterpret_cast<const uint4*>(&shared.ranks[four * 4]);
      const uint32_t least = four < expert / 4 ? rank - 1 : rank;
      count += (others.x > least) + (others.y > least) + (others.z > least) + (others.w > least);
    }
    for (int other = expert / 4 * 4; share == 0 && other < expert; ++other) count += shared.ranks[other] == rank;
    return count;
  }

  // What a warp's experts add to the sum that all scores are divided by, less their largest
  __device__ __forceinline__ void leave_sum(float score) const {
    float largest = share == 0 ? score : -INFINITY;
    for (int step = 16; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
    float sum = share == 0 && score > -INFINITY ? __expf(score - largest) : 0;
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (threadIdx.x % 32 == 0) shared.largest_scores[threadIdx.x / 32] = {largest, sum};
  }

  // By the first warp
  __device__ __forceinline__ void finish() const {
    const Routing& routing = launch.routing;
    const int lane = threadIdx.x, num = routing.num_chosen;
    const int tile = list_tiles(launch, shared, lane < num ? shared.chosen_experts[lane] : 0);
    tell_chosen(shared);  // weights are for those who come to the next barrier
    float weight = lane < num ? shared.chosen_scores[lane] : -INFINITY, total = 0;
    if (!routing.is_sigmoid) {
      const float largest = shared.chosen_scores[0];
      weight = __expf(weight - largest);
      for (int i = 0; !routing.renormalises && i < kWarps; ++i) {
        const float2 of_warp = shared.largest_scores[i];
        total += of_warp.y * __expf(of_warp.x - largest);
      }
      if (!routing.renormalises) weight /= total;
    } else if (lane >= num) {
      weight = 0;
    }
    if (routing.renormalises) {
      total = weight;
      for (int step = 16; step > 0; step /= 2) total += __shfl_xor_sync(~0u, total, step);
      weight /= total + 1e-20f;
    }
    set_weight(launch, shared, tile, weight * routing.scale);
  }
};

}  // namespace
}  // namespace octavo
