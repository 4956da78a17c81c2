// simd.h for any other processor: four lanes, in a form that compilers turn into reasonable SSE2, NEON and the like.
// Included only by simd.h, which explains the names.
#pragma once
#include <cmath>

namespace octavo::simd {

constexpr int kLanes = 4;
constexpr int kQ8Offset = 0;

constexpr int kQuantizedTileTokens = 4;
constexpr int kDenseTileTokens = 4;

using F32 = float __attribute__((vector_size(16)));
using Bytes = uint8_t __attribute__((vector_size(16)));
using Half = float;

using Int16x8 = int16_t __attribute__((vector_size(16)));
using Int32x4 = int32_t __attribute__((vector_size(16)));

inline F32 zero() { return F32{}; }
inline F32 broadcast(float x) { return F32{x, x, x, x}; }
inline F32 load(const float* p) {
  F32 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, F32 v) { std::memcpy(p, &v, sizeof v); }
inline F32 mul(F32 a, F32 b) { return a * b; }
inline F32 fma(F32 a, F32 b, F32 c) {
#if defined(__FP_FAST_FMAF)
  for (int i = 0; i < kLanes; ++i) c[i] = std::fma(a[i], b[i], c[i]);
  return c;
#else
  return a * b + c;
#endif
}

inline Half to_half(float x) { return x; }
inline F32 load_half(const Half* p) { return load(p); }
inline F32 load_bfloat16(const uint16_t* p) {
  const Int32x4 bits = {p[0] << 16, p[1] << 16, p[2] << 16, static_cast<int32_t>(static_cast<uint32_t>(p[3]) << 16)};
  F32 v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}
inline F32 load_int8(const int8_t* p) {
  return F32{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]), static_cast<float>(p[3])};
}

// An e4m3's bits, shifted, are a float's, whose exponent has another bias.
constexpr float kFloat8Factor = 1.0f;
inline F32 load_float8(const uint8_t* p) {
  const Int32x4 code = {p[0], p[1], p[2], p[3]};
  const Int32x4 bits = (code & 0x7f) << 20;
  F32 v;
  std::memcpy(&v, &bits, sizeof v);
  return v * (code > 0x7f ? broadcast(-0x1p120f) : broadcast(0x1p120f));
}

inline Bytes load_bytes(const uint8_t* p) {
  Bytes v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline Bytes broadcast_four(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, 4);
  const Int32x4 repeated = {four, four, four, four};
  Bytes v;
  std::memcpy(&v, &repeated, sizeof v);
  return v;
}
inline Bytes bit_or(Bytes a, Bytes b) { return a | b; }
// Each byte's entry; bytes are from 0 to 15.
inline Bytes lookup(const uint8_t (&table)[16], Bytes index) {
  Bytes found;
  for (int i = 0; i < 16; ++i) found[i] = table[index[i]];
  return found;
}

// (each byte shifted right by Shift, left if negative) & mask.
template <int Shift>
inline Bytes shift_and(Bytes v, int mask) {
  if constexpr (Shift >= 0) {
    return (v >> Shift) & static_cast<uint8_t>(mask);
  } else {
    return (v << -Shift) & static_cast<uint8_t>(mask);
  }
}

// Even and odd bytes are multiplied separately in 16 bits, and summed there while the sums are sure to fit.
template <int bits>
class Dot {
 public:
  static constexpr int capacity = bits == 8 ? 1 : 1 << (7 - bits);

  template <int index>
  void add(Bytes weights, Bytes x) {
    const Int16x8 w = as_int16(weights), xs = as_int16(x);
    const Int16x8 even = low_byte<bits == 8>(w) * low_byte<true>(xs);
    const Int16x8 odd = high_byte<bits == 8>(w) * high_byte<true>(xs);
    if constexpr (index % capacity != 0) {
      even_ += even;
      odd_ += odd;
    } else {
      if constexpr (index == capacity) wide_ = narrow_total();
      if constexpr (index > capacity) wide_ += narrow_total();
      even_ = even;
      odd_ = odd;
    }
  }

  template <int count>
  F32 total() const {
    Int32x4 sum = narrow_total();
    if constexpr (count > capacity) sum += wide_;
    return __builtin_convertvector(sum, F32);
  }

 private:
  static Int16x8 as_int16(Bytes v) { return reinterpret_cast<Int16x8>(v); }

  template <bool is_signed>
  static Int16x8 low_byte(Int16x8 v) {
    if constexpr (is_signed) return (v << 8) >> 8;
    return v & static_cast<int16_t>(0xff);
  }
  template <bool is_signed>
  static Int16x8 high_byte(Int16x8 v) {
    if constexpr (is_signed) return v >> 8;
    return (v >> 8) & static_cast<int16_t>(0xff);
  }

  static Int32x4 pair_sums(Int16x8 v) {
    const Int32x4 wide = reinterpret_cast<Int32x4>(v);
    return ((wide << 16) >> 16) + (wide >> 16);
  }
  Int32x4 narrow_total() const { return pair_sums(even_) + pair_sums(odd_); }

  Int16x8 even_, odd_;
  Int32x4 wide_;
};

}  // namespace octavo::simd
