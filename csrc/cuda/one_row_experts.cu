// One row times its experts, from the norm before the router to the residual after the weighted sum.
//
// A persistent grid, one block a multiprocessor, all of which run at once and tell each other what they have
// (exchange.cuh). That takes a microsecond, where a launch and what it has to load again take two or three. A step's
// outputs are divided among the blocks, and every block has to know all that the next step multiplies:
//
//   logits       of an expert or a few, of the normed row          ──> all blocks, each of which chooses
//   gate and up  a unit is 8 outputs of an expert; act(gate) * up  ──> all blocks
//   down         16 outputs at a time: the experts' weighted sum, and the residual
//
//   1 loader     weights, stage after stage ──> a ring in shared memory
//   warpgroups   the row, and then stages in turns (one_row_products.cuh)
//
// The next kernel may start when all weights of gate and up are there. If it did before, its loads would delay them.

#include "one_row_load.cuh"
#include "one_row_products.cuh"
#include "one_row_rows.cuh"

namespace octavo {
namespace {

// What all threads but the loader's do
struct Steps {
  const Launch& launch;
  Shared& shared;
  const Share share{launch};
  const int own = share.first_out * 8 + threadIdx.x;  // of the outputs, one that this thread finishes
  Row row{launch, shared};
  Router router{launch};
  float rest = 0;       // what is added to that output
  uint32_t number = 0;  // of the launch

  // What does not wait for the previous kernel
  __device__ __forceinline__ void begin() {
    row.begin();
    router.begin(row);
  }

  __device__ __forceinline__ void load() {
    number = number_of_launch(launch.count);
    if (own < share.end_out * 8 && launch.residual != nullptr) rest = to_float(launch.residual[own]);
    router.multiply(row, row.load());
  }

  __device__ __forceinline__ void run() {
    Computer computer{launch, shared, number};
    const float factor = row.factor();
    router.post_logits(row, factor, number);
    row.place(factor);
    async_fence();
    if (IS_TOGETHER) Together{launch, shared}.run(number);
    barrier_wait(shared_address(&shared.chosen), 0);
    named_barrier(2, kComputers);  // weights and x are there
    computer.share.set_units(shared.tiles.number);
    computer.prefetch_scales();
    computer.prepare_factors();
    rest += computer.biases();
    computer.multiply_gate_up();
#if IS_CHAINED
    allow_next();
#endif
    named_barrier(2, kComputers);  // x of the first product has been read
    Pairs{launch, shared}.stage(number);
    async_fence();
    named_barrier(1, kComputers);
    computer.multiply_down(rest);
  }
};

__device__ __forceinline__ void begin(const Maps& maps, Shared& shared) {
  if (threadIdx.x != kComputers) return;
  prefetch_map(&maps.first);
  prefetch_map(&maps.second);
  for (int i = 0; i < ENTRIES; ++i) {
    barrier_init(shared_address(&shared.full[i]), 1);
    barrier_init(shared_address(&shared.free[i]), 4);
  }
  barrier_init(shared_address(&shared.chosen), 1);
  barrier_fence_init();
}

}  // namespace
}  // namespace octavo

extern "C" __device__ const int octavo_shared_bytes = sizeof(octavo::Shared);

extern "C" __global__ void __launch_bounds__(octavo::kThreads, 1)
    octavo_one_row_experts(const __grid_constant__ octavo::Launch launch, const __grid_constant__ octavo::Maps maps) {
  using namespace octavo;
  extern __shared__ __align__(1024) uint8_t memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  begin(maps, shared);
  if (threadIdx.x >= kComputers) return Loader{launch, maps, shared}.run();
  Steps steps{launch, shared};
  steps.begin();
#if IS_CHAINED
  wait_for_previous();
#endif
  steps.load();
  __syncthreads();
  steps.run();
}
