// csrc/cuda/one_sequence_attention.cu as a function: launches with its own arguments, on one core.
#include "narrow_product.cuh"

#include "cluster.cuh"

#include "one_sequence_attention.cu"

extern "C" bool octavo_one_sequence_attention_on_cpu(int num_blocks, int num_threads, const void* launch,
                                                     const void* boxes, const void* sequence) {
  const auto given = *static_cast<const octavo::Launch*>(launch);
  const auto one = *static_cast<const octavo::Sequence*>(sequence);
  octavo::TensorMap map;
  memcpy(&map, boxes, sizeof map);
  return run_blocks_at_once(num_blocks, num_threads, [&] { octavo_one_sequence_attention(given, map, one); });
}
