// Block-quantised weights, times activations rounded to integers of one or two bytes.
#pragma once
#include "octavo/matmul.h"

namespace octavo {

// Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL and MXFP4; null for any other dtype.
std::unique_ptr<PackedMatrix> pack_simple(ThreadPool& pool, DType dtype, const uint8_t* data, int64_t rows,
                                          int64_t cols, int activation_bytes);

// I8 and U4 in blocks of 32 or 128, E2M1 in blocks of 32; null for any other dtype.
std::unique_ptr<PackedMatrix> pack_coded(ThreadPool& pool, DType dtype, const uint8_t* data, int64_t rows, int64_t cols,
                                         int activation_bytes);

// Q4_K, Q5_K and Q6_K; null for any other dtype.
std::unique_ptr<PackedMatrix> pack_k(ThreadPool& pool, DType dtype, const uint8_t* data, int64_t rows, int64_t cols,
                                     int activation_bytes);

}  // namespace octavo
