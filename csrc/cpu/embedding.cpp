// Table lookup that dequantises only the rows it reads.
#include "embedding.h"

#include <algorithm>

namespace octavo {

void embedding(ThreadPool& pool, const EmbeddingTable& table, const int32_t* indices, Rows out, int64_t num_tokens) {
  for_each_token(pool, num_tokens, 4 * out.width, [&](int64_t t) {
    float* row = out[t];
    const int64_t index = indices[t] + table.offset;
    if (index < 0 || index >= table.num_rows) {
      std::fill_n(row, out.width, 0.0f);
      return;
    }
    dequantize_row(table.dtype, table.data + index * table.row_bytes, out.width, row);
    if (table.scale != 1.0f) {
      for (int64_t i = 0; i < out.width; ++i) row[i] *= table.scale;
    }
  });
}

}  // namespace octavo
