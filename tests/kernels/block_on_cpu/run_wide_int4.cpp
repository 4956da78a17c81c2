// csrc/cuda/wide_int4.cu as a function: launches with its own arguments, on one core.
#define __CUDA_ARCH_FEAT_SM90_ALL 1
#include "narrow_product.cuh"

#include "wide_int4.cu"

extern "C" bool octavo_wide_int4_on_cpu(int num_blocks, int num_threads, const void* launch, const void* boxes) {
  const auto given = *static_cast<const octavo::Launch*>(launch);
  octavo::TensorMap map;
  memcpy(&map, boxes, sizeof map);
  return run_blocks(num_blocks, num_threads, [&] { octavo_wide_int4(given, map); });
}
