// How the weights of csrc/cuda/fp4_experts.cu come into shared memory, and their scales into registers.
#pragma once

#include "fp4_kind.cuh"

namespace octavo {
namespace {

// Copies the weights of a warp, in the order in which it multiplies them
struct Loader {
  const Launch& launch;
  const TensorMap& map;  // [matrix][span][output][128 bytes]
  Shared& shared;
  const Tiles& tiles;
  const Share& share;
  int unit, stage = 0, entry = 0;

  __device__ __forceinline__ void copy_next() {
    if (unit >= share.end) return;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const Unit own(launch, tiles, share.first_out, unit);
    if (lane == 0) {
      const uint32_t full = shared_address(&shared.full[warp][entry]), to = shared_address(shared.ring[warp][entry]);
      const int span = (stage * kTeam + warp % kTeam) * SPANS;
      barrier_arrive_expecting(full, own.has_second ? kStageBytes : kMatrixBytes);
      copy_box_once(to, &map, 0, own.out, span, own.first_matrix, full);
      if (IS_DOWN && own.has_second) copy_box_once(to + kMatrixBytes, &map, 0, own.out, span, own.second_matrix, full);
    }
    entry = entry + 1 < ENTRIES ? entry + 1 : 0;
    if (++stage < STAGES) return;
    stage = 0, unit += kTeams;
  }
};

// The scales of a lane's output of one matrix, of groups 4 (lane % 2) to that + 3 of its spans
struct Scales {
  uint32_t powers[STAGES * SPANS];

  __device__ __forceinline__ void load(const Launch& launch, const Unit& unit) {
    const int lane = threadIdx.x % 32, member = threadIdx.x / 32 % kTeam;
    const int64_t output = int64_t(unit.matrix(lane % 4 / 2)) * launch.columns + unit.out + lane / 4;
    const uint8_t* from = static_cast<const uint8_t*>(launch.scales) + output * launch.num_groups;
#pragma unroll
    for (int i = 0; i < STAGES * SPANS; ++i) {
      const int span = (i / SPANS * kTeam + member) * SPANS + i % SPANS, group = span * 8 + lane % 2 * 4;
      const uint16_t* two = reinterpret_cast<const uint16_t*>(from + group);
      powers[i] = group < launch.num_groups ? two[0] : 0;  // their number is even
      if (group + 2 < launch.num_groups) powers[i] |= two[1] << 16;
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
