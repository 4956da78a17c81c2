// csrc/cuda/grouped_codes.cu as a function: launches with its own arguments, on one core.
#define __CUDA_ARCH_FEAT_SM90_ALL 1
#include "narrow_product.cuh"

#include "grouped_codes.cu"

extern "C" bool octavo_grouped_codes_on_cpu(int num_blocks, int num_threads, const void* launch, const void* boxes) {
  const auto given = *static_cast<const octavo::Launch*>(launch);
  octavo::TensorMap map;
  memcpy(&map, boxes, sizeof map);
  return run_blocks(num_blocks, num_threads, [&] { octavo_grouped_codes(given, map); });
}
