// csrc/cuda/wide_codes.cu as a function: launches with its own arguments, on one core.
#define __CUDA_ARCH_FEAT_SM90_ALL 1
#include "exchange.cuh"
#include "narrow_product.cuh"

#include "wide_codes.cu"

extern "C" bool octavo_wide_codes_on_cpu(int num_blocks, int num_threads, const void* launch, const void* rows,
                                        const void* codes, const void* scales, const void* zeros) {
  const auto given = *static_cast<const octavo::Launch*>(launch);
  octavo::TensorMap maps[4];
  const void* from[] = {rows, codes, scales, zeros};
  for (int i = 0; i < 4; ++i) memcpy(&maps[i], from[i], sizeof maps[i]);
  return run_blocks_at_once(num_blocks, num_threads, [&] { octavo_wide_codes(given, maps[0], maps[1], maps[2], maps[3]); });
}
