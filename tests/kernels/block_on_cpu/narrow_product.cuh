// On the CPU: what csrc/cuda/narrow_product.cuh gives a kernel. Products come when their thread waits for them, and read
// shared memory only then.
#pragma once

#include "dense_products.cuh"

namespace octavo {

inline void copy_box(uint32_t to, const void* map, int x, int y, uint32_t barrier) {
  Boxes boxes;
  memcpy(&boxes, map, sizeof boxes);
  x *= boxes.strides[0];  // bytes of an element
  if (to % 128 || x % 16) fprintf(stderr, "a copy of a box from byte %d to %u\n", x, to), abort();
  barriers.at(barrier).copies.push_back([=] {
    int count = 0;
    for (int row = 0; row < boxes.box[1]; ++row) {
      for (int at = 0; at < boxes.box[0]; ++at, ++count) {
        const bool is_inside = x + at < boxes.dims[0] && y + row < boxes.dims[1];
        const uint32_t place = boxes.box[0] == 128 ? boxes.placed(to + count) : to + count;
        memory[place] = is_inside ? boxes.from[(y + row) * boxes.strides[1] + x + at] : 0;
      }
    }
    return count;
  });
}

inline void copy_box(uint32_t to, const void* map, int x, int y, int z, uint32_t barrier) {
  copy_box_once(to, map, x, y, z, 0, barrier);
}

inline uint2 load_two_words_now(uint32_t from) {
  if (from % 8) fprintf(stderr, "a load from %u\n", from), abort();
  uint2 x;
  memcpy(&x, memory + from, 8);
  return x;
}

inline uint4 load_words_now(uint32_t from) {
  if (from % 16) fprintf(stderr, "a load from %u\n", from), abort();
  uint4 x;
  memcpy(&x, memory + from, 16);
  return x;
}

// The numbers of rows lane / 4 and lane / 4 + 8 of four warps' operand
struct Rows {
  float x[2][16];
};
template <typename Element>
Rows rows_of(const uint32_t (&a)[4]) {
  const Meeting& meeting = meet(~0u, a);
  Rows rows;
  for (int i = 0; i < 32; ++i) {
    const int half = i / 16, k = i % 16, from = threadIdx.x % 32 / 4 * 4 + k % 8 / 2;
    rows.x[half][k] = half_of<Element>(meeting.all[from][half + k / 8 * 2], k % 2);
  }
  __syncwarp();
  return rows;
}

template <typename Element, int kColumns, int kMost>
void multiply_add_narrow(float (&c)[kMost / 8][4], const uint32_t (&a)[4], uint64_t b, bool adds) {
  const Rows rows = rows_of<Element>(a);
  products[threadIdx.x].push_back([=, &c] {
    for (int i = 0; i < kColumns / 2; ++i) {
      const int column = i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2;
      if (!adds) c[i / 4][i % 4] = 0;
      for (int k = 0; k < 16; ++k) c[i / 4][i % 4] += rows.x[i % 4 / 2][k] * element_at<Element>(b, column, k);
    }
  });
}

inline uint32_t transposed(uint32_t pair) {
  const Meeting& meeting = meet(~0u, pair);
  const int lane = threadIdx.x % 32;
  uint32_t turned = 0;
  for (int i = 0; i < 2; ++i) {
    const uint32_t from = meeting.all[(lane % 4 * 2 + i) * 4 + lane / 8][0];
    turned |= (from >> lane / 4 % 2 * 16 & 0xffff) << 16 * i;
  }
  __syncwarp();
  return turned;
}

template <int kRegisters>
void keep_registers() {}
template <int kRegisters>
void want_registers() {}

}  // namespace octavo
