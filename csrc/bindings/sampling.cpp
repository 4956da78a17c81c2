// The extern "C" face of cpu/sampling.h, called by octavo/kernels/cpu/library.py.
#include "cpu/sampling.h"

#include <new>

// The pointers of SamplingBatch in its order, a line each: type and name.
extern "C" const char* octavo_sampling_columns() {
#define OCTAVO_LINE(type, name) #type " " #name "\n"
  return OCTAVO_SAMPLING_COLUMNS(OCTAVO_LINE);
#undef OCTAVO_LINE
}

// The others return 0, or 1 if memory ran out: no exception crosses into Python.

extern "C" int octavo_sample(octavo::ThreadPool* pool, const float* logits, int64_t vocab_size,
                             const octavo::SamplingBatch* batch, int64_t num_entries, int32_t* tokens) {
  try {
    octavo::sample(*pool, logits, vocab_size, *batch, num_entries, tokens);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

extern "C" int octavo_processed_logits(octavo::ThreadPool* pool, const float* logits, int64_t vocab_size,
                                       const octavo::SamplingBatch* batch, int64_t num_entries, float* processed,
                                       int32_t* results) {
  try {
    octavo::processed_logits(*pool, logits, vocab_size, *batch, num_entries, processed, results);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}
