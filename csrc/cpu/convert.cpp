// Conversion of a weight to a dense format, threaded over its rows.
#include "convert.h"

#include <vector>

#include "float_formats.h"

namespace octavo {

void convert_rows(ThreadPool& pool, DType source, const uint8_t* data, int64_t row_bytes, int64_t rows, int64_t cols,
                  DType target, uint8_t* out) {
  pool.parallel_for(rows, 16, [&](int64_t begin, int64_t end, int) {
    std::vector<float> values(cols);
    for (int64_t row = begin; row < end; ++row) {
      if (target == DType::F32) {
        dequantize_row(source, data + row * row_bytes, cols, reinterpret_cast<float*>(out) + row * cols);
        continue;
      }
      dequantize_row(source, data + row * row_bytes, cols, values.data());
      uint16_t* halves = reinterpret_cast<uint16_t*>(out) + row * cols;
      if (target == DType::BF16) {
        for (int64_t i = 0; i < cols; ++i) halves[i] = to_bfloat16(values[i]);
      } else {
        for (int64_t i = 0; i < cols; ++i) halves[i] = to_float16(values[i]);
      }
    }
  });
}

}  // namespace octavo
