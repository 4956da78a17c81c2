// Products with dense weights: float32 activations and sums, weights widened as they are loaded.
//
// A group is two vectors of rows, stored column by column; a tile is stored column by column too. For each
// column a cell loads two vectors, broadcasts one number per token, and does 2 x n fused multiply-adds whose
// sums never leave the registers.
#include "matmul_dense.h"

#include "dequantize.h"
#include "matmul_grouped.h"

namespace octavo {
namespace {

using simd::F32;
using simd::kLanes;

template <DType>
struct Element;

template <>
struct Element<DType::F32> {
  using Packed = float;
  static F32 load(const Packed* p) { return simd::load(p); }
};

template <>
struct Element<DType::F16> {
  using Packed = simd::Half;
  static F32 load(const Packed* p) { return simd::load_half(p); }
};

template <>
struct Element<DType::BF16> {
  using Packed = uint16_t;
  static F32 load(const Packed* p) { return simd::load_bfloat16(p); }
};

template <DType dtype>
struct DenseKernel {
  using Packed = typename Element<dtype>::Packed;

  static constexpr int max_tokens = simd::kDenseTileTokens;
  static constexpr int vectors = 2;
  static constexpr int group_rows = vectors * kLanes;
  static constexpr int file_bytes = dtype == DType::F32 ? 4 : 2;

  static int64_t group_bytes(int64_t cols) {
    return round_up(cols * group_rows * static_cast<int64_t>(sizeof(Packed)), kCacheLine);
  }
  static int64_t tile_bytes(int64_t cols) {
    return round_up(cols * max_tokens * static_cast<int64_t>(sizeof(float)), kCacheLine);
  }

  static void pack_group(const uint8_t* data, int rows, int64_t cols, uint8_t* out) {
    auto* packed = reinterpret_cast<Packed*>(out);
    for (int row = 0; row < rows; ++row) {
      for (int64_t c = 0; c < cols; ++c, data += file_bytes) {
        Packed& element = packed[c * group_rows + row];
        if constexpr (sizeof(Packed) == file_bytes) {
          std::memcpy(&element, data, file_bytes);
        } else {
          element = read_half(data);
        }
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
    const auto* w = reinterpret_cast<const Packed*>(group);
    const auto* x = reinterpret_cast<const float*>(tile);
    F32 sums[n][vectors];
    simd::unroll<n>([&](auto t) { sums[t][0] = sums[t][1] = simd::zero(); });
    for (int64_t c = cols; c > 0; --c, w += group_rows, x += n) {
      const F32 w0 = Element<dtype>::load(w), w1 = Element<dtype>::load(w + kLanes);
      simd::unroll<n>([&](auto t) {
        const F32 xt = simd::broadcast(x[t]);
        sums[t][0] = simd::fma(w0, xt, sums[t][0]);
        sums[t][1] = simd::fma(w1, xt, sums[t][1]);
      });
    }
    simd::unroll<n>([&](auto t) {
      result[t][0] = sums[t][0];
      result[t][1] = sums[t][1];
    });
  }
};

template <DType dtype>
std::unique_ptr<PackedMatrix> make(ThreadPool& pool, const uint8_t* data, int64_t rows, int64_t cols) {
  const int64_t row_bytes = cols * DenseKernel<dtype>::file_bytes;
  return std::make_unique<GroupedMatrix<DenseKernel<dtype>>>(pool, data, row_bytes, rows, cols);
}

}  // namespace

std::unique_ptr<PackedMatrix> pack_dense(ThreadPool& pool, DType dtype, const uint8_t* data, int64_t rows,
                                         int64_t cols) {
  switch (dtype) {
    case DType::F32: return make<DType::F32>(pool, data, rows, cols);
    case DType::F16: return make<DType::F16>(pool, data, rows, cols);
    case DType::BF16: return make<DType::BF16>(pool, data, rows, cols);
    default: return nullptr;
  }
}

}  // namespace octavo
