// The join of decode_attention.cu: combines a sequence's partial results into its result.
#pragma once

#include "attention_kind.cuh"

namespace octavo {
namespace {

// The thread block that finishes a sequence's last part joins all of them, one warp per row.
__device__ void join(const Launch& launch, Shared& shared, const Piece& piece, int kv_head) {
  const int i = threadIdx.x, lane = i % 32, warp = i / 32;
  if (piece.num_members == 1 && piece.members[0].num_parts == 1) return;
  named_barrier(1, 32 * kComputers);
  if (i < piece.num_members) {
    const Member& member = piece.members[i];
    int* done = launch.done + member.sequence * launch.num_kv_heads + kv_head;
    const bool joins = member.num_parts > 1 && count_up(done) == member.num_parts - 1;
    if (joins) *done = 0;
    shared.joins[i] = joins;
  }
  named_barrier(1, 32 * kComputers);
  for (int row = warp; row < piece.num_members * kMemberRows; row += kComputers) {
    const Member& member = piece.members[row / kMemberRows];
    const int sub = row % kMemberRows, query = sub / GROUP;
    if (!shared.joins[row / kMemberRows] || query >= member.num_queries) continue;
    for (int d = lane * 4; d < kDim; d += 128) {
      float top = kLowest, sum = 0;
      float4 x = {};
      for (int n = 0; n < member.num_units; ++n) {
        const Parts parts = member.parts[n];
#pragma unroll 4
        for (int p = 0; p < parts.count; ++p) {
          const int64_t part_row = parts.first + p * parts.step;
          const int64_t at = (part_row * launch.num_kv_heads + kv_head) * kMemberRows + sub;
          const float2 max_sum = __ldcg(reinterpret_cast<const float2*>(launch.part_max_sum) + at);
          const float4 value = __ldcg(reinterpret_cast<const float4*>(launch.part_values + at * kDim + d));
          const float higher = fmaxf(top, max_sum.x);
          const float alpha = exp2_fast(top - higher), weight = exp2_fast(max_sum.x - higher);
          x.x = x.x * alpha + value.x * weight;
          x.y = x.y * alpha + value.y * weight;
          x.z = x.z * alpha + value.z * weight;
          x.w = x.w * alpha + value.w * weight;
          sum = sum * alpha + max_sum.y * weight;
          top = higher;
        }
      }
      const int head = kv_head * GROUP + sub % GROUP;
      if (Hooks::kHasSinks) sum += exp2_fast(launch.hooks.sink(head) - top);
      const float inverse = 1.0f / sum;
      Element* out = launch.out + (member.token + query) * launch.out_stride + head * kDim + d;
      *reinterpret_cast<uint2*>(out) =
          uint2{pack<Element>(x.x * inverse, x.y * inverse), pack<Element>(x.z * inverse, x.w * inverse)};
    }
  }
}

}  // namespace
}  // namespace octavo
