// PTX instructions that CUDA C++ does not expose, one short function each: copies to shared memory and the barriers
// that report them, matrix products, and kernels that start before the one they depend on has ended.
#pragma once

#include <stdint.h>

namespace octavo {

// The two 16-bit types. Kernels compute in float.
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

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Chained launches (programmatic dependent launch, sm_90): a kernel may be resident before its predecessor has ended

__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void allow_next() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Barriers in shared memory. A phase ends when all expected arrivals and all expected bytes have come

__device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void barrier_fence_init() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("{ .reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [%0]; }" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void barrier_arrive_expecting(uint32_t barrier, uint32_t num_bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("{ .reg .b64 state; mbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1; }" ::"r"(barrier),
               "r"(num_bytes)
               : "memory");
#endif
}

__device__ __forceinline__ bool barrier_has_passed(uint32_t barrier, uint32_t parity) {
  uint32_t passed;
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
      : "=r"(passed)
      : "r"(barrier), "r"(parity)
      : "memory");
#else
  asm volatile(
      "{ .reg .pred p; mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
      : "=r"(passed)
      : "r"(barrier), "r"(parity)
      : "memory");
#endif
  return passed != 0;
}

__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
  while (!barrier_has_passed(barrier, parity)) {
  }
}

// A number in shared memory, and with it all that its writer did before
__device__ __forceinline__ void publish(uint32_t at, uint32_t number) {
  asm volatile("st.release.cta.shared::cta.u32 [%0], %1;" ::"r"(at), "r"(number) : "memory");
}

__device__ __forceinline__ uint32_t published(uint32_t at) {
  uint32_t number;
  asm volatile("ld.acquire.cta.shared::cta.u32 %0, [%1];" : "=r"(number) : "r"(at) : "memory");
  return number;
}

// A barrier for `num_threads` threads of the block; `name` is 1 to 15
__device__ __forceinline__ void named_barrier(int name, int num_threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(num_threads) : "memory");
}

// The number of the thread's warp. The compiler takes it for the same in all lanes, so what follows from it is computed
// once a warp, where wgmma wants its operands' addresses
__device__ __forceinline__ int own_warp() { return __shfl_sync(~0u, threadIdx.x / 32, 0); }

// Adds 1 and returns the old count. Whoever sees the new count sees all that this block wrote before its last barrier.
__device__ __forceinline__ int count_up(int* counter) {
  int before;
  asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
  return before;
}

// Memory that several GPUs read and write. Each word is whole, but a reader may see some of a write's words and not yet
// the others

__device__ __forceinline__ void store_for_all(uint4* to, uint4 x) {
  asm volatile("st.relaxed.sys.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w)
               : "memory");
}

__device__ __forceinline__ uint4 load_of_all(const uint4* from) {
  uint4 x;
  asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(from)
               : "memory");
  return x;
}

// Copies from global to shared memory

// The description of a tensor, which a launch brings. Only the driver and the copy engine understand it
struct alignas(64) TensorMap {
  char content[128];
};

// The description, before the first copy needs it
__device__ __forceinline__ void prefetch_map(const void* map) {
#if __CUDA_ARCH__ >= 900
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
#endif
}

// Copies a box of the tensor that `map` describes, from column x and row y on; parts outside the tensor are zero
__device__ __forceinline__ void copy_box(uint32_t to, const void* map, int x, int y, uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          to),
      "l"(map), "r"(x), "r"(y), "r"(barrier)
      : "memory");
#endif
}

// The same of a tensor with three dimensions
__device__ __forceinline__ void copy_box(uint32_t to, const void* map, int x, int y, int z, uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(
          to),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(barrier)
      : "memory");
#endif
}

// The same of a tensor with five dimensions
__device__ __forceinline__ void copy_box(uint32_t to, const void* map, int x, int y, int z, int w, int v,
                                         uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5, %6}], "
      "[%7];" ::"r"(to),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(v), "r"(barrier)
      : "memory");
#endif
}

// The same of a tensor with four dimensions, which is read once: others may stay in the L2 cache
__device__ __forceinline__ void copy_box_once(uint32_t to, const void* map, int x, int y, int z, int w,
                                              uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{ .reg .b64 policy; createpolicy.fractional.L2::evict_first.b64 policy, 1.0; "
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
      "[%1, {%2, %3, %4, %5}], [%6], policy; }" ::"r"(to),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(barrier)
      : "memory");
#endif
}

// Brings a box to the L2 cache, without waiting for it
__device__ __forceinline__ void prefetch_box(const void* map, int x, int y, int z, int w) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.tensor.4d.L2.global.tile [%0, {%1, %2, %3, %4}];" ::"l"(map), "r"(x), "r"(y),
               "r"(z), "r"(w)
               : "memory");
#endif
}

// One thread starts a copy of so many bytes; both addresses and the number are multiples of 16
__device__ __forceinline__ void copy_bytes(uint32_t to, const void* from, uint32_t num_bytes, uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(num_bytes), "r"(barrier)
               : "memory");
#endif
}

// Brings a line of global memory to the L2 cache, without waiting for it
__device__ __forceinline__ void prefetch(const void* from) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(from) : "memory");
}

// Loads what no kernel writes, not after what is written below it
__device__ __forceinline__ float load_ahead(const float* from) {
  float x;
  asm volatile("ld.global.nc.f32 %0, [%1];" : "=f"(x) : "l"(from));
  return x;
}

// One thread copies 16 bytes; zeros unless `is_there`
__device__ __forceinline__ void copy_16(uint32_t to, const void* from, bool is_there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(is_there ? 16 : 0) : "memory");
}

// For copies of what is read once: others stay in the L2 cache in its place
__device__ __forceinline__ uint64_t once_policy() {
  uint64_t policy = 0;
#if __CUDA_ARCH__ >= 800
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
#endif
  return policy;
}

// One thread copies 16 bytes by such a policy; zeros unless `is_there`
__device__ __forceinline__ void copy_16_once(uint32_t to, const void* from, bool is_there, uint64_t policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(to), "l"(from),
               "r"(is_there ? 16 : 0), "l"(policy)
               : "memory");
}

// The thread's copies since the last call become a group
__device__ __forceinline__ void copies_end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until all of the thread's groups but the newest kNewest are there
template <int kNewest>
__device__ __forceinline__ void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kNewest) : "memory");
}

// The thread arrives at the barrier when all its copies so far are done
__device__ __forceinline__ void arrive_when_copied(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

// Loads from shared memory, by its own addresses

__device__ __forceinline__ uint32_t load_word(uint32_t from) {
  uint32_t x;
  asm("ld.shared.u32 %0, [%1];" : "=r"(x) : "r"(from));
  return x;
}

__device__ __forceinline__ uint4 load_words(uint32_t from) {
  uint4 x;
  asm("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(from));
  return x;
}

// The same, not before what is written above it
__device__ __forceinline__ uint4 load_words_now(uint32_t from) {
  uint4 x;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "r"(from)
               : "memory");
  return x;
}

__device__ __forceinline__ uint2 load_two_words_now(uint32_t from) {
  uint2 x;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(x.x), "=r"(x.y) : "r"(from) : "memory");
  return x;
}

// Matrix products of a warp: fragments and 16 x 8 x 16 products

__device__ __forceinline__ void load_fragments(uint32_t (&to)[4], uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from)
               : "memory");
}

__device__ __forceinline__ void load_transposed_fragments(uint32_t (&to)[4], uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from)
               : "memory");
}

// c += a b. The second form the compiler may move among other instructions; the third begins at zero: c = a b
template <typename T>
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <typename T>
__device__ __forceinline__ void multiply_add_any_time(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <typename T>
__device__ __forceinline__ void multiply_any_time(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

#define OCTAVO_PRODUCT(function, instruction, Type, letters)                                                         \
  template <>                                                                                                        \
  __device__ __forceinline__ void function<Type>(float (&c)[4], const uint32_t(&a)[4], uint32_t b0, uint32_t b1) {   \
    instruction("mma.sync.aligned.m16n8k16.row.col.f32." letters "." letters ".f32 {%0, %1, %2, %3}, "               \
                "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                                      \
                : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                     \
                : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                     \
  }

OCTAVO_PRODUCT(multiply_add, asm volatile, Bf16, "bf16")
OCTAVO_PRODUCT(multiply_add, asm volatile, Fp16, "f16")
OCTAVO_PRODUCT(multiply_add_any_time, asm, Bf16, "bf16")
OCTAVO_PRODUCT(multiply_add_any_time, asm, Fp16, "f16")
#undef OCTAVO_PRODUCT

#define OCTAVO_PRODUCT(Type, letters)                                                                                \
  template <>                                                                                                        \
  __device__ __forceinline__ void multiply_any_time<Type>(float (&c)[4], const uint32_t(&a)[4], uint32_t b0,         \
                                                          uint32_t b1) {                                             \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." letters "." letters ".f32 {%0, %1, %2, %3}, "                       \
        "{%4, %5, %6, %7}, {%8, %9}, {%10, %10, %10, %10};"                                                          \
        : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])                                                             \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.0f));                                  \
  }

OCTAVO_PRODUCT(Bf16, "bf16")
OCTAVO_PRODUCT(Fp16, "f16")
#undef OCTAVO_PRODUCT

// c += a b of 16 x 8 x 32: bytes without a sign times bytes with one
__device__ __forceinline__ void multiply_add_bytes(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same of bytes with a sign, and that begins at zero: c = a b
__device__ __forceinline__ void multiply_add_signed_bytes(int (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                                          uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void multiply_signed_bytes(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%10, %10, %10, %10};"
      : "=r"(c[0]), "=r"(c[1]), "=r"(c[2]), "=r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(0));
}

// Products of four warps together: 64 x 64 x 16, operands in shared memory (wgmma, sm_90a)

// Writes to shared memory by ordinary stores become visible to wgmma, and to the copy engine.
__device__ __forceinline__ void async_fence() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// A matrix under the 128-byte swizzle: rows of 64 elements, groups of 8 rows 1024 bytes apart. When its rows are the
// product's depth (K), the next 64 columns are one slab of 64 rows further on.
__device__ __forceinline__ uint64_t matrix(uint32_t address) {
  constexpr uint64_t kRows = uint64_t(1024 >> 4) << 32, kSlab = uint64_t(8192 >> 4) << 16, kSwizzle = uint64_t(1) << 62;
  return kSwizzle | kRows | kSlab | (address >> 4 & 0x3fff);
}

__device__ __forceinline__ void products_begin() {
#if __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

// Waits until all products are done; then `c` may be read.
template <int kRows>
__device__ __forceinline__ void products_end(float (&c)[kRows][4]) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    asm volatile("" : "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])::"memory");
  }
#endif
}

#define OCTAVO_ROW(i) "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
#define OCTAVO_SUMS                                                                                                  \
  OCTAVO_ROW(0), OCTAVO_ROW(1), OCTAVO_ROW(2), OCTAVO_ROW(3), OCTAVO_ROW(4), OCTAVO_ROW(5), OCTAVO_ROW(6), OCTAVO_ROW(7)
#define OCTAVO_C                                                                                                     \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, %25, %26, %27, %28, %29, %30, %31}"

// c = a b^T, or c += a b^T; the columns of a and b are the product's depth.
template <typename T>
__device__ __forceinline__ void multiply_add_64(float (&c)[8][4], uint64_t a, uint64_t b, bool adds) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  if constexpr (!is_half<T>) {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %34, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " OCTAVO_C
        ", %32, %33, p, 1, 1, 0, 0; }"
        : OCTAVO_SUMS
        : "l"(a), "l"(b), "r"(int(adds)));
  } else {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %34, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 " OCTAVO_C
        ", %32, %33, p, 1, 1, 0, 0; }"
        : OCTAVO_SUMS
        : "l"(a), "l"(b), "r"(int(adds)));
  }
#endif
}

// c += a b; a is in registers, and the rows of b are the product's depth.
template <typename T>
__device__ __forceinline__ void multiply_add_64(float (&c)[8][4], const uint32_t (&a)[4], uint64_t b) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  if constexpr (!is_half<T>) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " OCTAVO_C
                 ", {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
                 : OCTAVO_SUMS
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  } else {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 " OCTAVO_C
                 ", {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
                 : OCTAVO_SUMS
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  }
#endif
}

#undef OCTAVO_ROW
#undef OCTAVO_SUMS
#undef OCTAVO_C

// A matrix of 8 x 8 16-bit numbers turned: a thread has columns 2 (lane % 4) and that + 1 of row lane / 4
__device__ __forceinline__ uint32_t transposed(uint32_t pair) {
  uint32_t turned;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(pair));
  return turned;
}

// Numbers

// Four bytes of a table of eight, at the places in the low 16 bits of `places`, 4 bits each. Where such a place has its
// highest bit set: the sign of the byte there, eight times
__device__ __forceinline__ uint32_t look_up(uint32_t low, uint32_t high, uint32_t places) {
  uint32_t found;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(found) : "r"(low), "r"(high), "r"(places));
  return found;
}

// A number that stays in a register, where compilers would make it anew for each use: they do not know that a block has one
// row of threads, and so what %tid.y is
__device__ __forceinline__ uint32_t kept(uint32_t x) {
  uint32_t y;
  asm volatile("{ .reg .u32 zero; mov.u32 zero, %%tid.y; or.b32 %0, %1, zero; }" : "=r"(y) : "r"(x));
  return y;
}

// 1 / x, but for the last bit or two
__device__ __forceinline__ float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// NaN if one of them is
__device__ __forceinline__ float larger(float x, float y) {
  float z;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
  return z;
}

template <typename T>
__device__ __forceinline__ uint32_t pack(float low, float high);

template <>
__device__ __forceinline__ uint32_t pack<Bf16>(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

template <>
__device__ __forceinline__ uint32_t pack<Fp16>(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

template <>
__device__ __forceinline__ uint32_t pack<float>(float x, float) {
  return __float_as_uint(x);
}

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(Bf16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
__device__ __forceinline__ float to_float(Fp16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}

// Of a pair of 16-bit numbers
template <typename T>
__device__ __forceinline__ float low_half(uint32_t pair) {
  return is_half<T> ? to_float(Fp16{uint16_t(pair)}) : __uint_as_float(pair << 16);
}
template <typename T>
__device__ __forceinline__ float high_half(uint32_t pair) {
  return is_half<T> ? to_float(Fp16{uint16_t(pair >> 16)}) : __uint_as_float(pair & 0xffff0000);
}

// a * b + c of pairs of 16-bit numbers, rounded once
template <typename T>
__device__ __forceinline__ uint32_t fma_pair(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t y;
  if constexpr (is_half<T>) {
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(c));
  } else {
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(c));
  }
  return y;
}

// Two halves less two others
__device__ __forceinline__ uint32_t subtract_halves(uint32_t x, uint32_t y) {
  uint32_t z;
  asm("sub.f16x2 %0, %1, %2;" : "=r"(z) : "r"(x), "r"(y));
  return z;
}

// Halves of four numbers of e4m3, the first in the lowest byte (sm_89)
__device__ __forceinline__ uint2 halves_of_e4m3(uint32_t four) {
  uint2 halves = {};
#if __CUDA_ARCH__ >= 890
  asm("{ .reg .b16 low, high; mov.b32 {low, high}, %2; cvt.rn.f16x2.e4m3x2 %0, low; cvt.rn.f16x2.e4m3x2 %1, high; }"
      : "=r"(halves.x), "=r"(halves.y)
      : "r"(four));
#endif
  return halves;
}

struct Eight {
  float x[8];
};

template <typename Element>
__device__ __forceinline__ Eight eight(const Element* from) {
  const uint4 raw = *reinterpret_cast<const uint4*>(from);
  const Element* elements = reinterpret_cast<const Element*>(&raw);
  Eight to;
#pragma unroll
  for (int i = 0; i < 8; ++i) to.x[i] = to_float(elements[i]);
  return to;
}

__device__ __forceinline__ Eight eight(const float* from) {
  const float4 low = reinterpret_cast<const float4*>(from)[0], high = reinterpret_cast<const float4*>(from)[1];
  return {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
}

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace octavo
