// Adapters: y += x A^T B^T with the low-rank matrices of each token's own slot; see octavo/kernels/adapters.py.
#pragma once
#include <vector>

#include "aligned_floats.h"
#include "rows.h"

namespace octavo {

// A module's matrices in all slots. ranks: how many of max_rank are not zero; 0: the slot leaves the module as it is.
struct AdapterSpec {
  int64_t num_slots, num_parts, max_rank, in_features, out_features;
  const int64_t* ends;   // [num_parts] where each part's outputs end
  const int32_t* ranks;  // [num_slots]
  const float* a;        // [num_slots, num_parts * max_rank, in_features]; of a table [num_slots, in_features, max_rank]
  const float* b;        // [num_slots, max_rank, out_features]: an output's numbers are a column
};

struct AdapterScratch {
  std::vector<int64_t> tokens;  // those that have an adapter of the module
  AlignedFloats shrunk;         // [tokens, num_parts * max_rank]

  int64_t bytes() const { return int64_t(tokens.capacity() * sizeof(int64_t)) + shrunk.bytes(); }
};

// slots: [T], -1 for none; null: no token of the step has an adapter.
void add_adapters(ThreadPool& pool, const AdapterSpec& spec, const int32_t* slots, Rows x, Rows y, int64_t num_tokens,
                  AdapterScratch& scratch);
// x is a row of A's table for each token: that of ids[t] + offset. One that is not in it adds nothing.
void add_table_adapters(ThreadPool& pool, const AdapterSpec& spec, const int32_t* slots, const int32_t* ids,
                        int64_t offset, Rows y, int64_t num_tokens, AdapterScratch& scratch);

}  // namespace octavo
