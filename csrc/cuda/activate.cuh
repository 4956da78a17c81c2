// The activations of a gate.
#pragma once

namespace octavo {

__device__ __forceinline__ float activate(float x, int activation) {
  if (activation == 1) return __fdividef(x, 1 + __expf(-x));           // silu
  if (activation == 2) {                                               // gelu, by tanh
    const float inner = 0.79788456f * (x + 0.044715f * x * x * x);
    return 0.5f * x * (1 + (1 - __fdividef(2, __expf(2 * inner) + 1)));
  }
  if (activation == 3) return 0.5f * x * (1 + erff(x * 0.70710678f));  // gelu
  return fmaxf(x, 0);
}

// What a gate lets through; kind: silu, clamped (of gpt-oss), gelu by tanh, gelu, relu
__device__ __forceinline__ float gated(float gate, float up, int kind, float alpha, float limit) {
  if (kind != 1) return activate(gate, kind == 0 ? 1 : kind) * up;
  gate = fminf(gate, limit);
  up = fmaxf(fminf(up, limit), -limit);
  return __fdividef(gate, 1 + __expf(-alpha * gate)) * (up + 1);
}

}  // namespace octavo
