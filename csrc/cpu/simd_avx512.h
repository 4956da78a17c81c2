// simd.h for AVX-512: sixteen lanes. Included only by simd.h, which explains the names.
#pragma once
#include <immintrin.h>

namespace octavo::simd {

constexpr int kLanes = 16;
constexpr int kQ8Offset = 128;

constexpr int kQuantizedTileTokens = 8;
constexpr int kDenseTileTokens = 8;

using F32 = __m512;
using Bytes = __m512i;
using Half = uint16_t;

inline F32 zero() { return _mm512_setzero_ps(); }
inline F32 broadcast(float x) { return _mm512_set1_ps(x); }
inline F32 load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, F32 v) { _mm512_storeu_ps(p, v); }
inline F32 mul(F32 a, F32 b) { return _mm512_mul_ps(a, b); }
inline F32 fma(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a, b, c); }

inline Half to_half(float x) { return static_cast<Half>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT)); }
inline F32 load_half(const Half* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline F32 load_bfloat16(const uint16_t* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline F32 load_int8(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

// An e4m3's bits, shifted, are a half's, whose exponent has another bias.
constexpr float kFloat8Factor = 256.0f;
inline F32 load_float8(const uint8_t* p) {
  const __m256i code = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m256i sign = _mm256_slli_epi16(_mm256_and_si256(code, _mm256_set1_epi16(0x80)), 8);
  return _mm512_cvtph_ps(_mm256_or_si256(sign, _mm256_slli_epi16(_mm256_and_si256(code, _mm256_set1_epi16(0x7f)), 7)));
}

inline Bytes load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline Bytes broadcast_four(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, 4);
  return _mm512_set1_epi32(four);
}
inline Bytes bit_or(Bytes a, Bytes b) { return _mm512_or_si512(a, b); }
// Each byte's entry; bytes are from 0 to 15.
inline Bytes lookup(const uint8_t (&table)[16], Bytes index) {
  const __m128i entries = _mm_load_si128(reinterpret_cast<const __m128i*>(table));
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(entries), index);
}

// (each byte shifted right by Shift, left if negative) & mask, for masks that drop bits from a neighbouring byte.
template <int Shift>
inline Bytes shift_and(Bytes v, int mask) {
  const __m512i shifted = Shift >= 0 ? _mm512_srli_epi16(v, Shift < 0 ? 0 : Shift) : _mm512_slli_epi16(v, Shift < 0 ? -Shift : 0);
  return _mm512_and_si512(shifted, _mm512_set1_epi8(static_cast<char>(mask)));
}

// Unsigned bytes of any width times signed bytes, summed in 32 bits by one instruction.
template <int bits>
class Dot {
 public:
  template <int index>
  void add(Bytes weights, Bytes x) {
    sum_ = _mm512_dpbusd_epi32(index == 0 ? _mm512_setzero_si512() : sum_, weights, x);
  }
  template <int count>
  F32 total() const {
    return _mm512_cvtepi32_ps(sum_);
  }

 private:
  __m512i sum_;
};

}  // namespace octavo::simd
