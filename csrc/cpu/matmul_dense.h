// Products with F32, F16 and BF16 weights.
#pragma once
#include "octavo/matmul.h"

namespace octavo {

// Null for any other dtype.
std::unique_ptr<PackedMatrix> pack_dense(ThreadPool& pool, DType dtype, const uint8_t* data, int64_t rows,
                                         int64_t cols);

}  // namespace octavo
