// Element-wise ops: sums, activations, gates. A new one is a line of the table at the end.
#include "elementwise.h"

#include <type_traits>

#include "vector_math.h"

namespace octavo {
namespace {

using Model = ModelState&;
using Tensors = const Rows*;
using Given = const Arguments&;
constexpr int64_t kCost = 8;  // of one activation, in additions

// target[i] = function(lanes, vectors at i ...) for a row of each, `lanes` being their width as a constant.
template <class Function, class... Sources>
inline void map_row(const Function& function, int64_t width, float* target, Sources*... sources) {
  for_each_vector(width, [&](int64_t i, auto lanes) {
    store<lanes>(target + i, function(lanes, load<lanes>(sources + i)...));
  });
}

// The kernel of a function of vectors: function(lanes, arguments, x), or with (x, y) for two inputs.
template <class Function>
void map_elements(int64_t cost, const Function& function, Model model, Tensors tensors, Given given,
                  int64_t num_tokens) {
  using One = std::integral_constant<int, 1>;
  constexpr bool has_two = std::is_invocable_v<Function, One, Given, Floats<1>, Floats<1>>;
  const Rows x = tensors[0], y = tensors[1], out = tensors[has_two ? 2 : 1];
  for_each_token(model.pool, num_tokens, cost * x.width, [&](int64_t t) {
    const Arguments here = given;  // a copy, which the compiler knows no store changes
    if constexpr (has_two) {
      map_row([&](auto lanes, auto a, auto b) { return function(lanes, here, a, b); }, x.width, out[t], x[t], y[t]);
    } else {
      map_row([&](auto lanes, auto a) { return function(lanes, here, a); }, x.width, out[t], x[t]);
    }
  });
}

template <int64_t cost, class Function>
constexpr Kernel elementwise(Function) {
  return [](Model model, Tensors tensors, Given given, int64_t num_tokens) {
    map_elements(cost, Function{}, model, tensors, given, num_tokens);
  };
}

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
void with_kind(Argument kind, const Visit& visit) {
  switch (Activation(kind.whole)) {
    case Activation::silu: return visit(silu);
    case Activation::gelu: return visit(gelu);
    case Activation::gelu_tanh: return visit(gelu_tanh);
    case Activation::relu: return visit(relu);
  }
}

void activation(Model model, Tensors tensors, Given given, int64_t num_tokens) {
  with_kind(given[0], [&](auto act) {
    const auto function = [=](auto lanes, Given, auto x) { return act(lanes, x); };
    map_elements(kCost, function, model, tensors, given, num_tokens);
  });
}

// act(first half of the columns) * second half.
void gated_activation(Model model, Tensors tensors, Given given, int64_t num_tokens) {
  const Rows gate_up = tensors[0], out = tensors[1];
  with_kind(given[0], [&](auto act) {
    for_each_token(model.pool, num_tokens, kCost * out.width, [&](int64_t t) {
      const auto function = [=](auto lanes, auto gate, auto up) { return act(lanes, gate) * up; };
      map_row(function, out.width, out[t], gate_up[t], gate_up[t] + out.width);
    });
  });
}

constexpr NamedKernel kKernels[] = {
    {"add", elementwise<1>([](auto, Given, auto x, auto y) { return x + y; })},
    {"softcap", elementwise<kCost>([](auto lanes, Given given, auto x) {
       return given[0].real * tanh<lanes>(x * (1.0f / given[0].real));
     })},
    {"activation", activation},
    {"gated_activation", gated_activation},
};

}  // namespace

std::span<const NamedKernel> elementwise_kernels() { return kKernels; }

}  // namespace octavo
