// Sums of activations.
#pragma once
#include "rows.h"

namespace octavo {

// out = x + y; `out` may be either.
void add(ThreadPool& pool, Rows x, Rows y, Rows out, int64_t num_tokens);

}  // namespace octavo
