// What happens to q, k and v between their projection and attention.
#pragma once
#include "kv_cache.h"
#include "rows.h"

namespace octavo {

struct RotarySpec {
  int64_t group, layer;  // cache group, and the layer's index in it
  int64_t num_heads, num_kv_heads, head_dim;
  const float* q_norm;  // [head_dim] or null
  const float* k_norm;  // [head_dim] or null
  float norm_eps;
  const float* cos;  // [max_len, rotary_dim / 2]; null: no rotation
  const float* sin;
  int64_t rotary_dim;
};

// Norms and rotates q and k in place, writes k and v into the pool at the tokens' slots.
void rotary_kv_write(ThreadPool& pool, const RotarySpec& spec, const KVPool& kv, const StepView& step, Rows qkv);

}  // namespace octavo
