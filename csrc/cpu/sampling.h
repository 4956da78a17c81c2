// Draws tokens, as octavo/kernels/reference/sampling.py defines it, but fast.
#pragma once
#include <cstdint>

#include "octavo/thread_pool.h"

namespace octavo {

// The columns that octavo/sampling/columns.py explains. Their order is free: Python asks the library for it. Entry i of
// a ragged column has the values offsets[i] .. offsets[i + 1] - 1.
#define OCTAVO_SAMPLING_COLUMNS(COLUMN) \
  COLUMN(int32_t, logits_rows)          \
  COLUMN(int32_t, positions)            \
  COLUMN(uint64_t, seeds)               \
  COLUMN(int32_t, sample_indices)       \
  COLUMN(int32_t, prompt_lens)          \
  COLUMN(float, temperature)            \
  COLUMN(float, top_p)                  \
  COLUMN(int32_t, top_k)                \
  COLUMN(float, min_p)                  \
  COLUMN(float, presence_penalty)       \
  COLUMN(float, frequency_penalty)      \
  COLUMN(float, repetition_penalty)     \
  COLUMN(int32_t, history)              \
  COLUMN(int32_t, history_offsets)      \
  COLUMN(int32_t, allowed)              \
  COLUMN(int32_t, allowed_offsets)      \
  COLUMN(int32_t, mask)                 \
  COLUMN(int32_t, mask_offsets)         \
  COLUMN(int32_t, banned)               \
  COLUMN(int32_t, banned_offsets)       \
  COLUMN(int32_t, bias_ids)             \
  COLUMN(float, bias_values)            \
  COLUMN(int32_t, bias_offsets)

struct SamplingBatch {
#define OCTAVO_POINTER(type, name) const type* name;
  OCTAVO_SAMPLING_COLUMNS(OCTAVO_POINTER)
#undef OCTAVO_POINTER
};

constexpr int32_t kNoToken = -1;       // NaN in the row, or nothing left to draw
constexpr int32_t kInvalidEntry = -2;  // caller's error: id outside the vocabulary, mask of another size, NaN parameter

// One token for each entry, from logits [rows, vocab_size]; entries run in parallel and do not affect each other.
void sample(ThreadPool& pool, const float* logits, int64_t vocab_size, const SamplingBatch& batch, int64_t num_entries,
            int32_t* tokens);

// The logits that each entry's token is drawn from, [num_entries, vocab_size]: edited, divided by the temperature if it
// is not 0, -infinity for tokens that cannot be drawn. results: 0, or the code that `sample` returns in place of a
// token; that row is then NaN.
void processed_logits(ThreadPool& pool, const float* logits, int64_t vocab_size, const SamplingBatch& batch,
                      int64_t num_entries, float* processed, int32_t* results);

}  // namespace octavo
