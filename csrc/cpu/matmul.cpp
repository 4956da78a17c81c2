// The one door to packed matrices; see octavo/matmul.h.
#include "octavo/matmul.h"

#include "matmul_dense.h"
#include "matmul_quantized.h"

namespace octavo {

std::unique_ptr<PackedMatrix> pack(ThreadPool& pool, DType dtype, const uint8_t* data, int64_t rows, int64_t cols) {
  for (const auto pack_family : {pack_dense, pack_simple, pack_k}) {
    if (auto matrix = pack_family(pool, dtype, data, rows, cols)) return matrix;
  }
  return nullptr;
}

}  // namespace octavo
