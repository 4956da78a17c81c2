// csrc/cuda/wide_int4.cu as a function: launches with its own arguments, on one core.
#define __CUDA_ARCH_FEAT_SM90_ALL 1
#include "exchange.cuh"
#include "narrow_product.cuh"

#include "wide_int4.cu"

extern "C" bool octavo_wide_int4_on_cpu(int num_blocks, int num_threads, const void* launch, const void* codes,
                                        const void* rows) {
  const auto given = *static_cast<const octavo::Launch*>(launch);
  octavo::TensorMap maps[2];
  memcpy(&maps[0], codes, sizeof maps[0]);
  memcpy(&maps[1], rows, sizeof maps[1]);
  return run_blocks_at_once(num_blocks, num_threads, [&] { octavo_wide_int4(given, maps[0], maps[1]); });
}
