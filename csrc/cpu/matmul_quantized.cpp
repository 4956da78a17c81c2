// Products with the formats of 32-weight blocks.
#include "matmul_quantized.h"
#include "matmul_quantized_kernel.h"

namespace octavo {

std::unique_ptr<PackedMatrix> pack_simple(ThreadPool& pool, DType dtype, const uint8_t* data, int64_t rows,
                                          int64_t cols, int activation_bytes) {
  switch (dtype) {
    case DType::Q4_0: return pack_blocks<DType::Q4_0>(pool, data, rows, cols, activation_bytes);
    case DType::Q4_1: return pack_blocks<DType::Q4_1>(pool, data, rows, cols, activation_bytes);
    case DType::Q5_0: return pack_blocks<DType::Q5_0>(pool, data, rows, cols, activation_bytes);
    case DType::Q5_1: return pack_blocks<DType::Q5_1>(pool, data, rows, cols, activation_bytes);
    case DType::Q8_0: return pack_blocks<DType::Q8_0>(pool, data, rows, cols, activation_bytes);
    case DType::IQ4_NL: return pack_blocks<DType::IQ4_NL>(pool, data, rows, cols, activation_bytes);
    case DType::MXFP4: return pack_blocks<DType::MXFP4>(pool, data, rows, cols, activation_bytes);
    default: return nullptr;
  }
}

}  // namespace octavo
