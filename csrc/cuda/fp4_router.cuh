// The row of fp4_experts.cu before its products: its norm, and the router's logits.
//
// The first product's blocks each have the logits of an expert or a few, if there are so many experts, and tell them the
// others, and the blocks of the second (exchange.cuh): that takes less time than a kernel for the router.
#pragma once

#include "fp4_kind.cuh"

namespace octavo {
namespace {

// The numbers of other kernels' launches are smaller. Both products count their own, and are launched in turns
constexpr uint32_t kOwnNumbers = 1u << 31;

// A thread has 8 inputs at a time
struct Router {
  const Launch& launch;
  const Route& route;
  Shared& shared;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  uint4 weights[OWN_LOGITS][STEPS];
  Eight norms[STEPS];
  float y[STEPS][8];

  __device__ __forceinline__ int input(int step) const { return (step * kThreads + int(threadIdx.x)) * 8; }
  __device__ __forceinline__ int expert(int i) const { return blockIdx.x + i * gridDim.x; }

  // Does not wait for the previous kernel
  __device__ __forceinline__ void begin() {
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
      const bool is_there = input(step) < launch.depth;
#pragma unroll
      for (int j = 0; j < 8; ++j) norms[step].x[j] = 1;
      if (route.norm != nullptr && is_there) norms[step] = eight(route.norm + input(step));
#pragma unroll
      for (int i = 0; i < OWN_LOGITS; ++i) {
        weights[i][step] = {};
        if (!is_there || expert(i) >= launch.routing.num_experts) continue;
        weights[i][step] = *reinterpret_cast<const uint4*>(route.weight + int64_t(expert(i)) * launch.depth + input(step));
      }
    }
  }

  // The row, and this warp's parts of the sum of squares and of the logits
  __device__ __forceinline__ void load() {
    float sums[1 + OWN_LOGITS] = {};
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
      Eight x = {};
      if (input(step) < launch.depth) x = eight(launch.x + input(step));
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        sums[0] += x.x[j] * x.x[j];
        y[step][j] = x.x[j] * norms[step].x[j];
      }
#pragma unroll
      for (int i = 0; i < OWN_LOGITS; ++i) add_logit(sums[1 + i], y[step], weights[i][step]);
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
#pragma unroll
      for (int i = 0; i <= OWN_LOGITS; ++i) sums[i] += __shfl_xor_sync(~0u, sums[i], distance);
    }
#pragma unroll
    for (int i = 0; i <= OWN_LOGITS; ++i) {
      if (lane == 0) shared.parts[warp][i] = sums[i];
    }
  }

  static __device__ __forceinline__ void add_logit(float& sum, const float (&y)[8], const uint4& weights) {
    const uint32_t words[4] = {weights.x, weights.y, weights.z, weights.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      sum += y[j * 2] * low_half<ELEMENT>(words[j]);
      sum += y[j * 2 + 1] * high_half<ELEMENT>(words[j]);
    }
  }

  // All parts are there
  __device__ __forceinline__ float sum_of(int i) const {
    float sum = 0;
#pragma unroll
    for (int j = 0; j < kWarps; ++j) sum += shared.parts[j][i];
    return sum;
  }

  // The logits to other blocks; the normed row to shared memory
  __device__ __forceinline__ void finish(uint32_t number) const {
    const float factor = route.norm == nullptr ? 1 : rsqrtf(sum_of(0) / launch.depth + route.eps);
    const int i = threadIdx.x;
    if (i < OWN_LOGITS && expert(i) < launch.routing.num_experts) {
      const float logit = sum_of(1 + i) * factor;
      post(route.posted + expert(i) * kApart, __float_as_uint(logit), number);
      route.logits[expert(i)] = logit;
    }
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
      if (input(step) >= launch.depth) continue;
      uint32_t pairs[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) pairs[j] = pack<ELEMENT>(y[step][j * 2] * factor, y[step][j * 2 + 1] * factor);
      *reinterpret_cast<uint4*>(shared.x[0][0] + input(step) * 2) = {pairs[0], pairs[1], pairs[2], pairs[3]};
    }
  }
};

// By the first warp
__device__ __forceinline__ uint32_t count_launch(const Route& route) {
  const uint32_t number = number_of_launch(route.count) | kOwnNumbers;
  __syncwarp();
  if (threadIdx.x == 0) count_block(route.count);
  return number;
}

}  // namespace
}  // namespace octavo
