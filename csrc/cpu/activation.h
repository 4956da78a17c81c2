// Element-wise non-linearities.
#pragma once
#include "rows.h"

namespace octavo {

// Values agree with octavo/kernels/program/recorder.py: ACTIVATIONS, in order.
enum class Activation : int32_t { silu, gelu, gelu_tanh, relu };

// `out` may be `x`.
void activation(ThreadPool& pool, Activation kind, Rows x, Rows out, int64_t num_tokens);

// out = act(first half of the columns) * second half.
void gated_activation(ThreadPool& pool, Activation kind, Rows gate_up, Rows out, int64_t num_tokens);

// out = cap * tanh(x / cap); `out` may be `x`.
void softcap(ThreadPool& pool, Rows x, float cap, Rows out, int64_t num_tokens);

}  // namespace octavo
