// csrc/cuda/fp8_linear.cu as a function: launches with its own arguments, on one core.
#include "fp8_products.cuh"

#include "fp8_linear.cu"

extern "C" bool octavo_fp8_linear_on_cpu(int num_blocks, int num_threads, const void* launch, const void* boxes) {
  const auto given = *static_cast<const octavo::Launch*>(launch);
  octavo::TensorMap map;
  memcpy(&map, boxes, sizeof map);
  return run_blocks(num_blocks, num_threads, [&] { octavo_fp8_linear(given, map); });
}
