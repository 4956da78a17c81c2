// A weight of codes with scales made dense, for a library's product of many rows: out [columns, depth], contiguous.
//
// It moves bytes and little else, so a thread reads its codes in a few loads that wait together, and a warp writes whole
// sectors. What it reads does not depend on the kernel before it, and is on its way while that one ends.
//
//   int4   a warp has a tile of 16 outputs and kPieces times 64 inputs: a thread 16 bytes of each, as pack_int4 deals
//          them, which are 8 neighbouring inputs of an output in each word
//   fp8, int8   a thread has kTurns times 8 neighbouring inputs of one output

#include "quantized_weights.cuh"

#ifndef ELEMENT
#define ELEMENT Bf16
#endif
#ifndef FORMAT
#define FORMAT kInt4
#endif
// Scales of outputs; of groups, packed as pack_by_groups does it; of blocks of 128 x 128
#ifndef SCALES
#define SCALES 1
#endif
#ifndef HAS_ZEROS
#define HAS_ZEROS 0
#endif
// Inputs that are multiplied by one scale are a multiple of so many
#ifndef PIECES
#define PIECES 2
#endif
#ifndef IS_CHAINED
#define IS_CHAINED 0
#endif

namespace octavo {
namespace {

enum Scales { kOutputs = 0, kGroups = 1, kBlocks = 2 };
constexpr int kThreads = 256, kPieces = PIECES, kTurns = 4;

struct Launch {
  const uint8_t* codes;
  const float* scales;
  const ELEMENT* zeros;  // in the places of scales
  ELEMENT* out;
  int columns, depth, group_bits, block_scales;  // group: 2^group_bits inputs; block_scales: in a row of blocks
};

// Where the scale of an output and an input is
__device__ __forceinline__ int64_t place(const Launch& launch, int output, int input) {
  if (SCALES == kOutputs) return output;
  if (SCALES == kBlocks) return int64_t(output / 128) * launch.block_scales + input / 128;
  const int64_t group = int64_t(output / 16) * (launch.depth >> launch.group_bits) + (input >> launch.group_bits);
  return group * 16 + output % 8 * 2 + output / 8 % 2;
}

// Codes are read once: others stay in the L2 cache in their place
__device__ __forceinline__ uint4 codes_of(const uint8_t* from) { return __ldcs(reinterpret_cast<const uint4*>(from)); }

__device__ __forceinline__ void wait() {
#if IS_CHAINED
  wait_for_previous();
  allow_next();
#endif
}

__device__ __forceinline__ void store(ELEMENT* to, const float (&y)[8]) {
  *reinterpret_cast<uint4*>(to) = {pack<ELEMENT>(y[0], y[1]), pack<ELEMENT>(y[2], y[3]), pack<ELEMENT>(y[4], y[5]),
                                   pack<ELEMENT>(y[6], y[7])};
}

// Nibble i is the number 2 i, and nibble i + 4 the number 2 i + 1
__device__ __forceinline__ void nibbles(ELEMENT* to, uint32_t word, float zero, float scale) {
  constexpr float kRaised = 8388608;  // 2^23: the last bit is worth 1
  float y[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const uint32_t nibble = word >> (i / 2 * 4 + i % 2 * 16) & 15;
    y[i] = (__uint_as_float(0x4b000000 | nibble) - (kRaised + zero)) * scale;
  }
  store(to, y);
}

__device__ __forceinline__ void dequantise_int4(const Launch& launch) {
  const int lane = threadIdx.x % 32, pieces = launch.depth / 64, runs = (pieces + kPieces - 1) / kPieces;
  const int64_t warp = int64_t(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  const int tile = int(warp / runs), first = int(warp % runs) * kPieces, output = tile * 16 + lane / 4;
  if (tile >= launch.columns / 16) return wait();
  const uint8_t* from = launch.codes + ((int64_t(tile) * pieces + first) * 32 + lane) * 16;
  uint4 codes[kPieces] = {};
  float scales[kPieces][2] = {}, zeros[kPieces][2];
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    if (first + i < pieces) codes[i] = codes_of(from + i * 512);
  }
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      zeros[i][half] = 8;
      if (first + i >= pieces) continue;
      const int64_t at = place(launch, output + half * 8, (first + i) * 64);
      scales[i][half] = launch.scales[at];
      if (HAS_ZEROS) zeros[i][half] = to_float(launch.zeros[at]);
    }
  }
  wait();
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    if (first + i >= pieces) break;
    ELEMENT* to = launch.out + int64_t(output) * launch.depth + (first + i) * 64 + lane % 4 * 8;
    const uint32_t words[4] = {codes[i].x, codes[i].y, codes[i].z, codes[i].w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {  // two outputs, 8 apart, and their next 32 inputs
      nibbles(to + int64_t(j % 2) * 8 * launch.depth + j / 2 * 32, words[j], zeros[i][j % 2], scales[i][j % 2]);
    }
  }
}

__device__ __forceinline__ float number_of(uint32_t code) {
  if (FORMAT == kInt8) return __uint_as_float(0x4b000000 | code) - 8388736.0f;  // 2^23 + 128
  const uint32_t placed = (code & 0x80) << 24 | (code & 0x7f) << 20;
  return __uint_as_float(placed) * 1.329227995784916e36f;  // 2^120
}

__device__ __forceinline__ void dequantise_bytes(const Launch& launch) {
  const int64_t first = (int64_t(blockIdx.x) * kThreads * kTurns + threadIdx.x) * 8;
  const int64_t end = int64_t(launch.columns) * launch.depth;
  uint2 codes[kTurns] = {};
  float scales[kTurns] = {};
#pragma unroll
  for (int i = 0; i < kTurns; ++i) {
    const int64_t at = first + i * kThreads * 8;
    if (at < end) codes[i] = __ldcs(reinterpret_cast<const uint2*>(launch.codes + at));
  }
#pragma unroll
  for (int i = 0; i < kTurns; ++i) {
    const int64_t at = first + i * kThreads * 8;
    if (at < end) scales[i] = launch.scales[place(launch, int(at / launch.depth), int(at % launch.depth))];
  }
  wait();
#pragma unroll
  for (int i = 0; i < kTurns; ++i) {
    const int64_t at = first + i * kThreads * 8;
    if (at >= end) break;
    float y[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) y[j] = number_of((j < 4 ? codes[i].x : codes[i].y) >> (j % 4 * 8) & 255) * scales[i];
    store(launch.out + at, y);
  }
}

}  // namespace
}  // namespace octavo

extern "C" __global__ void __launch_bounds__(octavo::kThreads) octavo_dequantise(const octavo::Launch launch) {
  using namespace octavo;
  if constexpr (FORMAT == kInt4) dequantise_int4(launch);
  else dequantise_bytes(launch);
}
