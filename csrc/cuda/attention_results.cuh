// The end of a piece of decode_attention.cu: warps that split its keys add up, and results or parts of them are written.
#pragma once

#include "attention_queries.cuh"

namespace octavo {
namespace {

// Of 8 rows of each tile, from 8 * half on, whose sums, maxima and sums of weights are in shared memory.
template <int kTiles>
__device__ __forceinline__ void write_results(const Launch& launch, Shared& shared, const Piece& piece, int kv_head,
                                              int half) {
  constexpr int kSplits = kComputers / kTiles;
  const int num_rows = piece.num_members * kMemberRows;
  const float value_unit = launch.hooks.unit(kv_head, true, launch.num_kv_heads);
  for (int i = threadIdx.x; i < kTiles * 8 * kChunks; i += 32 * kComputers) {
    const int t = i / (8 * kChunks), r = i / kChunks % 8, d = i % kChunks * 8;
    const int row = t * 16 + half * 8 + r, sub = row % kMemberRows, query = sub / GROUP;
    const Member& member = piece.members[min(row, num_rows - 1) / kMemberRows];
    if (row >= num_rows || query >= member.num_queries) continue;
    float top = kLowest, sum = 0;
    float x[8] = {};
    for (int j = 0; j < kSplits; ++j) top = fmaxf(top, shared.max_sum[t + j * kTiles][half * 8 + r][0]);
    for (int j = 0; j < kSplits; ++j) {
      const float* max_sum = shared.max_sum[t + j * kTiles][half * 8 + r];
      sum += max_sum[1] * exp2_fast(max_sum[0] - top);
      const float4* from = reinterpret_cast<const float4*>(&shared.sums[t + j * kTiles][r][d]);
      const float4 low = from[0], high = from[1];
      x[0] += low.x, x[1] += low.y, x[2] += low.z, x[3] += low.w;
      x[4] += high.x, x[5] += high.y, x[6] += high.z, x[7] += high.w;
    }
    if (Hooks::kHasCodes) {
#pragma unroll
      for (int j = 0; j < 8; ++j) x[j] *= value_unit;
    }
    if (member.num_parts == 1) {
      const int head = kv_head * GROUP + sub % GROUP;
      Element* out = launch.out + (member.token + query) * launch.out_stride + head * kDim + d;
      if (Hooks::kHasSinks) sum += exp2_fast(launch.hooks.sink(head) - top);
      const float inverse = 1.0f / sum;
#pragma unroll
      for (int j = 0; j < 8; ++j) x[j] *= inverse;
      *reinterpret_cast<uint4*>(out) = packed(x);
    } else {
      const int64_t part_row = piece.part_row + row / kMemberRows;
      const int64_t at = (part_row * launch.num_kv_heads + kv_head) * kMemberRows + sub;
      float4* out = reinterpret_cast<float4*>(launch.part_values + at * kDim + d);
      __stcg(out, make_float4(x[0], x[1], x[2], x[3]));
      __stcg(out + 1, make_float4(x[4], x[5], x[6], x[7]));
      if (d == 0) __stcg(reinterpret_cast<float2*>(launch.part_max_sum) + at, make_float2(top, sum));
    }
  }
}

}  // namespace
}  // namespace octavo
