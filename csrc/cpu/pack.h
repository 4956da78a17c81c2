// Reordering into the layouts that the matmul kernels stream: lanes are rows, bytes of a lane are columns.
#pragma once
#include "dequantize.h"
#include "simd.h"

namespace octavo {

constexpr int kColumnsPerLane = 4;                       // bytes of a 32-bit lane
constexpr int kChunks = kRun / kColumnsPerLane;          // vectors of bytes that hold a run of kLanes rows
constexpr int kVectorBytes = simd::kLanes * kColumnsPerLane;

// A run of quantised activations, 32 integers of num_bytes signed bytes, the first byte the higher: of a tile's n
// tokens there are n times 32 first bytes, n times 32 second bytes if there are any, then n times this.
constexpr int kSecondByte = 128;  // weight of a first byte, in second bytes; leaves room for a sign

template <int num_bytes>
struct ActivationRun {
  float scale;
  float sum[num_bytes];          // of the bytes; exact, as half_sum is
  float half_sum[num_bytes][2];  // of the first and last 16

  float total() const { return num_bytes == 1 ? sum[0] : kSecondByte * sum[0] + sum[num_bytes - 1]; }
};

// Rounds 32 numbers to multiples of max|x| / 127, or / (127 * 128) in two bytes; byte b of number i goes to
// bytes[b * byte_stride + i]. A number that is not finite makes the scale not finite.
template <int num_bytes>
void quantize_run(const float* x, int8_t* bytes, int64_t byte_stride, ActivationRun<num_bytes>& run);

// A group's packed block, of kLanes rows:
//
//   Half d[kLanes], d_min[kLanes] if the format has mins; of a coded format float d[kLanes], int8 zero[kLanes]
//   runs_per_block times:
//     int8 scale[scales_per_run][kLanes], min[kLanes]     K formats only
//     low bits:  4-bit: 4 vectors, vector i holding chunk 2i in low and chunk 2i+1 in high nibbles; 8-bit: 8 vectors
//     fifth bit: 1 vector, bit c of a byte belonging to chunk c
//     fifth and sixth bits: 2 vectors, of chunks 0..3 and 4..7, two bits a chunk
template <typename F>
struct PackedBlock {
  static constexpr bool is_k = F::runs_per_block > 1 && !F::is_coded;
  static constexpr int head_bytes =
      simd::kLanes * (F::is_coded ? 5 : (F::has_min ? 2 : 1) * static_cast<int>(sizeof(simd::Half)));
  static constexpr int scale_bytes = is_k ? (F::scales_per_run + (F::has_min ? 1 : 0)) * simd::kLanes : 0;
  static constexpr int run_bytes = scale_bytes + F::bits * kVectorBytes;
  static constexpr int bytes = head_bytes + F::runs_per_block * run_bytes;
};

// Packs one block (its number in the row given) of up to kLanes rows, which lie row_bytes apart.
template <DType dtype>
void pack_block(const uint8_t* data, int64_t row_bytes, int rows, int64_t block, uint8_t* out);

}  // namespace octavo
