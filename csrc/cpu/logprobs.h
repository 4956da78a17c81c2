// Log-probabilities of chosen tokens and of the best ones.
#pragma once
#include <cstdint>

#include "octavo/thread_pool.h"

namespace octavo {

// For each of num_rows rows of logits [vocab_size]: entry 0 is tokens[row], entries 1..k are the k best,
// best first, lower id first among equals. ids and logprobs: [num_rows, k + 1]. ranks: the chosen tokens'
// places in that order, from 1. as_logits: the logits in place of their log-probabilities. Throws std::out_of_range if
// a token is not in the vocabulary, or k is larger than it.
void top_logprobs(ThreadPool& pool, const float* logits, int64_t num_rows, int64_t vocab_size, const int32_t* tokens,
                  int64_t k, bool as_logits, int32_t* ids, float* logprobs, int32_t* ranks);

}  // namespace octavo
