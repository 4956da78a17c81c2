// A thread block on the CPU: what csrc/cuda/ptx.cuh and nvcc give a kernel, for threads that take turns on one core.
//
// A thread runs until it waits for its warp (shuffles, products) or its block. Warps have turns in random order, some
// many before others have any. Copies come as late as the kernel lets them, and shared memory is NaN before. So what is
// read too early, or written over, shows in the result.
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <map>
#include <random>
#include <utility>
#include <vector>

#define __device__
#define __global__
#define __shared__
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __maxnreg__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

using std::max;
using std::min;

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct Index {
  int x;
};

__attribute__((aligned(1024))) uint8_t memory[232448];  // all that a block of an H100 may have
Index threadIdx, blockIdx, gridDim;

// The threads

struct Thread {
  ucontext_t context;
  std::vector<uint8_t> stack = std::vector<uint8_t>(32 << 10);
  bool has_ended = false;
};

std::vector<Thread> threads;
ucontext_t scheduler;
std::function<void()> body;
long progress = 0;  // counts what lets others go on

inline void wait_a_turn() { swapcontext(&threads[threadIdx.x].context, &scheduler); }

// Lanes of one mask, or the threads of the block, who wait for each other
struct Meeting {
  uint32_t brought[32][6], all[32][6];
  size_t num_here = 0, number = 0;

  void join(size_t num_expected) {
    const size_t own = number;
    if (++num_here == num_expected) {
      memcpy(all, brought, sizeof all);
      num_here = 0, ++number, ++progress;
    } else {
      while (number == own) wait_a_turn();
    }
  }
};

std::map<std::pair<int, uint32_t>, Meeting> warps;  // by warp and mask
Meeting block;

template <typename T>
const Meeting& meet(uint32_t mask, const T& own) {
  const int lane = threadIdx.x % 32;
  if (!(mask >> lane & 1)) fprintf(stderr, "lane %d is not in its own mask %x\n", lane, mask), abort();
  Meeting& meeting = warps[{threadIdx.x / 32, mask}];
  memcpy(meeting.brought[lane], &own, sizeof own);
  meeting.join(__builtin_popcount(mask));
  return meeting;
}

template <typename T>
T __shfl_xor_sync(uint32_t mask, T x, int step) {
  const Meeting& meeting = meet(mask, x);
  memcpy(&x, meeting.all[threadIdx.x % 32 ^ step], sizeof x);
  return x;
}

template <typename T>
T __shfl_sync(uint32_t mask, T x, int lane) {
  const Meeting& meeting = meet(mask, x);
  memcpy(&x, meeting.all[lane % 32], sizeof x);
  return x;
}

template <typename T>
T __shfl_up_sync(uint32_t mask, T x, int step) {
  const Meeting& meeting = meet(mask, x);
  const int from = threadIdx.x % 32 - step;
  memcpy(&x, meeting.all[from < 0 ? threadIdx.x % 32 : from], sizeof x);
  return x;
}

template <typename Combine>
uint32_t combined(uint32_t mask, uint32_t x, Combine combine) {
  const Meeting& meeting = meet(mask, x);
  for (int lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) x = combine(x, meeting.all[lane][0]);
  }
  return x;
}

inline uint32_t __reduce_max_sync(uint32_t mask, uint32_t x) {
  return combined(mask, x, [](uint32_t a, uint32_t b) { return max(a, b); });
}
inline int __reduce_min_sync(uint32_t mask, int x) {  // of numbers without a sign
  return combined(mask, x, [](uint32_t a, uint32_t b) { return min(a, b); });
}
inline uint32_t __ballot_sync(uint32_t mask, bool is_so) {
  return combined(mask, uint32_t(is_so) << threadIdx.x % 32, [](uint32_t a, uint32_t b) { return a | b; });
}
inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __ffs(uint32_t x) { return __builtin_ffs(x); }

inline void __syncwarp() { meet(~0u, 0); }
inline void __syncthreads() { block.join(threads.size()); }

template <typename T>
T __ldcs(const T* from) {
  if (uintptr_t(from) % sizeof(T)) fprintf(stderr, "a load from %p\n", from), abort();
  return *from;
}

template <typename T>
T __ldcg(const T* from) {
  return __ldcs(from);
}
template <typename T>
T __ldg(const T* from) {
  return __ldcs(from);
}
template <typename T>
void __stcg(T* to, T x) {
  if (uintptr_t(to) % sizeof(T)) fprintf(stderr, "a store to %p\n", to), abort();
  *to = x;
}

inline int __float2int_rn(float x) { return int(nearbyintf(x)); }
inline float __expf(float x) { return expf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}
inline float __uint_as_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t places) {
  const uint64_t both = uint64_t(y) << 32 | x;
  uint32_t made = 0;
  for (int i = 0; i < 4; ++i) made |= uint32_t(both >> (places >> 4 * i & 7) * 8 & 255) << 8 * i;
  return made;
}

namespace octavo {

inline int own_warp() { return threadIdx.x / 32; }

struct alignas(64) TensorMap {  // see the struct Boxes
  char content[128];
};

inline void wait_for_previous() {}
inline void allow_next() {}
inline void prefetch(const void*) {}
inline uint32_t shared_address(const void* pointer) { return uint32_t(static_cast<const uint8_t*>(pointer) - memory); }

// Copies of 16 bytes, in groups

struct Copy {
  uint32_t to;
  const void* from;  // null: zeros
};

std::map<int, std::deque<std::vector<Copy>>> copies;  // by thread; its last group is open

inline void copy_16(uint32_t to, const void* from, bool is_there) {
  if (to % 16 || uintptr_t(from) % 16) fprintf(stderr, "a copy to %u from %p\n", to, from), abort();
  auto& groups = copies[threadIdx.x];
  if (groups.empty()) groups.emplace_back();
  groups.back().push_back({to, is_there ? from : nullptr});
}

inline uint64_t once_policy() { return 0; }
inline void copy_16_once(uint32_t to, const void* from, bool is_there, uint64_t) { copy_16(to, from, is_there); }

inline void copies_end_group() {
  auto& groups = copies[threadIdx.x];
  if (groups.empty()) groups.emplace_back();
  groups.emplace_back();
}

inline void come(const std::vector<Copy>& group) {
  for (const Copy& copy : group) {
    copy.from == nullptr ? memset(memory + copy.to, 0, 16) : memcpy(memory + copy.to, copy.from, 16);
  }
}

template <int kNewest>
void copies_wait() {
  auto& groups = copies[threadIdx.x];
  for (; int(groups.size()) - 1 > kNewest; groups.pop_front()) come(groups.front());
}

// Numbers

struct Bf16 {
  uint16_t bits;
};
struct Fp16 {
  uint16_t bits;
};
template <typename T>
constexpr bool is_half = false;
template <>
constexpr bool is_half<Fp16> = true;

inline float to_float(float x) { return x; }
inline float to_float(Fp16 x) {
  _Float16 y;
  memcpy(&y, &x, 2);
  return y;
}
inline float to_float(Bf16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float y;
  memcpy(&y, &bits, 4);
  return y;
}

inline uint16_t bits_of(float x, Fp16) {
  const _Float16 y = x;
  uint16_t bits;
  memcpy(&bits, &y, 2);
  return bits;
}
inline uint16_t bits_of(float x, Bf16) {  // to the nearest; NaN stays one
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return isnan(x) ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

template <typename T>
uint32_t pack(float low, float high) {
  return bits_of(low, T{}) | uint32_t(bits_of(high, T{})) << 16;
}

struct Eight {
  float x[8];
};

template <typename Element>
Eight eight(const Element* from) {
  Eight to;
  for (int i = 0; i < 8; ++i) to.x[i] = to_float(from[i]);
  return to;
}

template <typename T>
float half_of(uint32_t pair, int i) {
  return to_float(T{uint16_t(pair >> 16 * i)});
}

template <typename T>
float low_half(uint32_t pair) {
  return half_of<T>(pair, 0);
}
template <typename T>
float high_half(uint32_t pair) {
  return half_of<T>(pair, 1);
}

// a * b + c of both halves
template <typename T>
uint32_t fma_pair(uint32_t a, uint32_t b, uint32_t c) {
  float y[2];
  for (int i = 0; i < 2; ++i) y[i] = fmaf(half_of<T>(a, i), half_of<T>(b, i), half_of<T>(c, i));
  return pack<T>(y[0], y[1]);
}

inline uint32_t kept(uint32_t x) { return x; }
inline uint32_t look_up(uint32_t low, uint32_t high, uint32_t places) {
  const uint64_t table = uint64_t(high) << 32 | low;
  uint32_t found = 0;
  for (int i = 0; i < 4; ++i) {
    const int place = places >> 4 * i & 15;
    const uint8_t byte = table >> place % 8 * 8;
    found |= uint32_t(place < 8 ? byte : byte & 128 ? 255 : 0) << 8 * i;
  }
  return found;
}

inline float load_ahead(const float* from) { return *from; }
inline float reciprocal(float x) { return 1 / x; }
inline float larger(float x, float y) { return isnan(x) || x > y ? x : y; }

// c += a b of 16 x 8 x 32, with the fragments as mma.m16n8k32 has them
template <typename Left>
void multiply_add_bytes_of(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t own[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const Meeting& meeting = meet(~0u, own);
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < 4; ++i) {
    const int row = i / 2, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 32; ++k) {  // of the depth: four at a time in each of four lanes, twice
      const int from = k % 16 / 4, half = k / 16, shift = k % 4 * 8;
      const uint32_t left = meeting.all[lane / 4 * 4 + from][row + 2 * half];
      const uint32_t right = meeting.all[column * 4 + from][4 + half];
      c[i] += int(Left(left >> shift)) * int(int8_t(right >> shift));
    }
  }
  __syncwarp();
}
inline void multiply_add_bytes(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply_add_bytes_of<uint8_t>(c, a, b0, b1);
}
inline void multiply_add_signed_bytes(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply_add_bytes_of<int8_t>(c, a, b0, b1);
}
inline void multiply_signed_bytes(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  c[0] = c[1] = c[2] = c[3] = 0;
  multiply_add_bytes_of<int8_t>(c, a, b0, b1);
}

// c += a b of 16 x 8 x 16, with the fragments as mma.m16n8k16 has them
template <typename T>
void multiply_add_any_time(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t own[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const Meeting& meeting = meet(~0u, own);
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < 4; ++i) {
    const int row = i / 2, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {  // of the depth: two at a time in each of four lanes, twice
      const int from = k % 8 / 2, half = k / 8;
      const uint32_t left = meeting.all[lane / 4 * 4 + from][row + 2 * half];
      const uint32_t right = meeting.all[column * 4 + from][4 + half];
      c[i] += half_of<T>(left, k % 2) * half_of<T>(right, k % 2);
    }
  }
  __syncwarp();
}

template <typename T>
void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply_add_any_time<T>(c, a, b0, b1);
}

// Four matrices of 8 x 8 16-bit numbers, whose rows are at the lanes' addresses, eight lanes a matrix
inline void load_fragments(uint32_t (&to)[4], uint32_t from) {
  if (from % 16) fprintf(stderr, "a matrix's row at %u\n", from), abort();
  const Meeting& meeting = meet(~0u, from);
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < 4; ++i) memcpy(&to[i], memory + meeting.all[i * 8 + lane / 4][0] + lane % 4 * 4, 4);
  __syncwarp();
}

// The same, turned: a thread has the numbers of two rows in one column
inline void load_transposed_fragments(uint32_t (&to)[4], uint32_t from) {
  if (from % 16) fprintf(stderr, "a matrix's row at %u\n", from), abort();
  const Meeting& meeting = meet(~0u, from);
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < 8; ++i) {
    const uint8_t* row = memory + meeting.all[i / 2 * 8 + lane % 4 * 2 + i % 2][0];
    memcpy(reinterpret_cast<uint16_t*>(&to[i / 2]) + i % 2, row + lane / 4 * 2, 2);
  }
  __syncwarp();
}

inline float exp2_fast(float x) { return exp2f(x); }
inline int count_up(int* counter) { return (*counter)++; }

// What attention over a cache of codes needs, which nobody runs here
inline uint32_t subtract_halves(uint32_t, uint32_t) { abort(); }

}  // namespace octavo

// The scheduler

inline void begin_thread() {
  body();
  threads[threadIdx.x].has_ended = true;
  ++progress;
  for (;;) wait_a_turn();
}

inline bool all_have_ended() {
  return std::all_of(threads.begin(), threads.end(), [](const Thread& thread) { return thread.has_ended; });
}

constexpr int kPatience = 10000;  // turns in which nobody goes on

// Runs the blocks one after another -> whether all threads of all came to their end
inline bool run_blocks(int num_blocks, int num_threads, std::function<void()> kernel) {
  body = std::move(kernel);
  gridDim.x = num_blocks;
  for (blockIdx.x = 0; blockIdx.x < num_blocks; ++blockIdx.x) {
    memset(memory, 0xff, sizeof memory);
    warps.clear(), octavo::copies.clear(), block = {};
    threads = std::vector<Thread>(num_threads);
    for (Thread& thread : threads) {
      getcontext(&thread.context);
      thread.context.uc_stack.ss_sp = thread.stack.data();
      thread.context.uc_stack.ss_size = thread.stack.size();
      makecontext(&thread.context, begin_thread, 0);
    }
    std::minstd_rand random(blockIdx.x);
    for (int num_idle = 0; !all_have_ended();) {  // some warp has some turns
      const int warp = random() % (num_threads / 32);
      for (int turns = random() % 64; turns >= 0; --turns) {
        const long before = progress;
        for (threadIdx.x = warp * 32; threadIdx.x < warp * 32 + 32; ++threadIdx.x) {
          if (!threads[threadIdx.x].has_ended) swapcontext(&scheduler, &threads[threadIdx.x].context);
        }
        num_idle = progress == before ? num_idle + 1 : 0;
        if (progress == before) break;
      }
      if (num_idle == kPatience) return false;
    }
  }
  return true;
}
