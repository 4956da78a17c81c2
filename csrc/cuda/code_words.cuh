// What a thread of wide_codes.cu that multiplies has of a stage's codes: of 64 inputs of two outputs, 8 apart, of each 32 inputs 8
// neighbouring ones.
#pragma once

#include "wide_codes_tiles.cuh"

namespace octavo {
namespace {

template <bool kAreBytes>
struct CodeWords;

// Nibbles, as pack_int4 deals them: all in one load
template <>
struct CodeWords<false> {
  uint4 words;

  // The output of eight whose numbers are in a row of eight of a product
  static __device__ __forceinline__ int place(int row) { return row; }

  // from: the stage's codes. sixteen: of the tile's outputs. panel: of the stage's
  static __device__ __forceinline__ CodeWords load(uint32_t from, int sixteen, int panel, int lane) {
    const int line = (sixteen * kPanels + panel) * 4 + lane / 8;
    return {load_words_now(from + line * 128 + (lane % 8 ^ line % 8) * 16)};
  }

  // Of a step of 16 inputs: of the first eight and of the last, two of each output
  __device__ __forceinline__ uint32_t numbers(const CodeScale& scale, int step, int i) const {
    const bool is_second = i % 2;  // of the outputs
    const uint32_t word = step % 4 < 2 ? (is_second ? words.y : words.x) : is_second ? words.w : words.z;
    const int pair = step % 2 * 2 + i / 2;  // inputs 2 pair and 2 pair + 1
    return scale.numbers(word >> (pair / 2 * 8) & (pair % 2 ? 0x00f000f0 : 0x000f000f), pair % 2);
  }
};

// Bytes, as they are in the matrix
template <>
struct CodeWords<true> {
  uint2 words[2][2];  // output, 32 inputs

  // Rows of a product are such outputs that lanes which load at once find them in different banks
  static __device__ __forceinline__ int place(int row) { return (row & 1) | (row & 2) << 1 | (row & 4) >> 1; }

  static __device__ __forceinline__ CodeWords load(uint32_t from, int sixteen, int panel, int lane) {
    CodeWords codes;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t line = sixteen * 16 + i / 2 * 8 + place(lane / 4), at = i % 2 * 32 + lane % 4 * 8;
      codes.words[i / 2][i % 2] = load_two_words_now(from + panel * kPanelCodeBytes + line * 64 + (at ^ line / 2 % 4 * 16));
    }
    return codes;
  }

  __device__ __forceinline__ uint32_t numbers(const CodeScale& scale, int step, int i) const {
    const uint2& eight = words[i % 2][step % 4 / 2];
    constexpr uint32_t kFirst = kIsFp8 ? 0x1404 : 0x4140, kSecond = kIsFp8 ? 0x3424 : 0x4342;  // two bytes, and zeros
    return scale.numbers(look_up(step % 2 ? eight.y : eight.x, 0, i / 2 ? kSecond : kFirst), false);
  }
};

}  // namespace
}  // namespace octavo
