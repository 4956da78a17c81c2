// The loader of one_row_experts.cu: a warp that copies weights, stage after stage.
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
  int step = kGateUp, at = 0, stage = 0, count = 0;  // at: the unit; count: of copies

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
    share.set_units(shared.tiles.number);
    copy_all();
  }

  __device__ __forceinline__ void copy_all() {
    int end = share.end, stages = FIRST_STAGES * 2;
    at = share.first;
#pragma unroll 1
    for (;;) {
      if (at >= end || stages == 0) {
        if (++step > kDown) return;
        at = share.first_out, end = share.end_out, stages = shared.tiles.number * SECOND_STAGES;
        continue;
      }
      if (lane == 0) copy();
      ++count;
      if (++stage == stages) stage = 0, ++at;
    }
  }

  __device__ __forceinline__ void copy() const {
    const bool is_down = step == kDown;
    const int num_spans = is_down ? SECOND_SPANS : FIRST_SPANS, out = is_down ? at * 8 : share.output(at);
    int span = stage % SECOND_STAGES * SECOND_SPANS, matrix = shared.tiles.expert[is_down ? stage / SECOND_STAGES : 0];
    if (!is_down) {
      span = stage % FIRST_STAGES * FIRST_SPANS;
      matrix = shared.tiles.expert[share.tile(at)] * 2 + stage / FIRST_STAGES;
    }
    const TensorMap* map = is_down ? &maps.second : &maps.first;
    const int entry = count % ENTRIES;
    barrier_wait(shared_address(&shared.free[entry]), (count / ENTRIES & 1) ^ 1);
    const uint32_t full = shared_address(&shared.full[entry]);
    barrier_arrive_expecting(full, num_spans * 1024);
    copy_box_once(shared_address(shared.ring[entry]), map, 0, out, span, matrix, full);
  }
};

}  // namespace
}  // namespace octavo
