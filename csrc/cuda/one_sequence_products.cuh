// The warps of one_sequence_attention.cu that multiply: queries, weights of a stage's tokens, and sums of its values.
#pragma once

#include "one_sequence_load.cuh"

namespace octavo {
namespace {

// Two rows' maximum score, times log2(e), and sum of exponentials
struct Softmax {
  float top[2] = {kLowest, kLowest}, sum[2] = {};

  // Row i has a higher maximum -> what its sums are multiplied by
  __device__ __forceinline__ float raise(int i, float higher) {
    const float factor = exp2_fast(top[i] - higher);
    top[i] = higher;
    sum[i] *= factor;
    return factor;
  }
};

struct Computer {
  const Launch& launch;
  OneShared& shared;
  const Share& share;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  uint32_t queries[kSteps / 2][4];
  float sums[4] = {};  // dims 16 warp + lane / 4, of rows 2 (lane % 4) and + 1, and the same of that dim + 8
  Softmax rows;

  __device__ __forceinline__ void place_query(const Head& head, int token) const {
    if (warp >= GROUP) return;
    const Element* from = launch.q + token * launch.q_stride + (share.kv_head * GROUP + warp) * kDim;
    store_dims(&shared.q[0][0] + row_offset(warp, head.d / 8) + head.d % 8 * sizeof(Element),
               head.turned(from, launch.eps));
  }

  __device__ __forceinline__ void load_queries() {
#pragma unroll
    for (int i = 0; i < kSteps / 2; ++i) {
      load_fragments(queries[i], shared_address(shared.q) + row_offset(lane % 8, 4 * i + lane / 8));
    }
  }

  // Scores, times log2(e), of the warp's box: tokens lane / 4 and that + 8 of two rows; of tokens not seen, -infinity
  __device__ __forceinline__ void score(float (&scores)[4], const unsigned char* keys, int start) const {
    float parts[2][4] = {};
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      uint32_t a[4];
      load_fragments(a, shared_address(keys) + stage_offset(warp * kBox + lane % 16, 2 * k + lane / 16));
      multiply_add<Element>(parts[k % 2], a, queries[k / 2][k % 2 * 2], queries[k / 2][k % 2 * 2 + 1]);
    }
    const int window_begin = share.window_begin(launch);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int t = start + warp * kBox + lane / 4 + j / 2 * 8;
      scores[j] = cap((parts[0][j] + parts[1][j]) * launch.scale_log2, launch.softcap_log2);
      if (t >= share.end || t < window_begin) scores[j] = -INFINITY;
    }
  }

  // The weights of the warp's box of the stage
  __device__ __forceinline__ void weigh(const unsigned char* keys, int start, int buffer) const {
    float scores[4], top[2], sum[2];
    score(scores, keys, start);
#pragma unroll
    for (int i = 0; i < 2; ++i) top[i] = fmaxf(kLowest, fmaxf(scores[i], scores[2 + i]));
#pragma unroll
    for (int step = 4; step < 32; step *= 2) {
#pragma unroll
      for (int i = 0; i < 2; ++i) top[i] = fmaxf(top[i], __shfl_xor_sync(~0u, top[i], step));
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) scores[j] = exp2_fast(scores[j] - top[j % 2]);
    uint16_t* to = &shared.weights[buffer][lane / 4][warp * kBox + lane % 4 * 2];
    *reinterpret_cast<uint32_t*>(to) = transposed(pack<Element>(scores[0], scores[1]));
    *reinterpret_cast<uint32_t*>(to + 8) = transposed(pack<Element>(scores[2], scores[3]));
#pragma unroll
    for (int i = 0; i < 2; ++i) sum[i] = scores[i] + scores[2 + i];
#pragma unroll
    for (int step = 4; step < 32; step *= 2) {
#pragma unroll
      for (int i = 0; i < 2; ++i) sum[i] += __shfl_xor_sync(~0u, sum[i], step);
    }
    if (lane < 4) {
      float4* box = reinterpret_cast<float4*>(&shared.box_max_sum[buffer][warp][lane * 2][0]);
      *box = make_float4(top[0], sum[0], top[1], sum[1]);
    }
  }

  // What a warp without a box leaves in its place
  __device__ __forceinline__ void weigh_nothing(int buffer) const {
    uint32_t* to = reinterpret_cast<uint32_t*>(&shared.weights[buffer][lane / 4][warp * kBox]);
    to[lane % 4] = to[lane % 4 + 4] = 0;
    if (lane < 4) {
      float4* box = reinterpret_cast<float4*>(&shared.box_max_sum[buffer][warp][lane * 2][0]);
      *box = make_float4(kLowest, 0, kLowest, 0);
    }
  }

  // Adds a stage's values, times their weights, four boxes at a time
  __device__ __forceinline__ void add_values(const unsigned char* values, int num_boxes, int buffer) {
    float4 boxes[kWarps];
    float top[2] = {rows.top[0], rows.top[1]};
#pragma unroll
    for (int box = 0; box < kWarps; ++box) {
      boxes[box] = *reinterpret_cast<float4*>(&shared.box_max_sum[buffer][box][lane % 4 * 2][0]);
      top[0] = fmaxf(top[0], boxes[box].x);
      top[1] = fmaxf(top[1], boxes[box].z);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float factor = rows.raise(i, top[i]);
      sums[i] *= factor;
      sums[2 + i] *= factor;
    }
#pragma unroll
    for (int first = 0; first < kWarps; first += 4) {
      if (first < num_boxes) add_four(values, first, buffer, reinterpret_cast<float4(&)[4]>(boxes[first]));
    }
  }

  __device__ __forceinline__ void add_four(const unsigned char* values, int first, int buffer,
                                           const float4 (&boxes)[4]) {
    uint32_t weights[2][4], a[4][4];
    float products[4][4] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint16_t* from = &shared.weights[buffer][lane % 8][(first + 2 * i) * kBox + lane / 8 * 8];
      load_fragments(weights[i], shared_address(from));
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = (first + i) * kBox + lane % 8 + lane / 16 * 8;
      load_transposed_fragments(a[i], shared_address(values) + stage_offset(token, 2 * warp + lane / 8 % 2));
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      multiply_add<Element>(products[i], a[i], weights[i / 2][i % 2 * 2], weights[i / 2][i % 2 * 2 + 1]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float factors[2] = {exp2_fast(boxes[i].x - rows.top[0]), exp2_fast(boxes[i].z - rows.top[1])};
      rows.sum[0] += boxes[i].y * factors[0];
      rows.sum[1] += boxes[i].w * factors[1];
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[j] += products[i][j] * factors[j % 2];
    }
  }

  __device__ __forceinline__ void run() {
    const int num_boxes = share.num_boxes();
    for (int first = 0, stage = 0; first < num_boxes; first += kWarps, ++stage) {
      const int boxes = min(num_boxes - first, kWarps), key_use = 2 * stage, value_use = key_use + 1;
      const int key_entry = entry_of(key_use), value_entry = entry_of(value_use);
      if (warp < boxes) {
        barrier_wait(address(shared.full[key_entry]), parity_of(key_use));
        if (share.has_newest && first + warp == num_boxes - 1) barrier_wait(address(shared.newest), 0);
        weigh(shared.ring[key_entry], share.begin + first * kBox, stage % 2);
      } else {
        weigh_nothing(stage % 2);
      }
      if (lane == 0) barrier_arrive(address(shared.free[key_entry]));
      barrier_wait(address(shared.full[value_entry]), parity_of(value_use));
      named_barrier(1, 32 * kWarps);
      if (warp < kSumWarps) add_values(shared.ring[value_entry], boxes, stage % 2);
      __syncwarp();
      if (lane == 0) barrier_arrive(address(shared.free[value_entry]));
    }
  }

  // Gives each block of the cluster the sums that it ends
  __device__ __forceinline__ void send() const {
    if (warp >= kSumWarps) return;
    const auto send_to = [&](int block, auto own) {
      const uint32_t arrived = address_in(address(shared.arrived), block);
      store_there(address_in(shared_address(&shared.sums[share.block][lane]), block), own, arrived);
      if (lane >= 4) return;
      const uint32_t to = address_in(shared_address(&shared.max_sum[share.block][lane * 2][0]), block);
      store_there(to, make_float4(rows.top[0], rows.sum[0], rows.top[1], rows.sum[1]), arrived);
    };
    if constexpr (kOwnDims == 16) {
      send_to(warp, make_float4(sums[0], sums[1], sums[2], sums[3]));
    } else {
      send_to(2 * warp, make_float2(sums[0], sums[1]));
      send_to(2 * warp + 1, make_float2(sums[2], sums[3]));
    }
  }
};

}  // namespace
}  // namespace octavo
