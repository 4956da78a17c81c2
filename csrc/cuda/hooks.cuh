// What your own kernel can change in decode_attention.cu: scores, sinks, the rotation, how the cache stores numbers.
//
// Define a struct that derives from PlainHooks and hides the members that it changes, and name it by the macro HOOKS
// before including decode_attention.cu (examples/kernels, docs/guides/kernels.md). Its data, at most 32 bytes, is
// passed with each launch. A hook that is not hidden costs nothing.
#pragma once

#include "ptx.cuh"

namespace octavo {

// Dim i turns with dim i + kRotaryDim / 2, as in Llama. A thread has the 8 dims from d on.
template <typename Element, int kRotaryDim, bool kHasNorm>
struct RotatedHalves {
  Eight partner = {}, partner_weight = {}, cos = {}, sin = {};

  // head, norm: at dim 0. cos_row, sin_row: at the position's first angle
  __device__ __forceinline__ void load(const Element* head, const float* norm, const float* cos_row,
                                       const float* sin_row, int d) {
    constexpr int kHalf = kRotaryDim / 2;
    const int other = d < kHalf ? d + kHalf : d - kHalf, angle = d < kHalf ? d : d - kHalf;
    partner = eight(head + other);
    if (kHasNorm) partner_weight = eight(norm + other);
    cos = eight(cos_row + angle);
    sin = eight(sin_row + angle);
  }

  // columns: of the head, from dim 0 on; the numbers lack these scales, and `row`
  __device__ __forceinline__ void multiply(const float* columns, float row, int d) {
    const Eight own = eight(columns + (d < kRotaryDim / 2 ? d + kRotaryDim / 2 : d - kRotaryDim / 2));
#pragma unroll
    for (int i = 0; i < 8; ++i) partner.x[i] *= own.x[i] * row;
  }

  // Applies the head's norm
  __device__ __forceinline__ void scale(float factor) {
#pragma unroll
    for (int i = 0; i < 8; ++i) partner.x[i] *= factor * partner_weight.x[i];
  }

  // own: the thread's dims, already normed
  __device__ __forceinline__ void turn(Eight& own, int d) const {
    const bool is_low = d < kRotaryDim / 2;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      own.x[i] = own.x[i] * cos.x[i] + (is_low ? -partner.x[i] : partner.x[i]) * sin.x[i];
    }
  }
};

struct PlainHooks {
  // Changes the score, times log2(e), of a query of this head and the key `distance` tokens before it
  static constexpr bool kChangesScores = false;
  __device__ float score(float score, int head, int distance) const { return score; }

  // An additional score of the head's softmax, times log2(e), that has no value vector
  static constexpr bool kHasSinks = false;
  __device__ float sink(int head) const { return 0; }

  template <typename Element, int kRotaryDim, bool kHasNorm>
  using Rotation = RotatedHalves<Element, kRotaryDim, kHasNorm>;

  // How the cache stores numbers. If they are codes of one byte, the products ask for halves made of a word's bytes 0
  // and 1, and 2 and 3 (in_order), or 0 and 2, and 1 and 3 (turned), and the writer of new keys and values for eight codes
  static constexpr bool kHasCodes = false;
  template <typename Element>
  using Stored = Element;
  using StoredEight = uint4;
  __device__ static uint2 in_order(uint32_t word) { return {}; }
  __device__ static uint2 turned(uint32_t word) { return {}; }
  template <typename Element>
  __device__ StoredEight to_stored(uint4 x, int kv_head, bool is_value, int num_kv_heads) const { return x; }

  // What the halves of a kv head's keys or values are to be multiplied by
  __device__ float unit(int kv_head, bool is_value, int num_kv_heads) const { return 1.0f; }
};

// Sinks that a model has learned, one for each query head, beside what the other hooks change
template <typename Others>
struct LearnedSinks : Others {
  const float* sinks;

  static constexpr bool kHasSinks = true;
  __device__ float sink(int head) const { return __ldg(sinks + head) * 1.4426950408889634f; }
};

using Sinks = LearnedSinks<PlainHooks>;

}  // namespace octavo
