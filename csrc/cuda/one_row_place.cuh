// Rows in shared memory as one_row_experts.cu multiplies them: in stages of spans, a span in a line of 128 bytes, or in
// two if it is in fp8.
#pragma once

#include "fp8_split.cuh"
#include "one_row_kind.cuh"

namespace octavo {
namespace {

// x in shared memory, as the products read it
template <int kSpans>
struct Place {
  // Input `at` of the row at `x`, in the first of kColumns columns
  static __device__ __forceinline__ uint8_t* of(uint8_t* x, int at) {
    const int stage = at / (kSpans * kSpan), column = at / kSpan % kSpans * kColumns, byte = at % kSpan * (128 / kSpan);
    return x + stage * kXBytes + column * 128 + ((byte / 16 ^ column % 8) * 16 + byte % 16);
  }
  static __device__ __forceinline__ int scale_of(int at) { return at / (kSpans * kSpan) * 8 + at / kSpan % kSpans; }
};

// kNumber neighbours, a multiple of 4, in fp8. `largest`: of their span
template <int kSpans, int kNumber>
__device__ __forceinline__ void place_split(uint8_t* x, float* scales, int at, const float (&y)[kNumber],
                                            float largest) {
  const SpanScale scale(largest);
  uint32_t high[kNumber / 4] = {}, low[kNumber / 4] = {};
#pragma unroll
  for (int j = 0; j < kNumber / 2; ++j) {
    const SplitPair pair(y[j * 2] * scale.to, y[j * 2 + 1] * scale.to);
    high[j / 2] |= pair.high << j % 2 * 16;
    low[j / 2] |= pair.low << j % 2 * 16;
  }
  uint8_t* to = Place<kSpans>::of(x, at);
  uint8_t* other = x + ((to - x) ^ 16) + 128;  // the next column; columns of `high` are even
#pragma unroll
  for (int j = 0; j < kNumber / 4; ++j) {
    reinterpret_cast<uint32_t*>(to)[j] = high[j];
    reinterpret_cast<uint32_t*>(other)[j] = low[j];
  }
  if (at % kSpan == 0) scales[Place<kSpans>::scale_of(at)] = scale.from;
}

// 8 neighbours, of which a half warp has a span of fp8
template <int kSpans, int kStages>
__device__ __forceinline__ void place_eight(Shared& shared, int at, const float (&y)[8]) {
  const bool is_there = at < kStages * kSpans * kSpan;
  if constexpr (kIsFp8) {
    float largest = 0;
#pragma unroll
    for (int j = 0; j < 8; ++j) largest = larger(largest, fabsf(y[j]));
#pragma unroll
    for (int distance = 8; distance > 0; distance /= 2) {
      largest = larger(largest, __shfl_xor_sync(~0u, largest, distance));
    }
    if (is_there) place_split<kSpans>(shared.x[0], shared.x_scales[0], at, y, largest);
  } else if (is_there) {
    uint32_t* to = reinterpret_cast<uint32_t*>(Place<kSpans>::of(shared.x[0], at));
#pragma unroll
    for (int j = 0; j < 4; ++j) to[j] = pack<ELEMENT>(y[j * 2], y[j * 2 + 1]);
  }
}

}  // namespace
}  // namespace octavo
