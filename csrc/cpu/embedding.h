// Table lookup directly in the checkpoint's bytes: a quantised table is never expanded.
#pragma once
#include "octavo/matmul.h"
#include "rows.h"

namespace octavo {

// Values agree with octavo/kernels/ops.py: Index, in order.
enum class Index : int64_t { input_ids, positions, token_types };
enum class Outside : int64_t { error, zeros };

struct EmbeddingTable {
  DType dtype;
  const uint8_t* data;
  int64_t num_rows;
  int64_t row_bytes;
  int64_t offset;  // added to every index
  float scale;
};

// out[t] = table[indices[t] + offset] * scale; zeros if the table has no such row.
void embedding(ThreadPool& pool, const EmbeddingTable& table, const int32_t* indices, Rows out, int64_t num_tokens);

}  // namespace octavo
