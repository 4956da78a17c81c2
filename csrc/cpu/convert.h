// Load-time conversion of a weight from its file's format to a dense one.
#pragma once
#include "octavo/matmul.h"

namespace octavo {

// target is F32, BF16 or F16; out holds rows x cols of it.
void convert_rows(ThreadPool& pool, DType source, const uint8_t* data, int64_t row_bytes, int64_t rows, int64_t cols,
                  DType target, uint8_t* out);

}  // namespace octavo
