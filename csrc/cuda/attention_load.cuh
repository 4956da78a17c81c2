// The loader of decode_attention.cu: a warp that walks the thread block's stretches and copies keys and values.
#pragma once

#include "attention_kind.cuh"

namespace octavo {
namespace {

// Walks the pieces of this thread block's stretches; every warp's walk is the same.
struct Walk {
  const Launch& launch;
  int stretch, kv_head;
  Stretch now;  // its `unit` and `first` are those of the piece
  bool is_first = true;  // of the stretch's pieces

  __device__ explicit Walk(const Launch& launch) : launch(launch) {
    kv_head = blockIdx.x % launch.num_kv_heads;
    stretch = blockIdx.x / launch.num_kv_heads;
    read(now, launch.plan.stretches[stretch]);
    find();
  }

  // If no part of the unit is in this stretch, goes on to the next stretch's first unit.
  __device__ void find() {
    while (stretch < now.num_stretches && (now.unit >= now.num_units || now.first.first_stretch > stretch)) {
      stretch += launch.num_stretches;
      if (stretch < now.num_stretches) read(now, launch.plan.stretches[stretch]);
      is_first = true;
    }
  }

  // 16 bytes at a time
  template <typename T>
  static __device__ void read(T& to, const T& from) {
    const int4* words = reinterpret_cast<const int4*>(&from);
#pragma unroll
    for (int i = 0; i < int(sizeof(T) / 16); ++i) reinterpret_cast<int4*>(&to)[i] = words[i];
  }

  __device__ bool has_piece() const { return stretch < now.num_stretches; }
  __device__ int begin() const { return first_token(now.first, stretch, now.length); }
  __device__ int end() const { return min(now.first.end, first_token(now.first, stretch + 1, now.length)); }

  // Of the four boxes with which the stretch begins
  __device__ int first_block(int box) const {
    const int even = box & 2 ? now.blocks[2] : now.blocks[0], odd = box & 2 ? now.blocks[3] : now.blocks[1];
    return box & 1 ? odd : even;
  }

  __device__ void advance() {
    is_first = false;
    if (++now.unit < now.num_units) read(now.first, launch.plan.units[now.unit]);
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
    const Unit& unit = walk.now.first;
    const int num_members = unit.num_members;
    const uint4* from = reinterpret_cast<const uint4*>(launch.plan.members + unit.members);
    const uint32_t to = shared_address(piece.members);
    for (int i = lane; i < num_members * int(sizeof(Member) / 16); i += 32) copy_16(to + 16 * i, from + i, true);
    if (lane == 0) {
      piece.begin = walk.begin();
      piece.end = walk.end();
      piece.num_members = num_members;
      piece.part_row = unit.part_rows + (walk.stretch - unit.first_stretch) * num_members;
      piece.writes = IS_FUSED && !unit.is_shared && walk.end() == unit.end;
    }
  }
  arrive_when_copied(address(shared.piece_full[turn % 2]));
}

// The first member's angles, which its queries will need at once
[[maybe_unused]] __device__ __forceinline__ void prefetch_angles(const Launch& launch, const Walk& walk) {
  const int lane = threadIdx.x % 32;
  if (lane >= ROTARY_DIM / 32) return;  // lines of 32 angles, of cosines and sines
  const int64_t angles = int64_t(launch.plan.members[walk.now.first.members].position) * (ROTARY_DIM / 2);
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
    const int* table = launch.block_table + walk.now.first.table_row * launch.table_stride;
    int blocks = 0;  // the blocks of 32 boxes, one per lane
    for (int first = 0; first < num_boxes; first += kStageBoxes, ++count) {
      if (first == 0 && walk.is_first) {  // known, so that they do not wait for the table
        blocks = walk.first_block(lane);
      } else if (first % 32 == 0 || (first == kStageBoxes && walk.is_first)) {
        const int box = min(first / 32 * 32 + lane, num_boxes - 1);
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
