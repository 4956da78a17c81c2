// Pieces of up to 8 rows over codes: keys and values are the 16 rows of a product and queries its 8 columns, so that no
// product is of rows that are not there.
//
//   scores, 16 tokens x 8 rows       a thread has tokens lane / 4 and that + 8 (code_token) of rows 2 (lane % 4) and + 1
//   weights, their transpose         by movmatrix: they are columns of the next product
//   sums, 16 dims x 8 rows           a thread has dims 2 (lane / 4) and that + 1, of the same rows
//
// What decode_attention.cu says of a piece holds here, too: four warps have a box of a stage's tokens each.
#pragma once

#include "attention_results.cuh"

namespace octavo {
namespace {

constexpr int kSteps = kPaddedDim / 16;

// c = keys of a warp's box times queries
__device__ __forceinline__ void multiply_few_keys(float (&scores)[4], const uint32_t (&queries)[kSteps / 2][4],
                                                  const unsigned char* keys, int box) {
  const int lane = threadIdx.x % 32, token = box * kBox + code_token(lane / 4);
  float parts[2][4] = {};
#pragma unroll
  for (int part = 0; part < kPaddedDim / 64; ++part) {
    const uint4 low = *reinterpret_cast<const uint4*>(keys + chunk_offset(token, part * 4 + lane % 4));
    const uint4 high = *reinterpret_cast<const uint4*>(keys + chunk_offset(token + 8, part * 4 + lane % 4));
    const uint32_t lows[4] = {low.x, low.y, low.z, low.w}, highs[4] = {high.x, high.y, high.z, high.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const uint2 first = Hooks::in_order(lows[j]), second = Hooks::in_order(highs[j]);
      const uint32_t a[4] = {first.x, second.x, first.y, second.y};
      const uint32_t(&q)[4] = queries[part * 2 + j / 2];
      multiply_add<Product>(parts[j % 2], a, q[j % 2 * 2], q[j % 2 * 2 + 1]);
    }
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) scores[j] = parts[0][j] + parts[1][j];
}

// sums += values of a box times the weights of its tokens
__device__ __forceinline__ void multiply_few_values(float (&sums)[kSteps][4], const uint32_t (&weights)[2],
                                                    uint32_t values, int box) {
  const int lane = threadIdx.x % 32, token = box * kBox + lane / 8 % 2 * 8 + code_token(lane % 8);
#pragma unroll
  for (int chunk = 0; chunk < kSteps; chunk += 2) {
    uint32_t codes[4];
    load_transposed_fragments(codes, values + chunk_offset(token, chunk + lane / 16));
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint2 first = Hooks::turned(codes[2 * i]), second = Hooks::turned(codes[2 * i + 1]);
      const uint32_t a[4] = {first.x, first.y, second.x, second.y};
      multiply_add<Product>(sums[chunk + i], a, weights[0], weights[1]);
    }
  }
}

// As `compute`
__device__ void compute_few(const Launch& launch, Shared& shared, const Piece& piece, int kv_head,
                            Hooks::StoredEight newest, int& count) {
  const int lane = threadIdx.x % 32, box = threadIdx.x / 32;
  const int num_rows = piece.num_members * kMemberRows;
  int row_begin[2], row_end[2];  // the tokens that each of the thread's two rows sees
  [[maybe_unused]] int row_head[2], row_position[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = min(lane % 4 * 2 + i, num_rows - 1);
    const int position = piece.members[row / kMemberRows].position + row % kMemberRows / GROUP;
    row_end[i] = min(piece.end, position + 1);
    row_begin[i] = HAS_WINDOW ? position + 1 - launch.window : 0;
    row_head[i] = kv_head * GROUP + row % kMemberRows % GROUP;
    row_position[i] = position;
  }
  const Member& first = piece.members[0];
  const int full_end = piece.num_members > 1 ? piece.end : min(piece.end, first.position + 1);
  const int full_begin = HAS_WINDOW ? first.position + first.num_queries - launch.window : 0;
  const int token = box * kBox + code_token(lane / 4);
  uint32_t queries[kSteps / 2][4];
#pragma unroll
  for (int i = 0; i < kSteps / 2; ++i) {
    load_fragments(queries[i], shared_address(shared.q) + chunk_offset(lane % 8, 4 * i + lane / 8));
  }
  float sums[kSteps][4] = {};
  float m[2] = {kLowest, kLowest}, l[2] = {};

  for (int start = piece.begin; start < piece.end; start += kStage, ++count) {
    const int key_entry = 2 * count % kEntries, value_entry = (2 * count + 1) % kEntries;
    const uint32_t key_parity = 2 * count / kEntries & 1, value_parity = (2 * count + 1) / kEntries & 1;
    unsigned char* keys = shared.ring[key_entry];
    unsigned char* values = shared.ring[value_entry];
    barrier_wait(address(shared.full[key_entry]), key_parity);
    const int num_read = min((piece.end - start + kBox - 1) / kBox * kBox, kStage);
    if (start + kStage >= piece.end && (piece.writes || start + num_read > piece.end)) {
      barrier_wait(address(shared.full[value_entry]), value_parity);
      finish_stage(launch, piece, kv_head, newest, start, num_read, keys, values);
    }
    float scores[4];  // of boxes without tokens they are garbage, and masked
    multiply_few_keys(scores, queries, keys, box);
    __syncwarp();
    if (lane == 0) barrier_arrive(address(shared.free[key_entry]));

    if (HAS_SOFTCAP || Hooks::kChangesScores) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        scores[j] = cap(scores[j], launch.softcap_log2);
        if (Hooks::kChangesScores) {
          const int t = start + token + j / 2 * 8;
          scores[j] = launch.hooks.score(scores[j], row_head[j % 2], row_position[j % 2] - t);
        }
      }
    }
    if (start + kStage > full_end || (HAS_WINDOW && start < full_begin)) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int t = start + token + j / 2 * 8;
        if (t >= row_end[j % 2] || t < row_begin[j % 2]) scores[j] = -INFINITY;
      }
    }
    bool rises = false;
    float alpha[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float highest = fmaxf(m[i], fmaxf(scores[i], scores[2 + i]));
#pragma unroll
      for (int step = 4; step < 32; step *= 2) highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, step));
      rises |= highest > m[i];
      alpha[i] = exp2_fast(m[i] - highest);
      m[i] = highest;
      l[i] *= alpha[i];
    }
    if (__any_sync(~0u, rises)) {
#pragma unroll
      for (int n = 0; n < kSteps; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[n][j] *= alpha[j % 2];
      }
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      scores[j] = exp2_fast(scores[j] - m[j % 2] + kRaise);
      l[j % 2] += scores[j];
    }
    const uint32_t weights[2] = {transposed(pack<Product>(scores[0], scores[1])),
                                 transposed(pack<Product>(scores[2], scores[3]))};
    barrier_wait(address(shared.full[value_entry]), value_parity);
    if (start + box * kBox < piece.end) multiply_few_values(sums, weights, shared_address(values), box);
    __syncwarp();
    if (lane == 0) barrier_arrive(address(shared.free[value_entry]));
  }

  // The warps add up
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    m[i] -= kRaise;
#pragma unroll
    for (int step = 4; step < 32; step *= 2) l[i] += __shfl_xor_sync(~0u, l[i], step);
    if (lane < 4) *reinterpret_cast<float2*>(shared.max_sum[box][lane * 2 + i]) = make_float2(m[i], l[i]);
  }
  named_barrier(1, 32 * kComputers);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = lane % 4 * 2 + i;
    float largest = kLowest;
#pragma unroll
    for (int split = 0; split < kComputers; ++split) largest = fmaxf(largest, shared.max_sum[split][row][0]);
    const float factor = exp2_fast(m[i] - largest);
#pragma unroll
    for (int n = 0; n < kSteps; ++n) {
      *reinterpret_cast<float2*>(&shared.sums[box][row][n * 16 + lane / 4 * 2]) =
          make_float2(sums[n][i] * factor, sums[n][2 + i] * factor);
    }
  }
  named_barrier(1, 32 * kComputers);
  write_results<1>(launch, shared, piece, kv_head, 0);
  named_barrier(1, 32 * kComputers);
}

}  // namespace
}  // namespace octavo
