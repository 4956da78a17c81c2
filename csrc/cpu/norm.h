// Root-mean-square and layer normalisation over the last dimension.
#pragma once
#include "rows.h"

namespace octavo {

// One row; `out` may be `x`. Also the per-head norm of queries and keys.
void rms_norm_row(const float* x, const float* weight, float eps, int64_t width, float* out);

// `out` may be `x`.
void rms_norm(ThreadPool& pool, Rows x, const float* weight, float eps, Rows out, int64_t num_tokens);

// Two runs of columns, from the first one on, and the weights that norm each.
struct Runs {
  const float* weights[2];
  int64_t widths[2];
};

// Each run in place.
void norm_runs(ThreadPool& pool, Rows x, const Runs& runs, float eps, int64_t num_tokens);

// means[t][i] = the sum of squares of run i, divided by `times` its width.
void mean_squares(ThreadPool& pool, Rows x, const Runs& runs, int64_t times, Rows means, int64_t num_tokens);

// Each run in place, by the mean of its squares.
void norm_by_means(ThreadPool& pool, Rows x, const Runs& runs, Rows means, float eps, int64_t num_tokens);

// sum = x + residual, out = rms_norm(sum). `sum` may be `residual` or `x`, `out` may be the other.
void add_rms_norm(ThreadPool& pool, Rows x, Rows residual, const float* weight, float eps, Rows out, Rows sum,
                  int64_t num_tokens);

// bias may be null; `out` may be `x`.
void layer_norm(ThreadPool& pool, Rows x, const float* weight, const float* bias, float eps, Rows out,
                int64_t num_tokens);

}  // namespace octavo
