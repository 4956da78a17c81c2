// Products with dense weights: float32 activations and sums, weights widened as they are loaded.
//
// A group is two vectors of rows, stored column by column; a tile is stored column by column too. For each
// column a cell loads two vectors, broadcasts one number per token, and does 2 x n fused multiply-adds whose
// sums never leave the registers.
//
// Where activations are rounded to bfloat16 too, processors that multiply pairs of such numbers do twice as much at
// once: the columns of a group and of a tile then lie in pairs.
#include "matmul_dense.h"

#include "dequantize.h"
#include "float_formats.h"
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

  // Most tiles are full; those are written in the order of memory.
  static void pack_tile(const float* x, int64_t x_stride, int n, int64_t cols, uint8_t* out) {
    auto* tile = reinterpret_cast<float*>(out);
    if (n == max_tokens) {
      for (int64_t c = 0; c < cols; ++c, tile += max_tokens) {
        simd::unroll<max_tokens>([&](auto t) { tile[t] = x[t * x_stride + c]; });
      }
      return;
    }
    for (int t = 0; t < n; ++t) {
      for (int64_t c = 0; c < cols; ++c) tile[c * n + t] = x[t * x_stride + c];
    }
  }

  // With many tokens a group comes from the second-level cache again and again: it is fetched so many columns ahead.
  static constexpr int kColumnsAhead = 16;

  template <int n>
  static void multiply(const uint8_t* group, const uint8_t* tile, int64_t cols, F32 (&result)[n][vectors]) {
    const auto* w = reinterpret_cast<const Packed*>(group);
    const auto* x = reinterpret_cast<const float*>(tile);
    F32 sums[n][vectors];
    simd::unroll<n>([&](auto t) { sums[t][0] = sums[t][1] = simd::zero(); });
    for (int64_t c = cols; c > 0; --c, w += group_rows, x += n) {
      if constexpr (n == max_tokens && dtype == DType::F32) __builtin_prefetch(w + kColumnsAhead * group_rows);
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

// Of the same activations on any processor.
struct RoundedKernel : DenseKernel<DType::BF16> {
  static void pack_tile(const float* x, int64_t x_stride, int n, int64_t cols, uint8_t* out) {
    auto* tile = reinterpret_cast<float*>(out);
    for (int t = 0; t < n; ++t) {
      for (int64_t c = 0; c < cols; ++c) tile[c * n + t] = from_bfloat16(to_bfloat16(x[t * x_stride + c]));
    }
  }
};

#ifdef __AVX512BF16__
struct PairsKernel {
  static constexpr int max_tokens = simd::kDenseTileTokens;
  static constexpr int vectors = 2;
  static constexpr int group_rows = vectors * kLanes;

  static int64_t pairs(int64_t cols) { return (cols + 1) / 2; }
  static int64_t group_bytes(int64_t cols) { return round_up(pairs(cols) * group_rows * 4, kCacheLine); }
  static int64_t tile_bytes(int64_t cols) { return round_up(pairs(cols) * max_tokens * 4, kCacheLine); }

  static void pack_group(const uint8_t* data, int rows, int64_t cols, uint8_t* out) {
    for (int row = 0; row < rows; ++row) {
      for (int64_t c = 0; c < cols; ++c, data += 2) {
        std::memcpy(out + ((c / 2 * group_rows + row) * 2 + c % 2) * 2, data, 2);
      }
    }
  }

  static void pack_tile(const float* x, int64_t x_stride, int n, int64_t cols, uint8_t* out) {
    auto* tile = reinterpret_cast<uint32_t*>(out);
    for (int t = 0; t < n; ++t) {
      const float* row = x + t * x_stride;
      for (int64_t p = 0; p < cols / 2; ++p) {
        tile[p * n + t] = to_bfloat16(row[2 * p]) | uint32_t(to_bfloat16(row[2 * p + 1])) << 16;
      }
      if (cols % 2) tile[cols / 2 * n + t] = to_bfloat16(row[cols - 1]);
    }
  }

  template <int n>
  static void multiply(const uint8_t* group, const uint8_t* tile, int64_t cols, F32 (&result)[n][vectors]) {
    const auto* x = reinterpret_cast<const int32_t*>(tile);
    F32 sums[n][vectors];
    simd::unroll<n>([&](auto t) { sums[t][0] = sums[t][1] = simd::zero(); });
    for (int64_t p = pairs(cols); p > 0; --p, group += group_rows * 4, x += n) {
      const auto w0 = reinterpret_cast<__m512bh>(_mm512_loadu_si512(group));
      const auto w1 = reinterpret_cast<__m512bh>(_mm512_loadu_si512(group + kLanes * 4));
      simd::unroll<n>([&](auto t) {
        const auto xt = reinterpret_cast<__m512bh>(_mm512_set1_epi32(x[t]));
        sums[t][0] = _mm512_dpbf16_ps(sums[t][0], w0, xt);
        sums[t][1] = _mm512_dpbf16_ps(sums[t][1], w1, xt);
      });
    }
    simd::unroll<n>([&](auto t) {
      result[t][0] = sums[t][0];
      result[t][1] = sums[t][1];
    });
  }
};
#else
using PairsKernel = RoundedKernel;
#endif

template <DType dtype>
std::unique_ptr<PackedMatrix> make(ThreadPool& pool, const uint8_t* data, int64_t rows, int64_t cols) {
  const int64_t row_bytes = cols * DenseKernel<dtype>::file_bytes;
  return std::make_unique<GroupedMatrix<DenseKernel<dtype>>>(pool, data, row_bytes, rows, cols);
}

}  // namespace

std::unique_ptr<PackedMatrix> pack_dense(ThreadPool& pool, DType dtype, const uint8_t* data, int64_t rows,
                                         int64_t cols, bool rounds) {
  if (rounds && dtype == DType::BF16) {
    return std::make_unique<GroupedMatrix<PairsKernel>>(pool, data, 2 * cols, rows, cols);
  }
  switch (dtype) {
    case DType::F32: return make<DType::F32>(pool, data, rows, cols);
    case DType::F16: return make<DType::F16>(pool, data, rows, cols);
    case DType::BF16: return make<DType::BF16>(pool, data, rows, cols);
    default: return nullptr;
  }
}

}  // namespace octavo
