// Rows as csrc/cuda/int4_linear.cu multiplies them, in shared memory: integers of 16 bits, times a scale for each span.
//
// The largest of a span of 64 or 128 inputs becomes 127 * 256 + 127 = 32,639, so none is off by more than a 65,278th of
// it; a number of bfloat16 is off by up to a 512th of itself where an RMSNorm's weight multiplies it. An integer is 256
// times its high byte plus its low one, which both have a sign, and which are two columns of a product of bytes.
#pragma once

#include "int4_load.cuh"

namespace octavo {
namespace {

constexpr int kRowGap = 64;            // after a row of bytes: lanes of different rows use different banks
constexpr int kSpanChunks = kSpan / 8;  // a thread has chunks of 8 inputs
constexpr float kLargestCode = 32639, kLeastSpan = 1e-30f;
// Added to an integer of 16 bits, makes a float with that, plus 128, as its low bits: so the low byte, less 128, has a sign
constexpr float kCodeOffset = 12582912 + 128;

// What a span's integers have in common
struct Span {
  float scale;     // a 16th of it, since products have 16 times the weights
  uint32_t taken;  // what zero points take from a sum: that of the integers times -16 * 8; a float without the 8
};

struct Chunk {
  int row, at;
  uint4 raw = {};
  Eight norm = {};
  float y[8], largest = kLeastSpan, square = 0;
  uint32_t codes[8], sum = 0;

  template <bool kHasNorm>
  __device__ __forceinline__ void begin() {
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      y[j] = j % 2 ? high_half<ELEMENT>(words[j / 2]) : low_half<ELEMENT>(words[j / 2]);
      if (kHasNorm) {
        square += y[j] * y[j];
        y[j] *= norm.x[j];
      }
      largest = larger(largest, fabsf(y[j]));  // NaN, if one is, and then so is the scale
    }
  }

  __device__ __forceinline__ float scale() const { return largest * (1 / kLargestCode); }

  __device__ __forceinline__ void round() {
    const float inverse = reciprocal(scale());
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      codes[j] = __float_as_uint(fmaf(y[j], inverse, kCodeOffset));
      sum += codes[j] - __float_as_uint(kCodeOffset);
    }
  }
};

struct Rows {
  const Launch& launch;
  const Share& share;
  // [row][2][pitch], high bytes and low ones: of 64 inputs, thread t of four reads 16, from 8 t on of each half, in the
  // order of an int4 word's even nibbles, of both halves, and odd ones
  uint8_t* const x;
  const int lane = threadIdx.x % 32;
  const int pitch = launch.part_depth + kRowGap, num_spans = launch.part_depth / kSpan;
  Span* const spans = reinterpret_cast<Span*>(x + 2 * launch.num_rows * pitch);  // [span][kRows]
  float* const squares = reinterpret_cast<float*>(spans + num_spans * kRows);    // [span][kRows], with a norm

  __device__ void stage() const {
    const bool is_short = launch.num_rows * share.length <= 2 * 8 * kThreads;
    if (launch.norm != nullptr) {
      is_short ? stage<true, 2>() : stage<true, 4>();
    } else {
      is_short ? stage<false, 2>() : stage<false, 4>();
    }
  }

  // kBatch: chunks that a thread has at once, so that none waits for another
  template <bool kHasNorm, int kBatch>
  __device__ void stage() const {
    const int row_chunks = share.length / 8, num_chunks = launch.num_rows * row_chunks;
    int row = 0, i = threadIdx.x;
#pragma unroll 1
    for (int first = threadIdx.x - lane; first < num_chunks; first += kBatch * kThreads) {  // a warp has whole spans
      Chunk chunks[kBatch];
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        while (i >= row_chunks) i -= row_chunks, ++row;
        chunks[j].row = row, chunks[j].at = i;
        i += kThreads;
        if (row >= launch.num_rows) continue;
        const int at = chunks[j].at * 8;
        chunks[j].raw = *reinterpret_cast<const uint4*>(launch.x + row * launch.x_stride + share.begin + at);
        if (kHasNorm) chunks[j].norm = eight(launch.norm + at);
      }
#pragma unroll
      for (int j = 0; j < kBatch; ++j) chunks[j].template begin<kHasNorm>();
      join_spans<kHasNorm>(chunks);
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        if (chunks[j].row < launch.num_rows) store<kHasNorm>(chunks[j]);
      }
    }
  }

  // Lanes of a span agree on its scale, and add up their sums
  template <bool kHasNorm, int kBatch>
  __device__ __forceinline__ void join_spans(Chunk (&chunks)[kBatch]) const {
#pragma unroll
    for (int step = kSpanChunks / 2; step > 0; step /= 2) {
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        chunks[j].largest = larger(chunks[j].largest, __shfl_xor_sync(~0u, chunks[j].largest, step));
        if (kHasNorm) chunks[j].square += __shfl_xor_sync(~0u, chunks[j].square, step);
      }
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j) chunks[j].round();
#pragma unroll
    for (int step = kSpanChunks / 2; step > 0; step /= 2) {
#pragma unroll
      for (int j = 0; j < kBatch; ++j) chunks[j].sum += __shfl_xor_sync(~0u, chunks[j].sum, step);
    }
  }

  template <bool kHasNorm>
  __device__ __forceinline__ void store(const Chunk& chunk) const {
    const uint32_t(&codes)[8] = chunk.codes;
    const int at = chunk.at, span = at / kSpanChunks * kRows + chunk.row;
    if (lane % kSpanChunks == 0) {
      const int sum = chunk.sum;
      const uint32_t taken = HAS_ZEROS ? __float_as_uint(-16.0f * sum) : uint32_t(-16 * 8 * sum);
      spans[span] = {chunk.scale() / 16, taken};
      if (kHasNorm) squares[span] = chunk.square;
    }
    uint8_t* to = x + 2 * chunk.row * pitch + at / 8 * 64 + at % 4 * 16 + at / 4 % 2 * 4;
    store_bytes(to, codes[0], codes[4], codes[1], codes[5]);
    store_bytes(to + 8, codes[2], codes[6], codes[3], codes[7]);
  }

  __device__ __forceinline__ void store_bytes(uint8_t* to, uint32_t a, uint32_t b, uint32_t c, uint32_t d) const {
    const uint32_t first = __byte_perm(a, b, 0x5140), second = __byte_perm(c, d, 0x5140);
    *reinterpret_cast<uint32_t*>(to) = __byte_perm(first, second, 0x7632);
    *reinterpret_cast<uint32_t*>(to + pitch) = __byte_perm(first, second, 0x5410) ^ 0x80808080;
  }

  // 1 / rms of a row
  __device__ __forceinline__ float norm_factor(int row) const {
    float square = 0;
#pragma unroll 8
    for (int i = 0; i < num_spans; ++i) square += squares[i * kRows + row];
    return rsqrtf(square / launch.depth + launch.eps);
  }
};

}  // namespace
}  // namespace octavo
