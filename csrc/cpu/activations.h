// Activations of a vector, and the gates of MLPs: act(gate) * up.
#pragma once
#include "vector_math.h"

namespace octavo {

constexpr auto silu = [](auto lanes, auto x) { return x / (1.0f + exp<lanes>(-x)); };

// x * Phi(x); on the negative side Phi is erfc itself, so nothing cancels.
constexpr auto gelu = [](auto lanes, auto x) {
  const auto half = 0.5f * erfc_positive<lanes>(absolute<lanes>(x) * 0.70710678f);
  return x * (x < decltype(x){} ? half : 1.0f - half);
};

// 0.5 x (1 + tanh u) is x / (1 + e^-2u).
constexpr auto gelu_tanh = [](auto lanes, auto x) {
  const auto u = 0.79788456f * (x + 0.044715f * x * x * x);
  return x / (1.0f + exp<lanes>(-2.0f * u));
};

constexpr auto relu = [](auto, auto x) { return x < decltype(x){} ? decltype(x){} : x; };

// Values agree with octavo/kernels/ops.py: Activation, in order.
enum class Activation : int64_t { silu, gelu, gelu_tanh, relu };

template <class Visit>
void with_kind(Activation kind, const Visit& visit) {
  switch (kind) {
    case Activation::silu: return visit(silu);
    case Activation::gelu: return visit(gelu);
    case Activation::gelu_tanh: return visit(gelu_tanh);
    case Activation::relu: return visit(relu);
  }
}

// target[i] = function(lanes, vectors at i ...) for a row of each, `lanes` being their width as a constant.
template <class Function, class... Sources>
inline void map_row(const Function& function, int64_t width, float* target, Sources*... sources) {
  for_each_vector(width, [&](int64_t i, auto lanes) {
    store<lanes>(target + i, function(lanes, load<lanes>(sources + i)...));
  });
}

}  // namespace octavo
