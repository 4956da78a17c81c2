// Many rows times a weight of int4, int8 or fp8, on Hopper's matrix units: out [rows, columns] = x W^T + bias, of 16 bits.
//
// Neither a matrix of 16 bits nor a trip through memory lies between: codes become numbers in the registers of those who
// multiply them, as the first operand, whose rows are outputs. Sums are outputs by rows of x.
//
//   1 thread loads        64 or 128 inputs a stage, by the copy engine: rows, codes, scales of inputs ──> a ring
//   2 warpgroups multiply 64 or twice 64 outputs each, by 32 to 256 rows; numbers of a step are made while the products of the
//                         step before run
//
// A thread of four has 8 neighbouring inputs of 32, of which a product of 16 takes four. So the rows' inputs have been
// dealt (triton/dealt.py):   place 8 c + 2 t + b of 32   <──   input 8 t + 2 c + b
//
// One block a multiprocessor, each with as many stages as the others (Osama et al., Stream-K, 2023). So a tile may be
// of several blocks, whose sums come together through global memory: at the first of them, which ends with this tile while the
// others began with it; or, if all have equal parts of the same tile, each adds up those of some rows.

#include "code_words.cuh"

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
    Numbers of[kProducts];
    shared.ring.wait_until_full(count);
#pragma unroll
    for (int i = 0; i < kProducts; ++i) of[i] = Numbers(codes(piece.begin, shared.ring.entry(count), i, 0));
    for (int stage = piece.begin; stage < piece.end; ++stage, ++count) {
      multiply_stage(of, stage, stage > piece.begin, stage + 1 < piece.end);
    }
    products_end(sums[0]);
    if constexpr (kProducts == 2) products_end(sums[1]);
    release(count - 1);
  }

  using Words = CodeWords<kAreBytes>;

  // A product's codes of 64 inputs, as they lie in shared memory
  struct Codes {
    Words words;
    float2 scales;
    uint32_t zeros;
  };

  __device__ __forceinline__ Codes codes(int stage, int entry, int product, int panel) const {
    Codes codes;
    codes.words = Words::load(shared_address(shared.codes[entry]), sixteen(product), panel, lane);
    const int groups = launch.groups_at_once();
    const int at = (sixteen(product) * groups + (groups == 1 ? 0 : panel)) * 8 + Words::place(lane / 4);
    if constexpr (SCALES == kOfGroups) {
      codes.scales = reinterpret_cast<const float2*>(shared.scales[entry])[at];
      if constexpr (kIsHalf) codes.scales.x *= launch.lowered, codes.scales.y *= launch.lowered;
    } else if constexpr (SCALES == kOfBlocks) {
      codes.scales.x = codes.scales.y = reinterpret_cast<const float*>(shared.scales[entry])[product * 4 + launch.group(stage) % 4];
    } else {
      codes.scales = {};
    }
#if HAS_ZEROS
    codes.zeros = reinterpret_cast<const uint32_t*>(shared.zeros[entry])[at];
#endif
    return codes;
  }

  // What numbers are made of
  struct Numbers {
    Words words;
    CodeScale scales[2];

    Numbers() = default;
    __device__ __forceinline__ explicit Numbers(const Codes& codes)
        : words(codes.words),
          scales{CodeScale::of(codes.scales.x, HAS_ZEROS ? low_half<ELEMENT>(codes.zeros) : kZero),
                 CodeScale::of(codes.scales.y, HAS_ZEROS ? high_half<ELEMENT>(codes.zeros) : kZero)} {}

    // Inputs of a step of 16, as a product's first operand has them
    __device__ __forceinline__ uint32_t operator()(int step, int i) const { return words.numbers(scales[i % 2], step, i); }
  };

  // of: the stage's first 64 inputs, in the end the next stage's: they come while products run
  __device__ __forceinline__ void multiply_stage(Numbers (&of)[kProducts], int stage, bool has_before, bool has_next) {
    const uint32_t x = shared_address(shared.rows[shared.ring.entry(count)][0]);
    uint32_t numbers[2][kProducts][4];
#pragma unroll
    for (int step = 0; step < kInputs / 16; ++step) {
#pragma unroll
      for (int i = 0; i < kProducts * 4; ++i) numbers[step % 2][i / 4][i % 4] = of[i / 4](step, i % 4);
      const bool is_last = step == kInputs / 16 - 1, comes = step % 4 == 3 && (!is_last || has_next);
      Codes next[kProducts];
      if (comes) {
        if (is_last) shared.ring.wait_until_full(count + 1);
        const int from = shared.ring.entry(count + is_last);
#pragma unroll
        for (int i = 0; i < kProducts; ++i) next[i] = codes(stage + is_last, from, i, is_last ? 0 : step / 4 + 1);
      }
      const uint64_t inputs = matrix(x + step / 4 * kPanelBytes + step % 4 * 32);
      products_begin();
#pragma unroll
      for (int i = 0; i < kProducts; ++i) {
        multiply_add_narrow<ELEMENT, kRows, kRows>(sums[i], numbers[step % 2][i], inputs, true);
      }
      products_end_group();
      if (comes) {
#pragma unroll
        for (int i = 0; i < kProducts; ++i) of[i] = Numbers(next[i]);
      }
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
        launch.left(blockIdx.x, quarter)[i * kMultipliers + thread] = make_float4(four[0], four[1], four[2], four[3]);
      }
    }
    written_for_copies();
    named_barrier(1, kMultipliers);
    if (thread == 0) tell_written(launch.told + blockIdx.x, launch.number());
    for (int other = 0; other < shares.count; ++other) {
      if (other == shares.own) continue;
#pragma unroll
      for (int quarter = 0; quarter < kQuarters; ++quarter) {
        if (!shares.is_own(quarter) || !shares.has_rows(quarter)) continue;
        shared.ring.wait_until_full(count);
        const uint32_t theirs = shared_address(shared.rows[shared.ring.entry(count)][0]);
#pragma unroll
        for (int i = 0; i < kSlices; ++i) add(slice(quarter, i), theirs + (i * kMultipliers + thread) * 16);
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
      float bias[2] = {}, scale[2] = {kRaised * launch.raised, kRaised * launch.raised};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = output + half * 8 + Words::place(lane / 4);
        if (launch.bias != nullptr) bias[half] = to_float(launch.bias[at]);
        if (SCALES == kOfOutputs) scale[half] *= launch.scales[at];
      }
#pragma unroll
      for (int i = 0; i < kRows / 8; ++i) {
        if (!shares.is_own((product * (kRows / 8) + i) / kSlices) || i * 8 >= shares.rows) continue;
        const int row = tile.row + i * 8 + lane / 4;
        const float(&y)[4] = sums[product][i];
        const uint32_t low = transposed(pack<ELEMENT>(y[0] * scale[0] + bias[0], y[1] * scale[0] + bias[0]));
        const uint32_t high = transposed(pack<ELEMENT>(y[2] * scale[1] + bias[1], y[3] * scale[1] + bias[1]));
        if (row < launch.num_rows) {
          ELEMENT* to = launch.out + row * launch.out_stride + output + Words::place(lane % 4 * 2);
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
    octavo_wide_codes(const __grid_constant__ octavo::Launch launch, const __grid_constant__ octavo::TensorMap rows,
                     const __grid_constant__ octavo::TensorMap codes, const __grid_constant__ octavo::TensorMap scales,
                     const __grid_constant__ octavo::TensorMap zeros) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  using namespace octavo;
  extern __shared__ __align__(1024) uint8_t memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  if (threadIdx.x == 0) {
    shared.ring.init(0, 1, 1, 8);
    for (const TensorMap* map : {&rows, &codes, &scales}) prefetch_map(map);
  }
  __syncthreads();
  if (threadIdx.x < kLoaders) {
    keep_registers<kLoaderRegisters>();
    if (threadIdx.x == 0) Loader{launch, rows, codes, scales, zeros, shared}.run();
  } else {
    want_registers<kMultiplierRegisters>();
    Multiplier{launch, shared}.run();
  }
#endif
}
