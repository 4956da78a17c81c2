// RMSNorm and LayerNorm, with the residual sum in the same pass.
#include "norm.h"

#include "vectors.h"

namespace octavo {
namespace {

// sum of f(i) over the row, in kWidth running sums and a scalar tail.
template <class Term>
float reduce(int64_t width, const Term& term) {
  Floats<kWidth> wide{};
  Floats<1> tail{};
  for_each_vector(width, [&](int64_t i, auto lanes) {
    if constexpr (lanes == kWidth) {
      wide += term(i, lanes);
    } else {
      tail += term(i, lanes);
    }
  });
  return sum<kWidth>(wide) + tail[0];
}

void scale_row(const float* x, const float* weight, float factor, int64_t width, float* out) {
  for_each_vector(width, [&](int64_t i, auto lanes) {
    store<lanes>(out + i, load<lanes>(x + i) * factor * load<lanes>(weight + i));
  });
}

}  // namespace

void rms_norm_row(const float* x, const float* weight, float eps, int64_t width, float* out) {
  const float square_sum = reduce(width, [&](int64_t i, auto lanes) {
    const auto v = load<lanes>(x + i);
    return v * v;
  });
  scale_row(x, weight, 1.0f / std::sqrt(square_sum / float(width) + eps), width, out);
}

void rms_norm(ThreadPool& pool, Rows x, const float* weight, float eps, Rows out, int64_t num_tokens) {
  for_each_token(pool, num_tokens, x.width,
                 [&](int64_t t) { rms_norm_row(x[t], weight, eps, x.width, out[t]); });
}

void norm_columns(ThreadPool& pool, Rows x, const float* weight, int64_t first, int64_t width, float eps,
                  int64_t num_tokens) {
  for_each_token(pool, num_tokens, width,
                 [&](int64_t t) { rms_norm_row(x[t] + first, weight, eps, width, x[t] + first); });
}

void add_rms_norm(ThreadPool& pool, Rows x, Rows residual, const float* weight, float eps, Rows out, Rows sum,
                  int64_t num_tokens) {
  for_each_token(pool, num_tokens, 2 * x.width, [&](int64_t t) {
    const float *a = x[t], *b = residual[t];
    float* s = sum[t];
    const float square_sum = reduce(x.width, [&](int64_t i, auto lanes) {
      const auto v = load<lanes>(a + i) + load<lanes>(b + i);
      store<lanes>(s + i, v);
      return v * v;
    });
    scale_row(s, weight, 1.0f / std::sqrt(square_sum / float(x.width) + eps), x.width, out[t]);
  });
}

void layer_norm(ThreadPool& pool, Rows x, const float* weight, const float* bias, float eps, Rows out,
                int64_t num_tokens) {
  const int64_t width = x.width;
  for_each_token(pool, num_tokens, 2 * width, [&](int64_t t) {
    const float* row = x[t];
    float* target = out[t];
    const float mean = reduce(width, [&](int64_t i, auto lanes) { return load<lanes>(row + i); }) / float(width);
    const float square_sum = reduce(width, [&](int64_t i, auto lanes) {
      const auto v = load<lanes>(row + i) - mean;
      return v * v;
    });
    const float factor = 1.0f / std::sqrt(square_sum / float(width) + eps);
    for_each_vector(width, [&](int64_t i, auto lanes) {
      auto v = (load<lanes>(row + i) - mean) * factor * load<lanes>(weight + i);
      if (bias) v += load<lanes>(bias + i);
      store<lanes>(target + i, v);
    });
  });
}

}  // namespace octavo
