// csrc/cuda/one_row_experts.cu as a function: launches with its own arguments, on one core.
#include "dense_products.cuh"
#include "exchange.cuh"

#include "one_row_experts.cu"

extern "C" bool octavo_one_row_experts_on_cpu(int num_blocks, int num_threads, const void* launch, const void* maps) {
  const auto given = *static_cast<const octavo::Launch*>(launch);
  octavo::Maps held;
  memcpy(&held, maps, sizeof held);
  return run_blocks_at_once(num_blocks, num_threads, [&] { octavo_one_row_experts(given, held); });
}
