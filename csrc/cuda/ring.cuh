// The barriers of a ring in shared memory: one side fills its entries, one after another, and the other empties them.
#pragma once

#include "ptx.cuh"

namespace octavo {

template <int kEntries>
struct RingBarriers {
  uint64_t full[kEntries], free[kEntries];

  // Each thread of some prepares the entries from `first` on, `step` apart. fillers, users: arrivals for each entry
  __device__ void init(int first, int step, uint32_t fillers, uint32_t users) {
    for (int i = first; i < kEntries; i += step) {
      barrier_init(shared_address(&full[i]), fillers);
      barrier_init(shared_address(&free[i]), users);
    }
    barrier_fence_init();
  }

  // Of what is filled as the count-th, from 0 on

  static __device__ __forceinline__ int entry(int count) { return count % kEntries; }

  // Where whoever fills the entry arrives
  __device__ __forceinline__ uint32_t filled(int count) const { return shared_address(&full[entry(count)]); }

  __device__ __forceinline__ void wait_until_full(int count) const {
    barrier_wait(filled(count), count / kEntries & 1);
  }

  __device__ __forceinline__ void wait_until_free(int count) const {
    barrier_wait(shared_address(&free[entry(count)]), (count / kEntries & 1) ^ 1);
  }

  // By each of its users
  __device__ __forceinline__ void release(int count) const { barrier_arrive(shared_address(&free[entry(count)])); }
};

}  // namespace octavo
