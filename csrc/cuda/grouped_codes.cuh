// Weights that are codes with scales, as the 16-bit numbers that grouped_linear.cu multiplies: a loader thread's part.
//
// A thread has two rows of the matrix, and of a stage 64 inputs of each. It reads their codes some stages ahead into
// registers, and writes numbers to shared memory where the copy engine would have put them.
#pragma once

#include "quantized_weights.cuh"

namespace octavo {

template <Format kFormat>
struct Codes {
  static constexpr int kBits = kFormat == kInt4 || kFormat == kFp4 ? 4 : 8;
  static constexpr int kChunks = kBits / 2;  // of 16 bytes, in 64 inputs
  static constexpr int kAhead = kFormat == kFp4 ? 3 : 2;  // stages, the one that is converted included
  struct Stage {
    uint4 codes[kChunks];
    float scales[2];  // of 32 inputs each; of fp4 exponents of two plus 127
    int zeros[2];
  };

  const uint8_t* codes;
  const void* scales;
  const int8_t* zeros;
  int depth, group;
  Stage stages[kAhead];

  // row: of all matrices
  __device__ __forceinline__ void begin(const uint8_t* all, const void* all_scales, const int8_t* all_zeros, int64_t row,
                                        int depth, int group, int row_block) {
    const int64_t at = row / row_block * ((depth + group - 1) / group);
    codes = all + row * (depth / (8 / kBits));
    scales = kFormat == kFp4 ? static_cast<const void*>(static_cast<const uint8_t*>(all_scales) + at)
                             : static_cast<const void*>(static_cast<const float*>(all_scales) + at);
    zeros = all_zeros == nullptr ? nullptr : all_zeros + at;
    this->depth = depth, this->group = group;
#pragma unroll
    for (int i = 0; i + 1 < kAhead; ++i) load(stages[i], i);
  }

  // Beyond a row's end are zeros
  __device__ __forceinline__ void load(Stage& to, int stage) const {
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const int input = stage * 64 + i * (128 / kBits);
      to.codes[i] = input < depth ? *reinterpret_cast<const uint4*>(codes + input * kBits / 8) : uint4{};
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int input = stage * 64 + i * 32, at = input / group;
      to.scales[i] = 0;
      to.zeros[i] = 8;
      if (input >= depth) continue;
      to.scales[i] = kFormat == kFp4 ? float(static_cast<const uint8_t*>(scales)[at]) : static_cast<const float*>(scales)[at];
      if (kFormat == kInt4 && zeros != nullptr) to.zeros[i] = zeros[at];
    }
  }

  // The next stage's numbers, eight inputs in 16 bytes. row: in shared memory, whose chunks are swizzled
  __device__ __forceinline__ void convert(int stage, uint32_t to, int row) {
    load(stages[kAhead - 1], stage + kAhead - 1);
    const Stage& one = stages[0];
#pragma unroll
    for (int unit = 0; unit < 2; ++unit) {
      const uint32_t scale = scale_of(one, unit), minus_zero = kMinus + one.zeros[unit] * 0x10001;
#pragma unroll
      for (int chunk = 0; chunk < 4; ++chunk) {
        const uint4& from = one.codes[kBits == 4 ? unit : unit * 2 + chunk / 2];
        const bool second = chunk % 2;
        const uint32_t words[2] = {second ? from.z : from.x, second ? from.w : from.y};
        uint4 y;
        four(y.x, y.y, words[0], chunk / 2, scale, minus_zero);
        four(y.z, y.w, words[1], chunk / 2, scale, minus_zero);
        store_words(to + row * 128 + ((unit * 4 + chunk) ^ row % 8) * 16, y);
      }
    }
#pragma unroll
    for (int i = 0; i + 1 < kAhead; ++i) stages[i] = stages[i + 1];
  }

 private:
  static constexpr uint32_t kMinus = 0xc300c300, kNumber = 0x43004300, kOne = 0x3f803f80;  // -128, 128 and 1

  static __device__ __forceinline__ uint32_t scale_of(const Stage& one, int unit) {
    if constexpr (kFormat == kFp4) {  // 2^(exponent - 127), of which 2^63 follow, and 2^126 that the numbers lack
      const uint32_t bits = min(int(one.scales[unit]) + 63, 254) << 7;
      return bits * 0x10001;
    }
    return pack<Bf16>(one.scales[unit], one.scales[unit]);
  }

  // Four neighbouring inputs: of a word of bytes, or the low or high nibbles of one
  static __device__ __forceinline__ void four(uint32_t& low, uint32_t& high, uint32_t word, bool is_high,
                                              uint32_t scale, uint32_t minus_zero) {
    const uint32_t even = scaled(pair(word, is_high, false, minus_zero), scale);
    const uint32_t odd = scaled(pair(word, is_high, true, minus_zero), scale);
    low = __byte_perm(even, odd, 0x5410);
    high = __byte_perm(even, odd, 0x7632);
  }

  static __device__ __forceinline__ uint32_t scaled(uint32_t numbers, uint32_t scale) {
    if (kFormat == kFp4) numbers = Numbers<Bf16>::fma(numbers, 0x5f005f00, 0x80008000);  // 2^63
    return Numbers<Bf16>::fma(numbers, scale, 0x80008000);
  }

  // Inputs 0 and 2 of four, or 1 and 3
  static __device__ __forceinline__ uint32_t pair(uint32_t word, bool is_high, bool is_odd, uint32_t minus_zero) {
    const int nibble = is_odd * 2 + is_high;
    if constexpr (kFormat == kFp4) return fp4_pair<Bf16>(word, nibble);
    if constexpr (kFormat == kInt4) {
      return Numbers<Bf16>::fma((word >> (4 * nibble) & 0x000f000f) | kNumber, kOne, minus_zero);
    }
    if constexpr (kFormat == kInt8) return int8_pair<Bf16>(word ^ 0x80808080, is_odd);
    return fp8_pair<Bf16>(word, is_odd);
  }
};

}  // namespace octavo
