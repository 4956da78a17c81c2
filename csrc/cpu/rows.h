// Rows: a [tokens, width] view of float32 activations whose rows lie `stride` floats apart.
#pragma once
#include <algorithm>
#include <cstdint>

#include "octavo/thread_pool.h"

namespace octavo {

struct Rows {
  float* data;
  int64_t width;
  int64_t stride;

  float* operator[](int64_t token) const { return data + token * stride; }
};

// Calls body(token) for every token, in runs large enough for a thread: `cost` is roughly the number of cheap vector
// elements per token. One token, or a few small ones, run on the caller.
template <class Body>
inline void for_each_token(ThreadPool& pool, int64_t num_tokens, int64_t cost, const Body& body) {
  const int64_t grain = std::max<int64_t>(1, 8192 / std::max<int64_t>(cost, 1));
  pool.parallel_for(num_tokens, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t token = begin; token < end; ++token) body(token);
  });
}

}  // namespace octavo
