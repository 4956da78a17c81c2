// Products with floats of 8 bits: widened and scaled as they are loaded, float32 activations and sums.
//
// A group is two vectors of rows: for each block their scales, then the block column by column, a byte for each row. A
// weight is rounded once, to its code's number times its scale, as if the matrix had been made float32 before; the sums
// are those of the dense product, bit for bit.
#include "dequantize.h"
#include "matmul_dense.h"
#include "matmul_grouped.h"

namespace octavo {
namespace {

using simd::F32;
using simd::kLanes;

template <int block>
struct Float8Kernel {
  static constexpr int max_tokens = simd::kDenseTileTokens;
  static constexpr int vectors = 2;
  static constexpr int group_rows = vectors * kLanes;
  static constexpr int scales_bytes = group_rows * static_cast<int>(sizeof(float));
  static constexpr int file_block_bytes = static_cast<int>(sizeof(float)) + block;

  static int64_t group_bytes(int64_t cols) {
    return round_up(cols / block * (scales_bytes + block * group_rows), kCacheLine);
  }
  static int64_t tile_bytes(int64_t cols) {
    return round_up(cols * max_tokens * static_cast<int64_t>(sizeof(float)), kCacheLine);
  }

  static void pack_group(const uint8_t* data, int rows, int64_t cols, uint8_t* out) {
    for (int row = 0; row < rows; ++row) {
      uint8_t* packed = out;
      for (int64_t b = 0; b < cols / block; ++b, data += file_block_bytes) {
        float d;
        std::memcpy(&d, data, sizeof d);
        d *= simd::kFloat8Factor;
        std::memcpy(packed + row * sizeof d, &d, sizeof d);
        packed += scales_bytes;
        for (int c = 0; c < block; ++c, packed += group_rows) packed[row] = data[sizeof d + c];
      }
    }
  }

  static void pack_tile(const float* x, int64_t x_stride, int n, int64_t cols, uint8_t* out) {
    auto* tile = reinterpret_cast<float*>(out);
    for (int t = 0; t < n; ++t) {
      for (int64_t c = 0; c < cols; ++c) tile[c * n + t] = x[t * x_stride + c];
    }
  }

  template <int n>
  static void multiply(const uint8_t* group, const uint8_t* tile, int64_t cols, F32 (&result)[n][vectors]) {
    const auto* x = reinterpret_cast<const float*>(tile);
    F32 sums[n][vectors];
    simd::unroll<n>([&](auto t) { sums[t][0] = sums[t][1] = simd::zero(); });
    for (int64_t b = cols / block; b > 0; --b) {
      const auto* d = reinterpret_cast<const float*>(group);
      const F32 d0 = simd::load(d), d1 = simd::load(d + kLanes);
      group += scales_bytes;
      for (int c = 0; c < block; ++c, group += group_rows, x += n) {
        const F32 w0 = simd::mul(simd::load_float8(group), d0), w1 = simd::mul(simd::load_float8(group + kLanes), d1);
        simd::unroll<n>([&](auto t) {
          const F32 xt = simd::broadcast(x[t]);
          sums[t][0] = simd::fma(w0, xt, sums[t][0]);
          sums[t][1] = simd::fma(w1, xt, sums[t][1]);
        });
      }
    }
    simd::unroll<n>([&](auto t) {
      result[t][0] = sums[t][0];
      result[t][1] = sums[t][1];
    });
  }
};

template <DType dtype>
std::unique_ptr<PackedMatrix> make(ThreadPool& pool, const uint8_t* data, int64_t rows, int64_t cols) {
  using Kernel = Float8Kernel<kFloat8Block<dtype>>;
  const int64_t row_bytes = cols / kFloat8Block<dtype> * Kernel::file_block_bytes;
  return std::make_unique<GroupedMatrix<Kernel>>(pool, data, row_bytes, rows, cols);
}

}  // namespace

std::unique_ptr<PackedMatrix> pack_float8(ThreadPool& pool, DType dtype, const uint8_t* data, int64_t rows,
                                          int64_t cols) {
  switch (dtype) {
    case DType::F8_32: return make<DType::F8_32>(pool, data, rows, cols);
    case DType::F8_128: return make<DType::F8_128>(pool, data, rows, cols);
    default: return nullptr;
  }
}

}  // namespace octavo
