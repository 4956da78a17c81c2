// The row of one_row_experts.cu on its way to the products: its norm, the router's logits, and x of both products.
#pragma once

#include "one_row_place.cuh"

namespace octavo {
namespace {

// A thread's part of the row: 8 inputs at a time
struct Row {
  const Launch& launch;
  Shared& shared;
  const int thread = threadIdx.x;
  Eight norms[STEPS];
  float y[STEPS][8];

  __device__ __forceinline__ int input(int step) const { return (step * kComputers + thread) * 8; }

  // Does not wait for the previous kernel
  __device__ __forceinline__ void begin() {
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
#pragma unroll
      for (int j = 0; j < 8; ++j) norms[step].x[j] = 1;
      if (launch.norm != nullptr && input(step) < launch.hidden) norms[step] = eight(launch.norm + input(step));
    }
  }

  // -> the sum of squares
  __device__ __forceinline__ float load() {
    float squares = 0;
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
      Eight x = {};
      if (input(step) < launch.hidden) x = eight(launch.x + input(step));
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        squares += x.x[j] * x.x[j];
        y[step][j] = x.x[j] * norms[step].x[j];
      }
    }
    return squares;
  }

  // This warp's parts of sums
  template <int kSums>
  __device__ __forceinline__ void leave(float (&sums)[kSums]) const {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
#pragma unroll
      for (int i = 0; i < kSums; ++i) sums[i] += __shfl_xor_sync(~0u, sums[i], distance);
    }
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      if (thread % 32 == 0) shared.parts[thread / 32][i] = sums[i];
    }
  }

  // All parts are there
  __device__ __forceinline__ float sum_of(int i) const {
    float sum = 0;
#pragma unroll
    for (int j = 0; j < kWarps; ++j) sum += shared.parts[j][i];
    return sum;
  }

  __device__ __forceinline__ float factor() const {
    return launch.norm == nullptr ? 1 : rsqrtf(sum_of(0) / launch.hidden + launch.eps);
  }

  // The normed row, to shared memory, with zeros behind
  __device__ __forceinline__ void place(float factor) const {
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
      float z[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) z[j] = y[step][j] * factor;
      place_eight<FIRST_SPANS, FIRST_STAGES>(shared, input(step), z);
    }
  }
};

// The block's part of the router: some logits, or one
struct Router {
  const Launch& launch;
  uint4 weights[OWN_LOGITS][STEPS];

  __device__ __forceinline__ int expert(int i) const { return blockIdx.x + i * gridDim.x; }

  __device__ __forceinline__ void begin(const Row& row) {
#pragma unroll
    for (int i = 0; i < OWN_LOGITS; ++i) {
#pragma unroll
      for (int step = 0; step < STEPS; ++step) {
        weights[i][step] = {};
        if (row.input(step) >= launch.hidden || expert(i) >= launch.routing.num_experts) continue;
        const ELEMENT* own = launch.router + int64_t(expert(i)) * launch.hidden;
        weights[i][step] = *reinterpret_cast<const uint4*>(own + row.input(step));
      }
    }
  }

  // The thread's parts of the sum of squares, and of logits
  __device__ __forceinline__ void multiply(const Row& row, float squares) const {
    float sums[1 + OWN_LOGITS] = {squares};
#pragma unroll
    for (int i = 0; i < OWN_LOGITS; ++i) {
#pragma unroll
      for (int step = 0; step < STEPS; ++step) {
        const uint32_t words[4] = {weights[i][step].x, weights[i][step].y, weights[i][step].z, weights[i][step].w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          sums[1 + i] += row.y[step][j * 2] * low_half<ELEMENT>(words[j]);
          sums[1 + i] += row.y[step][j * 2 + 1] * high_half<ELEMENT>(words[j]);
        }
      }
    }
    row.leave(sums);
  }

  __device__ __forceinline__ void post_logits(const Row& row, float factor, uint32_t number) const {
    const int i = threadIdx.x;
    if (i >= OWN_LOGITS || expert(i) >= launch.routing.num_experts) return;
    const float logit = row.sum_of(1 + i) * factor;
    post(launch.posted_logits + expert(i) * kApart, __float_as_uint(logit), number);
    launch.logits[expert(i)] = logit;
  }
};

// What the first product gives, to shared memory: a warp has 128 inputs of a tile at a time, a thread four
struct Pairs {
  static constexpr int kInner = SECOND_STAGES * SECOND_SPANS * kSpan;  // with zeros behind
  static constexpr int kRuns = (kInner + 127) / 128;
  static constexpr int kEach = (CHOSEN * kRuns + kWarps - 1) / kWarps, kBatch = kEach < 6 ? kEach : 6;
  const Launch& launch;
  Shared& shared;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;

  __device__ __forceinline__ void stage(uint32_t number) const {
    const int num_runs = shared.tiles.number * kRuns;
#pragma unroll 1
    for (int first = warp; first < num_runs; first += kBatch * kWarps) {
      uint32_t missing = 0;
#pragma unroll
      for (int j = 0; j < kBatch; ++j) missing |= uint32_t(first + j * kWarps < num_runs) << j;
      while (missing) {  // whoever waits for few words asks for few
        Words words[kBatch];
#pragma unroll
        for (int j = 0; j < kBatch; ++j) {
          const int run = first + j * kWarps, at = run % kRuns * 128 + lane * 4;
          words[j] = {{0, number}, {0, number}};
          if (!(missing >> j & 1) || at >= launch.inner) continue;
          words[j] = look_at_two(launch.posted_pairs + (run / kRuns * launch.inner + at) / 2);
        }
#pragma unroll
        for (int j = 0; j < kBatch; ++j) {
          const bool is_there = words[j].first.number == number && words[j].second.number == number;
          if (!(missing >> j & 1) || __ballot_sync(~0u, is_there) != ~0u) continue;
          place(first + j * kWarps, words[j].first.value, words[j].second.value);
          missing ^= 1u << j;
        }
      }
    }
  }

  __device__ __forceinline__ void place(int run, uint32_t first, uint32_t second) const {
    const int tile = run / kRuns, at = run % kRuns * 128 + lane * 4;
    if constexpr (kIsFp8) {
      const float y[4] = {low_half<ELEMENT>(first), high_half<ELEMENT>(first), low_half<ELEMENT>(second),
                          high_half<ELEMENT>(second)};
      uint32_t largest = 0;  // of numbers without a sign, whose bits are in their order
#pragma unroll
      for (int j = 0; j < 4; ++j) largest = max(largest, __float_as_uint(fabsf(y[j])));
      largest = __reduce_max_sync(~0u, largest);
      uint8_t* x = shared.x[tile * SECOND_STAGES];
      place_split<SECOND_SPANS>(x, shared.x_scales[tile * SECOND_STAGES], at, y, __uint_as_float(largest));
    } else if (at < kInner) {
      *reinterpret_cast<uint2*>(Place<SECOND_SPANS>::of(shared.x[tile * SECOND_STAGES], at)) = {first, second};
    }
  }
};

}  // namespace
}  // namespace octavo
