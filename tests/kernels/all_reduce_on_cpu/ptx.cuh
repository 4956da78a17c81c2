// In place of csrc/cuda/ptx.cuh: what all_reduce.cuh needs of it, in plain C++. Each word of a packet is an atomic of its
// own, so that a reader may see some of them before the others.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <thread>

#define __device__
#define __forceinline__ inline

namespace octavo {

struct Bf16 {
  uint16_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(Bf16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}

template <typename T>
uint32_t pack(float low, float high);

template <>
inline uint32_t pack<float>(float x, float) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

// Cut off, where a GPU rounds
template <>
inline uint32_t pack<Bf16>(float low, float high) {
  return pack<float>(low, 0) >> 16 | (pack<float>(high, 0) & 0xFFFF0000u);
}

inline void store_for_all(uint4* to, uint4 x) {
  std::atomic_ref(to->w).store(x.w, std::memory_order_relaxed);
  std::atomic_ref(to->y).store(x.y, std::memory_order_relaxed);
  std::atomic_ref(to->x).store(x.x, std::memory_order_relaxed);
  std::atomic_ref(to->z).store(x.z, std::memory_order_relaxed);
}

inline uint4 load_of_all(const uint4* from) {
  uint4& at = const_cast<uint4&>(*from);
  const auto word = [](uint32_t& x) { return std::atomic_ref(x).load(std::memory_order_relaxed); };
  const uint4 x{word(at.x), word(at.y), word(at.z), word(at.w)};
  if (x.x == 0xFFFFFFFFu) std::this_thread::yield();  // an empty slot: let the other ranks run
  return x;
}

}  // namespace octavo
