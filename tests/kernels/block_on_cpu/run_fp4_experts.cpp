// csrc/cuda/fp4_experts.cu as a function: launches with its own arguments, on one core.
#include "exchange.cuh"

#include "fp4_experts.cu"

extern "C" bool octavo_fp4_experts_on_cpu(int num_blocks, int num_threads, const void* launch, const void* boxes,
                                          const void* route) {
  const auto given = *static_cast<const octavo::Launch*>(launch);
  const auto routed = *static_cast<const octavo::Route*>(route);
  octavo::TensorMap map;
  memcpy(&map, boxes, sizeof map);
  return run_blocks_at_once(num_blocks, num_threads, [&] { octavo_fp4_experts(given, map, routed); });
}
