// The work on q, k and v between projection and attention.
#pragma once
#include "kv_cache.h"
#include "rows.h"

namespace octavo {

// Normalises and rotates q and k in place, and writes k and v to the tokens' slots in the pool.
void rotary_kv_write(ThreadPool& pool, const LayerSpec& spec, const KVPool& kv, const StepView& step, Rows qkv);

}  // namespace octavo
