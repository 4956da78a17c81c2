// Reading the block-quantised formats a file may hold. The layouts are ggml's.
#include "dequantize.h"

#include <cassert>

namespace octavo {
namespace {

constexpr int kBlock = 256;  // weights of a K block

float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

float read_bfloat16(const uint8_t* bytes) {
  uint16_t top;
  std::memcpy(&top, bytes, 2);
  return float_of_bits(static_cast<uint32_t>(top) << 16);
}

// 16 bytes hold weights 0..15 in their low and 16..31 in their high halves.
void read_nibbles(const uint8_t* bytes, Run& run) {
  for (int i = 0; i < 16; ++i) {
    run.q[i] = bytes[i] & 15;
    run.q[i + 16] = bytes[i] >> 4;
  }
}

// Four bytes hold the fifth bits of 32 weights, in order.
void read_fifth_bits(const uint8_t* bytes, Run& run) {
  uint32_t bits;
  std::memcpy(&bits, bytes, 4);
  for (int i = 0; i < kRun; ++i) run.q[i] |= ((bits >> i) & 1) << 4;
}

Run simple_run(float d, float d_min) {
  Run run;
  run.d = d;
  run.d_min = d_min;
  run.scale[0] = run.scale[1] = run.min = 1;
  return run;
}

// Q4_K and Q5_K: half d, half d_min, then eight 6-bit scales and eight 6-bit mins in 12 bytes: the first four
// of each in the low bits of bytes 0..3 and 4..7, the others in bytes 8..11 with their top bits in those.
Run read_k_scales(const uint8_t* block, int run_index) {
  Run run;
  run.d = read_half(block);
  run.d_min = -read_half(block + 2);
  const uint8_t* packed = block + 4;
  const int j = run_index;
  if (j < 4) {
    run.scale[0] = packed[j] & 63;
    run.min = packed[j + 4] & 63;
  } else {
    run.scale[0] = (packed[j + 4] & 15) | (packed[j - 4] >> 6 << 4);
    run.min = (packed[j + 4] >> 4) | (packed[j] >> 6 << 4);
  }
  run.scale[1] = run.scale[0];
  return run;
}

// Runs 2i and 2i+1 are the low and high halves of the same 32 bytes.
void read_k_nibbles(const uint8_t* bytes, int run_index, Run& run) {
  const int shift = 4 * (run_index % 2);
  for (int i = 0; i < kRun; ++i) run.q[i] = (bytes[run_index / 2 * kRun + i] >> shift) & 15;
}

}  // namespace

float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t magnitude = half & 0x7fff;
  if (magnitude >= 0x7c00) return float_of_bits(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  if (magnitude >= 0x0400) return float_of_bits(sign | ((magnitude << 13) + (112u << 23)));
  const float subnormal = static_cast<float>(magnitude) * 0x1p-24f;
  uint32_t bits;
  std::memcpy(&bits, &subnormal, 4);
  return float_of_bits(sign | bits);
}

template <>
Run read_run<DType::Q4_0>(const uint8_t* block, int) {
  Run run = simple_run(read_half(block), 0.0f);
  read_nibbles(block + 2, run);
  return run;
}

template <>
Run read_run<DType::Q4_1>(const uint8_t* block, int) {
  Run run = simple_run(read_half(block), read_half(block + 2));
  read_nibbles(block + 4, run);
  return run;
}

template <>
Run read_run<DType::Q5_0>(const uint8_t* block, int) {
  Run run = simple_run(read_half(block), 0.0f);
  read_nibbles(block + 6, run);
  read_fifth_bits(block + 2, run);
  return run;
}

template <>
Run read_run<DType::Q5_1>(const uint8_t* block, int) {
  Run run = simple_run(read_half(block), read_half(block + 2));
  read_nibbles(block + 8, run);
  read_fifth_bits(block + 4, run);
  return run;
}

template <>
Run read_run<DType::Q8_0>(const uint8_t* block, int) {
  Run run = simple_run(read_half(block), 0.0f);
  std::memcpy(run.q, block + 2, kRun);
  return run;
}

template <>
Run read_run<DType::IQ4_NL>(const uint8_t* block, int) {
  Run run = simple_run(read_half(block), 0.0f);
  read_nibbles(block + 2, run);
  return run;
}

// The exponent of a power of two, plus 127, of which d is half: numbers are twice the codes'.
template <>
Run read_run<DType::MXFP4>(const uint8_t* block, int) {
  const uint32_t exponent = block[0];
  Run run = simple_run(float_of_bits(exponent < 2 ? 0x00200000u << exponent : (exponent - 1) << 23), 0.0f);
  read_nibbles(block + 1, run);
  return run;
}

template <>
Run read_run<DType::Q4_K>(const uint8_t* block, int run_index) {
  Run run = read_k_scales(block, run_index);
  read_k_nibbles(block + 16, run_index, run);
  return run;
}

template <>
Run read_run<DType::Q5_K>(const uint8_t* block, int run_index) {
  Run run = read_k_scales(block, run_index);
  read_k_nibbles(block + 48, run_index, run);
  const uint8_t* fifth_bits = block + 16;  // bit r of byte i: weight i of run r
  for (int i = 0; i < kRun; ++i) run.q[i] |= ((fifth_bits[i] >> run_index) & 1) << 4;
  return run;
}

// Two halves of 128 weights, each 64 bytes of low nibbles and 32 bytes of high pairs; 16 signed scales; half d.
template <>
Run read_run<DType::Q6_K>(const uint8_t* block, int run_index) {
  const int half = run_index / 4, k = run_index % 4;
  const uint8_t* low = block + 64 * half + kRun * (k % 2);
  const uint8_t* high = block + kBlock / 2 + kRun * half;
  const auto* scales = reinterpret_cast<const int8_t*>(block + kBlock * 3 / 4);
  Run run;
  run.d = read_half(block + kBlock * 3 / 4 + 16);
  run.d_min = 0.0f;
  run.min = 1;
  for (int i = 0; i < 2; ++i) run.scale[i] = scales[2 * run_index + i];
  for (int i = 0; i < kRun; ++i) {
    run.q[i] = ((low[i] >> (4 * (k / 2))) & 15) | (((high[i] >> (2 * k)) & 3) << 4);
  }
  return run;
}

namespace {

// float32 d, int8 zero, then the runs: a byte for each weight, or a byte for two, the even one in the low half.
template <int bits>
Run read_coded(const uint8_t* block, int run_index) {
  float d;
  std::memcpy(&d, block, sizeof d);
  Run run = simple_run(d, 0.0f);
  run.zero = static_cast<int8_t>(block[4]);
  const uint8_t* bytes = block + 5 + run_index * 4 * bits;
  for (int i = 0; i < kRun; ++i) {
    if constexpr (bits == 8) {
      run.q[i] = bytes[i];
    } else {
      run.q[i] = (bytes[i / 2] >> (4 * (i % 2))) & 15;
    }
  }
  return run;
}

// e4m3: a sign, four bits of exponent with bias 7, three of mantissa; all ones are no number.
float float8(uint8_t code) {
  if ((code & 0x7f) == 0x7f) return float_of_bits(0x7fc00000);
  const float magnitude = float_of_bits(static_cast<uint32_t>(code & 0x7f) << 20) * 0x1p120f;
  return code & 0x80 ? -magnitude : magnitude;
}

template <DType dtype>
void dequantize_float8(const uint8_t* row, int64_t cols, float* out) {
  constexpr int block = kFloat8Block<dtype>;
  for (int64_t b = 0; b < cols / block; ++b, row += sizeof(float) + block) {
    float d;
    std::memcpy(&d, row, sizeof d);
    for (int i = 0; i < block; ++i) *out++ = float8(row[sizeof d + i]) * d;
  }
}

}  // namespace

template <> Run read_run<DType::I8_32>(const uint8_t* block, int run) { return read_coded<8>(block, run); }
template <> Run read_run<DType::I8_128>(const uint8_t* block, int run) { return read_coded<8>(block, run); }
template <> Run read_run<DType::U4_32>(const uint8_t* block, int run) { return read_coded<4>(block, run); }
template <> Run read_run<DType::U4_128>(const uint8_t* block, int run) { return read_coded<4>(block, run); }
template <> Run read_run<DType::E2M1_32>(const uint8_t* block, int run) { return read_coded<4>(block, run); }

namespace {

template <typename F>
int number_of(uint8_t code) {
  if constexpr (F::Codes::is_looked_up) return F::Codes::numbers[code] - F::offset;
  return F::bits == 8 ? static_cast<int8_t>(code) : code - F::offset;
}

template <DType dtype>
void dequantize_blocks(const uint8_t* row, int64_t cols, float* out) {
  using F = Format<dtype>;
  assert(cols % (kRun * F::runs_per_block) == 0 && "a row holds whole blocks");
  for (int64_t i = 0; i < cols / kRun; ++i, out += kRun) {
    const Run run = read_row_run<dtype>(row, i);
    const float min = run.d_min * static_cast<float>(run.min);
    for (int j = 0; j < kRun; ++j) {
      const int q = number_of<F>(run.q[j]) - run.zero;
      const float product = run.d * static_cast<float>(run.scale[j / 16]) * static_cast<float>(q);
      out[j] = F::has_min ? product + min : product;
    }
  }
}

}  // namespace

void dequantize_row(DType dtype, const uint8_t* row, int64_t cols, float* out) {
  switch (dtype) {
    case DType::F32:
      std::memcpy(out, row, static_cast<size_t>(cols) * sizeof(float));
      return;
    case DType::F16:
      for (int64_t i = 0; i < cols; ++i) out[i] = read_half(row + 2 * i);
      return;
    case DType::BF16:
      for (int64_t i = 0; i < cols; ++i) out[i] = read_bfloat16(row + 2 * i);
      return;
    case DType::Q4_0: return dequantize_blocks<DType::Q4_0>(row, cols, out);
    case DType::Q4_1: return dequantize_blocks<DType::Q4_1>(row, cols, out);
    case DType::Q5_0: return dequantize_blocks<DType::Q5_0>(row, cols, out);
    case DType::Q5_1: return dequantize_blocks<DType::Q5_1>(row, cols, out);
    case DType::Q8_0: return dequantize_blocks<DType::Q8_0>(row, cols, out);
    case DType::Q4_K: return dequantize_blocks<DType::Q4_K>(row, cols, out);
    case DType::Q5_K: return dequantize_blocks<DType::Q5_K>(row, cols, out);
    case DType::Q6_K: return dequantize_blocks<DType::Q6_K>(row, cols, out);
    case DType::IQ4_NL: return dequantize_blocks<DType::IQ4_NL>(row, cols, out);
    case DType::MXFP4: return dequantize_blocks<DType::MXFP4>(row, cols, out);
    case DType::I8_32: return dequantize_blocks<DType::I8_32>(row, cols, out);
    case DType::I8_128: return dequantize_blocks<DType::I8_128>(row, cols, out);
    case DType::U4_32: return dequantize_blocks<DType::U4_32>(row, cols, out);
    case DType::U4_128: return dequantize_blocks<DType::U4_128>(row, cols, out);
    case DType::E2M1_32: return dequantize_blocks<DType::E2M1_32>(row, cols, out);
    case DType::F8_32: return dequantize_float8<DType::F8_32>(row, cols, out);
    case DType::F8_128: return dequantize_float8<DType::F8_128>(row, cols, out);
  }
}

}  // namespace octavo
