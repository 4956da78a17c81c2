// A few rows times a weight of fp8 on Hopper, whose tensor cores multiply fp8: y = x W^T, at the speed of reading W.
//
// A persistent grid of one thread block per multiprocessor. A block has units of 16 outputs, or twice as many for a gate
// and what it multiplies, one after another:
//
//   1 loader      weights, a piece of 512 inputs at a time ──> a ring in shared memory; it begins before the previous
//                 kernel has ended
//   warpgroups    the rows, once, if wanted times an RMSNorm's weight, each as two of fp8 ──> shared memory
//                 pieces in turns; then one warp adds up all sums of a unit in a fixed order, while the others begin the
//                 next unit: scale, 1 / rms, bias, gate, residual
//
// No thread touches a weight: wgmma reads weights and rows from shared memory. Its 64 x 8 x 32 product is wider than
// 16 outputs and one row. So its 64 rows are 16 outputs of four spans of 128 inputs, its 8 columns the two numbers of a
// row for each of four spans, and of the 4 x 4 blocks of sums those on the diagonal are read:
//
//                row, span 0  1  2  3
//   outputs, span 0        #  .  .  .     warp 0 of the warpgroup, lanes with lane % 4 == 0
//   outputs, span 1        .  #  .  .     warp 1, lanes with lane % 4 == 1
//   outputs, span 2        .  .  #  .
//   outputs, span 3        .  .  .  #
//
// Sums of fp8 products keep 13 bits behind the first one of their largest term. So they end after 128 inputs, where float32
// takes over.
//
// Where the rows do not fit into shared memory, blocks share the inputs of a unit, too, and leave float32 sums that the
// next kernel, a norm, adds up.

#include "fp8_rows.cuh"

namespace octavo {
namespace {

struct Product {
  const Launch& launch;
  Shared& shared;
  const Share& share;
  const uint8_t* const x;  // see Shared
  const float* const span_scales;
  const int lane = threadIdx.x % 32, warp = own_warp();
  float sums[kTiles][kRows][2];  // of outputs lane / 4 and that + 8

  // first: `ends_at` of the first unit, for the first warp
  __device__ void run(Ends first) {
    int count = 0, turn = 0;
    for (int unit = share.first_unit; unit < share.num_units; unit += share.step, ++turn) {
#pragma unroll
      for (int i = 0; i < kTiles * kRows * 2; ++i) (&sums[0][0][0])[i] = 0;
      const bool finishes = warp == turn % kWarps;
      if (turn > 0 && finishes) first = ends_at(launch, unit, lane);
      for (int piece = 0; piece < share.num_pieces; ++piece, ++count) {
        if (count % kGroups == warp / 4) multiply(count, piece);
      }
      float* all = shared.sums[turn % 2];
      leave(all);
      named_barrier(1, kComputers);
      if (finishes) finish(unit, all, first);
    }
  }

  __device__ __forceinline__ void multiply(int count, int piece) {
    const int entry = shared.barriers.entry(count), span = warp % 4;
    float parts[kTiles * kRows][4], blocks[kTiles];
    shared.barriers.wait_until_full(count);
    const uint64_t b = matrix(shared_address(x + piece * kRows * kRowBytes));
    products_begin();
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const uint64_t a = matrix(shared_address(shared.ring[entry] + tile * kTileBytes));
#pragma unroll
      for (int j = 0; j < kSpan / 32; ++j) {  // addresses count 16 bytes
        multiply_add_fp8<kRows>(reinterpret_cast<float(&)[kRows][4]>(parts[tile * kRows]), a + j * 2, b + j * 2, j > 0);
      }
    }
    products_end(parts);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) blocks[tile] = HAS_BLOCKS ? shared.block_scales[entry][tile][span] : 1;
    __syncwarp();
    if (lane == 0) shared.barriers.release(count);
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const float scale = span_scales[(piece * kRows + row) * 4 + span];
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const float (&part)[4] = parts[tile * kRows + row];
        const float factor = scale * blocks[tile];
        sums[tile][row][0] += factor * (part[0] + part[1]);
        sums[tile][row][1] += factor * (part[2] + part[3]);
      }
    }
  }

  // Leaves the warp's sums at [warp][row][output]
  __device__ __forceinline__ void leave(float* all) const {
    if (lane % 4 != warp % 4) return;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          all[(warp * kRows + row) * kOutputs + tile * 16 + j * 8 + lane / 4] = sums[tile][row][j];
        }
      }
    }
  }

  // i: 16 outputs of the first row, and so on. Without the row's factor
  static __device__ __forceinline__ Ends ends_at(const Launch& launch, int unit, int i) {
    if (i >= kUnit * launch.num_rows) return {};
    return ends_of<!HAS_BLOCKS>(launch, i / kUnit, unit * kUnit + i % kUnit);
  }

  __device__ __forceinline__ float factor_of(int row) const {
    if (launch.norm == nullptr) return 1;
    float square = 0;
#pragma unroll
    for (int j = 0; j < kRowWarps; ++j) square += shared.squares[row * kRowWarps + j];
    return rsqrtf(square / launch.depth + launch.eps);
  }

  // By one warp: the unit's outputs of all rows. first: the thread's first one's
  __device__ void finish(int unit, const float* all, const Ends& first) const {
    for (int i = lane; i < kUnit * launch.num_rows; i += 32) {
      const Ends ends = i == lane ? first : ends_at(launch, unit, i);
      const int row = i / kUnit, place = i % kUnit;
      store_output<kWarps>(launch, row, unit * kUnit + place, ends.times(factor_of(row)), all, kRows * kOutputs, place);
    }
  }
};

// Scales come into the cache
__device__ void prefetch_scales(const Launch& launch, const Share& share) {
  for (int i = share.first_unit + threadIdx.x * share.step; i < share.num_units; i += kComputers * share.step) {
    for (int tile = 0; tile < kTiles; ++tile) prefetch(launch.scales + i * kUnit + tile * launch.columns);
  }
}

// By one warp. It does not wait for the others, which prepare the rows
__device__ void load(const Launch& launch, const TensorMap& map, Shared& shared, const Share& share) {
  const int lane = threadIdx.x % 32;
  if (lane == 0) prefetch_map(&map);
  shared.barriers.init(lane, 32, 1, 4);
  __syncwarp();
  Loader loader{launch, map, shared, share};
  if (lane == 0) loader.begin();
  __syncthreads();
  if (lane == 0) loader.go_on();
}

}  // namespace
}  // namespace octavo

// Registers for two blocks: attention's may be resident, too
extern "C" __global__ void __launch_bounds__(octavo::kThreads, ROWS < 4 ? 2 : 1)
    octavo_fp8_linear(const __grid_constant__ octavo::Launch launch, const __grid_constant__ octavo::TensorMap map) {
  using namespace octavo;
  extern __shared__ __align__(1024) uint8_t memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const Share share(launch, kPiece);
  if (threadIdx.x >= kComputers) return load(launch, map, shared, share);
  if (!HAS_BLOCKS) prefetch_scales(launch, share);
  RowPart part{launch, share, shared};
  part.begin();
#if IS_CHAINED
  wait_for_previous();
  allow_next();
#endif
  Ends first;  // comes with the rows
  if (threadIdx.x < 32 && share.first_unit < share.num_units) {
    first = Product::ends_at(launch, share.first_unit, threadIdx.x);
  }
  part.split();
  async_fence();
  __syncthreads();
  Product{launch, shared, share, part.x, part.scales}.run(first);
}
