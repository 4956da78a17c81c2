// csrc/cuda/dequantise.cu as a function: launches with its own arguments, on one core.
#include "ptx.cuh"

#include "dequantise.cu"

extern "C" bool octavo_dequantise_on_cpu(int num_blocks, int num_threads, const void* launch) {
  const auto given = *static_cast<const octavo::Launch*>(launch);
  return run_blocks(num_blocks, num_threads, [&] { octavo_dequantise(given); });
}
