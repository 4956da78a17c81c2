// The loader of experts.cu: a warp that copies weights and rows, stage after stage.
#pragma once

#include "expert_kind.cuh"

namespace octavo {
namespace {

// The units of a group, a lane each
struct Places {
  int tile, out, matrix, rows;

  __device__ __forceinline__ void look(const Walk& walk, const Shared& shared) {
    const int lane = threadIdx.x % 32;
    if (!walk.begins_group() || lane >= walk.count()) return;
    tile = walk.tile(lane);
    out = walk.output(lane);
    matrix = shared.choices.expert_of[tile] * kHalves;
    rows = shared.choices.rows_in[tile];
  }
};

struct Loader {
  const Launch& launch;
  const TensorMap& map;  // [matrix][span][output][128 bytes], for gate_up two matrices an expert
  Shared& shared;
  const int lane = threadIdx.x % 32;

  __device__ void run(Walk walk) {
    int count = 0;
    Places places;
    if (IS_DOWN) {
      Places next;
      for (Walk ahead = walk; count < ENTRIES && ahead.has_more(); ahead.next_stage(), ++count) {
        next.look(ahead, shared);
        load_weights(count, ahead, next);
      }
#if IS_CHAINED
      wait_for_previous();
#endif
      for (int i = 0; i < count; ++i, walk.next_stage()) {
        places.look(walk, shared);
        load_rows(i, walk, places);
      }
    }
    for (; walk.has_more(); walk.next_stage(), ++count) {
      places.look(walk, shared);
      barrier_wait(shared_address(&shared.free[count % ENTRIES]), (count / ENTRIES & 1) ^ 1);
      load_weights(count, walk, places);
      load_rows(count, walk, places);
    }
  }

  __device__ __forceinline__ void load_weights(int count, const Walk& walk, const Places& places) {
    const int rows = __shfl_sync(~0u, places.rows, walk.place), out = __shfl_sync(~0u, places.out, walk.place);
    const int matrix = __shfl_sync(~0u, places.matrix, walk.place), entry = count % ENTRIES;
    if (lane == 0) {
      const uint32_t full = shared_address(&shared.full[entry]);
      barrier_arrive_expecting(full, kWeightBytes + rows * walk.spans(walk.span) * (kInputs * 2));
      publish(shared_address(&shared.num_begun), count + 1);
      copy_box_once(shared_address(shared.ring[entry]), &map, 0, out, walk.span, matrix, full);
    }
    __syncwarp();
  }

  __device__ __forceinline__ void load_rows(int count, const Walk& walk, const Places& places) {
    const int tile = __shfl_sync(~0u, places.tile, walk.place), rows = __shfl_sync(~0u, places.rows, walk.place);
    const int entry = count % ENTRIES;
    if (lane >= rows) return;
    const int row = IS_DOWN ? shared.choices.pair_at[tile][lane] : shared.choices.row_at[tile][lane];
    const ELEMENT* from = launch.x + row * launch.x_stride + walk.span * kInputs;
    const uint32_t to = shared_address(shared.ring[entry]) + kWeightBytes + lane * kRowBytes;
    copy_bytes(to, from, walk.spans(walk.span) * kInputs * 2, shared_address(&shared.full[entry]));
  }
};

}  // namespace
}  // namespace octavo
