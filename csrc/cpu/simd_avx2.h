// simd.h for AVX2: eight lanes. Included only by simd.h, which explains the names.
#pragma once
#include <immintrin.h>

namespace octavo::simd {

constexpr int kLanes = 8;
constexpr int kQ8Offset = 0;

constexpr int kQuantizedTileTokens = 8;
constexpr int kDenseTileTokens = 6;

using F32 = __m256;
using Bytes = __m256i;
using Half = uint16_t;

inline F32 zero() { return _mm256_setzero_ps(); }
inline F32 broadcast(float x) { return _mm256_set1_ps(x); }
inline F32 load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, F32 v) { _mm256_storeu_ps(p, v); }
inline F32 mul(F32 a, F32 b) { return _mm256_mul_ps(a, b); }
inline F32 fma(F32 a, F32 b, F32 c) { return _mm256_fmadd_ps(a, b, c); }

inline Half to_half(float x) { return static_cast<Half>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT)); }
inline F32 load_half(const Half* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline F32 load_bfloat16(const uint16_t* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline F32 load_int8(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

// An e4m3's bits, shifted, are a half's, whose exponent has another bias.
constexpr float kFloat8Factor = 256.0f;
inline F32 load_float8(const uint8_t* p) {
  const __m128i code = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  const __m128i sign = _mm_slli_epi16(_mm_and_si128(code, _mm_set1_epi16(0x80)), 8);
  return _mm256_cvtph_ps(_mm_or_si128(sign, _mm_slli_epi16(_mm_and_si128(code, _mm_set1_epi16(0x7f)), 7)));
}

inline Bytes load_bytes(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline Bytes broadcast_four(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, 4);
  return _mm256_set1_epi32(four);
}
inline Bytes bit_or(Bytes a, Bytes b) { return _mm256_or_si256(a, b); }
// Each byte's entry; bytes are from 0 to 15.
inline Bytes lookup(const uint8_t (&table)[16], Bytes index) {
  const __m128i entries = _mm_load_si128(reinterpret_cast<const __m128i*>(table));
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(entries), index);
}

// (each byte shifted right by Shift, left if negative) & mask, for masks that drop bits from a neighbouring byte.
template <int Shift>
inline Bytes shift_and(Bytes v, int mask) {
  const __m256i shifted = Shift >= 0 ? _mm256_srli_epi16(v, Shift < 0 ? 0 : Shift) : _mm256_slli_epi16(v, Shift < 0 ? -Shift : 0);
  return _mm256_and_si256(shifted, _mm256_set1_epi8(static_cast<char>(mask)));
}

// Hides a sum from the optimiser, which would otherwise delay additions until the terms do not fit in registers.
inline __m256i in_order(__m256i sum) {
  asm("" : "+x"(sum));
  return sum;
}

inline __m256i add_pairs(__m256i v) { return _mm256_madd_epi16(v, _mm256_set1_epi16(1)); }

// Unsigned weights of fewer than 8 bits: products are summed in 16 bits while the sums are sure to fit, for
// 32767 / (2 * 127 * (2^bits - 1)) additions: 8, 4 and 2. A caller makes at most `capacity` * k additions.
template <int bits>
class Dot {
 public:
  static constexpr int capacity = 1 << (7 - bits);

  template <int index>
  void add(Bytes weights, Bytes x) {
    const __m256i products = _mm256_maddubs_epi16(weights, x);
    if constexpr (index % capacity != 0) {
      narrow_ = in_order(_mm256_add_epi16(narrow_, products));
    } else {
      if constexpr (index == capacity) wide_ = add_pairs(narrow_);
      if constexpr (index > capacity) wide_ = _mm256_add_epi32(wide_, add_pairs(narrow_));
      narrow_ = products;
    }
  }

  // The sums after `count` additions.
  template <int count>
  F32 total() const {
    __m256i sum = add_pairs(narrow_);
    if constexpr (count > capacity) sum = _mm256_add_epi32(wide_, sum);
    return _mm256_cvtepi32_ps(sum);
  }

 private:
  __m256i narrow_, wide_;
};

// Signed weights: |w| * (x with w's sign), as the instruction wants one side unsigned. 128 * 127 * 2 fits.
template <>
class Dot<8> {
 public:
  template <int index>
  void add(Bytes weights, Bytes x) {
    const __m256i products = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights));
    sum_ = index == 0 ? add_pairs(products) : in_order(_mm256_add_epi32(sum_, add_pairs(products)));
  }
  template <int count>
  F32 total() const {
    return _mm256_cvtepi32_ps(sum_);
  }

 private:
  __m256i sum_;
};

}  // namespace octavo::simd
