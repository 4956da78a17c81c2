// Element-wise ops: sums, activations, gates. A new one is a line of the table at the end.
#include "elementwise.h"

#include <cmath>
#include <type_traits>

#include "activations.h"

namespace octavo {
namespace {

using Model = ModelState&;
using Tensors = const Rows*;
using Given = const Arguments&;
constexpr int64_t kCost = 8;  // of one activation, in additions

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

void activation(Model model, Tensors tensors, Given given, int64_t num_tokens) {
  with_kind(Activation(given[0].whole), [&](auto act) {
    const auto function = [=](auto lanes, Given, auto x) { return act(lanes, x); };
    map_elements(kCost, function, model, tensors, given, num_tokens);
  });
}

// act(first half of the columns) * second half.
void gated_activation(Model model, Tensors tensors, Given given, int64_t num_tokens) {
  const Rows gate_up = tensors[0], out = tensors[1];
  with_kind(Activation(given[0].whole), [&](auto act) {
    for_each_token(model.pool, num_tokens, kCost * out.width, [&](int64_t t) {
      const auto function = [=](auto lanes, auto gate, auto up) { return act(lanes, gate) * up; };
      map_row(function, out.width, out[t], gate_up[t], gate_up[t] + out.width);
    });
  });
}

// x * sigmoid(gate), with one gate a token.
void gate_rows(Model model, Tensors tensors, Given, int64_t num_tokens) {
  const Rows x = tensors[0], gate = tensors[1], out = tensors[2];
  for_each_token(model.pool, num_tokens, x.width, [&](int64_t t) {
    const float factor = 1.0f / (1.0f + std::exp(-gate[t][0]));
    map_row([=](auto, auto values) { return values * factor; }, x.width, out[t], x[t]);
  });
}

constexpr NamedKernel kKernels[] = {
    {"add", elementwise<1>([](auto, Given, auto x, auto y) { return x + y; })},
    {"scale", elementwise<1>([](auto, Given given, auto x) { return x * given[0].real; })},
    {"softcap", elementwise<kCost>([](auto lanes, Given given, auto x) {
       return given[0].real * tanh<lanes>(x * (1.0f / given[0].real));
     })},
    {"activation", activation},
    {"gated_activation", gated_activation},
    {"gate_rows", gate_rows},
};

}  // namespace

std::span<const NamedKernel> elementwise_kernels() { return kKernels; }

}  // namespace octavo
