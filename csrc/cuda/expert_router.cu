// The router of a layer of experts for a few rows: their RMSNorm, and a logit for each expert.
//
//   grid   8 experts x 16 rows a thread block; each of its 16 warps has every 16th span of 64 inputs
//
// The router's weights are in registers before the previous kernel has ended. mma 16 x 8 x 16: rows are the rows of the
// first operand, experts the columns of the second. What the norm scales a row by follows the sum. Each block
// also writes a share of the normed rows, as `experts.cu` reads them.

#include "expert_rows.cuh"

#ifndef ELEMENT
#define ELEMENT Bf16
#endif
#ifndef BITS
#define BITS 16
#endif
#ifndef IS_RAISED
#define IS_RAISED 0
#endif
#ifndef SPANS
#define SPANS 3
#endif
#ifndef IS_CHAINED
#define IS_CHAINED 0
#endif

namespace octavo {
namespace {

constexpr int kWarps = 16, kMostSpans = SPANS;

struct Launch {
  const ELEMENT* x;
  const ELEMENT* weight;  // [experts][depth]
  const float* norm;      // or null
  float* logits;          // [rows][logits_stride]
  ELEMENT* out;           // the normed rows, or null
  int64_t x_stride, out_stride;
  int num_rows, num_experts, depth, logits_stride;
  float eps;
};

struct Shared {
  float sums[kWarps][16][8];
  float squares[kWarps][16];
};

// Of 64 inputs, those that a thread multiplies: `half` of them
__device__ __forceinline__ int input_of(int span, int half) { return span * 64 + threadIdx.x % 4 * 16 + half * 8; }

struct Router {
  const Launch& launch;
  Shared& shared;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int num_spans = launch.depth / 64, first_row = blockIdx.y * 16;
  uint4 weights[kMostSpans][2];
  float sums[4] = {}, squares[2] = {};

  __device__ __forceinline__ void load_weights() {
    const int expert = min(int(blockIdx.x) * 8 + lane / 4, launch.num_experts - 1);
    const ELEMENT* from = launch.weight + int64_t(expert) * launch.depth;
#pragma unroll
    for (int i = 0; i < kMostSpans; ++i) {
      const int span = warp + i * kWarps;
      if (span >= num_spans) break;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        weights[i][half] = *reinterpret_cast<const uint4*>(from + input_of(span, half));
      }
    }
    for (int i = threadIdx.x * 32; launch.norm != nullptr && i < launch.depth; i += kWarps * 1024) prefetch(launch.norm + i);
  }

  // 8 inputs of row lane / 4, or that + 8, times the norm's weight
  __device__ __forceinline__ uint4 load_row(int other, int at) {
    const int row = first_row + lane / 4 + other * 8;
    if (row >= launch.num_rows) return {};
    const uint4 raw = *reinterpret_cast<const uint4*>(launch.x + row * launch.x_stride + at);
    if (launch.norm == nullptr) return raw;
    const ELEMENT* x = reinterpret_cast<const ELEMENT*>(&raw);
    const Eight norm = eight(launch.norm + at);
    float y[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float each = to_float(x[i]);
      squares[other] += each * each;
      y[i] = each * norm.x[i];
    }
    return {pack<ELEMENT>(y[0], y[1]), pack<ELEMENT>(y[2], y[3]), pack<ELEMENT>(y[4], y[5]), pack<ELEMENT>(y[6], y[7])};
  }

  __device__ __forceinline__ void multiply() {
#pragma unroll
    for (int i = 0; i < kMostSpans; ++i) {
      const int span = warp + i * kWarps;
      if (span >= num_spans) break;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = input_of(span, half);
        const uint4 x = load_row(0, at), other = load_row(1, at), w = weights[i][half];
        multiply_add_any_time<ELEMENT>(sums, {x.x, other.x, x.y, other.y}, w.x, w.y);
        multiply_add_any_time<ELEMENT>(sums, {x.z, other.z, x.w, other.w}, w.z, w.w);
      }
    }
  }

  __device__ __forceinline__ void leave() {
#pragma unroll
    for (int other = 0; other < 2; ++other) {
      const int row = lane / 4 + other * 8;
      *reinterpret_cast<float2*>(&shared.sums[warp][row][lane % 4 * 2]) = {sums[other * 2], sums[other * 2 + 1]};
      float square = squares[other];
      square += __shfl_xor_sync(~0u, square, 1);
      square += __shfl_xor_sync(~0u, square, 2);
      if (lane % 4 == 0) shared.squares[warp][row] = square;
    }
  }

  __device__ __forceinline__ float factor_of(int row) const {
    if (launch.norm == nullptr) return 1;
    float square = 0;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) square += shared.squares[i][row];
    return rsqrtf(square / launch.depth + launch.eps);
  }

  __device__ __forceinline__ void finish() {
    const int i = threadIdx.x, row = i / 8, expert = blockIdx.x * 8 + i % 8;
    if (i >= 128 || first_row + row >= launch.num_rows || expert >= launch.num_experts) return;
    float y = 0;
#pragma unroll
    for (int j = 0; j < kWarps; ++j) y += shared.sums[j][row][i % 8];
    launch.logits[(first_row + row) * launch.logits_stride + expert] = y * factor_of(row);
  }

  static __device__ __forceinline__ float raised(float x) { return IS_RAISED ? x * kRaise : x; }

  // This block's share of the normed rows
  __device__ __forceinline__ void write_rows() const {
    const int pieces = padded<BITS>(launch.depth) / 8, num_rows = min(16, launch.num_rows - first_row);
    const int step = gridDim.x * blockDim.x;
    for (int i = threadIdx.x * gridDim.x + blockIdx.x; i < pieces * num_rows; i += step) {
      const int row = i / pieces, at = i % pieces * 8;
      const float factor = factor_of(row);
      Eight x = {}, norm = {};
      if (at < launch.depth) x = eight(launch.x + (first_row + row) * launch.x_stride + at);
      if (at < launch.depth && launch.norm != nullptr) norm = eight(launch.norm + at);
      float y[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) y[j] = raised(launch.norm == nullptr ? x.x[j] : x.x[j] * factor * norm.x[j]);
      ELEMENT* to = launch.out + (first_row + row) * launch.out_stride + place_of_eight<BITS>(at);
      *reinterpret_cast<uint2*>(to) = pack_four<BITS, ELEMENT>(y[0], y[1], y[2], y[3]);
      *reinterpret_cast<uint2*>(to + kOtherFour<BITS>) = pack_four<BITS, ELEMENT>(y[4], y[5], y[6], y[7]);
    }
  }
};

}  // namespace
}  // namespace octavo

extern "C" __global__ void __launch_bounds__(octavo::kWarps * 32)
    octavo_expert_router(const __grid_constant__ octavo::Launch launch) {
  using namespace octavo;
  __shared__ Shared shared;
  Router router{launch, shared};
  router.load_weights();
#if IS_CHAINED
  wait_for_previous();
  allow_next();
#endif
  router.multiply();
  router.leave();
  __syncthreads();
  router.finish();
  if (launch.out != nullptr) router.write_rows();
}
