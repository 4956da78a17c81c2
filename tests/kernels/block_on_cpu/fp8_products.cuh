// On the CPU: barriers in shared memory, the copy engine's boxes, and what csrc/cuda/fp8_products.cuh gives a kernel.
//
// Copies come when a thread waits for their barrier, products when their thread waits for them; until then their sums
// are NaN. Sums of products have as many bits as those of an H100 (Xie et al., MMA-Sim, 2025).
#pragma once

#include "ptx.cuh"

namespace octavo {

struct Barrier {
  int expected, missing, bytes = 0;
  uint32_t phase = 0;
  std::deque<std::function<int()>> copies = {};  // -> bytes

  void end_phase() {
    if (missing == 0 && bytes == 0) missing = expected, phase ^= 1, ++progress;
  }
};

std::map<uint32_t, Barrier> barriers;

inline void barrier_fence_init() {}
inline void barrier_init(uint32_t at, uint32_t arrivals) { barriers[at] = {int(arrivals), int(arrivals)}; }

inline void barrier_arrive(uint32_t at) {
  --barriers.at(at).missing;
  barriers.at(at).end_phase();
}

inline void barrier_arrive_expecting(uint32_t at, uint32_t num_bytes) {
  barriers.at(at).bytes += num_bytes;
  barrier_arrive(at);
}

inline void barrier_wait(uint32_t at, uint32_t parity) {
  for (Barrier& barrier = barriers.at(at); barrier.phase == parity; wait_a_turn()) {
    for (; !barrier.copies.empty(); barrier.copies.pop_front()) barrier.bytes -= barrier.copies.front()();
    barrier.end_phase();
    if (barrier.phase != parity) break;
  }
}

// The thread arrives when its copies so far have come
inline void arrive_when_copied(uint32_t at) {
  copies_end_group();
  auto groups = std::exchange(copies[threadIdx.x], {});
  barriers.at(at).copies.push_back([=] {
    for (const auto& group : groups) come(group);
    --barriers.at(at).missing;
    return 0;
  });
}

std::map<int, Meeting> named;
inline void named_barrier(int name, int num_threads) { named[name].join(num_threads); }

inline void copy_bytes(uint32_t to, const void* from, uint32_t num_bytes, uint32_t barrier) {
  if (to % 16 || uintptr_t(from) % 16 || num_bytes % 16) fprintf(stderr, "a copy to %u from %p\n", to, from), abort();
  barriers.at(barrier).copies.push_back([=] { return memcpy(memory + to, from, num_bytes), int(num_bytes); });
}

// The chunks of 16 bytes in a line of 128 change places, by the line
inline uint32_t swizzled(uint32_t at) { return at ^ (at >> 7 & 7) << 4; }

// What the test gives in place of the driver's description
struct Boxes {
  const uint8_t* from;
  int64_t dims[4], strides[4], box[4], swizzle;  // bytes, 128 or 64; 0: they stay in their places

  uint32_t placed(uint32_t at) const { return swizzle == 128 ? swizzled(at) : swizzle ? at ^ (at >> 7 & 3) << 4 : at; }
};

inline void copy_box_once(uint32_t to, const void* map, int x, int y, int z, int w, uint32_t barrier) {
  if (to % 128 || x % 16) fprintf(stderr, "a copy of a box from byte %d to %u\n", x, to), abort();
  Boxes boxes;
  memcpy(&boxes, map, sizeof boxes);
  const int64_t begin[4] = {x, y, z, w};
  barriers.at(barrier).copies.push_back([=] {
    int count = 0;
    for (int64_t i = 0; i < boxes.box[0] * boxes.box[1] * boxes.box[2] * boxes.box[3]; ++i, ++count) {
      int64_t rest = i, from = 0;
      bool is_inside = true;
      for (int axis = 0; axis < 4; rest /= boxes.box[axis++]) {
        const int64_t at = begin[axis] + rest % boxes.box[axis];
        from += at * boxes.strides[axis];
        is_inside &= at < boxes.dims[axis];
      }
      memory[boxes.placed(to + count)] = is_inside ? boxes.from[from] : 0;
    }
    return count;
  });
}

// A number of e4m3, and its exponent
struct Eighth {
  double number;
  int exponent;
};

inline Eighth eighth_of(int x) {
  const int exponent = max(x >> 3 & 15, 1) - 7, eighths = (x & 7) + (x >> 3 & 15 ? 8 : 0);
  const double size = (x & 127) == 127 ? NAN : ldexp(eighths, exponent - 3);
  return {x & 128 ? -size : size, eighths ? exponent : -999};
}

inline const Eighth& from_e4m3(uint8_t x) {
  static const std::vector<Eighth> all = [] {
    std::vector<Eighth> all;
    for (int i = 0; i < 256; ++i) all.push_back(eighth_of(i));
    return all;
  }();
  return all[x];
}

inline float2 from_e4m3(uint16_t pair) {
  return {float(from_e4m3(uint8_t(pair)).number), float(from_e4m3(uint8_t(pair >> 8)).number)};
}

inline uint8_t one_to_e4m3(float x) {
  const uint8_t sign = signbit(x) ? 128 : 0;
  if (isnan(x)) return sign | 127;
  const float size = min(fabsf(x), 448.0f);
  const int exponent = max(ilogbf(max(size, 1e-30f)), -6);
  const int eighths = int(nearbyintf(ldexpf(size, 3 - exponent)));  // 16 is 8 of the next exponent
  return sign | (size < ldexpf(1, -6) && eighths < 8 ? eighths : (exponent + 7) * 8 + eighths - 8);
}

inline uint16_t to_e4m3(float low, float high) { return one_to_e4m3(low) | one_to_e4m3(high) << 8; }

// Products of four warps

inline void async_fence() {}
inline void prefetch_map(const void*) {}
inline void prefetch_box(const void*, int, int, int, int) {}
inline void products_begin() {}
inline uint64_t matrix(uint32_t address) {
  if (address % 1024 & ~96) fprintf(stderr, "a matrix at %u\n", address), abort();
  return address >> 4;
}

using Products = std::vector<std::function<void()>>;
std::map<int, Products> products;            // by thread
std::map<int, std::deque<Products>> groups;  // of products before them

inline void products_end_group() { groups[threadIdx.x].push_back(std::exchange(products[threadIdx.x], {})); }

template <int kNewest>
void products_wait() {
  for (auto& own = groups[threadIdx.x]; int(own.size()) > kNewest; own.pop_front()) {
    for (auto& product : own.front()) product();
  }
}

inline const Eighth& number_at(uint64_t matrix, int line, int k) {
  return from_e4m3(memory[swizzled(uint32_t(matrix << 4) + line * 128 + k)]);
}

// c + the products, cut 13 bits behind the first of the largest
inline float sum_of(float c, uint64_t a, int row, uint64_t b, int column) {
  double terms[33] = {c};
  int largest = c == 0 ? -999 : ilogbf(c);
  for (int k = 0; k < 32; ++k) {
    const Eighth &left = number_at(a, row, k), &right = number_at(b, column, k);
    terms[k + 1] = left.number * right.number;
    largest = max(largest, left.exponent + right.exponent);
  }
  const double up = ldexp(1, 13 - largest);
  double sum = 0;
  for (double term : terms) sum += trunc(term * up);
  sum /= up;
  const double scale = sum == 0 || !isfinite(sum) ? 1 : ldexp(1, 13 - ilogb(sum));
  return trunc(sum * scale) / scale;
}

template <int kGroups>
void multiply_add_fp8(float (&c)[kGroups][4], uint64_t a, uint64_t b, bool adds) {
  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  products[threadIdx.x].push_back([=, &c] {
    for (int i = 0; i < kGroups * 4; ++i) {
      float& sum = c[i / 4][i % 4];
      const int row = warp * 16 + i % 4 / 2 * 8 + lane / 4, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
      sum = sum_of(adds ? sum : 0, a, row, b, column);
    }
  });
}

template <int kRows>
void products_end(float (&c)[kRows][4]) {
  products_end_group();
  products_wait<0>();
}

}  // namespace octavo
