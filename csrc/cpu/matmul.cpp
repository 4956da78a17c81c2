// The one door to packed matrices; see octavo/matmul.h.
#include "octavo/matmul.h"

#include "matmul_dense.h"
#include "matmul_quantized.h"

namespace octavo {

std::unique_ptr<PackedMatrix> pack(ThreadPool& pool, DType dtype, const uint8_t* data, int64_t rows, int64_t cols) {
  switch (dtype) {
    case DType::F32:
    case DType::F16:
    case DType::BF16: return pack_dense(pool, dtype, data, rows, cols);
    default: return pack_quantized(pool, dtype, data, rows, cols);
  }
}

}  // namespace octavo
