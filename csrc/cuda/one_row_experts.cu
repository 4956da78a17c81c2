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
// A launch runs most of its code once. So steps share what they can, and find it in the instruction cache.

#include "activate.cuh"
#include "one_row_load.cuh"
#include "one_row_products.cuh"
#include "one_row_rows.cuh"

namespace octavo {
namespace {

// What all threads but the loader's do
struct Steps {
  const Launch& launch;
  Shared& shared;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  Share share{launch};
  const int own = share.first_out * 8 + threadIdx.x;  // of the outputs, one that this thread finishes
  const bool has_own = own < share.end_out * 8;
  Row row{launch, shared};
  Router router{launch};
  Multiplier multiplier{shared};
  float rest = 0;       // what is added to that output
  uint32_t number = 0;  // of the launch

  // What does not wait for the previous kernel
  __device__ __forceinline__ void begin() {
    row.begin();
    router.begin(row);
  }

  __device__ __forceinline__ void load() {
    number = number_of_launch(launch.count);
    if (has_own && launch.residual != nullptr) rest = to_float(launch.residual[own]);
    router.multiply(row, row.load());
  }

  __device__ __forceinline__ void run() {
#pragma unroll 1
    for (int step = kGateUp; step <= kDown; ++step) {
      if (step == kGateUp) {
        norm();
        choose();
      } else {
        stage_pairs();
      }
      named_barrier(2, kComputers);  // x is there
      run_units(step);
    }
  }

  // The row to shared memory, normed
  __device__ __forceinline__ void norm() {
    const float factor = row.factor();
    router.post_logits(row, factor, number);
    row.place(factor);
    async_fence();
  }

  __device__ __forceinline__ void choose() {
    if (IS_TOGETHER) Together{launch, shared}.run(number);
    barrier_wait(shared_address(&shared.chosen), 0);
    named_barrier(1, kComputers);  // weights are there
    share.set_units(shared.tiles.number);
    prepare_factors();
    add_biases();
  }

  __device__ __forceinline__ void stage_pairs() {
#if IS_CHAINED
    allow_next();
#endif
    named_barrier(1, kComputers);  // x of the first product has been read
    Pairs{launch, shared}.stage(number);
    async_fence();
  }

  // What follows the second product's sums, when weights are on their way: nobody waits for it
  __device__ __forceinline__ void prepare_factors() const {
    const int num_outs = (share.end_out - share.first_out) * 8;
#pragma unroll 1
    for (int i = threadIdx.x; i < shared.tiles.number * num_outs; i += kComputers) {
      const int tile = i / num_outs, out = share.first_out * 8 + i % num_outs;
      float factor = shared.tiles.weight[tile];
      if (launch.second_scales != nullptr) {
        factor *= launch.second_scales[int64_t(shared.tiles.expert[tile]) * launch.hidden + out];
      }
      for (int stage = 0; stage < SECOND_STAGES; ++stage) {
        shared.factors[tile * SECOND_STAGES + stage][i % num_outs] = factor;
      }
    }
  }

  __device__ __forceinline__ void add_biases() {
    for (int tile = 0; has_own && launch.second_bias != nullptr && tile < shared.tiles.number; ++tile) {
      const int64_t expert = shared.tiles.expert[tile];
      rest += shared.tiles.weight[tile] * to_float(launch.second_bias[expert * launch.hidden + own]);
    }
  }

  __device__ __forceinline__ void run_units(int step) {
    const bool is_down = step == kDown;
    const int end = is_down ? share.end_out : share.end;
    const int stages = is_down ? shared.tiles.number * SECOND_STAGES : FIRST_STAGES;
#pragma unroll 1
    for (int at = is_down ? share.first_out : share.first; at < end; at += is_down ? 2 : 1) {
      Unit unit = {2 * stages, stages, FIRST_SPANS, shared.ones, 0, multiplier.turn % kWarps};
      if (is_down) {
        unit.num = min(2, end - at) * stages, unit.num_spans = SECOND_SPANS;
        unit.factors = &shared.factors[0][(at - share.first_out) * 8], unit.apart = OUTS * 8;
        unit.finisher = (at - share.first_out) / 4;  // thread i finishes output i of the block's
      }
      const bool finishes = warp == unit.finisher;
      const Ends ends = finishes && !is_down ? ends_of(at) : Ends{1, 0};
      const float y = multiplier.multiply(unit) * ends.scale + ends.bias;
      if (!finishes) continue;
      if (is_down) {
        finish_row(at, y);
      } else {
        finish_pairs(at, y);
      }
    }
  }

  struct Ends {
    float scale, bias;
  };

  // Of gate and up, by lane
  __device__ __forceinline__ Ends ends_of(int unit) const {
    const int64_t matrix = shared.tiles.expert[share.tile(unit)] * 2 + lane / 8 % 2;
    const int64_t output = matrix * launch.inner + share.output(unit) + lane % 8;
    return {launch.first_scales == nullptr ? 1.0f : launch.first_scales[output],
            launch.first_bias == nullptr ? 0.0f : to_float(launch.first_bias[output])};
  }

  // y: by lane, 8 gates, then what they let through
  __device__ __forceinline__ void finish_pairs(int unit, float y) const {
    const float up = __shfl_xor_sync(~0u, y, 8);
    const float z = gated(y, up, GATE, launch.alpha, launch.limit), next = __shfl_xor_sync(~0u, z, 1);
    if (lane >= 8 || lane % 2) return;
    const int at = share.tile(unit) * launch.inner + share.output(unit) + lane;
    post(launch.posted_pairs + at / 2, pack<ELEMENT>(z, next), number);
  }

  // 16 outputs from `at` * 8 on
  __device__ __forceinline__ void finish_row(int at, float y) const {
    const bool finishes = lane / 16 == (at - share.first_out) / 2 % 2 && at + lane / 8 % 2 < share.end_out;
    if (finishes) launch.out[at * 8 + lane % 16] = ELEMENT{uint16_t(pack<ELEMENT>(y + rest, 0))};
  }
};

__device__ __forceinline__ void begin(const Maps& maps, Shared& shared) {
  if (threadIdx.x < 16) shared.ones[threadIdx.x] = 1;
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
