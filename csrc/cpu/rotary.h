// What happens to q, k and v between their projection and attention.
#pragma once
#include "kv_cache.h"
#include "rows.h"

namespace octavo {

// Norms and rotates q and k in place, writes k and v into the pool at the tokens' slots.
void rotary_kv_write(ThreadPool& pool, const LayerSpec& spec, const KVPool& kv, const StepView& step, Rows qkv);

}  // namespace octavo
