// The loader of decode_attention.cu: a warp that walks the thread block's stretches and copies keys and values.
#pragma once

#include "attention_kind.cuh"

namespace octavo {
namespace {

// Walks the pieces of this thread block's stretches; every warp's walk is the same.
struct Walk {
  const Launch& launch;
  int stretch, unit, kv_head, stretch_length, num_units;
  int num_stretches;
  int4 span, place, cut;  // the unit's fields, in order

  __device__ explicit Walk(const Launch& launch) : launch(launch) {
    kv_head = blockIdx.x % launch.num_kv_heads;
    stretch = blockIdx.x / launch.num_kv_heads;
    num_units = launch.plan.totals[0];
    stretch_length = launch.plan.totals[1];
    num_stretches = launch.plan.totals[2];
    unit = stretch < num_stretches ? launch.plan.stretch_units[stretch] : 0;
    find();
  }

  // Reads the unit's fields; if no part of the unit is in this stretch, those of the next stretch's first unit.
  __device__ void find() {
    while (stretch < num_stretches) {
      if (unit < num_units) {
        const int4* fields = reinterpret_cast<const int4*>(launch.plan.units + unit);
        span = fields[0];
        place = fields[1];
        cut = fields[2];
        if (place.z <= stretch) return;
      }
      stretch += launch.num_stretches;
      if (stretch < num_stretches) unit = launch.plan.stretch_units[stretch];
    }
  }

  __device__ bool has_piece() const { return stretch < num_stretches; }
  __device__ int begin() const { return first_token(stretch); }
  __device__ int end() const { return min(span.z, first_token(stretch + 1)); }

  // The first token of the first of the unit's boxes that begins in this stretch or after it.
  __device__ int first_token(int stretch) const {
    const int start = cut.x, cost = cut.y;
    return span.y + max(stretch * stretch_length - start + cost - 1, 0) / cost * kBox;
  }

  __device__ void advance() {
    ++unit;
    find();
  }
};

// Publishes the next piece to the computers. When this returns, its members are still being copied.
__device__ __forceinline__ void announce(const Launch& launch, Shared& shared, const Walk& walk, int turn) {
  const int lane = threadIdx.x % 32;
  Piece& piece = shared.pieces[turn % 2];
  barrier_wait(address(shared.piece_free[turn % 2]), (turn / 2 & 1) ^ 1);
  if (!walk.has_piece()) {
    if (lane == 0) piece.end = 0;
  } else {
    const int num_members = walk.span.w;
    const uint4* from = reinterpret_cast<const uint4*>(launch.plan.members + walk.place.x);
    const uint32_t to = shared_address(piece.members);
    for (int i = lane; i < num_members * int(sizeof(Member) / 16); i += 32) copy_16(to + 16 * i, from + i, true);
    if (lane == 0) {
      piece.begin = walk.begin();
      piece.end = walk.end();
      piece.num_members = num_members;
      piece.part_row = walk.place.y + (walk.stretch - walk.place.z) * num_members;
      piece.writes = IS_FUSED && !walk.cut.z && walk.end() == walk.span.z;
    }
  }
  arrive_when_copied(address(shared.piece_full[turn % 2]));
}

// The first member's angles, which its queries will need at once
[[maybe_unused]] __device__ __forceinline__ void prefetch_angles(const Launch& launch, const Walk& walk) {
  const int lane = threadIdx.x % 32;
  if (lane >= ROTARY_DIM / 32) return;  // lines of 32 angles, of cosines and sines
  const int64_t angles = int64_t(launch.plan.members[walk.place.x].position) * (ROTARY_DIM / 2);
  prefetch((lane % 2 ? launch.sin : launch.cos) + angles + lane / 2 * 32);
}

__device__ void load(const Launch& launch, const void* map, Shared& shared) {
  const int lane = threadIdx.x % 32;
  int count = 0;  // stages
  int turn = 0;
  Walk walk(launch);
  for (; walk.has_piece(); walk.advance(), ++turn) {
    announce(launch, shared, walk, turn);
    if (turn == 0 && IS_FUSED && ROTARY_DIM > 0) prefetch_angles(launch, walk);
    const int begin = walk.begin(), end = walk.end();
    const int num_boxes = (end - begin + kBox - 1) / kBox;
    const int* table = launch.block_table + walk.span.x * launch.table_stride;
    int blocks = 0;  // the blocks of 32 boxes, one per lane
    for (int first = 0; first < num_boxes; first += kStageBoxes, ++count) {
      if (first % 32 == 0) {
        const int box = min(first + lane, num_boxes - 1);
        blocks = table[(begin + box * kBox) / BLOCK_SIZE];
      }
      const int boxes = min(num_boxes - first, kStageBoxes);
      for (int kind = 0; kind < 2; ++kind) {  // keys, values
        const int use = 2 * count + kind;
        const uint32_t full = address(shared.full[use % kEntries]);
        barrier_wait(address(shared.free[use % kEntries]), (use / kEntries & 1) ^ 1);
        const uint32_t entry = shared_address(shared.ring[use % kEntries]);
#if HAS_COPY_ENGINE
        const int block = __shfl_sync(~0u, blocks, (first + lane % kStageBoxes) % 32);
        if (lane == 0) barrier_arrive_expecting(full, boxes * kRingSlabs * kBox * 128);
        __syncwarp();
        if (lane < boxes) {
          const int token = begin + (first + lane) * kBox;
          const int head = walk.kv_head + kind * launch.num_kv_heads;
          const int row = block * launch.block_rows + launch.layer_row + head * BLOCK_SIZE + token % BLOCK_SIZE;
          for (int slab = 0; slab < kRingSlabs; ++slab) {
            copy_box(entry + slab * kSlabBytes + lane * (kBox * 128), map, slab * kSlabDims, row, full);
          }
        }
#else
        constexpr int kTokenChunks = kRingSlabs * 8;
        for (int box = 0; box < boxes; ++box) {
          const int block = __shfl_sync(~0u, blocks, (first + box) % 32);
          const int start = begin + (first + box) * kBox;
          const Stored* from = launch.pool + block * launch.block_stride + kind * launch.value_offset +
                               (walk.kv_head * BLOCK_SIZE + start % BLOCK_SIZE) * kDim;
          for (int i = lane; i < kBox * kTokenChunks; i += 32) {
            const int token = i / kTokenChunks, chunk = i % kTokenChunks, dim = chunk * kChunkDims;
            const bool is_there = start + token < end && dim < kDim;
            copy_16(entry + chunk_offset(box * kBox + token, chunk), is_there ? from + token * kDim + dim : from, is_there);
          }
        }
        arrive_when_copied(full);
#endif
      }
    }
  }
  announce(launch, shared, walk, turn);
}

}  // namespace
}  // namespace octavo
