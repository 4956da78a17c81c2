// silu, gelu and relu, gated and plain.
#include "activation.h"

#include "vector_math.h"

namespace octavo {
namespace {

constexpr int64_t kCost = 8;  // one activated element against one added element

struct Silu {
  template <int W>
  static Floats<W> apply(Floats<W> x) {
    return x / (1.0f + exp<W>(-x));
  }
};

// x * Phi(x); on the negative side Phi is erfc itself, so nothing cancels.
struct Gelu {
  template <int W>
  static Floats<W> apply(Floats<W> x) {
    const Floats<W> half = 0.5f * erfc_positive<W>(absolute<W>(x) * 0.70710678f);
    return x * (x < Floats<W>{} ? half : 1.0f - half);
  }
};

// 0.5 x (1 + tanh u) is x / (1 + e^-2u).
struct GeluTanh {
  template <int W>
  static Floats<W> apply(Floats<W> x) {
    const Floats<W> u = 0.79788456f * (x + 0.044715f * x * x * x);
    return x / (1.0f + exp<W>(-2.0f * u));
  }
};

struct Relu {
  template <int W>
  static Floats<W> apply(Floats<W> x) {
    return x < Floats<W>{} ? Floats<W>{} : x;
  }
};

template <class Visit>
void with_kind(Activation kind, const Visit& visit) {
  switch (kind) {
    case Activation::silu: return visit(Silu{});
    case Activation::gelu: return visit(Gelu{});
    case Activation::gelu_tanh: return visit(GeluTanh{});
    case Activation::relu: return visit(Relu{});
  }
}

}  // namespace

void activation(ThreadPool& pool, Activation kind, Rows x, Rows out, int64_t num_tokens) {
  with_kind(kind, [&](auto function) {
    for_each_token(pool, num_tokens, kCost * x.width, [&](int64_t t) {
      const float* source = x[t];
      float* target = out[t];
      for_each_vector(x.width, [&](int64_t i, auto lanes) {
        store<lanes>(target + i, function.template apply<lanes>(load<lanes>(source + i)));
      });
    });
  });
}

void gated_activation(ThreadPool& pool, Activation kind, Rows gate_up, Rows out, int64_t num_tokens) {
  with_kind(kind, [&](auto function) {
    for_each_token(pool, num_tokens, kCost * out.width, [&](int64_t t) {
      const float *gate = gate_up[t], *up = gate + out.width;
      float* target = out[t];
      for_each_vector(out.width, [&](int64_t i, auto lanes) {
        store<lanes>(target + i, function.template apply<lanes>(load<lanes>(gate + i)) * load<lanes>(up + i));
      });
    });
  });
}

void softcap(ThreadPool& pool, Rows x, float cap, Rows out, int64_t num_tokens) {
  const float inverse = 1.0f / cap;
  for_each_token(pool, num_tokens, kCost * x.width, [&](int64_t t) {
    const float* source = x[t];
    float* target = out[t];
    for_each_vector(x.width, [&](int64_t i, auto lanes) {
      store<lanes>(target + i, cap * tanh<lanes>(load<lanes>(source + i) * inverse));
    });
  });
}

}  // namespace octavo
