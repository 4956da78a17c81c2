// Norms and rotates the queries and new keys of decode_attention.cu, and writes them where the products read them.
#pragma once

#include "attention_codes.cuh"

namespace octavo {
namespace {

constexpr int kChunks = kDim / 8;  // of 16 bytes, in a head
constexpr int kLanes = kChunks <= 8 ? 8 : kChunks <= 16 ? 16 : 32;

__device__ __forceinline__ uint4 packed(const float (&x)[8]) {
  return {pack<Element>(x[0], x[1]), pack<Element>(x[2], x[3]), pack<Element>(x[4], x[5]), pack<Element>(x[6], x[7])};
}

// x times the scales that the projection left: of its row, and of its columns from `at` on
__device__ __forceinline__ void multiply_scales(const Launch& launch, Eight& x, int token, int at) {
  const float row = __ldg(launch.row_scales + token);
  const Eight columns = eight(launch.column_scales + at);
#pragma unroll
  for (int i = 0; i < 8; ++i) x.x[i] *= columns.x[i] * row;
}

// Dims 8 * chunk to 8 * chunk + 7 of a token's head, normed and rotated. All kLanes threads of a head must call it.
[[maybe_unused]] __device__ __forceinline__ Eight transform(const Launch& launch, int token, int head,
                                                            const float* norm, int position, int chunk, bool is_there) {
  const Element* from = launch.q + token * launch.q_stride + head * kDim;
  Eight own = {}, weight = {};
  Hooks::Rotation<Element, ROTARY_DIM, bool(HAS_NORM)> rotation;
  const int d = chunk * 8;
  const bool turns = ROTARY_DIM > 0 && d < ROTARY_DIM;
  if (is_there) {
    own = eight(from + d);
    if (HAS_NORM) weight = eight(norm + d);
    const int64_t angles = int64_t(position) * (ROTARY_DIM / 2);
    if (turns) rotation.load(from, norm, launch.cos + angles, launch.sin + angles, d);
    if (launch.row_scales != nullptr) {
      multiply_scales(launch, own, token, head * kDim + d);
      if (turns) rotation.multiply(launch.column_scales + head * kDim, __ldg(launch.row_scales + token), d);
    }
  }
  if (HAS_NORM) {
    float squares = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) squares += own.x[i] * own.x[i];
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) squares += __shfl_xor_sync(~0u, squares, step);
    const float factor = rsqrtf(squares / kDim + launch.eps);
#pragma unroll
    for (int i = 0; i < 8; ++i) own.x[i] *= factor * weight.x[i];
    rotation.scale(factor);
  }
  if (turns) rotation.turn(own, d);
  return own;
}

// A half, unless it is too large for one: then the largest
__device__ __forceinline__ float in_half(float x) { return fabsf(x) > 65504.0f ? copysignf(65504.0f, x) : x; }

// Dims 8 * chunk to 8 * chunk + 7 of a query row. Where keys are codes, a thread of a product reads 16 of a token's dims
// at once, from 16 t on, t = lane % 4, for four steps of the product: so step j has, of four threads, dims 4 j and
// 4 j + 1 in its first half, and the next two in its second; and rows are multiplied by `scale`, and halves.
__device__ __forceinline__ void place_query(unsigned char* q, int row, int chunk, uint4 x, float scale) {
  if constexpr (!Hooks::kHasCodes) {
    *reinterpret_cast<uint4*>(q + chunk_offset(row, chunk)) = x;
  } else {
    const Eight dims = eight(reinterpret_cast<const Element*>(&x));
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int step = chunk / 8 * 4 + chunk % 2 * 2 + i;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float first = dims.x[4 * i + 2 * j] * scale, second = dims.x[4 * i + 2 * j + 1] * scale;
        const uint32_t pair = pack<Fp16>(in_half(first), in_half(second));
        *reinterpret_cast<uint32_t*>(q + chunk_offset(row, 2 * step + j) + chunk % 8 / 2 * 4) = pair;
      }
    }
  }
}

// Writes the piece's queries to shared memory; rows that pad them to 8, or to a multiple of 16, are zero.
__device__ void place_queries(const Launch& launch, Shared& shared, const Piece& piece, int kv_head, int num_rows) {
  const int rows = num_rows <= 8 ? 8 : (num_rows + 15) / 16 * 16;
  const int chunk = threadIdx.x % kLanes;
  const float scale = launch.scale_log2 * launch.hooks.unit(kv_head, false, launch.num_kv_heads);
#pragma unroll 2
  for (int first = 0; first < rows; first += 32 * kComputers / kLanes) {  // all threads take the same turns
    const int row = first + threadIdx.x / kLanes;
    const int sub = row % kMemberRows, query = sub / GROUP;
    const Member& member = piece.members[min(row, num_rows - 1) / kMemberRows];
    const bool is_there = row < num_rows && query < member.num_queries && chunk < kChunks;
    const int token = member.token + query, head = kv_head * GROUP + sub % GROUP;
    uint4 x = {};
#if IS_FUSED
    x = packed(transform(launch, token, head, launch.q_norm, member.position + query, chunk, is_there).x);
#else
    if (is_there) x = reinterpret_cast<const uint4*>(launch.q + token * launch.q_stride + head * kDim)[chunk];
#endif
    if (row < rows && chunk < kPaddedDim / 8) place_query(shared.q, row, chunk, is_there ? x : uint4{}, scale);
  }
}

// This thread's eight numbers of the new token's key (warp 2, normed and rotated) or value (warp 3), as the cache has
// them, if the piece writes them. Read early, beside the queries: warps 2 and 3 have none of them where up to 4 heads
// share a kv head.
__device__ __forceinline__ Hooks::StoredEight newest_chunk(const Launch& launch, const Piece& piece, int kv_head) {
#if IS_FUSED
  uint4 x = {};
  const int kind = int(threadIdx.x / 32) - 2, chunk = threadIdx.x % kLanes;
  if (!piece.writes || kind < 0) return {};
  const Member& member = piece.members[0];
  const int head = launch.num_kv_heads * (GROUP + kind) + kv_head;
  if (kind == 0) {
    x = packed(transform(launch, member.token, head, launch.k_norm, member.position, chunk, chunk < kChunks).x);
  } else if (chunk < kChunks) {
    x = reinterpret_cast<const uint4*>(launch.q + member.token * launch.q_stride + head * kDim)[chunk];
    if (launch.row_scales != nullptr) {
      Eight value = eight(reinterpret_cast<const Element*>(&x));
      multiply_scales(launch, value, member.token, head * kDim + chunk * 8);
      x = packed(value.x);
    }
  }
  return launch.hooks.to_stored<Element>(x, kv_head, kind == 1, launch.num_kv_heads);
#else
  return {};
#endif
}

// Finishes the stage in which a sequence ends. If fused, writes the new token's key and value there and to the cache.
// Zeroes the values after the last token, up to num_read tokens of the stage: they may hold NaN, and 0 * NaN is NaN.
__device__ void finish_stage(const Launch& launch, const Piece& piece, int kv_head, Hooks::StoredEight newest,
                             int start, int num_read, unsigned char* keys, unsigned char* values) {
  const int last = piece.end - 1 - start;  // the newest token's place in the stage
#if IS_FUSED
  const int lane = threadIdx.x % 32, kind = int(threadIdx.x / 32) - 2;
  if (piece.writes && kind >= 0 && lane < kChunks) {
    const Member& member = piece.members[0];
    Stored* cell = launch.pool + member.newest_block * launch.block_stride + kind * launch.value_offset +
                   (kv_head * BLOCK_SIZE + member.position % BLOCK_SIZE) * kDim;
    reinterpret_cast<Hooks::StoredEight*>(cell)[lane] = newest;
    unsigned char* entry = (kind == 0 ? keys : values) + chunk_offset(last, lane * 8 / kChunkDims);
    reinterpret_cast<Hooks::StoredEight*>(entry)[lane % (kChunkDims / 8)] = newest;
  }
#endif
  constexpr int kTokenChunks = kRingSlabs * 8;
  for (int i = threadIdx.x; i < (num_read - 1 - last) * kTokenChunks; i += 32 * kComputers) {
    const int token = last + 1 + i / kTokenChunks;
    *reinterpret_cast<uint4*>(values + chunk_offset(token, i % kTokenChunks)) = uint4{};
  }
  if (HAS_COPY_ENGINE) async_fence();
  named_barrier(1, 32 * kComputers);
}

}  // namespace
}  // namespace octavo
