// Products with block-quantised weights: integers inside a run of 32 columns, float32 across runs.
//
// For a run, with x = s * xq (xq signed bytes) and w = d * scale * (q - offset) + d_min * min:
//
//   sum over the run of x * w  =  s * ( d * scale * (sum xq * q - offset * sum xq)  +  d_min * min * sum xq )
//
// In coded formats each block has an offset of its own, its zero.
//
// The sum of xq comes with the activations, so the weights' offsets and mins cost one fused operation per run
// instead of one per column. Both integer sums, and their difference, are exact.
//
// 16-bit activations are two signed bytes, xq = 128 * first + second, and are multiplied as if they were two tokens:
// twice the products, half the tokens per tile. A step that waits for memory hardly notices.
#pragma once
#include "matmul_grouped.h"
#include "pack.h"

namespace octavo {

// Chunk c's bytes, unsigned (or signed, for 8-bit weights on targets that need that).
template <int bits, int c>
simd::Bytes load_chunk(const uint8_t* vectors) {
  if constexpr (bits == 8) return simd::load_bytes(vectors + c * kVectorBytes);
  const simd::Bytes low = simd::shift_and<4 * (c % 2)>(simd::load_bytes(vectors + c / 2 * kVectorBytes), 15);
  if constexpr (bits == 5) {
    const simd::Bytes high = simd::load_bytes(vectors + 4 * kVectorBytes);
    return simd::bit_or(low, simd::shift_and<c - 4>(high, 1 << 4));
  }
  if constexpr (bits == 6) {
    const simd::Bytes high = simd::load_bytes(vectors + (4 + c / 4) * kVectorBytes);
    return simd::bit_or(low, simd::shift_and<2 * (c % 4) - 4>(high, 3 << 4));
  }
  return low;
}

// What codes are looked up as, in the form in which products take numbers of so many bits.
template <typename Codes>
struct Numbers {
  struct alignas(16) Table {
    uint8_t bytes[16];
  };
  static constexpr Table packed = [] {
    Table table{};
    for (int i = 0; i < 16; ++i) table.bytes[i] = static_cast<uint8_t>(Codes::numbers[i] + (Codes::bits == 8 ? simd::kQ8Offset : 0));
    return table;
  }();
};

// Chunk c's numbers: its bytes, or what they are looked up as.
template <typename F, int c>
simd::Bytes load_numbers(const uint8_t* vectors) {
  const simd::Bytes codes = load_chunk<F::bits, c>(vectors);
  if constexpr (F::Codes::is_looked_up) return simd::lookup(Numbers<typename F::Codes>::packed.bytes, codes);
  return codes;
}

template <DType dtype, int num_bytes>
struct QuantizedKernel {
  using F = Format<dtype>;
  using Layout = PackedBlock<F>;
  using XRun = ActivationRun<num_bytes>;

  static constexpr int max_tokens = simd::kQuantizedTileTokens / num_bytes;
  static constexpr int vectors = 1;

  static int64_t num_blocks(int64_t cols) { return cols / (kRun * F::runs_per_block); }
  static int64_t group_bytes(int64_t cols) { return round_up(num_blocks(cols) * Layout::bytes, kCacheLine); }
  static int64_t tile_bytes(int64_t cols) { return round_up(cols / kRun * tile_run_bytes(max_tokens), kCacheLine); }
  static constexpr int tile_run_bytes(int n) { return n * (num_bytes * kRun + static_cast<int>(sizeof(XRun))); }

  static void pack_group(const uint8_t* data, int rows, int64_t cols, uint8_t* out) {
    const int64_t row_bytes = num_blocks(cols) * F::block_bytes;
    for (int64_t b = 0; b < num_blocks(cols); ++b) pack_block<dtype>(data, row_bytes, rows, b, out + b * Layout::bytes);
  }

  static void pack_tile(const float* x, int64_t x_stride, int n, int64_t cols, uint8_t* out) {
    for (int64_t r = 0; r < cols / kRun; ++r, out += tile_run_bytes(n)) {
      auto* bytes = reinterpret_cast<int8_t*>(out);
      auto* runs = reinterpret_cast<XRun*>(out + num_bytes * n * kRun);
      for (int t = 0; t < n; ++t) {
        quantize_run<num_bytes>(x + t * x_stride + r * kRun, bytes + t * kRun, n * kRun, runs[t]);
      }
    }
  }

  template <int n>
  static void multiply(const uint8_t* group, const uint8_t* tile, int64_t cols, simd::F32 (&result)[n][1]) {
    simd::F32 sums[n];
    simd::unroll<n>([&](auto t) { sums[t] = simd::zero(); });
    for (int64_t b = num_blocks(cols); b > 0; --b) {
      const Head head = read_head(group);
      group += Layout::head_bytes;
      for (int run = 0; run < F::runs_per_block; ++run) {
        add_run<n>(group, tile, head, sums);
        group += Layout::run_bytes;
        tile += tile_run_bytes(n);
      }
    }
    simd::unroll<n>([&](auto t) { result[t][0] = sums[t]; });
  }

 private:
  static constexpr int number_bits = F::Codes::bits;
  static constexpr int offset = number_bits == 8 ? simd::kQ8Offset : F::offset;
  static constexpr int parts = F::scales_per_run;
  static constexpr int chunks_per_part = kChunks / parts;

  // What the runs of a block share. minus_offset: of coded formats.
  struct Head {
    simd::F32 d, d_min, minus_offset;
  };

  [[gnu::always_inline]] static Head read_head(const uint8_t* group) {
    if constexpr (F::is_coded) {
      const simd::F32 zero = simd::load_int8(reinterpret_cast<const int8_t*>(group) + simd::kLanes * sizeof(float));
      const simd::F32 packed = simd::broadcast(-static_cast<float>(offset));
      return {simd::load(reinterpret_cast<const float*>(group)), simd::zero(),
              simd::fma(simd::broadcast(-1.0f), zero, packed)};
    } else {
      const auto* d = reinterpret_cast<const simd::Half*>(group);
      return {simd::load_half(d), F::has_min ? simd::load_half(d + simd::kLanes) : simd::zero(),
              simd::broadcast(-static_cast<float>(offset))};
    }
  }

  template <int n>
  [[gnu::always_inline]] static void add_run(const uint8_t* weights, const uint8_t* tile, const Head& head,
                                             simd::F32 (&sums)[n]) {
    const auto* x = reinterpret_cast<const int8_t*>(tile);
    const auto* runs = reinterpret_cast<const XRun*>(tile + num_bytes * n * kRun);
    const auto* scales = reinterpret_cast<const int8_t*>(weights);
    const uint8_t* vectors = weights + Layout::scale_bytes;

    simd::F32 run_sums[n];
    simd::unroll<parts>([&](auto part) {
      const simd::F32 scale = Layout::is_k ? simd::mul(head.d, simd::load_int8(scales + part * simd::kLanes)) : head.d;
      simd::Dot<number_bits> dots[num_bytes * n];
      simd::unroll<chunks_per_part>([&](auto i) {
        constexpr int chunk = part * chunks_per_part + i;
        const simd::Bytes w = load_numbers<F, chunk>(vectors);
        simd::unroll<num_bytes * n>([&](auto t) {
          dots[t].template add<i>(w, simd::broadcast_four(x + t * kRun + chunk * kColumnsPerLane));
        });
      });
      const auto byte_sum = [&](auto t, auto byte) {
        const simd::F32 dot = dots[byte * n + t].template total<chunks_per_part>();
        if constexpr (offset == 0 && !F::is_coded) return dot;
        const float x_sum = parts == 1 ? runs[t].sum[byte] : runs[t].half_sum[byte][part];
        return simd::fma(head.minus_offset, simd::broadcast(x_sum), dot);
      };
      simd::unroll<n>([&](auto t) {
        simd::F32 dot = byte_sum(t, std::integral_constant<int, 0>{});
        if constexpr (num_bytes == 2) {
          dot = simd::fma(simd::broadcast(kSecondByte), dot, byte_sum(t, std::integral_constant<int, 1>{}));
        }
        run_sums[t] = part == 0 ? simd::mul(scale, dot) : simd::fma(scale, dot, run_sums[t]);
      });
    });
    if constexpr (F::has_min) {
      const simd::F32 min = Layout::is_k ? simd::mul(head.d_min, simd::load_int8(scales + parts * simd::kLanes)) : head.d_min;
      simd::unroll<n>([&](auto t) { run_sums[t] = simd::fma(min, simd::broadcast(runs[t].total()), run_sums[t]); });
    }
    simd::unroll<n>([&](auto t) { sums[t] = simd::fma(simd::broadcast(runs[t].scale), run_sums[t], sums[t]); });
  }
};

template <DType dtype>
std::unique_ptr<PackedMatrix> pack_blocks(ThreadPool& pool, const uint8_t* data, int64_t rows, int64_t cols,
                                          int activation_bytes) {
  using OneByte = QuantizedKernel<dtype, 1>;
  using TwoBytes = QuantizedKernel<dtype, 2>;
  const int64_t row_bytes = OneByte::num_blocks(cols) * Format<dtype>::block_bytes;
  if (activation_bytes == 2) return std::make_unique<GroupedMatrix<TwoBytes>>(pool, data, row_bytes, rows, cols);
  return std::make_unique<GroupedMatrix<OneByte>>(pool, data, row_bytes, rows, cols);
}

}  // namespace octavo
