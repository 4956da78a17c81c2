// How the weights of csrc/cuda/fp4_experts.cu come into shared memory, and their scales into registers.
#pragma once

#include "fp4_choice.cuh"

namespace octavo {
namespace {

// Copies the weights of a warp, in the order in which it multiplies them. The lane that has a unit copies it
struct Loader {
  const Launch& launch;
  const TensorMap& map;  // [matrix][span][output][128 bytes]
  Shared& shared;
  const Units& units;
  int unit = 0, stage = 0, entry = 0;

  __device__ __forceinline__ void copy_next() {
    const int warp = threadIdx.x / 32;
    if (unit < units.num_units && threadIdx.x % 32 == unit) {
      const uint32_t full = shared_address(&shared.full[warp][entry]), to = shared_address(shared.ring[warp][entry]);
      const int span = span_at(stage * SPANS);
      barrier_arrive_expecting(full, units.has_second ? kStageBytes : kMatrixBytes);
      copy_box_once(to, &map, 0, units.out, span, units.first_matrix, full);
      if (IS_DOWN && units.has_second) copy_box_once(to + kMatrixBytes, &map, 0, units.out, span, units.second_matrix, full);
    }
    entry = entry + 1 < ENTRIES ? entry + 1 : 0;
    if (++stage == STAGES) stage = 0, ++unit;
  }
};

// The scales of a lane's output of one matrix, of groups 4 (lane % 2) to that + 3 of each span of a stage. They are on
// their way while the stage before is multiplied: nothing may touch them till then, so two bytes wait for the other two
struct Scales {
  const Launch& launch;
  const Units& units;
  int unit = 0, stage = 0;
  const uint8_t* from = nullptr;
  uint32_t now[SPANS][2], next[SPANS][2];

  // Begins to load those of the next stage
  __device__ __forceinline__ void load() {
#pragma unroll
    for (int i = 0; i < SPANS; ++i) next[i][0] = next[i][1] = 0;
    if (unit >= units.num_units) return;
    const int lane = threadIdx.x % 32;
    if (stage == 0) {
      const int64_t output = units.row(launch, unit, lane % 4 / 2, lane / 4);
      from = static_cast<const uint8_t*>(launch.scales) + output * launch.num_groups;
    }
#pragma unroll
    for (int i = 0; i < SPANS; ++i) {
      const int group = span_at(stage * SPANS + i) * 8 + lane % 2 * 4;
      const uint16_t* two = reinterpret_cast<const uint16_t*>(from + group);
      if (group < launch.num_groups) next[i][0] = two[0];  // their number is even
      if (group + 2 < launch.num_groups) next[i][1] = two[1];
    }
    if (++stage == STAGES) stage = 0, ++unit;
  }

  __device__ __forceinline__ void go_on() {
#pragma unroll
    for (int i = 0; i < SPANS; ++i) now[i][0] = next[i][0], now[i][1] = next[i][1];
    load();
  }

  // Four powers, a byte each
  __device__ __forceinline__ uint32_t of_span(int i) const { return now[i][0] | now[i][1] << 16; }

  // Brings those of all units to the L2 cache
  __device__ __forceinline__ void prefetch_all() const {
    const int lane = threadIdx.x % 32;
#pragma unroll 1
    for (int i = 0; i < units.num_units; ++i) {
      const uint8_t* own = static_cast<const uint8_t*>(launch.scales) +
                           units.row(launch, i, lane % 4 / 2, lane / 4) * launch.num_groups;
#pragma unroll 1
      for (int at = lane % 2 * 32; at < launch.num_groups; at += 64) prefetch(own + at);
      if (lane % 2) prefetch(own + launch.num_groups - 1);
    }
  }

  // 2^(power - 127). A float has 2^-127 as half of its smallest normal number
  static __device__ __forceinline__ float of(uint32_t powers, int i) {
    const uint32_t placed = i < 3 ? powers << (23 - 8 * i) : powers >> 1;
    return __uint_as_float(max(placed & 0x7f800000, 1u << 22));
  }
};

}  // namespace
}  // namespace octavo
