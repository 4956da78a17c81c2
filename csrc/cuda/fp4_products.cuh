// The products of fp4_experts.cu: weights become bytes, and meet rows of integers.
//
// e2m1 is half of an integer: 0 1 2 3 4 6 8 12, and their negatives. Four nibbles become four bytes when they look up a
// table of eight: a nibble with a sign gets the sign of the byte that it finds, eight times. So one look-up gives
//
//   nibbles    0  1  2  3  4  5  6   7      8 to 15
//   bytes      0  2  3  4  5  7  9  13      0
//   another    0 -1 -1 -1 -1 -1 -1  -1      0 -1 -2 -3 -4 -6 -8 -12      by nibbles with their highest bit turned
//
// and the sum of both is the number. Both are multiplied by x, which is integers, too (fp4_rows.cuh), and add up exactly.
// mma 16 x 8 x 32: the rows of the first operand are 8 outputs of each matrix; the columns of the second are
//
//   column     0    1    2    3    4    5    6    7
//              x of matrix 0       x of matrix 1
//              group 0   group 1   group 0   group 1       of 32 inputs, which share a scale
//              high low  high low  high low  high low      bytes
//
// Threads t and t + 2 of four (lane % 4) hold the weights of group t; their x of the other group is zero.
#pragma once

#include "activate.cuh"
#include "fp4_load.cuh"

namespace octavo {
namespace {

// What a nibble looks up, and a nibble with its highest bit turned
constexpr uint32_t kLow = 0x04030200, kHigh = 0x0d090705, kTurnedLow = 0xfdfeff00, kTurnedHigh = 0xf4f8fafc;

struct Computer {
  const Launch& launch;
  Shared& shared;
  const Tiles& tiles;
  const Units& units;
  Loader& loader;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, team = warp / kTeam, member = warp % kTeam;
  const int output = lane / 4, own_half = lane % 4 / 2, own_group = lane % 2;
  const bool has_x = lane / 8 % 2 == own_group;
  const uint32_t low = kept(kLow), turned_low = kept(kTurnedLow);
  Scales scales{launch, units};
  int entry = 0, parity = 0;

  // Does not wait for the rows
  __device__ __forceinline__ void begin() {
    scales.prefetch_all();
    scales.load();
  }

  __device__ __forceinline__ void run() {
#pragma unroll 1
    for (int unit = 0; unit < units.num_units; ++unit) {
      const int tile = __shfl_sync(~0u, units.tile, unit);
      const bool has_second = __shfl_sync(~0u, units.has_second, unit);
      if constexpr (IS_DOWN) {
        const int own = tile + (own_half && has_second);
        const float weight = __shfl_sync(~0u, tiles.weight, own);
        const float sum = multiply(tile + (lane / 16 && has_second), own);
        add(unit, own_half && !has_second ? 0 : sum * weight);
      } else {
        const int64_t row = units.row(launch, unit, lane / 8 % 2, lane % 8);
        ELEMENT bias = {};  // becomes a number when it is needed: till then nothing waits for it
        if (launch.bias != nullptr) bias = launch.bias[row];
        finish(unit, tile, multiply(0, 0), bias);
      }
    }
  }

  // The sum over this lane's groups, of its output of its matrix. The rows of x: whose integers, and whose scales
  __device__ __forceinline__ float multiply(int x_row, int scale_row) {
    float sum = 0;
#pragma unroll 1
    for (int stage = 0; stage < STAGES; ++stage) {
      barrier_wait(shared_address(&shared.full[warp][entry]), parity);
      scales.go_on();
#pragma unroll
      for (int i = 0; i < SPANS; ++i) {
        const int span = span_at(stage * SPANS + i);
        const uint8_t* x = shared.x[x_row][span] + own_group * 64 + lane / 4 % 2 * 32 + own_half * 16;
        const float* x_scales = shared.x_scales[scale_row][span] + own_group * 4;
        multiply_span(sum, shared.ring[warp][entry] + i * 1024, has_x ? x : shared.zeros, x_scales, scales.of_span(i));
      }
      __syncwarp();
      loader.copy_next();
      if (++entry == ENTRIES) entry = 0, parity ^= 1;
    }
    return sum;
  }

  __device__ __forceinline__ void multiply_span(float& sum, const uint8_t* weights, const uint8_t* x,
                                                const float* x_scales, uint32_t powers) const {
    const uint32_t place = (output ^ own_group * 4) * 16;
    weights += output * 128 + own_half * 8;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint2 first = *reinterpret_cast<const uint2*>(weights + (place ^ i * 16));
      const uint2 second = *reinterpret_cast<const uint2*>(weights + (place ^ i * 16) + kMatrixBytes);
      const uint4 own = *reinterpret_cast<const uint4*>(x + i * 128);
      int c[4];
      multiply_word<true>(c, first.x, second.x, own.x, own.y);
      multiply_word<false>(c, first.y, second.y, own.z, own.w);
      const int code = (own_half ? c[2] : c[0]) * 256 + (own_half ? c[3] : c[1]);
      sum = fmaf(float(code) * x_scales[i], Scales::of(powers, i), sum);
    }
  }

  template <bool kBegins>
  __device__ __forceinline__ void multiply_word(int (&c)[4], uint32_t first, uint32_t second, uint32_t x0,
                                                uint32_t x1) const {
    uint32_t a[4];
    look_up_all(a, low, kHigh, first, second);
    if (kBegins) {
      multiply_signed_bytes(c, a, x0, x1);
    } else {
      multiply_add_signed_bytes(c, a, x0, x1);
    }
    look_up_all(a, turned_low, kTurnedHigh, first ^ 0x88888888, second ^ 0x88888888);
    multiply_add_signed_bytes(c, a, x0, x1);
  }

  static __device__ __forceinline__ void look_up_all(uint32_t (&a)[4], uint32_t low, uint32_t high, uint32_t first,
                                                     uint32_t second) {
    a[0] = look_up(low, high, first);
    a[1] = look_up(low, high, second);
    a[2] = look_up(low, high, first >> 16);
    a[3] = look_up(low, high, second >> 16);
  }

  // gate_up: one warp of the team has its sums
  __device__ __forceinline__ void finish(int unit, int tile, float sum, ELEMENT bias) {
    sum += __shfl_xor_sync(~0u, sum, 1);
    if (own_group == 0) shared.sums[unit % 2][warp][own_half * 8 + output] = sum;
    const int64_t pair = __shfl_sync(~0u, tiles.pair, tile), out = __shfl_sync(~0u, units.out, unit);
    if (kTeam > 1) {
      named_barrier(1 + team, kTeam * 32);
    } else {
      __syncwarp();
    }
    if (member != unit % kTeam) return;
    float y = to_float(bias);
#pragma unroll
    for (int j = 0; j < kTeam; ++j) y += shared.sums[unit % 2][team * kTeam + j][lane % 16];
    const float up = __shfl_xor_sync(~0u, y, 8), z = gated(y, up, GATE, launch.alpha, launch.limit);
    if (lane < 8) launch.out[pair * launch.out_stride + out + lane] = ELEMENT{uint16_t(pack<ELEMENT>(z, 0))};
  }

  // down: to this warp's sums of the outputs
  __device__ __forceinline__ void add(int unit, float sum) const {
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    const int out = __shfl_sync(~0u, units.out, unit) / 8 - units.first_out;
    if (lane % 4 == 0) shared.sums[out][warp][output] += sum;
  }
};

}  // namespace
}  // namespace octavo
