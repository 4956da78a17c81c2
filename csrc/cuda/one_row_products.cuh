// The products of one_row_experts.cu: a warpgroup multiplies stages as they come; a warp adds up a unit's sums.
//
// No thread touches a weight: wgmma reads weights and rows from shared memory. A stage is 8 outputs of up to eight
// spans of 128 bytes, the 64 rows of a product; its columns are these spans of x. Of the 8 x 8 blocks of sums those on
// the diagonal are read:
//
//                x of span 0  1  2  3  4  5  6  7      fp8: two columns each, since a bfloat16 is two numbers of fp8
//   outputs, span 0        #  .  .  .  .  .  .  .      warp 0 of the warpgroup
//   outputs, span 1        .  #  .  .  .  .  .  .
//   outputs, span 2        .  .  #  .  .  .  .  .      warp 1
//   ...
//
// Sums of fp8 products keep 13 bits behind the first one of their largest term. So they end after 128 inputs, where
// float32 takes over.
#pragma once

#include "dense_products.cuh"
#include "fp8_products.cuh"
#include "one_row_kind.cuh"

namespace octavo {
namespace {

// The sums of a stage: 8 columns of a product, or 16
using Sums = float[kColumns][4];

template <bool kOfFp8>
__device__ __forceinline__ void issue(float (&c)[kOfFp8 ? 2 : 1][4], const uint8_t* weights, const uint8_t* x) {
  const uint64_t a = matrix(shared_address(weights)), b = matrix(shared_address(x));
#pragma unroll
  for (int i = 0; i < 4; ++i) {  // addresses count 16 bytes
    if constexpr (kOfFp8) {
      multiply_add_fp8<2>(c, a + i * 2, b + i * 2, i > 0);
    } else {
      multiply_add_eight<ELEMENT>(c, a + i * 2, b + i * 2, i > 0);
    }
  }
}

// What this lane has of output lane / 4; zero, if the diagonal has nothing here. scales: of x. num_spans: of the stage
__device__ __forceinline__ float own_sum(const Sums& c, const float* scales, int num_spans) {
  const int lane = threadIdx.x % 32, span = threadIdx.x / 32 % 4 * 2;
  if constexpr (kIsFp8) {
    const int own = lane % 4 - span % 4;
    const float(&d)[4] = c[0], (&e)[4] = c[kColumns - 1];
    const float first = span < 4 ? d[0] + d[1] : e[0] + e[1], second = span < 4 ? d[2] + d[3] : e[2] + e[3];
    if ((own != 0 && own != 1) || span + own >= num_spans) return 0;
    return (own ? second : first) * scales[span + own];
  } else {
    if (lane % 4 != span / 2 || span >= num_spans) return 0;
    return span + 1 < num_spans ? c[0][0] + c[0][3] : c[0][0];
  }
}

// 8 outputs of two halves, or of one: gate and up, or 16 outputs of a row
struct Unit {
  int num, stages;       // of both halves; of the first one
  int num_spans;         // of a stage
  const float* factors;  // of sums, [stage]: of the first half's 8 outputs, then of the other's
  int apart;             // floats between stages of factors
  int finisher;          // the warp that gets all sums
};

// All products run through this code, which appears once: what a launch has run before is in the instruction cache
struct Multiplier {
  Shared& shared;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int begun = 0, turn = 0;  // stages; units

  // For the finisher's lanes the sum of output lane % 16
  __device__ __forceinline__ float multiply(const Unit& unit) {
    float sums[2] = {};
    // this warpgroup's stages, two at a time
#pragma unroll 1
    for (int i = (warp / 4 + kGroups - begun % kGroups) % kGroups; i < unit.num; i += 2 * kGroups) {
      const bool has_other = i + kGroups < unit.num;
      const int j = has_other ? i + kGroups : i;  // if not, the same again, for nothing
      float all[2 * kColumns][4] = {};
      Sums &one = reinterpret_cast<Sums&>(all[0]), &other = reinterpret_cast<Sums&>(all[kColumns]);
      wait(begun + i);
      wait(begun + j);
      products_begin();
      issue<kIsFp8>(one, shared.ring[(begun + i) % ENTRIES], shared.x[i >= unit.stages ? i - unit.stages : i]);
      issue<kIsFp8>(other, shared.ring[(begun + j) % ENTRIES], shared.x[j >= unit.stages ? j - unit.stages : j]);
      products_end(all);
      __syncwarp();
      if (lane == 0) {
        release(begun + i);
        if (has_other) release(begun + j);
      }
      add(sums, unit, i, one);
      if (has_other) add(sums, unit, j, other);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = sums[half];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      if (lane % 4 == 0) shared.sums[turn % 2][warp][half][lane / 4] = sum;
    }
    named_barrier(1, kComputers);
    float y = 0;
    if (warp == unit.finisher) {
#pragma unroll
      for (int j = 0; j < kWarps; ++j) y += shared.sums[turn % 2][j][lane / 8 % 2][lane % 8];
    }
    begun += unit.num, ++turn;
    return y;
  }

  __device__ __forceinline__ void wait(int count) const {
    barrier_wait(shared_address(&shared.full[count % ENTRIES]), count / ENTRIES & 1);
  }
  __device__ __forceinline__ void release(int count) const {
    barrier_arrive(shared_address(&shared.free[count % ENTRIES]));
  }

  __device__ __forceinline__ void add(float (&sums)[2], const Unit& unit, int i, const Sums& of) const {
    const bool is_second = i >= unit.stages;
    const int stage = is_second ? i - unit.stages : i;
    const float factor = unit.factors[stage * unit.apart + is_second * 8 + lane / 4];
    const float sum = factor * own_sum(of, shared.x_scales[stage], unit.num_spans);
    sums[0] += is_second ? 0 : sum, sums[1] += is_second ? sum : 0;
  }
};

}  // namespace
}  // namespace octavo
