// Codes with scales as the first operand of products, in registers (grouped_codes.cu): bfloat16, four inputs at a time.
//
// A thread has a unit of 32 inputs of a row: 16 or 32 bytes, of which a word and half of its nibbles, or a word of bytes,
// are four neighbouring inputs. It makes pairs of the first and third, and of the second and fourth.
#pragma once

#include "quantized_weights.cuh"

namespace octavo {

template <Format kFormat>
struct Fragments {
  static constexpr int kBits = kFormat == kInt4 || kFormat == kFp4 ? 4 : 8;
  static constexpr int kRowBytes = 128 * kBits / 8;       // of 128 inputs, in shared memory
  static constexpr int kStepsOfWords = kBits == 4 ? 8 : 4;  // that four words are for

  // Of a row's unit as they are read: a float's bits, or of fp4 an exponent of two plus 127
  struct Raw {
    uint32_t scale;
    int zero;
  };

  // Pairs that numbers are multiplied by, in two parts, and that are added before
  struct Scale {
    uint32_t factor, rest, minus_zero;
  };

  static __device__ __forceinline__ Raw load(const void* scales, const int8_t* zeros, int at) {
    Raw raw = {0, 8};
    raw.scale = kFormat == kFp4 ? static_cast<const uint8_t*>(scales)[at] : static_cast<const uint32_t*>(scales)[at];
    if (kFormat == kInt4 && zeros != nullptr) raw.zero = zeros[at];
    return raw;
  }

  static __device__ __forceinline__ Scale scale(const Raw& raw) {
    if constexpr (kFormat == kFp4) {  // 2^(exponent - 127), of which 2^63 follow, and 2^126 that the numbers lack
      return {(min(raw.scale + 63, 254u) << 7) * 0x10001, 0, 0};
    }
    const float factor = __uint_as_float(raw.scale);
    const uint32_t rounded = pack<Bf16>(factor, factor);
    const float rest = factor - low_half<Bf16>(rounded);
    return {rounded, pack<Bf16>(rest, rest), kMinus + raw.zero * 0x10001};
  }

  // The address of the first or second four words of a thread's unit; rows of bytes are swizzled by 128 bytes
  static __device__ __forceinline__ uint32_t address(uint32_t codes, int row, int q, int words) {
    if (kBits == 4) return codes + row * kRowBytes + q * 16;
    return codes + row * kRowBytes + ((q * 2 + words) ^ row % 8) * 16;
  }

  // Of the unit's inputs from 4 step on, the first and third, or the second and fourth
  static __device__ __forceinline__ uint32_t pair(const uint4& words, int step, bool is_odd, const Scale& scale) {
    const uint32_t all[4] = {words.x, words.y, words.z, words.w}, word = all[step % 4];
    const int nibble = is_odd * 2 + step / 4;
    if constexpr (kFormat == kFp4) {
      const uint32_t numbers = Numbers<Bf16>::fma(fp4_pair<Bf16>(word, nibble), 0x5f005f00, 0x80008000);  // 2^63
      return Numbers<Bf16>::fma(numbers, scale.factor, 0x80008000);
    }
    uint32_t numbers;
    if constexpr (kFormat == kInt4) {
      numbers = Numbers<Bf16>::fma((word >> (4 * nibble) & 0x000f000f) | kNumber, kOne, scale.minus_zero);
    } else {
      numbers = kFormat == kInt8 ? int8_pair<Bf16>(word ^ 0x80808080, is_odd) : fp8_pair<Bf16>(word, is_odd);
    }
    return Numbers<Bf16>::fma(numbers, scale.factor, Numbers<Bf16>::fma(numbers, scale.rest, 0x80008000));
  }

 private:
  static constexpr uint32_t kMinus = 0xc300c300, kNumber = 0x43004300, kOne = 0x3f803f80;  // -128, 128 and 1
};

}  // namespace octavo
