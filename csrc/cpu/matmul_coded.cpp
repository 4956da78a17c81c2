// The coded formats, with a float32 scale and a zero for each block.
#include "matmul_quantized.h"
#include "matmul_quantized_kernel.h"

namespace octavo {

std::unique_ptr<PackedMatrix> pack_coded(ThreadPool& pool, DType dtype, const uint8_t* data, int64_t rows, int64_t cols,
                                         int activation_bytes) {
  switch (dtype) {
    case DType::I8_32: return pack_blocks<DType::I8_32>(pool, data, rows, cols, activation_bytes);
    case DType::I8_128: return pack_blocks<DType::I8_128>(pool, data, rows, cols, activation_bytes);
    case DType::U4_32: return pack_blocks<DType::U4_32>(pool, data, rows, cols, activation_bytes);
    case DType::U4_128: return pack_blocks<DType::U4_128>(pool, data, rows, cols, activation_bytes);
    case DType::E2M1_32: return pack_blocks<DType::E2M1_32>(pool, data, rows, cols, activation_bytes);
    default: return nullptr;
  }
}

}  // namespace octavo
