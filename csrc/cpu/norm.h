// Root-mean-square and layer normalisation over the last dimension.
#pragma once
#include "rows.h"

namespace octavo {

// One row; `out` may be `x`. Also the per-head norm of queries and keys.
void rms_norm_row(const float* x, const float* weight, float eps, int64_t width, float* out);

// `out` may be `x`.
void rms_norm(ThreadPool& pool, Rows x, const float* weight, float eps, Rows out, int64_t num_tokens);

// Columns first .. first + width - 1 of x, in place.
void norm_columns(ThreadPool& pool, Rows x, const float* weight, int64_t first, int64_t width, float eps,
                  int64_t num_tokens);

// sum = x + residual, out = rms_norm(sum). `sum` may be `residual` or `x`, `out` may be the other.
void add_rms_norm(ThreadPool& pool, Rows x, Rows residual, const float* weight, float eps, Rows out, Rows sum,
                  int64_t num_tokens);

// bias may be null; `out` may be `x`.
void layer_norm(ThreadPool& pool, Rows x, const float* weight, const float* bias, float eps, Rows out,
                int64_t num_tokens);

}  // namespace octavo
