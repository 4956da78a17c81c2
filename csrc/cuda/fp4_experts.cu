// One row times its experts in MXFP4, by integer products: as experts.cu, with less than half the instructions a weight.
//
// A persistent grid, one block a multiprocessor; two kernels share its shared memory. A unit is 8 outputs of two matrices:
//
//   gate_up   the gate and up of an expert
//   down      two experts
//
// Teams of warps have units in turns, and the warps of a team each their spans of 256 inputs of it, which every warp copies
// by itself to a ring of its own: nobody waits for another before a unit's sums are added up.
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

#include "activate.cuh"
#include "fp4_load.cuh"
#include "fp4_rows.cuh"

namespace octavo {
namespace {

// What a nibble looks up, and a nibble with its highest bit turned
constexpr uint32_t kLow = 0x04030200, kHigh = 0x0d090705, kTurnedLow = 0xfdfeff00, kTurnedHigh = 0xf4f8fafc;

struct Computer {
  const Launch& launch;
  Shared& shared;
  const Tiles& tiles;
  const Share& share;
  Loader& loader;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, team = warp / kTeam, member = warp % kTeam;
  const int output = lane / 4, own_half = lane % 4 / 2, own_group = lane % 2;
  const bool has_x = lane / 8 % 2 == own_group;
  int turn = 0, count = 0;

  __device__ __forceinline__ void run() {
    int i = share.first + team;
    Scales next;
    if (i < share.end) next.load(launch, Unit(launch, tiles, share.first_out, i));
    for (; i < share.end; i += kTeams, ++turn) {
      const Unit unit(launch, tiles, share.first_out, i);
      const Scales now = next;
      if (i + kTeams < share.end) next.load(launch, Unit(launch, tiles, share.first_out, i + kTeams));
      float bias = 0;
      if (!IS_DOWN && launch.bias != nullptr && lane < 16) {
        bias = to_float(launch.bias[int64_t(unit.matrix(lane >= 8)) * launch.columns + unit.out + lane % 8]);
      }
      const float sum = multiply(unit, now);
      if constexpr (IS_DOWN) {
        add(unit, i, sum);
      } else {
        finish(unit, sum, bias);
      }
    }
  }

  // The sum over this lane's groups, of its output of its matrix
  __device__ __forceinline__ float multiply(const Unit& unit, const Scales& scales) {
    const int x_row = IS_DOWN ? unit.tile(lane / 16) : 0, scale_row = IS_DOWN ? unit.tile(own_half) : 0;
    float sum = 0;
#pragma unroll
    for (int stage = 0; stage < STAGES; ++stage, ++count) {
      const int entry = count % ENTRIES;
      barrier_wait(shared_address(&shared.full[warp][entry]), count / ENTRIES & 1);
#pragma unroll
      for (int i = 0; i < SPANS; ++i) {
        const int span = (stage * kTeam + member) * SPANS + i;
        const uint8_t* x = has_x ? shared.x[x_row][span][0][own_group][lane / 4 % 2] + own_half * 16 : shared.zeros;
        const float* x_scales = shared.x_scales[scale_row][span] + own_group * 4;
        multiply_span(sum, shared.ring[warp][entry] + i * 1024, x, x_scales, scales.powers[stage * SPANS + i]);
      }
      __syncwarp();
      loader.copy_next();
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
    look_up_all(a, kLow, kHigh, first, second);
    if (kBegins) {
      multiply_signed_bytes(c, a, x0, x1);
    } else {
      multiply_add_signed_bytes(c, a, x0, x1);
    }
    look_up_all(a, kTurnedLow, kTurnedHigh, first ^ 0x88888888, second ^ 0x88888888);
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
  __device__ __forceinline__ void finish(const Unit& unit, float sum, float bias) {
    sum += __shfl_xor_sync(~0u, sum, 1);
    if (own_group == 0) shared.sums[turn % 2][warp][own_half * 8 + output] = sum;
    if (kTeam > 1) {
      named_barrier(1 + team, kTeam * 32);
    } else {
      __syncwarp();
    }
    const int64_t pair = __shfl_sync(~0u, tiles.pair, unit.first_tile);
    if (member != turn % kTeam) return;
    float y = bias;
#pragma unroll
    for (int j = 0; j < kTeam; ++j) y += shared.sums[turn % 2][team * kTeam + j][lane % 16];
    const float up = __shfl_xor_sync(~0u, y, 8);
    if (lane >= 8) return;
    const float z = gated(y, up, launch.gate, launch.alpha, launch.limit);
    launch.out[pair * launch.out_stride + unit.out + lane] = ELEMENT{uint16_t(pack<ELEMENT>(z, 0))};
  }

  // down: to this warp's sums of the outputs
  __device__ __forceinline__ void add(const Unit& unit, int i, float sum) {
    const float weight = __shfl_sync(~0u, tiles.weight, unit.tile(own_half));
    sum = own_half && !unit.has_second ? 0 : sum * weight;
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    if (lane % 4 == 0) shared.sums[i / ((tiles.num_tiles + 1) / 2)][warp][output] += sum;
  }
};

// What is added to an output of `down`: by thread, those of a block
__device__ __forceinline__ float rest_of(const Launch& launch, const Tiles& tiles, const Share& share) {
  const int output = share.first_out * 8 + threadIdx.x;
  const bool is_there = threadIdx.x < share.num_outs * 8;
  float y = is_there && launch.residual != nullptr ? to_float(launch.residual[output]) : 0;
  if (launch.bias == nullptr) return y;
  for (int i = 0; i < tiles.num_tiles; ++i) {
    const int64_t expert = __shfl_sync(~0u, tiles.expert, i);
    const float weight = __shfl_sync(~0u, tiles.weight, i);
    if (is_there) y += weight * to_float(launch.bias[expert * launch.columns + output]);
  }
  return y;
}

__device__ __forceinline__ void begin(Shared& shared) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (lane == 0) {
    for (int i = 0; i < ENTRIES; ++i) barrier_init(shared_address(&shared.full[warp][i]), 1);
    barrier_fence_init();
  }
  for (int i = threadIdx.x; i < 128; i += kThreads) reinterpret_cast<uint32_t*>(shared.zeros)[i] = 0;
  for (int i = lane; IS_DOWN && i < kMostOuts * 8; i += 32) shared.sums[i / 8][warp][i % 8] = 0;
  __syncwarp();
}

}  // namespace
}  // namespace octavo

extern "C" __device__ const int octavo_shared_bytes = sizeof(octavo::Shared);

extern "C" __global__ void __launch_bounds__(octavo::kThreads, 2)
    octavo_fp4_experts(const __grid_constant__ octavo::Launch launch, const __grid_constant__ octavo::TensorMap map) {
  using namespace octavo;
  extern __shared__ __align__(1024) uint8_t memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  if (threadIdx.x == 0) prefetch_map(&map);
  begin(shared);
#if IS_CHAINED
  if (!IS_DOWN) {  // the router has to have ended. It has when `down` starts
    wait_for_previous();
    allow_next();
  }
#endif
  Tiles tiles;
  tiles.choose(launch.routing, !IS_DOWN && blockIdx.x == 0 && threadIdx.x < 32);
  const Share share(launch, tiles.num_tiles);
  Loader loader{launch, map, shared, tiles, share, int(share.first + threadIdx.x / 32 / kTeam)};
  for (int i = 0; i < ENTRIES; ++i) loader.copy_next();
  const float rest = IS_DOWN ? rest_of(launch, tiles, share) : 0;
#if IS_CHAINED
  if (IS_DOWN) {
    wait_for_previous();
    allow_next();
  }
#endif
  Rows{launch, shared}.stage(IS_DOWN ? tiles.pair : 0, IS_DOWN ? tiles.num_tiles : 1);
  __syncthreads();
  Computer{launch, shared, tiles, share, loader}.run();
  if (!IS_DOWN) return;
  __syncthreads();
  if (threadIdx.x >= share.num_outs * 8) return;
  float y = rest;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) y += shared.sums[threadIdx.x / 8][i][threadIdx.x % 8];
  launch.out[share.first_out * 8 + threadIdx.x] = ELEMENT{uint16_t(pack<ELEMENT>(y, 0))};
}
