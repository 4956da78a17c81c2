// On the CPU: what csrc/cuda/dense_products.cuh gives a kernel. Products come when their thread waits for them.
#pragma once

#include "fp8_products.cuh"

namespace octavo {

template <typename T>
float element_at(uint64_t matrix, int line, int k) {
  T x;
  memcpy(&x, memory + swizzled(uint32_t(matrix << 4) + line * 128 + k * 2), 2);
  return to_float(x);
}

template <typename T>
void multiply_add_eight(float (&c)[1][4], uint64_t a, uint64_t b, bool adds) {
  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  products[threadIdx.x].push_back([=, &c] {
    for (int i = 0; i < 4; ++i) {
      float sum = adds ? c[0][i] : 0;
      const int row = warp * 16 + i / 2 * 8 + lane / 4, column = lane % 4 * 2 + i % 2;
      for (int k = 0; k < 16; ++k) sum += element_at<T>(a, row, k) * element_at<T>(b, column, k);
      c[0][i] = sum;
    }
  });
}

}  // namespace octavo
