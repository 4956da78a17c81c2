// The experts of a row, chosen by a warp from the router's logits: scores, the best experts, and their weights.
#pragma once

#include "ptx.cuh"

namespace octavo {

constexpr float kLowest = -1e30f;  // an expert's least rank: below it are those that may not be chosen
constexpr int kMostChosen = 16;

struct Routing {
  const float* logits;   // [rows][logits_stride]
  const void* router_bias;  // [experts], in the model's type; or null
  const float* bias;     // of the choice; or null
  int* ids;              // by pair: written by one block, for whoever looks
  float* weights;
  int logits_stride, num_rows, num_experts, num_chosen, first_expert, num_own;
  int is_sigmoid, renormalises, num_groups, top_groups, sums_two;
  float scale;
};

__device__ __forceinline__ uint32_t rank_of(float x) {  // greater numbers have greater ranks
  const uint32_t bits = __float_as_uint(x);
  return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

// Scores of a row's experts in the registers of a warp: expert 32 i + lane
// kIsGrouped: of groups of experts the best are chosen first
template <int kExperts, bool kIsGrouped>
struct RowChoice {
  static constexpr int kEach = (kExperts + 31) / 32;
  const Routing& routing;
  const int lane;
  float score[kEach], ranked[kEach];

  __device__ __forceinline__ int expert(int i) const { return i * 32 + lane; }
  __device__ __forceinline__ int group(int i) const { return expert(i) / (routing.num_experts / routing.num_groups); }

  template <typename Element>
  __device__ __forceinline__ void load(int row) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const bool is_there = expert(i) < routing.num_experts;
      score[i] = is_there ? routing.logits[row * routing.logits_stride + expert(i)] : -INFINITY;
    }
    begin<Element>();
  }

  // With the logits as scores
  template <typename Element>
  __device__ __forceinline__ void begin() {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const bool is_there = expert(i) < routing.num_experts;
      if (is_there && routing.router_bias != nullptr) {
        score[i] += to_float(static_cast<const Element*>(routing.router_bias)[expert(i)]);
      }
    }
    make_scores();
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      float y = score[i];
      const bool is_there = expert(i) < routing.num_experts;
      if (is_there && routing.bias != nullptr) y += routing.bias[expert(i)];
      ranked[i] = is_there ? (y > kLowest ? y : kLowest) : -INFINITY;
    }
    if constexpr (kIsGrouped) keep_best_groups();
  }

  __device__ __forceinline__ void make_scores() {
    float most = -INFINITY, sum = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) most = fmaxf(most, score[i]);
    if (routing.is_sigmoid) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) score[i] = 1 / (1 + __expf(-score[i]));
      return;
    }
    for (int step = 16; step > 0; step /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      score[i] = __expf(score[i] - most);
      sum += score[i];
    }
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
#pragma unroll
    for (int i = 0; i < kEach; ++i) score[i] /= sum;
  }

  // Of equal experts the first
  __device__ __forceinline__ int first_best(const float (&values)[kEach]) const {
    uint32_t most = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) most = max(most, rank_of(values[i]));
    most = __reduce_max_sync(~0u, most);
    int best = kExperts;
#pragma unroll
    for (int i = kEach - 1; i >= 0; --i) {
      if (rank_of(values[i]) == most) best = expert(i);
    }
    return __reduce_min_sync(~0u, best);
  }

  __device__ __forceinline__ float largest(const float (&values)[kEach]) const {
    float most = -INFINITY;
#pragma unroll
    for (int i = 0; i < kEach; ++i) most = fmaxf(most, values[i]);
    for (int step = 16; step > 0; step /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
    return most;
  }

  // Experts of all groups but the best may not be chosen
  __device__ __forceinline__ void keep_best_groups() {
    float of_group[kEach], some[kEach];
    bool is_kept[kEach] = {};
    for (int g = 0; g < routing.num_groups; ++g) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) some[i] = group(i) == g ? ranked[i] : -INFINITY;
      float y = largest(some);
      if (routing.sums_two) {
        const int best = first_best(some);
  #pragma unroll
      for (int i = 0; i < kEach; ++i) some[i] = expert(i) == best ? -INFINITY : some[i];
        y += largest(some);
      }
#pragma unroll
      for (int i = 0; i < kEach; ++i) of_group[i] = group(i) == g ? y : of_group[i];
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) of_group[i] = expert(i) < routing.num_experts ? of_group[i] : -INFINITY;
    for (int n = 0; n < routing.top_groups; ++n) {
      const int best = first_best(of_group) / (routing.num_experts / routing.num_groups);
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        is_kept[i] = is_kept[i] || group(i) == best;
        of_group[i] = group(i) == best ? -INFINITY : of_group[i];
      }
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) ranked[i] = is_kept[i] ? ranked[i] : -INFINITY;
  }

  // Lane `place` gets the expert at that place and its weight
  __device__ __forceinline__ void choose(int& id, float& weight) {
    uint32_t ranks[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) ranks[i] = rank_of(ranked[i]);
    float total = 0;
    id = 0, weight = 0;
    for (int place = 0; place < routing.num_chosen; ++place) {
      int best;
      const int winner = take_best(ranks, best);
      float own = 0;
#pragma unroll
      for (int i = 0; i < kEach; ++i) own = expert(i) == best ? score[i] : own;
      own = __shfl_sync(~0u, own, winner);
      best = __shfl_sync(~0u, best, winner);
      total += own;
      if (lane == place) id = best, weight = own * routing.scale;
    }
    if (routing.renormalises) weight /= total + 1e-20f;
  }

  // The lane that has the best expert, of equal ones the first. best: there. It is not chosen again
  __device__ __forceinline__ int take_best(uint32_t (&ranks)[kEach], int& best) const {
    uint32_t own = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) own = max(own, ranks[i]);
    const uint32_t most = __reduce_max_sync(~0u, own);
    best = kExperts;
#pragma unroll
    for (int i = kEach - 1; i >= 0; --i) best = ranks[i] == most ? expert(i) : best;
    uint32_t lanes = __ballot_sync(~0u, own == most);
    if (lanes & (lanes - 1)) {
      const int first = __reduce_min_sync(~0u, best);
      lanes = __ballot_sync(~0u, best == first);
    }
    const int winner = __ffs(lanes) - 1;
#pragma unroll
    for (int i = 0; i < kEach; ++i) ranks[i] = lane == winner && expert(i) == best ? 0 : ranks[i];
    return winner;
  }
};

}  // namespace octavo
