// Many rows times a weight of int4 in groups, on Hopper's matrix units: out [rows, columns] = x W^T + bias, in bfloat16.
//
// Neither a matrix of bfloat16 nor a trip through memory lies between: codes become numbers in the registers of those who
// multiply them, as the first operand, whose rows are outputs. Sums are outputs by rows of x.
//
//   1 thread loads        64 or 128 inputs a stage: codes as pack_int4 deals them, and rows, by the copy engine ──> a ring
//   2 warpgroups multiply 64 or twice 64 outputs each, by 32 to 256 rows; numbers of a step are made while the products of the
//                         step before run
//
// A thread of four has 8 neighbouring inputs of 32, of which a product of 16 takes four. So the rows' inputs have been
// dealt (wide_int4.py):   place 8 c + 2 t + b of 32   <──   input 8 t + 2 c + b
//
// One block a multiprocessor, each with as many stages as the others (Osama et al., Stream-K, 2023). So a tile may be
// of several blocks, whose sums come together through global memory: at the first of them, which ends with this tile while the
// others began with it; or, if all have equal parts of the same tile, each adds up those of some rows.

#include "wide_int4_tiles.cuh"

namespace octavo {
namespace {

struct Multiplier {
  const Launch& launch;
  Shared& shared;
  const int lane = threadIdx.x % 32, thread = threadIdx.x - kLoaders, group = thread / 128, warp = threadIdx.x / 32 % 4;
  int count = 0;
  float sums[kProducts][kRows / 8][4];

  __device__ void run() {
    for (Work work(launch); work.next();) {
      const Piece& piece = work.piece;
      const Tile tile(launch, piece.tile);
      multiply(tile, piece);
      const Shares shares(launch, piece, tile);
      if (shares.count > 1) exchange(shares);
      finish(tile, shares);
      __syncwarp();  // else the compiler takes what follows for divergent, and has products wait for each other
    }
    if (launch.exchanges() && thread == 0) count_block(launch.count);
  }

  // Of the tile's 16 outputs at a time, those of a product's rows that the warp has
  __device__ __forceinline__ int sixteen(int product) const { return product * 8 + group * 4 + warp; }

  __device__ __forceinline__ void multiply(const Tile& tile, const Piece& piece) {
#pragma unroll
    for (int i = 0; i < kProducts * kRows / 2; ++i) sums[i / (kRows / 2)][i / 4 % (kRows / 8)][i % 4] = 0;
    Read next[kProducts][kPanels];
    read(tile, piece.begin, next);
    for (int stage = piece.begin; stage < piece.end; ++stage, ++count) {
      Int4Scale scales[kProducts][kPanels][2];
#pragma unroll
      for (int i = 0; i < kProducts * kPanels * 2; ++i) {
        const int product = i / (kPanels * 2), panel = i / 2 % kPanels;
        scales[product][panel][i % 2] = scale(next[product][panel], i % 2);
      }
      read(tile, min(stage + 1, piece.end - 1), next);
      const int entry = shared.ring.entry(count);
      shared.ring.wait_until_full(count);
      multiply_stage(shared_address(shared.codes[entry]), shared_address(shared.rows[entry][0]), scales, stage > piece.begin);
    }
    products_end(sums[0]);
    if constexpr (kProducts == 2) products_end(sums[1]);
    release(count - 1);
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

  __device__ __forceinline__ void read(const Tile& tile, int stage, Read (&to)[kProducts][kPanels]) {
    const int groups = launch.depth >> launch.group_bits, last = launch.columns / 16 - 1;
#pragma unroll
    for (int i = 0; i < kProducts * kPanels; ++i) {
      const int64_t of = min(tile.output / 16 + sixteen(i / kPanels), last);
      const int64_t at = (of * groups + ((stage * kPanels + i % kPanels) * 64 >> launch.group_bits)) * 8 + lane / 4;
      Read& one = to[i / kPanels][i % kPanels];
      one.scales = reinterpret_cast<const float2*>(launch.scales)[at];
      if (HAS_ZEROS) one.zeros = reinterpret_cast<const uint32_t*>(launch.zeros)[at];
    }
  }

  __device__ __forceinline__ void multiply_stage(uint32_t codes, uint32_t x, const Int4Scale (&scales)[kProducts][kPanels][2],
                                                 bool has_before) {
    uint4 words[kProducts];
    uint32_t numbers[2][kProducts][4];
#pragma unroll
    for (int step = 0; step < kInputs / 16; ++step) {
      const int panel = step / 4;
#pragma unroll
      for (int i = 0; step % 4 == 0 && i < kProducts; ++i) {
        words[i] = load_words_now(codes + sixteen(i) * kStageBytes + panel * 512 + lane * 16);
      }
#pragma unroll
      for (int i = 0; i < kProducts * 4; ++i) {
        const uint4& four = words[i / 4];
        const bool is_high = i % 2;  // output lane / 4 + 8
        const uint32_t word = step % 4 < 2 ? (is_high ? four.y : four.x) : is_high ? four.w : four.z;
        numbers[step % 2][i / 4][i % 4] = scales[i / 4][panel][i % 2].pair(word, step % 2 * 2 + i / 2 % 2);
      }
      const uint64_t inputs = matrix(x + panel * kPanelBytes + step % 4 * 32);
      products_begin();
#pragma unroll
      for (int i = 0; i < kProducts; ++i) {
        multiply_add_bf16<kRows, kRows>(sums[i], numbers[step % 2][i], inputs, true);
      }
      products_end_group();
      products_wait<1>();
      if (step == 0 && has_before) release(count - 1);
    }
  }

  __device__ __forceinline__ void release(int count) {
    if (lane == 0) shared.ring.release(count);
  }

  // Leaves what other blocks add up, and adds up what they leave
  __device__ __forceinline__ void exchange(const Shares& shares) {
#pragma unroll
    for (int quarter = 0; quarter < kQuarters; ++quarter) {
      if (shares.is_own(quarter) || !shares.has_rows(quarter)) continue;
#pragma unroll
      for (int i = 0; i < kSlices; ++i) {
        const float(&four)[4] = slice(quarter, i);
        launch.left(blockIdx.x, quarter)[i * (kThreads - kLoaders) + thread] = make_float4(four[0], four[1], four[2], four[3]);
      }
    }
    written_for_copies();
    named_barrier(1, kThreads - kLoaders);
    if (thread == 0) tell_written(launch.told + blockIdx.x, launch.number());
    for (int other = 0; other < shares.count; ++other) {
      if (other == shares.own) continue;
#pragma unroll
      for (int quarter = 0; quarter < kQuarters; ++quarter) {
        if (!shares.is_own(quarter) || !shares.has_rows(quarter)) continue;
        shared.ring.wait_until_full(count);
        const uint32_t theirs = shared_address(shared.rows[shared.ring.entry(count)][0]);
#pragma unroll
        for (int i = 0; i < kSlices; ++i) add(slice(quarter, i), theirs + (i * (kThreads - kLoaders) + thread) * 16);
        release(count++);
      }
    }
  }

  __device__ __forceinline__ float (&slice(int quarter, int i))[4] {
    const int at = quarter * kSlices + i;
    return sums[at / (kRows / 8)][at % (kRows / 8)];
  }

  static __device__ __forceinline__ void add(float (&to)[4], uint32_t from) {
    const uint4 four = load_words_now(from);
    to[0] += __uint_as_float(four.x), to[1] += __uint_as_float(four.y);
    to[2] += __uint_as_float(four.z), to[3] += __uint_as_float(four.w);
  }

  // Turned, so that a thread has two neighbouring outputs of a row
  __device__ __forceinline__ void finish(const Tile& tile, const Shares& shares) {
#pragma unroll
    for (int product = 0; product < kProducts; ++product) {
      const int output = tile.output + sixteen(product) * 16;
      if (output >= launch.columns) break;
      float bias[2] = {};
#pragma unroll
      for (int half = 0; launch.bias != nullptr && half < 2; ++half) bias[half] = to_float(launch.bias[output + half * 8 + lane / 4]);
#pragma unroll
      for (int i = 0; i < kRows / 8; ++i) {
        if (!shares.is_own((product * (kRows / 8) + i) / kSlices) || i * 8 >= shares.rows) continue;
        const int row = tile.row + i * 8 + lane / 4;
        const float(&y)[4] = sums[product][i];
        const uint32_t low = transposed(pack<Bf16>(y[0] * kRaised + bias[0], y[1] * kRaised + bias[0]));
        const uint32_t high = transposed(pack<Bf16>(y[2] * kRaised + bias[1], y[3] * kRaised + bias[1]));
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
    octavo_wide_int4(const __grid_constant__ octavo::Launch launch, const __grid_constant__ octavo::TensorMap codes,
                     const __grid_constant__ octavo::TensorMap rows) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  using namespace octavo;
  extern __shared__ __align__(1024) uint8_t memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  if (threadIdx.x == 0) {
    shared.ring.init(0, 1, 1, 8);
    prefetch_map(&codes);
    prefetch_map(&rows);
  }
  __syncthreads();
  if (threadIdx.x < kLoaders) {
    keep_registers<kLoaderRegisters>();
    if (threadIdx.x == 0) Loader{launch, codes, rows, shared}.run();
  } else {
    want_registers<kMultiplierRegisters>();
    Multiplier{launch, shared}.run();
  }
#endif
}
