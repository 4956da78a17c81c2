// Decode attention over a paged KV cache: a block that several sequences share is read once for all of them.
//
// Nearly all the time goes into reading keys and values, so every thread block reads without a pause:
//
//   a persistent grid: one thread block for each stretch of the plan (attention_plan.h) and kv head, one or two per
//   multiprocessor, five warps each
//
//     1 loader   walks the stretch's pieces of units, publishes the members of each, and copies:
//                64 tokens of keys, 64 of values, ... ──> a ring in shared memory
//     4 computers, one piece after another:
//       queries of all members, normed and rotated ──> shared memory ──> registers
//       a part of the ring's tokens: scores = Q K^T, online softmax, sums += P V; tensor cores, 16 x 16 at a time
//       at the end of a piece: the result, or a partial one; whoever finishes a sequence's last part joins them all
//
//   rows of a piece     1..16        17..32 on Ampere    more             (members x new tokens x heads of the kv head)
//   a warp computes     all rows,    half of the rows,   a quarter of the rows, all keys;
//                       1/4 of keys  half of the keys    on Hopper the four multiply together (wgmma)
//
// An entry of the ring holds 64 tokens of one head, [slab of 128 bytes][token][128 bytes], copied in boxes of 16 tokens,
// a slab at a time. Its 16-byte chunks are swizzled by the token, so that ldmatrix reads without bank conflicts. The copy
// engine writes this layout under its 128-byte swizzle, and wgmma reads it. Codes of one byte become halves in the
// computers' registers (attention_codes.cuh).
//
// This file has the products; parameters and memory are in attention_kind.cuh, the loader in attention_load.cuh, the
// queries that go into the products in attention_queries.cuh, what comes after them in attention_results.cuh, and the
// join in attention_join.cuh.
// Split-KV decoding is from Flash-Decoding (Dao et al., 2023); stretches of equal work are from FlashInfer (Ye et al.,
// 2025); reading a shared prefix once is from Hydragen (Juravsky et al., 2024) and ChunkAttention (Ye et al., 2024).

#include "attention_codes.cuh"
#include "attention_few_rows.cuh"
#include "attention_join.cuh"
#include "attention_load.cuh"
#include "attention_queries.cuh"
#include "attention_results.cuh"

namespace octavo {
namespace {

// Scores, softmax and values of a piece by all computers, kTiles tiles of 16 rows, or of 8 (kHalves: 1); then writes the
// results. Over codes, pieces of up to 8 rows have products of their own (attention_few_rows.cuh).
template <int kTiles, int kHalves>
__device__ void compute(const Launch& launch, Shared& shared, const Piece& piece, int kv_head,
                        Hooks::StoredEight newest, int& count) {
  constexpr int kSplits = kComputers / kTiles;  // warps that share a tile's keys
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int tile = warp % kTiles, split = warp / kTiles;
  const int num_rows = piece.num_members * kMemberRows;
  const int tile_rows = num_rows - tile * 16;

  constexpr bool kWide = kTiles == 4 && HAS_WGMMA;  // all four warps multiply together
  const uint32_t queries = shared_address(shared.q);
  int row_begin[2], row_end[2];  // the tokens that each of the thread's two rows sees
  [[maybe_unused]] int row_head[2], row_position[2];
  for (int half = 0; half < 2; ++half) {
    const int row = min(tile * 16 + half * 8 + lane / 4, num_rows - 1);
    const int position = piece.members[row / kMemberRows].position + row % kMemberRows / GROUP;
    row_end[half] = min(piece.end, position + 1);
    row_begin[half] = HAS_WINDOW ? position + 1 - launch.window : 0;
    row_head[half] = kv_head * GROUP + row % kMemberRows % GROUP;
    row_position[half] = position;
  }
  const Member& first = piece.members[0];
  // All rows see the tokens from full_begin to full_end
  const int full_end = piece.num_members > 1 ? piece.end : min(piece.end, first.position + 1);
  const int full_begin = HAS_WINDOW ? first.position + first.num_queries - launch.window : 0;
  // Where nothing but the scale changes a product, it is multiplied within the exponential
  constexpr bool kScalesEarly = HAS_SOFTCAP || Hooks::kChangesScores;
  const float scale_log2 = Hooks::kHasCodes ? 1.0f : launch.scale_log2;  // of codes, it is in the queries
  const float scale = kScalesEarly ? 1.0f : scale_log2;
  const auto token_of = [&](int n, int j) {
    const int column = lane % 4 * 2 + j % 2;
    return (split + n / 2 * kSplits) * kBox + n % 2 * 8 + (Hooks::kHasCodes ? code_token(column) : column);
  };
  float sums[kPaddedDim / 8][4] = {};
  float m[2] = {kLowest, kLowest}, l[2] = {};

  for (int start = piece.begin; start < piece.end; start += kStage, ++count) {
    const int key_entry = 2 * count % kEntries, value_entry = (2 * count + 1) % kEntries;
    const uint32_t key_parity = 2 * count / kEntries & 1, value_parity = (2 * count + 1) / kEntries & 1;
    unsigned char* keys = shared.ring[key_entry];
    unsigned char* values = shared.ring[value_entry];
    barrier_wait(address(shared.full[key_entry]), key_parity);
    // The wide product reads whole stages, the others only boxes with tokens
    const int num_read = kWide ? kStage : min((piece.end - start + kBox - 1) / kBox * kBox, kStage);
    const bool finishes = start + kStage >= piece.end && (piece.writes || start + num_read > piece.end);
    if (finishes) {
      barrier_wait(address(shared.full[value_entry]), value_parity);
      finish_stage(launch, piece, kv_head, newest, start, num_read, keys, values);
    }
    const bool is_masked = start + kStage > full_end || (HAS_WINDOW && start < full_begin);
    // Scores of boxes without tokens are garbage; they are masked
    float scores[kTiles * 2][4] = {};
    if constexpr (kWide) {
      products_begin();
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        const uint32_t at = k / 4 * kSlabBytes + k % 4 * 32;
        multiply_add_64<Element>(scores, matrix(queries + at), matrix(shared_address(keys) + at), k > 0);
      }
      products_end(scores);
    } else if constexpr (Hooks::kHasCodes) {
      multiply_key_codes<kTiles, kHalves>(scores, queries, keys, tile, tile_rows, split);
    } else {
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        uint32_t q[4];
        load_query_fragments<kHalves>(q, queries, tile, tile_rows, k);
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
          uint32_t b[4];
          const int token = (split + i * kSplits) * kBox + lane / 16 * 8 + lane % 8;
          load_fragments(b, shared_address(keys) + chunk_offset(token, 2 * k + lane / 8 % 2));
          multiply_add<Element>(scores[2 * i], q, b[0], b[1]);
          multiply_add<Element>(scores[2 * i + 1], q, b[2], b[3]);
        }
      }
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(address(shared.free[key_entry]));

    float highest[2] = {m[0], m[1]};
    if (kScalesEarly) {
#pragma unroll
      for (int n = 0; n < kTiles * 2; ++n) {
#pragma unroll
        for (int j = 0; j < 2 * kHalves; ++j) {
          scores[n][j] = cap(scores[n][j] * scale_log2, launch.softcap_log2);
          if (Hooks::kChangesScores) {
            const int t = start + token_of(n, j);
            scores[n][j] = launch.hooks.score(scores[n][j], row_head[j / 2], row_position[j / 2] - t);
          }
        }
      }
    }
    if (is_masked) {
#pragma unroll
      for (int n = 0; n < kTiles * 2; ++n) {
#pragma unroll
        for (int j = 0; j < 2 * kHalves; ++j) {
          const int t = start + token_of(n, j);
          if (t >= row_end[j / 2] || t < row_begin[j / 2]) scores[n][j] = -INFINITY;
        }
      }
    }
#pragma unroll
    for (int n = 0; n < kTiles * 2; ++n) {
#pragma unroll
      for (int j = 0; j < 2 * kHalves; ++j) highest[j / 2] = fmaxf(highest[j / 2], scores[n][j]);
    }
    bool rises = false;
    float alpha[2], below[2];
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      highest[half] = fmaxf(highest[half], __shfl_xor_sync(~0u, highest[half], 1));
      highest[half] = fmaxf(highest[half], __shfl_xor_sync(~0u, highest[half], 2));
      rises |= highest[half] > m[half];
      alpha[half] = exp2_fast((m[half] - highest[half]) * scale);
      m[half] = highest[half];
      below[half] = -m[half] * scale + kRaise;
      l[half] *= alpha[half];
    }
    if (__any_sync(~0u, rises)) {
#pragma unroll
      for (int n = 0; n < kPaddedDim / 8; ++n) {
#pragma unroll
        for (int j = 0; j < 2 * kHalves; ++j) sums[n][j] *= alpha[j / 2];
      }
    }
    uint32_t weights[kTiles][4];
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int j = 0; j < 2 * kHalves; ++j) {
          scores[2 * i + n][j] = exp2_fast(scores[2 * i + n][j] * scale + below[j / 2]);
          l[j / 2] += scores[2 * i + n][j];
        }
        weights[i][2 * n] = pack<Product>(scores[2 * i + n][0], scores[2 * i + n][1]);
        weights[i][2 * n + 1] = kHalves == 2 ? pack<Product>(scores[2 * i + n][2], scores[2 * i + n][3]) : 0;
      }
    }
    barrier_wait(address(shared.full[value_entry]), value_parity);
    if constexpr (kWide) {
      products_begin();
#pragma unroll
      for (int box = 0; box < kStageBoxes; ++box) {
#pragma unroll
        for (int slab = 0; slab < kSlabs; ++slab) {
          auto& half = *reinterpret_cast<float(*)[8][4]>(&sums[slab * 8]);
          const uint32_t from = shared_address(values) + slab * kSlabBytes + box * (kBox * 128);
          multiply_add_64<Element>(half, weights[box], matrix(from));
        }
      }
      products_end(sums);
    } else {
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        const int box = split + i * kSplits;
        if (start + box * kBox >= piece.end) continue;  // its values are garbage
        if constexpr (Hooks::kHasCodes) {
          multiply_value_codes(sums, weights[i], shared_address(values), box);
          continue;
        }
#pragma unroll
        for (int n = 0; n < kPaddedDim / 16; ++n) {
          uint32_t b[4];
          const int token = box * kBox + lane % 16;
          load_transposed_fragments(b, shared_address(values) + chunk_offset(token, 2 * n + lane / 16));
          multiply_add<Element>(sums[2 * n], weights[i], b[0], b[1]);
          multiply_add<Element>(sums[2 * n + 1], weights[i], b[2], b[3]);
        }
      }
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(address(shared.free[value_entry]));
  }

  // Warps that split a tile's keys add up, 8 rows of each tile at a time
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    m[half] = m[half] * scale - kRaise;
    l[half] += __shfl_xor_sync(~0u, l[half], 1);
    l[half] += __shfl_xor_sync(~0u, l[half], 2);
    if (lane % 4 == 0) {
      shared.max_sum[warp][half * 8 + lane / 4][0] = m[half];
      shared.max_sum[warp][half * 8 + lane / 4][1] = l[half];
    }
  }
  named_barrier(1, 32 * kComputers);
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    if (half * 8 >= num_rows) break;
    float largest = kLowest;
    for (int i = 0; i < kSplits; ++i) {
      largest = fmaxf(largest, shared.max_sum[tile + i * kTiles][half * 8 + lane / 4][0]);
    }
    const float factor = exp2_fast(m[half] - largest);
    float* to = shared.sums[warp][lane / 4];
#pragma unroll
    for (int n = 0; n < kPaddedDim / 8; n += 2) {
      const float(&even)[4] = sums[n], (&odd)[4] = sums[n + 1];
      if constexpr (Hooks::kHasCodes) {
        *reinterpret_cast<float4*>(to + (n * 8 + lane % 4 * 4)) = make_float4(
            even[2 * half] * factor, odd[2 * half] * factor, even[2 * half + 1] * factor, odd[2 * half + 1] * factor);
      } else {
        *reinterpret_cast<float2*>(to + (n * 8 + lane % 4 * 2)) =
            make_float2(even[2 * half] * factor, even[2 * half + 1] * factor);
        *reinterpret_cast<float2*>(to + (n * 8 + 8 + lane % 4 * 2)) =
            make_float2(odd[2 * half] * factor, odd[2 * half + 1] * factor);
      }
    }
    named_barrier(1, 32 * kComputers);
    write_results<kTiles>(launch, shared, piece, kv_head, half);
    named_barrier(1, 32 * kComputers);
  }
}

}  // namespace

extern "C" __device__ int octavo_shared_bytes = sizeof(Shared);

extern "C" __global__ void __launch_bounds__(kThreads, BLOCKS_PER_MULTIPROCESSOR)
    octavo_decode_attention(const __grid_constant__ Launch launch, const __grid_constant__ TensorMap map) {
  extern __shared__ __align__(1024) unsigned char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const int warp = threadIdx.x / 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kEntries; ++i) {
      barrier_init(address(shared.full[i]), HAS_COPY_ENGINE ? 1 : 32);
      barrier_init(address(shared.free[i]), kComputers);
    }
    for (int i = 0; i < 2; ++i) {
      barrier_init(address(shared.piece_full[i]), 32);
      barrier_init(address(shared.piece_free[i]), 1);
    }
    barrier_fence_init();
  }
  __syncthreads();
  if (warp == kComputers) {
    if (IS_CHAINED && !IS_FUSED) wait_for_previous();  // which writes the newest keys
    load(launch, &map, shared);
  } else {
    if (IS_FUSED && HAS_NORM && threadIdx.x < 2 * kDim / 32) {
      prefetch((threadIdx.x % 2 ? launch.k_norm : launch.q_norm) + threadIdx.x / 2 * 32);
    }
    if (IS_CHAINED) {
      wait_for_previous();
      allow_next();
    }
    const int kv_head = blockIdx.x % launch.num_kv_heads;
    int count = 0;
    for (int turn = 0;; ++turn) {
      const Piece& piece = shared.pieces[turn % 2];
      barrier_wait(address(shared.piece_full[turn % 2]), turn / 2 & 1);
      if (piece.end == 0) return;
      const int num_rows = piece.num_members * kMemberRows;
      const auto newest = newest_chunk(launch, piece, kv_head);
      place_queries(launch, shared, piece, kv_head, num_rows);
      if (HAS_WGMMA) async_fence();
      named_barrier(1, 32 * kComputers);
      if (num_rows <= 8) {
        if constexpr (Hooks::kHasCodes) {
          compute_few(launch, shared, piece, kv_head, newest, count);
        } else {
          compute<1, 1>(launch, shared, piece, kv_head, newest, count);
        }
      } else if (num_rows <= 16) {
        compute<1, 2>(launch, shared, piece, kv_head, newest, count);
      } else if (num_rows <= 32 && !HAS_WGMMA) {
        compute<2, 2>(launch, shared, piece, kv_head, newest, count);
      } else {
        compute<4, 2>(launch, shared, piece, kv_head, newest, count);
      }
      join(launch, shared, piece, kv_head);
      named_barrier(1, 32 * kComputers);
      if (threadIdx.x == 0) barrier_arrive(address(shared.piece_free[turn % 2]));
    }
  }
}

}  // namespace octavo
