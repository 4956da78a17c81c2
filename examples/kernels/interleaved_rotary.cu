// Decode attention whose heads turn in pairs of neighbours: dim 2 i with dim 2 i + 1, as in GPT-J, instead of halves.
#include "hooks.cuh"

namespace octavo {

// Both dims of a pair are in one thread, so nothing else is loaded than four angles.
template <typename Element, int kRotaryDim, bool kHasNorm>
struct RotatedPairs {
  float4 cos = {}, sin = {};

  __device__ void load(const Element*, const float*, const float* cos_row, const float* sin_row, int d) {
    cos = *reinterpret_cast<const float4*>(cos_row + d / 2);
    sin = *reinterpret_cast<const float4*>(sin_row + d / 2);
  }

  __device__ void multiply(const float*, float, int) {}
  __device__ void scale(float) {}

  __device__ void turn(Eight& own, int) const {
    const float c[4] = {cos.x, cos.y, cos.z, cos.w}, s[4] = {sin.x, sin.y, sin.z, sin.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float even = own.x[2 * i], odd = own.x[2 * i + 1];
      own.x[2 * i] = even * c[i] - odd * s[i];
      own.x[2 * i + 1] = odd * c[i] + even * s[i];
    }
  }
};

struct InterleavedRotary : PlainHooks {
  template <typename Element, int kRotaryDim, bool kHasNorm>
  using Rotation = RotatedPairs<Element, kRotaryDim, kHasNorm>;
};

}  // namespace octavo

#define HOOKS InterleavedRotary
#include "decode_attention.cu"
