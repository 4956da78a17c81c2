// The factory of packed matrices, by a weight's format, and the loops over the work of products.
#include "octavo/matmul.h"

#include <algorithm>

#include "matmul_dense.h"
#include "matmul_quantized.h"

namespace octavo {

std::unique_ptr<PackedMatrix> pack(ThreadPool& pool, DType dtype, const uint8_t* data, int64_t rows, int64_t cols,
                                   int activation_bytes) {
  const bool rounds = activation_bytes == kBfloat16Activations;
  if (rounds) activation_bytes = 2;
  if (auto matrix = pack_dense(pool, dtype, data, rows, cols, rounds)) return matrix;
  if (auto matrix = pack_float8(pool, dtype, data, rows, cols)) return matrix;
  for (const auto pack_family : {pack_simple, pack_k, pack_coded}) {
    if (auto matrix = pack_family(pool, dtype, data, rows, cols, activation_bytes)) return matrix;
  }
  return nullptr;
}

namespace {

// Calls body(product, begin, end) for the ranges of all products' items, counted one product after another.
template <class Count, class Body>
void share(ThreadPool& pool, std::span<const Product> products, int64_t grain, const Count& count, const Body& body) {
  int64_t total = 0;
  for (const Product& product : products) total += count(product);
  pool.parallel_for(total, grain, [&](int64_t begin, int64_t end, int) {
    int64_t first = 0;
    for (const Product& product : products) {
      const int64_t size = count(product), from = std::max(begin, first), to = std::min(end, first + size);
      if (from < to) body(product, from - first, to - first);
      first += size;
      if (first >= end) return;
    }
  });
}

}  // namespace

void multiply(ThreadPool& pool, std::span<const Product> products) {
  int64_t grain = INT64_MAX;
  for (const Product& p : products) grain = std::min(grain, p.matrix->grain(p.num_tokens));
  share(
      pool, products, 1, [](const Product& p) { return p.matrix->num_tiles(p.num_tokens); },
      [](const Product& p, int64_t begin, int64_t end) { p.matrix->pack_tiles(p, begin, end); });
  share(
      pool, products, grain, [](const Product& p) { return p.matrix->num_cells(p.num_tokens); },
      [](const Product& p, int64_t begin, int64_t end) { p.matrix->compute_cells(p, begin, end); });
}

}  // namespace octavo
