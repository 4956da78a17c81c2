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

float square_sum(const float* x, int64_t width) {
  return reduce(width, [&](int64_t i, auto lanes) {
    const auto v = load<lanes>(x + i);
    return v * v;
  });
}

void scale_row(const float* x, const float* weight, float factor, int64_t width, float* out) {
  for_each_vector(width, [&](int64_t i, auto lanes) {
    store<lanes>(out + i, load<lanes>(x + i) * factor * load<lanes>(weight + i));
  });
}

}  // namespace

void rms_norm_row(const float* x, const float* weight, float eps, int64_t width, float* out) {
  scale_row(x, weight, 1.0f / std::sqrt(square_sum(x, width) / float(width) + eps), width, out);
}

void rms_norm(ThreadPool& pool, Rows x, const float* weight, float eps, Rows out, int64_t num_tokens) {
  for_each_token(pool, num_tokens, x.width,
                 [&](int64_t t) { rms_norm_row(x[t], weight, eps, x.width, out[t]); });
}

void norm_runs(ThreadPool& pool, Rows x, const Runs& runs, float eps, int64_t num_tokens) {
  for_each_token(pool, num_tokens, runs.widths[0] + runs.widths[1], [&](int64_t t) {
    float* run = x[t];
    for (int i = 0; i < 2; run += runs.widths[i++]) rms_norm_row(run, runs.weights[i], eps, runs.widths[i], run);
  });
}

void mean_squares(ThreadPool& pool, Rows x, const Runs& runs, int64_t times, Rows means, int64_t num_tokens) {
  for_each_token(pool, num_tokens, runs.widths[0] + runs.widths[1], [&](int64_t t) {
    const float* run = x[t];
    for (int i = 0; i < 2; run += runs.widths[i++]) {
      means[t][i] = square_sum(run, runs.widths[i]) / float(times * runs.widths[i]);
    }
  });
}

void norm_by_means(ThreadPool& pool, Rows x, const Runs& runs, Rows means, float eps, int64_t num_tokens) {
  for_each_token(pool, num_tokens, runs.widths[0] + runs.widths[1], [&](int64_t t) {
    float* run = x[t];
    for (int i = 0; i < 2; run += runs.widths[i++]) {
      scale_row(run, runs.weights[i], 1.0f / std::sqrt(means[t][i] + eps), runs.widths[i], run);
    }
  });
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
