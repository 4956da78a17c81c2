// Thread blocks of a cluster: the barrier of all their threads, and stores into each other's shared memory (sm_90).
#pragma once

#include <stdint.h>

// Before a kernel's name
#if __CUDA_ARCH__ >= 900
#define OCTAVO_CLUSTERS(num_blocks) __cluster_dims__(num_blocks, 1, 1)
#else
#define OCTAVO_CLUSTERS(num_blocks)
#endif

namespace octavo {

// All threads of all blocks of the cluster arrive, and wait for the others; before that, another block's shared memory may
// not be there yet
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// What the same address of this block's shared memory is in that of another
__device__ __forceinline__ uint32_t address_in(uint32_t at, int block) {
  uint32_t there = 0;
#if __CUDA_ARCH__ >= 900
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(block));
#endif
  return there;
}

// Stores whose bytes the barrier there expects: whoever sees its phase end sees them
__device__ __forceinline__ void store_there(uint32_t to, float4 x, uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
               "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w), "r"(barrier)
               : "memory");
#endif
}

__device__ __forceinline__ void store_there(uint32_t to, float2 x, uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(to), "f"(x.x),
               "f"(x.y), "r"(barrier)
               : "memory");
#endif
}

}  // namespace octavo
