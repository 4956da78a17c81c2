// The activations of a gate.
#pragma once

namespace octavo {

__device__ __forceinline__ float activate(float x, int activation) {
  if (activation == 1) return x / (1 + __expf(-x));                    // silu
  if (activation == 2) {                                               // gelu, by tanh
    const float inner = 0.79788456f * (x + 0.044715f * x * x * x);
    return 0.5f * x * (1 + (1 - 2 / (__expf(2 * inner) + 1)));
  }
  if (activation == 3) return 0.5f * x * (1 + erff(x * 0.70710678f));  // gelu
  return fmaxf(x, 0);
}

}  // namespace octavo
