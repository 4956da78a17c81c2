// One row times its experts in MXFP4, by integer products: as experts.cu, with less than half the instructions a weight.
//
// A persistent grid, one block a multiprocessor; two kernels share its shared memory. A unit is 8 outputs of two matrices:
//
//   gate_up   the gate and up of an expert. Before, its blocks norm the row, and have the router's logits (fp4_router.cuh)
//   down      two experts
//
// Teams of warps have units in turns, and the warps of a team each their spans of 256 inputs of it, which every warp copies
// by itself to a ring of its own: nobody waits for another before a unit's sums are added up (fp4_products.cuh).

#include "fp4_products.cuh"
#include "fp4_router.cuh"
#include "fp4_rows.cuh"

namespace octavo {
namespace {

// What is added to an output of `down`: by thread, those of a block
__device__ __forceinline__ float rest_of(const Launch& launch, const Tiles& tiles, const Units& units) {
  const int output = units.first_out * 8 + threadIdx.x;
  const bool is_there = threadIdx.x < units.num_outs * 8;
  float y = is_there && launch.residual != nullptr ? to_float(launch.residual[output]) : 0;
  if (launch.bias == nullptr) return y;
#pragma unroll 1
  for (int i = 0; i < tiles.num_tiles; ++i) {
    const int64_t expert = __shfl_sync(~0u, tiles.expert, i);
    const float weight = __shfl_sync(~0u, tiles.weight, i);
    if (is_there) y += weight * to_float(launch.bias[expert * launch.columns + output]);
  }
  return y;
}

__device__ __forceinline__ void begin(const Launch& launch, Shared& shared) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (lane < ENTRIES) barrier_init(shared_address(&shared.full[warp][lane]), 1);
  barrier_fence_init();
  if (threadIdx.x < 32) reinterpret_cast<uint4*>(shared.zeros)[threadIdx.x] = uint4{};
#pragma unroll 1
  for (int i = lane; IS_DOWN && i < kMostOuts * 8; i += 32) shared.sums[i / 8][warp][i % 8] = 0;
  if (!IS_DOWN) Rows{launch, shared}.clear();
  __syncthreads();
}

// The second product's
__device__ __forceinline__ void choose(const Launch& launch, const Route& route, Shared& shared, Tiles& tiles) {
  if (threadIdx.x >= 32) return;
  tiles.choose(launch.routing, route, count_launch(route), true);
  tiles.leave(shared);
}

// The first product's: norm, logits, choice, and the row as it is multiplied
__device__ __forceinline__ void route_row(const Launch& launch, const Route& route, Shared& shared, const Rows& rows,
                                          Tiles& tiles) {
  const bool chooses = threadIdx.x < 32;
  Router router{launch, route, shared};
  router.begin();
  uint32_t number = 0;
#pragma unroll 1
  for (int turn = kept(0); turn < 2; ++turn) {  // the first only for the choice's instructions to come
    if (turn == 1) {
#if IS_CHAINED
      wait_for_previous();
#endif
      if (chooses) number = count_launch(route);
      router.load();
      __syncthreads();
      router.finish(number);
      __syncthreads();
    }
    if (chooses) tiles.choose(launch.routing, route, number, turn == 1);
  }
  if (chooses) {
    tiles.leave(shared);
  } else {
    rows.round();
  }
}

}  // namespace
}  // namespace octavo

extern "C" __device__ const int octavo_shared_bytes = sizeof(octavo::Shared);

extern "C" __global__ void __launch_bounds__(octavo::kThreads, 2)
    octavo_fp4_experts(const __grid_constant__ octavo::Launch launch, const __grid_constant__ octavo::TensorMap map,
                       const __grid_constant__ octavo::Route route) {
  using namespace octavo;
  extern __shared__ __align__(1024) uint8_t memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  if (threadIdx.x == 0) prefetch_map(&map);
  begin(launch, shared);
  const Rows rows{launch, shared};
  Tiles tiles;
  if (IS_DOWN) {
    choose(launch, route, shared, tiles);
  } else {
    route_row(launch, route, shared, rows, tiles);
  }
  __syncthreads();
  tiles.take(shared);
  const Units units(launch, tiles);
  Loader loader{launch, map, shared, units};
#pragma unroll 1
  for (int i = 0; i < ENTRIES; ++i) loader.copy_next();
#if IS_CHAINED
  if (!IS_DOWN) allow_next();  // the first weights come first
#endif
  Computer computer{launch, shared, tiles, units, loader};
  computer.begin();
  const float rest = IS_DOWN ? rest_of(launch, tiles, units) : 0;
  if (IS_DOWN) {
#if IS_CHAINED
    wait_for_previous();
    allow_next();
#endif
    rows.load_and_round(tiles.num_tiles, tiles.pair);
    __syncthreads();
  }
  computer.run();
  if (!IS_DOWN) return;
  __syncthreads();
  if (threadIdx.x >= units.num_outs * 8) return;
  float y = rest;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) y += shared.sums[threadIdx.x / 8][i][threadIdx.x % 8];
  launch.out[units.first_out * 8 + threadIdx.x] = ELEMENT{uint16_t(pack<ELEMENT>(y, 0))};
}
