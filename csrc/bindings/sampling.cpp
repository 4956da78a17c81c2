// The extern "C" face of cpu/sampling.h, called by octavo/kernels/cpu/sampling.py.
#include "cpu/sampling.h"

extern "C" void octavo_sample(octavo::ThreadPool* pool, const float* logits, int64_t vocab_size,
                              const octavo::SamplingBatch* batch, int64_t num_entries, int32_t* tokens) {
  octavo::sample(*pool, logits, vocab_size, *batch, num_entries, tokens);
}
