// The block-quantised formats, each described once for all code that reads a file's bytes.
//
// Every format consists of runs of 32 weights:
//
//   weight[i] = (d * scale[i / 16]) * (q[i] - offset - zero) + d_min * min
//
// with q unsigned and `bits` wide (signed 8 bits for Q8_0). The simple formats have scale = min = 1; the
// K formats share d and d_min among the eight runs of a 256-weight block. Some codes are looked up to get q. Each product on the right is exact
// in float32, so fused and separate arithmetic agree. Coded formats are ours, not ggml's: a float32 d and a zero for a
// block of one or four runs, as quantisers of safetensors files have them.
#pragma once
#include <cstdint>
#include <cstring>

#include "octavo/matmul.h"

namespace octavo {

constexpr int kRun = 32;

struct Run {
  uint8_t q[kRun];
  float d, d_min;
  int scale[2];
  int min;
  int zero = 0;
};

// Converts an IEEE half to float32, exactly for every value.
float half_to_float(uint16_t half);

inline float read_half(const uint8_t* bytes) {
  uint16_t half;
  std::memcpy(&half, bytes, 2);
  return half_to_float(half);
}

// Compile-time facts about a format.
//   bits, offset       see above
//   has_min            d_min * min is not always zero
//   runs_per_block     8 for the K formats, whose scale and min are per run, d and d_min per block
//   scales_per_run     2 where scale differs between the halves of a run
//   is_coded           d is a float32, zero not always 0; no scale or min
//   Codes              what codes are looked up in; numbers have q's bits
template <int Bits>
struct Plain {
  static constexpr bool is_looked_up = false;
  static constexpr int bits = Bits;
};

// Floats of 4 bits: twice each is a whole number, to which 12 is added.
struct E2M1 {
  static constexpr bool is_looked_up = true;
  static constexpr int bits = 5;
  static constexpr uint8_t numbers[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
};

// ggml's sixteen signed bytes, about as dense as normal numbers are.
struct IQ4 {
  static constexpr bool is_looked_up = true;
  static constexpr int bits = 8;
  static constexpr int8_t numbers[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
};

template <int Bits, int Offset, bool HasMin, int BlockBytes, int RunsPerBlock = 1, int ScalesPerRun = 1,
          bool IsCoded = false, typename CodesType = Plain<Bits>>
struct Traits {
  using Codes = CodesType;
  static constexpr bool is_coded = IsCoded;
  static constexpr int bits = Bits, offset = Offset, block_bytes = BlockBytes;
  static constexpr int runs_per_block = RunsPerBlock, scales_per_run = ScalesPerRun;
  static constexpr bool has_min = HasMin;
};

template <DType>
struct Format;

template <> struct Format<DType::Q4_0> : Traits<4, 8, false, 18> {};
template <> struct Format<DType::Q4_1> : Traits<4, 0, true, 20> {};
template <> struct Format<DType::Q5_0> : Traits<5, 16, false, 22> {};
template <> struct Format<DType::Q5_1> : Traits<5, 0, true, 24> {};
template <> struct Format<DType::Q8_0> : Traits<8, 0, false, 34> {};
template <> struct Format<DType::Q4_K> : Traits<4, 0, true, 144, 8> {};
template <> struct Format<DType::Q5_K> : Traits<5, 0, true, 176, 8> {};
template <> struct Format<DType::Q6_K> : Traits<6, 32, false, 210, 8, 2> {};

template <> struct Format<DType::IQ4_NL> : Traits<4, 0, false, 18, 1, 1, false, IQ4> {};
template <> struct Format<DType::MXFP4> : Traits<4, 12, false, 17, 1, 1, true, E2M1> {};

template <int Bits, int Runs>
using Coded = Traits<Bits, 0, false, 5 + 4 * Bits * Runs, Runs, 1, true>;

template <> struct Format<DType::I8_32> : Coded<8, 1> {};
template <> struct Format<DType::I8_128> : Coded<8, 4> {};
template <> struct Format<DType::U4_32> : Coded<4, 1> {};
template <> struct Format<DType::U4_128> : Coded<4, 4> {};

template <> struct Format<DType::E2M1_32> : Traits<4, 12, false, 21, 1, 1, true, E2M1> {};

// Blocks of floats of 8 bits (e4m3, without infinities): a float32 scale, then a byte for each column.
template <DType dtype>
constexpr int kFloat8Block = 0;
template <> inline constexpr int kFloat8Block<DType::F8_32> = 32;
template <> inline constexpr int kFloat8Block<DType::F8_128> = 128;

// Run number `run` of the block at `block`.
template <DType dtype>
Run read_run(const uint8_t* block, int run);

// A whole row's run number `run`.
template <DType dtype>
Run read_row_run(const uint8_t* row, int64_t run) {
  constexpr int runs = Format<dtype>::runs_per_block;
  return read_run<dtype>(row + run / runs * Format<dtype>::block_bytes, static_cast<int>(run % runs));
}

}  // namespace octavo
