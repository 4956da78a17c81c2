// Vectors of floats in the compiler's vector extension: one source for AVX-512, AVX2, SSE and NEON.
//
// Floats<W> is W floats; kWidth is the widest this build has. Kernels for sizes that are no multiple of
// a vector are templates over W and also instantiate W = 1. Arithmetic is IEEE (no -ffast-math: NaN must survive).
// A compiler mostly contracts a * b + c to a fused multiply-add where the processor has one, but not in every loop. Where
// two instances of a kernel must give the same bits, they call `fused`.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__FMA__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace octavo {

#if defined(__AVX512F__)
inline constexpr int kWidth = 16;
#elif defined(__AVX__)
inline constexpr int kWidth = 8;
#else
inline constexpr int kWidth = 4;
#endif

namespace vectors {

template <int W>
struct Lanes {
  typedef float Float __attribute__((vector_size(W * 4)));
  typedef int32_t Int __attribute__((vector_size(W * 4)));
  typedef uint16_t Half __attribute__((vector_size(W * 2)));
  typedef uint8_t Byte __attribute__((vector_size(W)));
  typedef int8_t SignedByte __attribute__((vector_size(W)));
};

}  // namespace vectors

template <int W>
using Floats = typename vectors::Lanes<W>::Float;
template <int W>
using Ints = typename vectors::Lanes<W>::Int;
template <int W>
using Halves = typename vectors::Lanes<W>::Half;

template <int W>
using UnsignedBytes = typename vectors::Lanes<W>::Byte;
template <int W>
using SignedBytes = typename vectors::Lanes<W>::SignedByte;

template <int W>
inline Floats<W> load(const float* p) {
  Floats<W> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <int W>
inline void store(float* p, Floats<W> v) {
  std::memcpy(p, &v, sizeof v);
}

template <int W>
inline Floats<W> broadcast(float value) {
  return Floats<W>{} + value;
}

template <int W>
inline Ints<W> iota() {
  Ints<W> v;
  for (int i = 0; i < W; ++i) v[i] = i;
  return v;
}

// a * b + c, rounded once wherever the processor can, else twice.
inline float fused(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

template <int W>
inline Floats<W> fused(Floats<W> a, Floats<W> b, Floats<W> c) {
#if defined(__AVX512F__)
  if constexpr (W == 16) return (Floats<W>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#endif
#if defined(__FMA__)
  if constexpr (W == 8) return (Floats<W>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  if constexpr (W == 4) return (Floats<W>)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
  Floats<W> result;
  for (int i = 0; i < W; ++i) result[i] = fused(a[i], b[i], c[i]);
  return result;
}

template <int W>
inline float sum(Floats<W> v) {
  float total = 0;
  for (int i = 0; i < W; ++i) total += v[i];
  return total;
}

template <int W>
inline float largest(Floats<W> v) {
  float best = v[0];
  for (int i = 1; i < W; ++i) best = v[i] > best ? v[i] : best;
  return best;
}

// Runs body(index, width constant) over [0, count): whole vectors first, then single elements.
template <class Body>
inline void for_each_vector(int64_t count, const Body& body) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) body(i, std::integral_constant<int, kWidth>{});
  for (; i < count; ++i) body(i, std::integral_constant<int, 1>{});
}

}  // namespace octavo
