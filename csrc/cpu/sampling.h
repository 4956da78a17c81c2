// Draws tokens: the fast form of octavo/kernels/reference/sampling.py, which says what each step means.
#pragma once
#include <cstdint>

#include "octavo/thread_pool.h"

namespace octavo {

// Columns of octavo/kernels/ops.py: SamplingBatch, in its order. Entry i of a ragged column owns the values
// offsets[i] .. offsets[i + 1] - 1.
struct SamplingBatch {
  const int32_t* logits_rows;
  const float* temperature;
  const float* top_p;
  const int32_t* top_k;
  const float* min_p;
  const float* presence_penalty;
  const float* frequency_penalty;
  const float* repetition_penalty;
  const uint64_t* seeds;
  const int32_t* sample_indices;
  const int32_t* positions;
  const int32_t* history;
  const int32_t* history_offsets;
  const int32_t* prompt_lens;
  const int32_t* allowed;
  const int32_t* allowed_offsets;
  const int32_t* banned;
  const int32_t* banned_offsets;
  const int32_t* bias_ids;
  const float* bias_values;
  const int32_t* bias_offsets;
};

constexpr int32_t kNoToken = -1;       // NaN in the row, or nothing left to draw
constexpr int32_t kInvalidEntry = -2;  // a token id outside of the vocabulary, a NaN among the parameters: the caller's mistake

// One token for each entry, from logits [rows, vocab_size]; entries run in parallel and do not affect each other.
void sample(ThreadPool& pool, const float* logits, int64_t vocab_size, const SamplingBatch& batch, int64_t num_entries,
            int32_t* tokens);

// What each entry's token is drawn from, as logits [num_entries, vocab_size]: edited, over the temperature if there is
// one, -infinity where a token cannot be drawn. results: 0, or what `sample` gives where it gives no token: NaNs then.
void processed_logits(ThreadPool& pool, const float* logits, int64_t vocab_size, const SamplingBatch& batch,
                      int64_t num_entries, float* processed, int32_t* results);

}  // namespace octavo
