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
// float32 takes over, and scales of blocks of weights come in.
#pragma once

#include "activate.cuh"
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

// What this lane has of output lane / 4; zero, if the diagonal has nothing here. scales: of x
template <int kSpans>
__device__ __forceinline__ float own_sum(const Sums& c, const float* scales) {
  const int lane = threadIdx.x % 32, span = threadIdx.x / 32 % 4 * 2;
  if constexpr (kIsFp8) {
    const int own = lane % 4 - span % 4;
    const float(&d)[4] = c[0], (&e)[4] = c[kColumns - 1];
    const float first = span < 4 ? d[0] + d[1] : e[0] + e[1], second = span < 4 ? d[2] + d[3] : e[2] + e[3];
    if ((own != 0 && own != 1) || span + own >= kSpans) return 0;
    return (own ? second : first) * scales[span + own];
  } else {
    if (lane % 4 != span / 2 || span >= kSpans) return 0;
    return span + 1 < kSpans ? c[0][0] + c[0][3] : c[0][0];
  }
}

struct Computer {
  const Launch& launch;
  Shared& shared;
  const uint32_t number;  // of the launch
  Share share{launch};
  const int lane = threadIdx.x % 32, warp = own_warp(), group = warp / 4;
  int begun = 0, turn = 0;  // stages; units

  // Of a unit's `num` stages those of this warpgroup, two at a time. scale(stage): of the block that has this lane's span, on
  // its way while weights are; take(stage, sums, scale): its sums
  template <typename X, typename Scale, typename Take>
  __device__ __forceinline__ void multiply(int num, X x, Scale scale, Take take) {
    int i = (group + kGroups - begun % kGroups) % kGroups;
    for (; i < num; i += 2 * kGroups) {
      const bool has_other = i + kGroups < num;
      const int j = has_other ? i + kGroups : i;  // if not, the same again, for nothing
      float sums[2 * kColumns][4] = {};
      Sums &one = reinterpret_cast<Sums&>(sums[0]), &other = reinterpret_cast<Sums&>(sums[kColumns]);
      const float one_scale = scale(i), other_scale = scale(j);
      wait(begun + i);
      wait(begun + j);
      products_begin();
      issue<kIsFp8>(one, shared.ring[(begun + i) % ENTRIES], x(i));
      issue<kIsFp8>(other, shared.ring[(begun + j) % ENTRIES], x(j));
      products_end(sums);
      __syncwarp();
      if (lane == 0) {
        release(begun + i);
        if (has_other) release(begun + j);
      }
      take(i, one, one_scale);
      if (has_other) take(j, other, other_scale);
    }
    begun += num;
  }

  __device__ __forceinline__ void wait(int count) const {
    barrier_wait(shared_address(&shared.full[count % ENTRIES]), count / ENTRIES & 1);
  }
  __device__ __forceinline__ void release(int count) const {
    barrier_arrive(shared_address(&shared.free[count % ENTRIES]));
  }

  // scales: of all outputs. row: of these, the unit's first. spans: of the inputs. first: of the stage's spans
  __device__ __forceinline__ float scale_of(const float* scales, int64_t row, int spans, int first) const {
    const int span = warp % 4 * 2;
    return load_ahead(scales + row / kBlock * spans + min(first + span + max(lane % 4 - span % 4, 0), spans - 1));
  }

  // Leaves the warp's sum of each output
  __device__ __forceinline__ void leave(int half, float sum) const {
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    if (lane % 4 == 0) shared.sums[turn % 2][warp][half][lane / 4] = sum;
  }

  // Of output i % 8 of one half
  __device__ __forceinline__ float joined(int i) const {
    float sum = 0;
#pragma unroll
    for (int j = 0; j < kWarps; ++j) sum += shared.sums[turn % 2][j][i / 8][i % 8];
    return sum;
  }

  __device__ __forceinline__ void multiply_gate_up() {
    for (int unit = share.first; unit < share.end; ++unit, ++turn) {
      const int tile = share.tile(unit), out = share.output(unit), half = lane / 8 % 2;
      const int64_t own = (int64_t(shared.tiles.expert[tile]) * 2 + half) * launch.inner + out + lane % 8;
      const bool finishes = warp == turn % kWarps;
      float scale = 1, bias = 0, sums[2] = {};
      if (finishes && launch.first_scales != nullptr && !HAS_BLOCKS) scale = launch.first_scales[own];
      if (finishes && launch.first_bias != nullptr) bias = to_float(launch.first_bias[own]);
      multiply(
          FIRST_STAGES * 2, [&](int i) { return shared.x[i / 2]; },
          [&](int i) { return HAS_BLOCKS ? first_scale(tile, out, i) : 1; },
          [&](int i, const Sums& of, float scale) {
            const float sum = own_sum<FIRST_SPANS>(of, shared.x_scales[i / 2]) * scale;
            sums[0] += i % 2 ? 0 : sum, sums[1] += i % 2 ? sum : 0;
          });
      leave(0, sums[0]);
      leave(1, sums[1]);
      named_barrier(1, kComputers);
      if (finishes) finish_pairs(tile, out, joined(lane % 16) * scale + bias);
    }
  }

  // Stages are those of the gate and of up, in turns
  __device__ __forceinline__ float first_scale(int tile, int out, int stage) const {
    const int64_t matrix = shared.tiles.expert[tile] * 2 + stage % 2;
    return scale_of(launch.first_scales, matrix * launch.inner + out, launch.hidden / kBlock, stage / 2 * FIRST_SPANS);
  }

  // y: by lane, 8 gates, then what they let through
  __device__ __forceinline__ void finish_pairs(int tile, int out, float y) const {
    const float up = __shfl_xor_sync(~0u, y, 8);
    const float z = gated(y, up, GATE, launch.alpha, launch.limit), next = __shfl_xor_sync(~0u, z, 1);
    if (lane >= 8 || lane % 2) return;
    post(launch.posted_pairs + (tile * launch.inner + out + lane) / 2, pack<ELEMENT>(z, next), number);
  }

  // Of each unit of the first product those of 8 outputs of gate, and of up. A warp that waits for the memory keeps its
  // warpgroup from the next weights
  __device__ __forceinline__ void prefetch_scales() const {
    if (launch.first_scales == nullptr) return;
    constexpr int kRuns = HAS_BLOCKS ? FIRST_STAGES : 1;
    for (int i = threadIdx.x; i < (share.end - share.first) * 2 * kRuns; i += kComputers) {
      const int unit = share.first + i / kRuns / 2;
      const int64_t matrix = shared.tiles.expert[share.tile(unit)] * 2 + i / kRuns % 2;
      const int64_t row = matrix * launch.inner + share.output(unit);
      prefetch(launch.first_scales + (HAS_BLOCKS ? row / kBlock * (launch.hidden / kBlock) + i % kRuns * FIRST_SPANS : row));
    }
  }

  // What follows the second product's sums, when weights are on their way: nobody waits for it
  __device__ __forceinline__ void prepare_factors() const {
    const int num_outs = (share.end_out - share.first_out) * 8;
    for (int i = threadIdx.x; i < shared.tiles.number * num_outs; i += kComputers) {
      const int tile = i / num_outs, out = share.first_out * 8 + i % num_outs;
      float factor = shared.tiles.weight[tile];
      const int64_t row = int64_t(shared.tiles.expert[tile]) * launch.hidden + out;
      if constexpr (HAS_BLOCKS) {
        if (i % 8 < SECOND_STAGES) {
          prefetch(launch.second_scales + row / kBlock * (launch.inner / kBlock) + i % 8 * SECOND_SPANS);
        }
      } else if (launch.second_scales != nullptr) {
        factor *= launch.second_scales[row];
      }
      shared.factors[tile][i % num_outs] = factor;
    }
  }

  // Of this thread's output
  __device__ __forceinline__ float biases() const {
    float y = 0;
    for (int tile = 0; launch.second_bias != nullptr && tile < shared.tiles.number; ++tile) {
      const int64_t expert = shared.tiles.expert[tile], own = share.first_out * 8 + threadIdx.x;
      if (own < share.end_out * 8) {
        y += shared.tiles.weight[tile] * to_float(launch.second_bias[expert * launch.hidden + own]);
      }
    }
    return y;
  }

  // 8 outputs of the row, or 16, at a time. Thread i finishes output i of the block's. rest: what is added to it
  __device__ __forceinline__ void multiply_down(float rest) {
    const int stages = shared.tiles.number * SECOND_STAGES;
    for (int out = share.first_out; out < share.end_out; out += 2, ++turn) {
      float sums[2] = {};
      multiply(
          min(2, share.end_out - out) * stages, [&](int i) { return shared.x[i < stages ? i : i - stages]; },
          [&](int i) { return HAS_BLOCKS ? second_scale(out + i / stages, i % stages) : 1; },
          [&](int i, const Sums& of, float scale) {
            const bool is_second = i >= stages;
            const int stage = is_second ? i - stages : i, place = (out + is_second - share.first_out) * 8 + lane / 4;
            const float factor = shared.factors[stage / SECOND_STAGES][place];
            const float sum = factor * own_sum<SECOND_SPANS>(of, shared.x_scales[stage]) * scale;
            sums[0] += is_second ? 0 : sum, sums[1] += is_second ? sum : 0;
          });
      leave(0, sums[0]);
      leave(1, sums[1]);
      named_barrier(1, kComputers);
      if (warp == (out - share.first_out) / 4) finish_row(out, joined(lane % 16) + rest);
    }
  }

  __device__ __forceinline__ float second_scale(int out, int stage) const {
    const int64_t expert = shared.tiles.expert[stage / SECOND_STAGES];
    const int first = stage % SECOND_STAGES * SECOND_SPANS;
    return scale_of(launch.second_scales, expert * launch.hidden + out * 8, launch.inner / kBlock, first);
  }

  // Of 16 outputs from `out` * 8 on
  __device__ __forceinline__ void finish_row(int out, float y) const {
    const bool finishes = lane / 16 == (out - share.first_out) / 2 % 2 && out + lane / 8 % 2 < share.end_out;
    if (finishes) launch.out[out * 8 + lane % 16] = ELEMENT{uint16_t(pack<ELEMENT>(y, 0))};
  }
};

}  // namespace
}  // namespace octavo
