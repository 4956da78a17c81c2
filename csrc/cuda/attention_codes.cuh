// Products of decode_attention.cu with keys and values that are codes of one byte: the ring has the bytes.
//
// A thread makes halves of two codes at a time: keys are read as words of four dims (Hooks::in_order), values as
// words of two dims of two tokens (Hooks::turned).
//
// The order of a product's depth is free, and so are those of its rows and columns:
//
//   scores, step j   a thread has 16 dims of a key, from 16 t on, t = lane % 4, and of those the four from 4 j on: two in
//                    the step's first half, two in its second. Queries lie in this order (place_query)
//   scores, tokens   in the order 0 4 1 5 2 6 3 7, so that the 16 bytes of eight lanes lie in different banks
//   values           ldmatrix turns pairs of codes: a thread has dims 2 u and 2 u + 1, u = lane / 4, of two tokens. So the
//                    even dims of 16 are one tile of 8 sums, the odd ones another
#pragma once

#include "attention_kind.cuh"

namespace octavo {
namespace {

// The i-th of 8 tokens
__device__ __forceinline__ int code_token(int i) { return i / 2 + i % 2 * 4; }

template <int kHalves>
__device__ __forceinline__ void load_query_fragments(uint32_t (&q)[4], uint32_t queries, int tile, int tile_rows,
                                                     int step) {
  const int lane = threadIdx.x % 32;
  load_fragments(q, queries + chunk_offset(tile * 16 + (tile_rows > 8 ? lane % 16 : lane % 8), 2 * step + lane / 16));
  if (kHalves == 1 || tile_rows <= 8) q[1] = q[3] = 0;
}

// scores += queries of a tile times the keys of a warp's boxes
template <int kTiles, int kHalves>
__device__ __forceinline__ void multiply_key_codes(float (&scores)[kTiles * 2][4], uint32_t queries,
                                                   const unsigned char* keys, int tile, int tile_rows, int split) {
  constexpr int kSplits = kComputers / kTiles;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int part = 0; part < kPaddedDim / 64; ++part) {
    uint4 codes[kTiles * 2];
#pragma unroll
    for (int n = 0; n < kTiles * 2; ++n) {
      const int token = (split + n / 2 * kSplits) * kBox + n % 2 * 8 + code_token(lane / 4);
      codes[n] = *reinterpret_cast<const uint4*>(keys + chunk_offset(token, part * 4 + lane % 4));
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      uint32_t q[4];
      load_query_fragments<kHalves>(q, queries, tile, tile_rows, part * 4 + j);
#pragma unroll
      for (int n = 0; n < kTiles * 2; ++n) {
        const uint32_t word = j == 0 ? codes[n].x : j == 1 ? codes[n].y : j == 2 ? codes[n].z : codes[n].w;
        const uint2 numbers = Hooks::in_order(word);
        multiply_add<Product>(scores[n], q, numbers.x, numbers.y);
      }
    }
  }
}

// sums += weights of a box's tokens times their values
__device__ __forceinline__ void multiply_value_codes(float (&sums)[kPaddedDim / 8][4], const uint32_t (&weights)[4],
                                                     uint32_t values, int box) {
  const int lane = threadIdx.x % 32, token = box * kBox + lane / 8 % 2 * 8 + code_token(lane % 8);
#pragma unroll
  for (int chunk = 0; chunk < kPaddedDim / 16; chunk += 2) {
    uint32_t codes[4];
    load_transposed_fragments(codes, values + chunk_offset(token, chunk + lane / 16));
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint2 first = Hooks::turned(codes[2 * i]), second = Hooks::turned(codes[2 * i + 1]);
      const int n = (chunk + i) * 2;
      multiply_add<Product>(sums[n], weights, first.x, second.x);
      multiply_add<Product>(sums[n + 1], weights, first.y, second.y);
    }
  }
}

}  // namespace
}  // namespace octavo
