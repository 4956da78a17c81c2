// The loader of one_row_experts.cu: a warp that copies weights, stage after stage.
//
// Its loops are not unrolled: a launch runs this code once, and waits for it as for any other memory.
#pragma once

#include "one_row_choice.cuh"

namespace octavo {
namespace {

struct Loader {
  const Launch& launch;
  const Maps& maps;
  Shared& shared;
  Share share{launch};
  const int lane = threadIdx.x % 32;
  int count = 0;  // of copies

  // Once the previous kernel has ended
  __device__ __forceinline__ void run() {
#if IS_CHAINED
    wait_for_previous();
#endif
    const uint32_t number = number_of_launch(launch.count);
    __syncthreads();
    if (lane == 0) count_block(launch.count);
    if (IS_TOGETHER) {
      barrier_wait(shared_address(&shared.chosen), 0);
    } else {
      choose_alone(launch, shared, number);
    }
    if (lane > 0) return;
    share.set_units(shared.tiles.number);
    copy_gate_up();
    copy_down();
  }

  // Of each unit gate and up in turns. With more on their way than keep the memory busy, some multiprocessors get more of
  // it than others, for which all wait then
  __device__ __forceinline__ void copy_gate_up() {
#pragma unroll 1
    for (int unit = share.first; unit < share.end; ++unit) {
      const int matrix = shared.tiles.expert[share.tile(unit)] * 2, out = share.output(unit);
#pragma unroll 1
      for (int stage = 0; stage < FIRST_STAGES * 2; ++stage) {
        if (FLIGHT < ENTRIES && count >= FLIGHT) wait_until_read(count - FLIGHT);
        copy(maps.first, {out, stage / 2 * FIRST_SPANS, matrix + stage % 2}, FIRST_SPANS);
      }
    }
  }

  // What finds no room in the ring before the second product begins is in the L2 cache then: as much again as the ring
  // holds, since of large experts more would not stay there
  __device__ __forceinline__ void copy_down() {
    const int num = (share.end_out - share.first_out) * shared.tiles.number * SECOND_STAGES;
#pragma unroll 1
    for (int i = 0; i < num; ++i) {
#pragma unroll 1
      for (int j = i; i == ENTRIES && j < min(num, 2 * ENTRIES); ++j) {
        const Box later = box_of_down(j);
        prefetch_box(&maps.second, 0, later.out, later.span, later.matrix);
      }
      copy(maps.second, box_of_down(i), SECOND_SPANS);
    }
  }

  struct Box {
    int out, span, matrix;
  };

  __device__ __forceinline__ Box box_of_down(int i) const {
    const int per_out = shared.tiles.number * SECOND_STAGES, out = share.first_out + i / per_out;
    return {out * 8, i % SECOND_STAGES * SECOND_SPANS, shared.tiles.expert[i % per_out / SECOND_STAGES]};
  }

  __device__ __forceinline__ void wait_until_read(int copied) const {
    barrier_wait(shared_address(&shared.free[copied % ENTRIES]), copied / ENTRIES & 1);
  }

  __device__ __forceinline__ void copy(const TensorMap& map, const Box& box, int num_spans) {
    const int entry = count % ENTRIES;
    barrier_wait(shared_address(&shared.free[entry]), (count / ENTRIES & 1) ^ 1);
    const uint32_t full = shared_address(&shared.full[entry]);
    barrier_arrive_expecting(full, num_spans * 1024);
    copy_box_once(shared_address(shared.ring[entry]), &map, 0, box.out, box.span, box.matrix, full);
    ++count;
  }
};

}  // namespace
}  // namespace octavo
