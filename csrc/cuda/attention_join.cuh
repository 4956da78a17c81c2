// The join of decode_attention.cu: combines a sequence's partial results into its result.
#pragma once

#include "attention_kind.cuh"

namespace octavo {
namespace {

// A part of one partial result's row: kReads times 16 bytes.
template <int kReads>
struct PartialRow {
  float4 values[kReads];
  float2 max_sum;
};

// Joins a row, kLanes lanes with 4 dims each of every 4 * kLanes. Many parts are read at once: what a join costs is latency.
template <int kLanes>
__device__ void join_row(const Launch& launch, const Member& member, int kv_head, int sub, int lane) {
  constexpr int kReads = (kDim + 4 * kLanes - 1) / (4 * kLanes), kBatch = kReads == 1 ? 8 : kReads == 2 ? 6 : 2;
  int unit = 0, part = 0;
  float top = kLowest, sum = 0;
  float4 x[kReads] = {};
  for (int first = 0; first < member.num_parts; first += kBatch) {
    PartialRow<kReads> rows[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (first + i < member.num_parts && part == member.parts[unit].count) ++unit, part = 0;
      const Parts parts = member.parts[unit];
      const int64_t part_row = parts.first + min(part++, parts.count - 1) * parts.step;  // past the end: the last again
      const int64_t at = (part_row * launch.num_kv_heads + kv_head) * kMemberRows + sub;
      const float4* from = reinterpret_cast<const float4*>(launch.part_values + at * kDim) + lane;
      rows[i].max_sum = __ldcg(reinterpret_cast<const float2*>(launch.part_max_sum) + at);
#pragma unroll
      for (int r = 0; r < kReads; ++r) {
        if (4 * (r * kLanes + lane) < kDim) rows[i].values[r] = __ldcg(from + r * kLanes);
      }
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const float higher = fmaxf(top, rows[i].max_sum.x), alpha = exp2_fast(top - higher);
      const float weight = first + i < member.num_parts ? exp2_fast(rows[i].max_sum.x - higher) : 0.0f;
#pragma unroll
      for (int r = 0; r < kReads; ++r) {
        x[r].x = x[r].x * alpha + rows[i].values[r].x * weight;
        x[r].y = x[r].y * alpha + rows[i].values[r].y * weight;
        x[r].z = x[r].z * alpha + rows[i].values[r].z * weight;
        x[r].w = x[r].w * alpha + rows[i].values[r].w * weight;
      }
      sum = sum * alpha + rows[i].max_sum.y * weight;
      top = higher;
    }
  }
  const int head = kv_head * GROUP + sub % GROUP;
  if (Hooks::kHasSinks) sum += exp2_fast(launch.hooks.sink(head) - top);
  const float inverse = 1.0f / sum;
  Element* out = launch.out + (member.token + sub / GROUP) * launch.out_stride + head * kDim;
#pragma unroll
  for (int r = 0; r < kReads; ++r) {
    const int d = 4 * (r * kLanes + lane);
    if (d < kDim) {
      *reinterpret_cast<uint2*>(out + d) = uint2{pack<Element>(x[r].x * inverse, x[r].y * inverse),
                                                 pack<Element>(x[r].z * inverse, x[r].w * inverse)};
    }
  }
}

// Joins the rows of those members that shared.joins marks.
template <int kLanes>
__device__ void join_rows(const Launch& launch, const Shared& shared, const Piece& piece, int kv_head) {
  const int i = threadIdx.x;
  for (int row = i / kLanes; row < piece.num_members * kMemberRows; row += 32 * kComputers / kLanes) {
    const Member& member = piece.members[row / kMemberRows];
    const int sub = row % kMemberRows;
    if (shared.joins[row / kMemberRows] && sub / GROUP < member.num_queries) {
      join_row<kLanes>(launch, member, kv_head, sub, i % kLanes);
    }
  }
}

// The thread block that finishes a sequence's last part joins all of them.
__device__ void join(const Launch& launch, Shared& shared, const Piece& piece, int kv_head) {
  const int i = threadIdx.x;
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
  // A sequence alone often has many parts and few rows, each of which is then a warp's, or half a warp's so that all are
  // joined at once; members that share have few parts and many rows
  constexpr int kLanesAlone = kMemberRows * 32 > 32 * kComputers ? 16 : 32;
  if (piece.num_members == 1) {
    join_rows<kLanesAlone>(launch, shared, piece, kv_head);
  } else {
    join_rows<8>(launch, shared, piece, kv_head);
  }
}

}  // namespace
}  // namespace octavo
