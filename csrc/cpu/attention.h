// Attention of the step's tokens over their own sequences' blocks: prefill chunks and decodes in one call.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "kv_cache.h"
#include "rows.h"

namespace octavo {

// Memory that attention keeps between calls: a working set per thread, and partial results of split contexts.
class AttentionScratch {
 public:
  explicit AttentionScratch(int num_threads) : per_thread(num_threads) {}

  int64_t bytes() const {
    size_t floats = partials.capacity();
    for (const std::vector<float>& each : per_thread) floats += each.capacity();
    return int64_t(floats * sizeof(float));
  }

  std::vector<std::vector<float>> per_thread;
  std::vector<float> partials;
};

void paged_attention(ThreadPool& pool, const LayerSpec& spec, const KVPool& kv, const StepView& step, Rows q,
                     Rows out, AttentionScratch& scratch);

}  // namespace octavo
