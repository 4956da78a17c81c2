// What thread blocks of one kernel tell each other while all of them run: words that carry the launch's number, so that
// whoever sees the number sees the word.
#pragma once

#include <stdint.h>

namespace octavo {

struct Word {
  uint32_t value, number;
};

__device__ __forceinline__ void post(uint64_t* to, uint32_t value, uint32_t number) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(uint64_t(number) << 32 | value) : "memory");
}

__device__ __forceinline__ Word look(const uint64_t* from) {
  uint64_t word;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(word) : "l"(from) : "memory");
  return {uint32_t(word), uint32_t(word >> 32)};
}

struct Words {
  Word first, second;
};

// Two neighbours, the first at a multiple of 16 bytes. Each is whole
__device__ __forceinline__ Words look_at_two(const uint64_t* from) {
  uint64_t first, second;
  asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];" : "=l"(first), "=l"(second) : "l"(from) : "memory");
  return {{uint32_t(first), uint32_t(first >> 32)}, {uint32_t(second), uint32_t(second >> 32)}};
}

// What many threads wrote, for others' copy engines: each of them calls `written_for_copies`, they meet, and one of them
// tells a number; whoever sees it may copy

__device__ __forceinline__ void written_for_copies() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.global;" ::: "memory");
#endif
}

__device__ __forceinline__ void tell_written(uint32_t* to, uint32_t number) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(number) : "memory");
}

__device__ __forceinline__ void wait_until_written(const uint32_t* from, uint32_t number) {
  uint32_t seen;
  do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(from) : "memory");
  while (seen != number);
  written_for_copies();
}

// A launch's number, from 1 on, which its blocks find before they count themselves. All add up to kLaunch
constexpr uint32_t kLaunch = 256;

__device__ __forceinline__ uint32_t number_of_launch(const uint32_t* count) {
  uint32_t so_far;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(so_far) : "l"(count) : "memory");
  return so_far / kLaunch + 1;
}

// By one thread of each block, after all of the block have the number
__device__ __forceinline__ void count_block(uint32_t* count) {
  const uint32_t own = blockIdx.x == 0 ? kLaunch - (gridDim.x - 1) : 1;
  asm volatile("red.relaxed.gpu.global.add.u32 [%0], %1;" ::"l"(count), "r"(own) : "memory");
}

}  // namespace octavo
