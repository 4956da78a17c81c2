// Many rows times a weight of int4 in groups, on Hopper's matrix units: out [rows, columns] = x W^T + bias, in bfloat16.
//
// Neither a matrix of bfloat16 nor a trip through memory lies between: codes become numbers in the registers of those who
// multiply them, as the first operand, whose rows are outputs. Sums are outputs by rows of x.
//
//   1 warp loads          128 or 64 inputs a stage: codes as pack_int4 deals them, and rows, by the copy engine ──> a ring
//   2 warpgroups multiply 64 or twice 64 outputs each, by up to 128 rows, or 64 by 192 or 256; numbers of a step are made while
//                         the products of the step before run
//
// A thread of four has 8 neighbouring inputs of 32, of which a product of 16 takes four. So the rows' inputs have been
// dealt (wide_int4.py):   place 8 c + 2 t + b of 32   <──   input 8 t + 2 c + b
//
// A persistent grid, one block a multiprocessor, takes tiles of 128 rows and 256 outputs, and for its last turn of 128. Where
// these are fewer than half of the blocks, it takes tiles of 64, and each warpgroup has half of the inputs.
// Or tiles of 192 or 256 rows and 128 outputs, of which fewer numbers are made, and for its last turn of 64 outputs.

#include "wide_int4_tiles.cuh"

namespace octavo {
namespace {

struct Multiplier {
  const Launch& launch;
  Shared& shared;
  const int lane = threadIdx.x % 32, group = (threadIdx.x - kLoaders) / 128, warp = threadIdx.x / 32 % 4;
  int count = 0;
  float sums[kIsTall ? 1 : 2][kRows / 8][4];

  __device__ void run() {
    for (int at = blockIdx.x; at < launch.num_tiles; at += gridDim.x) {
      const Tile tile(launch, at);
      const bool is_split = tile.sixteens == 4;
#if ROW_TILE > 128
      if (is_split) multiply<kRows, 1, true>(tile);
      else multiply<kRows, 1, false>(tile);
#else
      const bool is_narrow = launch.num_rows - tile.row <= 64;
      if (tile.sixteens == 16 && is_narrow) multiply<64, 2, false>(tile);
      else if (tile.sixteens == 16) multiply<128, 2, false>(tile);
      else if (tile.sixteens == 8 && is_narrow) multiply<64, 1, false>(tile);
      else if (tile.sixteens == 8) multiply<128, 1, false>(tile);
      else if (is_narrow) multiply<64, 1, true>(tile);
      else multiply<128, 1, true>(tile);
#endif
#pragma unroll
      for (int first = 0; first < kRows / 8; first += kOnce) {
        if (is_split) hand_over(first);
        if (!is_split || group == 0) finish(tile, first);
        if (is_split) named_barrier(1, kThreads - kLoaders);
      }
      __syncwarp();  // else the compiler takes what follows for divergent, and has products wait for each other
    }
  }

  // Of the tile's 16 outputs at a time, those of a product's rows that the warp has
  template <bool kIsSplit>
  __device__ __forceinline__ int sixteen(int product) const {
    return kIsSplit ? warp : product * 8 + group * 4 + warp;
  }

  // The second warpgroup's sums of 128 rows, for the first
  __device__ __forceinline__ void hand_over(int first) {
#pragma unroll
    for (int i = 0; group == 1 && i < kOnce * 4; ++i) shared.sums[i][threadIdx.x % 128] = sums[0][first + i / 4][i % 4];
    named_barrier(1, kThreads - kLoaders);
  }

  template <int kWidth, int kProducts, bool kIsSplit>
  __device__ __forceinline__ void multiply(const Tile& tile) {
    constexpr bool kTakesTurns = kIsTall && kIsSplit;  // each warpgroup has every other stage
    constexpr int kStep = kTakesTurns ? 2 : 1;
    const int turns = launch.depth / (kInputs * kStep), own = kTakesTurns ? group : 0;
    Read next[kProducts][kPanels];
    read<kProducts, kIsSplit>(tile, own, next);
    for (int turn = 0; turn < turns; ++turn, count += kStep) {
      Int4Scale scales[kProducts][kPanels][2];
#pragma unroll
      for (int i = 0; i < kProducts * kPanels * 2; ++i) {
        const int product = i / (kPanels * 2), panel = i / 2 % kPanels;
        scales[product][panel][i % 2] = scale(next[product][panel], i % 2);
      }
      read<kProducts, kIsSplit>(tile, min(turn + 1, turns - 1) * kStep + own, next);
      const int entry = shared.ring.entry(count + own);
      shared.ring.wait_until_full(count + own);
      multiply_stage<kWidth, kProducts, kIsSplit>(shared_address(shared.codes[entry]), shared_address(shared.rows[entry][0]),
                                                  scales, count + own - kStep, turn > 0);
      if constexpr (kTakesTurns) {  // of the other warpgroup's stage
        shared.ring.wait_until_full(count + 1 - own);
        release(count + 1 - own);
        __syncwarp();
      }
    }
    products_end(sums[0]);
    if constexpr (kProducts == 2) products_end(sums[1]);
    release(count + own - kStep);
  }

  // Scales and zero points of 64 inputs: of outputs lane / 4 and lane / 4 + 8
  struct Read {
    float2 scales;
    uint32_t zeros;
  };

  static __device__ __forceinline__ Int4Scale scale(const Read& read, int half) {
    const float factor = half == 0 ? read.scales.x : read.scales.y;
    return Int4Scale::of(factor, HAS_ZEROS ? int(half == 0 ? low_half<Bf16>(read.zeros) : high_half<Bf16>(read.zeros)) : 8);
  }

  template <int kProducts, bool kIsSplit>
  __device__ __forceinline__ void read(const Tile& tile, int stage, Read (&to)[kProducts][kPanels]) {
    const int groups = launch.depth >> launch.group_bits, last = launch.columns / 16 - 1;
#pragma unroll
    for (int i = 0; i < kProducts * kPanels; ++i) {
      const int64_t of = min(tile.output / 16 + sixteen<kIsSplit>(i / kPanels), last);
      const int half = kIsSplit && !kIsTall ? group : i % kPanels;
      const int64_t at = (of * groups + ((stage * kPanels + half) * 64 >> launch.group_bits)) * 8 + lane / 4;
      Read& one = to[i / kPanels][i % kPanels];
      one.scales = reinterpret_cast<const float2*>(launch.scales)[at];
      if (HAS_ZEROS) one.zeros = reinterpret_cast<const uint32_t*>(launch.zeros)[at];
    }
  }

  template <int kWidth, int kProducts, bool kIsSplit>
  __device__ __forceinline__ void multiply_stage(uint32_t codes, uint32_t x, const Int4Scale (&scales)[kProducts][kPanels][2],
                                                 int before, bool has_before) {
    uint4 words[kProducts];
    uint32_t numbers[2][kProducts][4];
#pragma unroll
    for (int step = 0; step < (kIsSplit ? 4 : kInputs / 16); ++step) {
      const int half = kIsSplit && !kIsTall ? group : step / 4;
#pragma unroll
      for (int i = 0; step % 4 == 0 && i < kProducts; ++i) {
        words[i] = load_words_now(codes + sixteen<kIsSplit>(i) * kStageBytes + half * 512 + lane * 16);
      }
#pragma unroll
      for (int i = 0; i < kProducts * 4; ++i) {
        const uint4& four = words[i / 4];
        const bool is_high = i % 2;  // output lane / 4 + 8
        const uint32_t word = step % 4 < 2 ? (is_high ? four.y : four.x) : is_high ? four.w : four.z;
        numbers[step % 2][i / 4][i % 4] = scales[i / 4][step / 4][i % 2].pair(word, step % 2 * 2 + i / 2 % 2);
      }
      const uint64_t inputs = matrix(x + half * kPanelBytes + step % 4 * 32);
      products_begin();
#pragma unroll
      for (int i = 0; i < kProducts; ++i) {
        multiply_add_bf16<kWidth, kRows>(sums[i], numbers[step % 2][i], inputs, step > 0 || has_before);
      }
      products_end_group();
      products_wait<1>();
      if (step == 0 && has_before) release(before);
    }
  }

  __device__ __forceinline__ void release(int count) {
    if (lane == 0) shared.ring.release(count);
  }

  // Turned, so that a thread has two neighbouring outputs of a row
  __device__ __forceinline__ void finish(const Tile& tile, int first) {
#pragma unroll
    for (int product = 0; product < (kIsTall ? 1 : 2); ++product) {
      if (product * 8 >= tile.sixteens) break;
      const int output = tile.output + (tile.sixteens == 4 ? sixteen<true>(product) : sixteen<false>(product)) * 16;
      if (output >= launch.columns) break;
      float bias[2] = {};
#pragma unroll
      for (int half = 0; launch.bias != nullptr && half < 2; ++half) bias[half] = to_float(launch.bias[output + half * 8 + lane / 4]);
#pragma unroll
      for (int i = first; i < first + kOnce; ++i) {
        if (tile.row + i * 8 >= launch.num_rows) break;
        const int row = tile.row + i * 8 + lane / 4;
        float y[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          y[j] = sums[product][i][j] + (tile.sixteens == 4 ? shared.sums[(i - first) * 4 + j][threadIdx.x % 128] : 0);
          y[j] *= kRaised;
        }
        const uint32_t low = transposed(pack<Bf16>(y[0] + bias[0], y[1] + bias[0]));
        const uint32_t high = transposed(pack<Bf16>(y[2] + bias[1], y[3] + bias[1]));
        if (row < launch.num_rows) {
          Bf16* to = launch.out + row * launch.out_stride + output + lane % 4 * 2;
          *reinterpret_cast<uint32_t*>(to) = low;
          *reinterpret_cast<uint32_t*>(to + 8) = high;
        }
      }
    }
  }
};

}  // namespace
}  // namespace octavo

extern "C" __device__ const int octavo_shared_bytes = sizeof(octavo::Shared) + 1024;

extern "C" __global__ void __launch_bounds__(octavo::kThreads, 1)
    octavo_wide_int4(const __grid_constant__ octavo::Launch launch, const __grid_constant__ octavo::TensorMap map) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  using namespace octavo;
  extern __shared__ __align__(1024) uint8_t memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  if (threadIdx.x == 0) {
    shared.ring.init(0, 1, 1, 8);
    prefetch_map(&map);
  }
  __syncthreads();
  if (threadIdx.x < kLoaders) {
    keep_registers<kLoaderRegisters>();
    if (threadIdx.x < 32) Loader{launch, map, shared}.run();
  } else {
    want_registers<kMultiplierRegisters>();
    Multiplier{launch, shared}.run();
  }
#endif
}
