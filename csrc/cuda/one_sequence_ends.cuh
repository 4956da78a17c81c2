// The end of one_sequence_attention.cu: a warp adds up what the blocks of the cluster, and other clusters, have.
#pragma once

#include "one_sequence_products.cuh"

namespace octavo {
namespace {

// The sums that a block of the cluster ends, by one warp; a thread has kOwnDims / 8 dims of two rows
struct Ends {
  const Launch& launch;
  const Sequence& sequence;
  const Share& share;
  const int lane = threadIdx.x % 32;
  alignas(Sums) float sums[kOwnDims / 4] = {};
  Softmax rows;
  float sinks[2] = {};

  // Before they are needed: who waits for them then waits for memory
  __device__ __forceinline__ void read_sinks() {
    if constexpr (Hooks::kHasSinks) {
      const int first = share.kv_head * GROUP, row = lane % 4 * 2;
#pragma unroll
      for (int i = 0; i < 2; ++i) sinks[i] = launch.hooks.sink(first + min(row + i, GROUP - 1));
    }
  }

  // Adds kMost parts: part i's sums and rows are at `sums_at(i)` and `rows_at(i)`
  template <int kMost, typename SumsAt, typename RowsAt>
  __device__ __forceinline__ void add(int count, SumsAt sums_at, RowsAt rows_at) {
    Sums parts[kMost];
    float4 tops[kMost];
    float top[2] = {rows.top[0], rows.top[1]};
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      parts[i] = sums_at(min(i, count - 1));
      tops[i] = rows_at(min(i, count - 1));
      top[0] = fmaxf(top[0], tops[i].x);
      top[1] = fmaxf(top[1], tops[i].z);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float factor = rows.raise(i, top[i]);
#pragma unroll
      for (int j = i; j < kOwnDims / 4; j += 2) sums[j] *= factor;
    }
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      const bool is_there = i < count;
      const float factors[2] = {is_there ? exp2_fast(tops[i].x - top[0]) : 0,
                                is_there ? exp2_fast(tops[i].z - top[1]) : 0};
      rows.sum[0] += tops[i].y * factors[0];
      rows.sum[1] += tops[i].w * factors[1];
      const float* part = reinterpret_cast<const float*>(&parts[i]);
#pragma unroll
      for (int j = 0; j < kOwnDims / 4; ++j) sums[j] += part[j] * factors[j % 2];
    }
  }

  // Of a cluster of the kv head, in global memory
  __device__ __forceinline__ int64_t place(int cluster) const {
    return (int64_t(cluster) * launch.num_kv_heads + share.kv_head) * kClusterBlocks + share.block;
  }
  __device__ __forceinline__ Sums* sums_of(int cluster) const {
    return reinterpret_cast<Sums*>(sequence.values) + place(cluster) * 32 + lane;
  }
  __device__ __forceinline__ float4* rows_of(int cluster) const {
    return reinterpret_cast<float4*>(sequence.max_sum) + place(cluster) * (kRows / 2) + lane % 4;
  }

  // Leaves the cluster's part; true for the kv head's last one, which then has all of them
  __device__ bool join() {
    __stcg(sums_of(share.cluster), *reinterpret_cast<const Sums*>(sums));
    if (lane < 4) __stcg(rows_of(share.cluster), make_float4(rows.top[0], rows.sum[0], rows.top[1], rows.sum[1]));
    __syncwarp();
    int* done = sequence.done + share.kv_head * kClusterBlocks + share.block;
    int before = 0;
    if (lane == 0) before = count_up(done);
    if (__shfl_sync(~0u, before, 0) < share.num_clusters - 1) return false;
    if (lane == 0) *done = 0;
    rows = Softmax();
#pragma unroll
    for (int j = 0; j < kOwnDims / 4; ++j) sums[j] = 0;
    for (int first = 0; first < share.num_clusters; first += 4) {
      add<4>(share.num_clusters - first, [&](int i) { return __ldcg(sums_of(first + i)); },
             [&](int i) { return __ldcg(rows_of(first + i)); });
    }
    return true;
  }

  __device__ __forceinline__ void store(int token) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = lane % 4 * 2 + i, head = share.kv_head * GROUP + row;
      if (row >= GROUP) continue;
      float sum = rows.sum[i];
      if (Hooks::kHasSinks) sum += exp2_fast(sinks[i] - rows.top[i]);
      const float inverse = reciprocal(sum);
      Element* out = launch.out + token * launch.out_stride + head * kDim + share.block * kOwnDims + lane / 4;
#pragma unroll
      for (int j = 0; j < kOwnDims / 8; ++j) {
        reinterpret_cast<uint16_t*>(out)[j * 8] = uint16_t(pack<Element>(sums[2 * j + i] * inverse, 0));
      }
    }
  }
};

}  // namespace
}  // namespace octavo
