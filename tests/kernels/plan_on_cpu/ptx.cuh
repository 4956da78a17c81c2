// Stands for csrc/cuda/ptx.cuh where a kernel is compiled as plain C++, for one thread that runs alone: its barriers
// wait for nobody, and its shared memory is its own.
#pragma once

#include <stdint.h>

#include <algorithm>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __shared__

using std::max;
using std::min;

constexpr struct {
  int x;
} threadIdx{0};

inline void __syncthreads() {}
inline int __syncthreads_or(int condition) { return condition; }
inline int __shfl_up_sync(unsigned, int value, int) { return value; }
inline int atomicMin(int* target, int value) {
  const int before = *target;
  *target = min(before, value);
  return before;
}

namespace octavo {
inline void wait_for_previous() {}
inline void allow_next() {}
}  // namespace octavo
