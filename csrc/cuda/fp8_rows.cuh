// Rows of csrc/cuda/fp8_linear.cu as its products read them: each in two of e4m3, by spans of 128 inputs.
#pragma once

#include "fp8_load.cuh"
#include "fp8_split.cuh"

namespace octavo {
namespace {

// A thread's part of its row; eight inputs at a time, so half a warp has a span
struct RowPart {
  static constexpr int kBatch = BATCH, kEarly = kRows < 4 ? 1 : 2;  // kEarly: norms that come before the rows are there
  const Launch& launch;
  const Share& share;
  Shared& shared;
  uint8_t* const x = reinterpret_cast<uint8_t*>(&shared + 1);
  float* const scales = reinterpret_cast<float*>(x + share.num_pieces * kRows * kRowBytes);
  const int row = threadIdx.x / kRowThreads, thread = threadIdx.x % kRowThreads;
  const int end = share.num_pieces * (kPiece / 8), num_there = share.length / 8;
  Eight norms[kEarly];  // of its first inputs
  float square = 0;

  // What does not wait for the previous kernel
  __device__ void begin() {
#pragma unroll
    for (int j = 0; j < kEarly; ++j) norms[j] = norm_at(thread + j * kRowThreads);
  }

  // Splits a row; with a norm, leaves also the sum of its squares
  __device__ void split() {
    if (row >= launch.num_rows) return;  // nobody reads its sums
    const Bf16* from = launch.x + row * launch.x_stride + share.begin;
    for (int first = thread; first < end; first += kBatch * kRowThreads) {
      uint4 raw[kBatch];
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const int i = first + j * kRowThreads;
        raw[j] = {};
        if (i < num_there) raw[j] = *reinterpret_cast<const uint4*>(from + i * 8);
      }
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const int i = first + j * kRowThreads;
        if (kRows < 4 && i >= end) continue;  // many rows are faster without branches
        split(i, raw[j], j < kEarly && first == thread ? norms[j % kEarly] : norm_at(i));
      }
    }
    if (launch.norm != nullptr) {
      for (int step = 16; step > 0; step /= 2) square += __shfl_xor_sync(~0u, square, step);
      if (threadIdx.x % 32 == 0) shared.squares[threadIdx.x / 32] = square;
    }
  }

  __device__ __forceinline__ Eight norm_at(int i) const {
    return launch.norm != nullptr && i < num_there ? eight(launch.norm + i * 8) : Eight{};
  }

  __device__ __forceinline__ void split(int i, const uint4& raw, const Eight& norm) {
    const Bf16* numbers = reinterpret_cast<const Bf16*>(&raw);
    float y[8], largest = 0;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      y[j] = to_float(numbers[j]);
      if (launch.norm != nullptr) {
        square += y[j] * y[j];
        y[j] *= norm.x[j];
      }
      largest = larger(largest, fabsf(y[j]));
    }
#pragma unroll
    for (int step = 8; step > 0; step /= 2) largest = larger(largest, __shfl_xor_sync(~0u, largest, step));
    const SpanScale scale(largest);
    uint32_t high[2] = {}, low[2] = {};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const SplitPair pair(y[j * 2] * scale.to, y[j * 2 + 1] * scale.to);
      high[j / 2] |= pair.high << j % 2 * 16;
      low[j / 2] |= pair.low << j % 2 * 16;
    }
    if (i < end) place(i, {high[0], high[1]}, {low[0], low[1]}, scale.from);
  }

  __device__ __forceinline__ void place(int i, const uint2& high, const uint2& low, float scale) const {
    const int piece = i / 64, span = i / 16 % 4, inside = i % 16;
    uint8_t* to = x + (piece * kRows + row) * kRowBytes + span * 256 + inside % 2 * 8;
    const int swizzled = inside / 2 ^ span * 2;  // in line 2 span of eight; in the next the last bit differs
    *reinterpret_cast<uint2*>(to + swizzled * 16) = high;
    *reinterpret_cast<uint2*>(to + 128 + (swizzled ^ 1) * 16) = low;
    if (inside == 0) scales[(piece * kRows + row) * 4 + span] = scale;
  }
};

}  // namespace
}  // namespace octavo
