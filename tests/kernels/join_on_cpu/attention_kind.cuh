// In place of csrc/cuda/attention_kind.cuh: what attention_join.cuh needs of it, in plain C++ for one thread.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#define __device__
#define __forceinline__ inline

using std::max;

#include "attention_plan.h"

struct float2 {
  float x, y;
};
struct float4 {
  float x, y, z, w;
};
struct uint2 {
  uint32_t x, y;
};

inline struct { int x; } threadIdx;

namespace octavo {

using std::min;

using Element = uint16_t;  // bfloat16, cut off
constexpr int kDim = HEAD_DIM, kTileQueries = TILE_QUERIES, kMemberRows = kTileQueries * GROUP;
constexpr int kTileMembers = kTileRows / kMemberRows, kComputers = 4;
constexpr float kLowest = -1e30f;

struct Hooks {
  static constexpr bool kHasSinks = true;
  float sink(int head) const { return head - 3.0f; }
};

struct Launch {
  const float* part_values;
  const float* part_max_sum;
  Element* out;
  int* done;
  int64_t out_stride;
  int num_kv_heads;
  Hooks hooks;
};

struct Piece {
  int num_members;
  Member members[kTileMembers];
};

struct Shared {
  int joins[kTileMembers];
};

template <typename T>
uint32_t pack(float low, float high) {
  uint32_t bits[2];
  __builtin_memcpy(&bits[0], &low, 4);
  __builtin_memcpy(&bits[1], &high, 4);
  return bits[0] >> 16 | (bits[1] & 0xFFFF0000u);
}

inline float exp2_fast(float x) { return std::exp2(x); }
template <typename T>
T __ldcg(const T* from) {
  return *from;
}
inline void named_barrier(int, int) {}
inline int count_up(int* counter) { return (*counter)++; }

}  // namespace octavo
