// Packing of quantised weights and activations, in the layouts of pack.h.
#include "pack.h"

#include <algorithm>

namespace octavo {
namespace {

using simd::kLanes;

// The nibble, or the byte, of chunk c of a row.
template <int bits>
void pack_chunk(const uint8_t* q, int c, int row, uint8_t* vectors) {
  for (int i = 0; i < kColumnsPerLane; ++i) {
    const int at = row * kColumnsPerLane + i;
    const uint8_t value = q[c * kColumnsPerLane + i];
    if constexpr (bits == 8) {
      vectors[c * kVectorBytes + at] = static_cast<uint8_t>(value + simd::kQ8Offset);
    } else {
      vectors[c / 2 * kVectorBytes + at] |= static_cast<uint8_t>((value & 15) << (4 * (c % 2)));
      uint8_t* high = vectors + 4 * kVectorBytes + at;
      if constexpr (bits == 5) *high |= static_cast<uint8_t>(value >> 4 << c);
      if constexpr (bits == 6) high[c / 4 * kVectorBytes] |= static_cast<uint8_t>(value >> 4 << (2 * (c % 4)));
    }
  }
}

template <typename F>
void pack_run(const Run& run, int run_index, int row, uint8_t* block) {
  using Layout = PackedBlock<F>;
  if constexpr (F::is_coded) {
    std::memcpy(block + row * sizeof run.d, &run.d, sizeof run.d);
    block[kLanes * sizeof run.d + row] = static_cast<uint8_t>(run.zero);
  } else {
    const simd::Half d[2] = {simd::to_half(run.d), simd::to_half(run.d_min)};
    std::memcpy(block + row * sizeof d[0], &d[0], sizeof d[0]);
    if (F::has_min) std::memcpy(block + (kLanes + row) * sizeof d[0], &d[1], sizeof d[1]);
  }

  uint8_t* out = block + Layout::head_bytes + run_index * Layout::run_bytes;
  if constexpr (Layout::is_k) {
    for (int i = 0; i < F::scales_per_run; ++i) out[i * kLanes + row] = static_cast<uint8_t>(run.scale[i]);
    if constexpr (F::has_min) out[F::scales_per_run * kLanes + row] = static_cast<uint8_t>(run.min);
  }
  for (int c = 0; c < kChunks; ++c) pack_chunk<F::bits>(run.q, c, row, out + Layout::scale_bytes);
}

uint32_t magnitude_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits & 0x7fffffff;
}

}  // namespace

template <int num_bytes>
void quantize_run(const float* x, int8_t* bytes, int64_t byte_stride, ActivationRun<num_bytes>& run) {
  // Compares as integers, so that a NaN is larger than every number.
  uint32_t largest = 0;
  for (int i = 0; i < kRun; ++i) largest = std::max(largest, magnitude_bits(x[i]));
  float max_magnitude;
  std::memcpy(&max_magnitude, &largest, 4);

  // Adding 1.5 * 2^23 leaves the rounded number in the low bits of the sum; a NaN leaves any number.
  // Below 2^-100 the inverse would overflow, and such products are too small to change a float32 sum.
  constexpr float kSteps = num_bytes == 1 ? 127 : 127 * kSecondByte;
  const float inverse = max_magnitude < 0x1p-100f ? 0.0f : kSteps / max_magnitude;
  constexpr float kRounder = 0x1.8p23f;
  int sums[num_bytes][2] = {};
  for (int half = 0; half < 2; ++half) {
    for (int i = 16 * half; i < 16 * half + 16; ++i) {
      const float rounded = x[i] * inverse + kRounder;
      uint32_t bits;
      std::memcpy(&bits, &rounded, 4);
      int32_t first;
      if constexpr (num_bytes == 1) {
        first = static_cast<int8_t>(bits);
      } else {
        const int32_t q = static_cast<int16_t>(bits);
        first = (q + kSecondByte / 2) >> 7;
        const int32_t second = q - first * kSecondByte;
        bytes[byte_stride + i] = static_cast<int8_t>(second);
        sums[1][half] += second;
      }
      bytes[i] = static_cast<int8_t>(first);
      sums[0][half] += first;
    }
  }
  run.scale = max_magnitude / kSteps;
  for (int b = 0; b < num_bytes; ++b) {
    run.sum[b] = static_cast<float>(sums[b][0] + sums[b][1]);
    for (int half = 0; half < 2; ++half) run.half_sum[b][half] = static_cast<float>(sums[b][half]);
  }
}

template void quantize_run<1>(const float*, int8_t*, int64_t, ActivationRun<1>&);
template void quantize_run<2>(const float*, int8_t*, int64_t, ActivationRun<2>&);

template <DType dtype>
void pack_block(const uint8_t* data, int64_t row_bytes, int rows, int64_t block, uint8_t* out) {
  constexpr int runs = Format<dtype>::runs_per_block;
  for (int row = 0; row < rows; ++row) {
    for (int run = 0; run < runs; ++run) {
      pack_run<Format<dtype>>(read_row_run<dtype>(data + row * row_bytes, block * runs + run), run, row, out);
    }
  }
}

template void pack_block<DType::Q4_0>(const uint8_t*, int64_t, int, int64_t, uint8_t*);
template void pack_block<DType::Q4_1>(const uint8_t*, int64_t, int, int64_t, uint8_t*);
template void pack_block<DType::Q5_0>(const uint8_t*, int64_t, int, int64_t, uint8_t*);
template void pack_block<DType::Q5_1>(const uint8_t*, int64_t, int, int64_t, uint8_t*);
template void pack_block<DType::Q8_0>(const uint8_t*, int64_t, int, int64_t, uint8_t*);
template void pack_block<DType::Q4_K>(const uint8_t*, int64_t, int, int64_t, uint8_t*);
template void pack_block<DType::Q5_K>(const uint8_t*, int64_t, int, int64_t, uint8_t*);
template void pack_block<DType::Q6_K>(const uint8_t*, int64_t, int, int64_t, uint8_t*);
template void pack_block<DType::IQ4_NL>(const uint8_t*, int64_t, int, int64_t, uint8_t*);
template void pack_block<DType::MXFP4>(const uint8_t*, int64_t, int, int64_t, uint8_t*);
template void pack_block<DType::I8_32>(const uint8_t*, int64_t, int, int64_t, uint8_t*);
template void pack_block<DType::I8_128>(const uint8_t*, int64_t, int, int64_t, uint8_t*);
template void pack_block<DType::U4_32>(const uint8_t*, int64_t, int, int64_t, uint8_t*);
template void pack_block<DType::U4_128>(const uint8_t*, int64_t, int, int64_t, uint8_t*);
template void pack_block<DType::E2M1_32>(const uint8_t*, int64_t, int, int64_t, uint8_t*);

}  // namespace octavo
