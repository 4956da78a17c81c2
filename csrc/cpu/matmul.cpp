// The factory of packed matrices: creates the class for a weight's format.
#include "octavo/matmul.h"

#include "matmul_dense.h"
#include "matmul_quantized.h"

namespace octavo {

std::unique_ptr<PackedMatrix> pack(ThreadPool& pool, DType dtype, const uint8_t* data, int64_t rows, int64_t cols,
                                   int activation_bytes) {
  if (auto matrix = pack_dense(pool, dtype, data, rows, cols)) return matrix;
  for (const auto pack_family : {pack_simple, pack_k}) {
    if (auto matrix = pack_family(pool, dtype, data, rows, cols, activation_bytes)) return matrix;
  }
  return nullptr;
}

}  // namespace octavo
