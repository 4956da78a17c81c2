// The K formats, of 256-weight blocks: a file of their own because kernels take long to compile.
#include "matmul_quantized.h"
#include "matmul_quantized_kernel.h"

namespace octavo {

std::unique_ptr<PackedMatrix> pack_k(ThreadPool& pool, DType dtype, const uint8_t* data, int64_t rows,
                                     int64_t cols, int activation_bytes) {
  switch (dtype) {
    case DType::Q4_K: return pack_blocks<DType::Q4_K>(pool, data, rows, cols, activation_bytes);
    case DType::Q5_K: return pack_blocks<DType::Q5_K>(pool, data, rows, cols, activation_bytes);
    case DType::Q6_K: return pack_blocks<DType::Q6_K>(pool, data, rows, cols, activation_bytes);
    default: return nullptr;
  }
}

}  // namespace octavo
