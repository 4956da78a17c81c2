// Many rows times a weight of int4 in groups, on Hopper's matrix units: out [rows, columns] = x W^T + bias, in bfloat16.
//
// Neither a matrix of bfloat16 nor a trip through memory lies between: codes become numbers in the registers of those who
// multiply them, as the first operand, whose rows are outputs. Sums are outputs by rows of x.
//
//   1 warp loads          128 inputs a stage: codes as pack_int4 deals them, and rows, by the copy engine ──> a ring
//   2 warpgroups multiply 64 or twice 64 outputs each, by up to 128 rows; numbers of a step are made while the products of
//                         the step before run
//
// A thread of four has 8 neighbouring inputs of 32, of which a product of 16 takes four. So the rows' inputs have been
// dealt (wide_int4.py):   place 8 c + 2 t + b of 32   <──   input 8 t + 2 c + b
//
// A persistent grid, one block a multiprocessor, takes tiles of 256 outputs, and for its last turn of 128. Where these are
// fewer than half of the blocks, it takes tiles of 64, and each warpgroup has half of the inputs.

#include "narrow_product.cuh"
#include "ring.cuh"

#ifndef HAS_ZEROS
#define HAS_ZEROS 0
#endif
#ifndef IS_CHAINED
#define IS_CHAINED 0
#endif

namespace octavo {
namespace {

constexpr int kRows = 128, kInputs = 128;  // of x, in a tile; of a stage
constexpr int kStageBytes = 16 * kInputs / 2;  // of 16 outputs' codes
constexpr int kOutputs = 256, kEntries = 4, kLoaders = 128, kThreads = 384;
constexpr int kPanelBytes = kRows * 128;
constexpr int kLoaderRegisters = 40, kMultiplierRegisters = 232;

struct Launch {
  const uint8_t* codes;  // [outputs / 16][depth / 64][32][16]
  const float* scales;   // [outputs / 16][groups][8][2]
  const Bf16* zeros;     // in the same places, or null: they are 8
  const Bf16* bias;      // or null
  Bf16* out;
  int64_t out_stride;
  int num_rows, columns, depth, group_bits;
  int whole_tiles, num_tiles, is_split;  // tiles of 256 outputs, then of 128; or all of 64
};

struct Shared {
  uint8_t rows[kEntries][2][kPanelBytes];  // two panels of 64 inputs, swizzled by 128 bytes
  uint8_t codes[kEntries][kOutputs / 16 * kStageBytes];
  RingBarriers<kEntries> ring;
  float sums[kRows / 2][128];  // of the second half of the inputs, by thread
};

// A tile: some rows of x, and some outputs, of which a stage has so many sixteens. Neighbouring tiles share their outputs'
// codes
struct Tile {
  int output, row, sixteens;

  __device__ __forceinline__ Tile(const Launch& launch, int tile) {
    const int blocks = (launch.num_rows + kRows - 1) / kRows, after = tile - launch.whole_tiles;
    const int unit = after < 0 ? tile / blocks * 2 : launch.whole_tiles / blocks * 2 + after / blocks;
    sixteens = launch.is_split ? 4 : after < 0 ? 16 : 8;
    output = unit * (launch.is_split ? 64 : 128);
    row = (after < 0 ? tile : after) % blocks * kRows;
  }
};

struct Loader {
  const Launch& launch;
  const TensorMap& map;
  Shared& shared;
  const int lane = threadIdx.x;

  // By one warp
  __device__ void run() {
    const int stages = launch.depth / kInputs;
    int count = 0;
    bool has_waited = false;
    for (int at = blockIdx.x; at < launch.num_tiles; at += gridDim.x) {
      const Tile tile(launch, at);
      const int tiles = min(tile.sixteens, (launch.columns - tile.output) / 16);
      const uint8_t* from = launch.codes + (int64_t(tile.output / 16) + lane) * launch.depth * 8;
      for (int stage = 0; stage < stages; ++stage, ++count) {
        const int entry = shared.ring.entry(count);
        const uint32_t full = shared.ring.filled(count), rows = shared_address(shared.rows[entry][0]);
        shared.ring.wait_until_free(count);
        if (lane == 0) barrier_arrive_expecting(full, tiles * kStageBytes + 2 * kPanelBytes);
        __syncwarp();
        if (lane < tiles) {
          copy_bytes(shared_address(shared.codes[entry]) + lane * kStageBytes, from + stage * kStageBytes, kStageBytes, full);
        }
        if (!has_waited) wait();  // codes do not depend on the kernel before
        has_waited = true;
        if (lane == 0) {
          copy_box(rows, &map, stage * kInputs, tile.row, full);
          copy_box(rows + kPanelBytes, &map, stage * kInputs + 64, tile.row, full);
        }
      }
    }
    if (!has_waited) wait();
  }

  static __device__ __forceinline__ void wait() {
#if IS_CHAINED
    wait_for_previous();
    allow_next();
#endif
  }
};

struct Multiplier {
  const Launch& launch;
  Shared& shared;
  const int lane = threadIdx.x % 32, group = (threadIdx.x - kLoaders) / 128, warp = threadIdx.x / 32 % 4;
  int count = 0;
  float sums[2][kRows / 8][4];

  __device__ void run() {
    for (int at = blockIdx.x; at < launch.num_tiles; at += gridDim.x) {
      const Tile tile(launch, at);
      const bool is_narrow = launch.num_rows - tile.row <= 64;
      if (tile.sixteens == 16 && is_narrow) multiply<64, 2, false>(tile);
      else if (tile.sixteens == 16) multiply<128, 2, false>(tile);
      else if (tile.sixteens == 8 && is_narrow) multiply<64, 1, false>(tile);
      else if (tile.sixteens == 8) multiply<128, 1, false>(tile);
      else if (is_narrow) multiply<64, 1, true>(tile);
      else multiply<128, 1, true>(tile);
      if (launch.is_split) hand_over();
      if (!launch.is_split || group == 0) finish(tile);
      if (launch.is_split) named_barrier(1, kThreads - kLoaders);
      __syncwarp();  // else the compiler takes what follows for divergent, and has products wait for each other
    }
  }

  // Of the tile's 16 outputs at a time, those of a product's rows that the warp has
  __device__ __forceinline__ int sixteen(int product) const {
    return launch.is_split ? warp : product * 8 + group * 4 + warp;
  }

  // The second warpgroup's sums, for the first
  __device__ __forceinline__ void hand_over() {
#pragma unroll
    for (int i = 0; group == 1 && i < kRows / 2; ++i) shared.sums[i][threadIdx.x % 128] = sums[0][i / 4][i % 4];
    named_barrier(1, kThreads - kLoaders);
  }

  template <int kWidth, int kProducts, bool kIsSplit>
  __device__ __forceinline__ void multiply(const Tile& tile) {
    const int stages = launch.depth / kInputs;
    Read next[kProducts][2];
    read<kProducts, kIsSplit>(tile, 0, next);
    for (int stage = 0; stage < stages; ++stage, ++count) {
      Scale scales[kProducts][2][2];
#pragma unroll
      for (int i = 0; i < kProducts * 4; ++i) scales[i / 4][i / 2 % 2][i % 2] = scale(next[i / 4][i / 2 % 2], i % 2);
      read<kProducts, kIsSplit>(tile, min(stage + 1, stages - 1), next);
      const int entry = shared.ring.entry(count);
      shared.ring.wait_until_full(count);
      multiply_stage<kWidth, kProducts, kIsSplit>(shared_address(shared.codes[entry]), shared_address(shared.rows[entry][0]),
                                                  scales, stage > 0);
    }
    products_end(sums[0]);
    if (kProducts == 2) products_end(sums[1]);
    release(count - 1);
  }

  // Scales and zero points of 64 inputs: of outputs lane / 4 and lane / 4 + 8
  struct Read {
    float2 scales;
    uint32_t zeros;
  };

  // Pairs that numbers are multiplied by, in two parts, and that are added before
  struct Scale {
    uint32_t factor, rest, minus_zero;
  };

  static __device__ __forceinline__ Scale scale(const Read& read, int half) {
    const float factor = half == 0 ? read.scales.x : read.scales.y;
    const int zero = HAS_ZEROS ? int(half == 0 ? low_half<Bf16>(read.zeros) : high_half<Bf16>(read.zeros)) : 8;
    const uint32_t rounded = pack<Bf16>(factor, factor);
    const float rest = factor - low_half<Bf16>(rounded);
    return {rounded, pack<Bf16>(rest, rest), 0xc300c300 + zero * 0x10001};  // -128
  }

  template <int kProducts, bool kIsSplit>
  __device__ __forceinline__ void read(const Tile& tile, int stage, Read (&to)[kProducts][2]) {
    const int groups = launch.depth >> launch.group_bits, last = launch.columns / 16 - 1;
#pragma unroll
    for (int i = 0; i < kProducts * 2; ++i) {
      const int64_t of = min(tile.output / 16 + sixteen(i / 2), last);
      const int half = kIsSplit ? group : i % 2;
      const int64_t at = (of * groups + ((stage * 2 + half) * 64 >> launch.group_bits)) * 8 + lane / 4;
      to[i / 2][i % 2].scales = reinterpret_cast<const float2*>(launch.scales)[at];
      if (HAS_ZEROS) to[i / 2][i % 2].zeros = reinterpret_cast<const uint32_t*>(launch.zeros)[at];
    }
  }

  // Inputs 2 i and 2 i + 1 of a word
  static __device__ __forceinline__ uint32_t pair(uint32_t word, int i, const Scale& scale) {
    const uint32_t raised = (word >> (4 * i) & 0x000f000f) | 0x43004300;  // 128
    const uint32_t number = fma_pair<Bf16>(raised, 0x3f803f80, scale.minus_zero);
    return fma_pair<Bf16>(number, scale.factor, fma_pair<Bf16>(number, scale.rest, 0x80008000));
  }

  template <int kWidth, int kProducts, bool kIsSplit>
  __device__ __forceinline__ void multiply_stage(uint32_t codes, uint32_t x, const Scale (&scales)[kProducts][2][2],
                                                 bool has_before) {
    uint4 words[kProducts];
    uint32_t numbers[2][kProducts][4];
#pragma unroll
    for (int step = 0; step < (kIsSplit ? 4 : 8); ++step) {
      const int half = kIsSplit ? group : step / 4;
#pragma unroll
      for (int i = 0; step % 4 == 0 && i < kProducts; ++i) {
        words[i] = load_words_now(codes + sixteen(i) * kStageBytes + half * 512 + lane * 16);
      }
#pragma unroll
      for (int i = 0; i < kProducts * 4; ++i) {
        const uint4& four = words[i / 4];
        const bool is_high = i % 2;  // output lane / 4 + 8
        const uint32_t word = step % 4 < 2 ? (is_high ? four.y : four.x) : is_high ? four.w : four.z;
        numbers[step % 2][i / 4][i % 4] = pair(word, step % 2 * 2 + i / 2 % 2, scales[i / 4][step / 4][i % 2]);
      }
      const uint64_t inputs = matrix(x + half * kPanelBytes + step % 4 * 32);
      products_begin();
#pragma unroll
      for (int i = 0; i < kProducts; ++i) {
        multiply_add_bf16<kWidth, kRows>(sums[i], numbers[step % 2][i], inputs, step > 0 || has_before);
      }
      products_end_group();
      products_wait<1>();
      if (step == 0 && has_before) release(count - 1);
    }
  }

  __device__ __forceinline__ void release(int count) {
    if (lane == 0) shared.ring.release(count);
  }

  // Turned, so that a thread has two neighbouring outputs of a row
  __device__ __forceinline__ void finish(const Tile& tile) {
#pragma unroll
    for (int product = 0; product < 2; ++product) {
      if (product * 8 >= tile.sixteens) break;
      const int output = tile.output + sixteen(product) * 16;
      if (output >= launch.columns) break;
      float bias[2] = {};
#pragma unroll
      for (int half = 0; launch.bias != nullptr && half < 2; ++half) bias[half] = to_float(launch.bias[output + half * 8 + lane / 4]);
#pragma unroll
      for (int i = 0; i < kRows / 8; ++i) {
        if (tile.row + i * 8 >= launch.num_rows) break;
        const int row = tile.row + i * 8 + lane / 4;
        float y[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          y[j] = sums[product][i][j] + (launch.is_split ? shared.sums[i * 4 + j][threadIdx.x % 128] : 0);
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
