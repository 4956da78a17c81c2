// What four warps together need around their products: groups of these, and their registers (sm_90a).
#pragma once

#include "ptx.cuh"

namespace octavo {

#if __CUDA_ARCH_FEAT_SM90_ALL
__device__ __forceinline__ void products_end_group() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until all groups of products but the newest kNewest are done
template <int kNewest>
__device__ __forceinline__ void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kNewest) : "memory");
}

// Registers that a warp gives back, or asks for: all four warps of a warpgroup at once
template <int kRegisters>
__device__ __forceinline__ void keep_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void want_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
#endif

}  // namespace octavo
