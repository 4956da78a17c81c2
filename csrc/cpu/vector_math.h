// exp, tanh and erfc on vectors, within about 2e-7 relative error; NaN in, NaN out.
//
// The polynomials were fitted for this file (least squares, reweighted towards the largest relative error).
#pragma once
#include "vectors.h"

namespace octavo {

// 2^n * P(r) with x = n ln2 + r, |r| <= ln2 / 2. exp(0) is exactly 1; below -87.3 the result is 0.
template <int W>
inline Floats<W> exp(Floats<W> x) {
  using F = Floats<W>;
  const F low = broadcast<W>(-87.33f), high = broadcast<W>(88.37f);
  const F clamped = x < low ? low : (x > high ? high : x);
  const F shift = broadcast<W>(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
  const F n = (clamped * 1.44269504f + shift) - shift;
  const F r = (clamped - n * 0.693145751953125f) - n * 1.42860677e-6f;
  F p = broadcast<W>(1.3814527e-3f);
  p = p * r + 8.3687061e-3f;
  p = p * r + 4.1668388e-2f;
  p = p * r + 1.6666521e-1f;
  p = p * r + 0.49999993f;
  p = p * (r * r) + r + 1.0f;
  const Ints<W> exponent = (__builtin_convertvector(n, Ints<W>) + 127) << 23;
  const F result = p * (F)exponent;
  return x < low ? F{} : result;
}

template <int W>
inline Floats<W> absolute(Floats<W> x) {
  return x < Floats<W>{} ? -x : x;
}

// Odd polynomial near zero, where 1 - 2 / (e^2x + 1) would cancel.
template <int W>
inline Floats<W> tanh(Floats<W> x) {
  using F = Floats<W>;
  const F a = absolute<W>(x);
  const F u = x * x;
  F p = broadcast<W>(1.8956486e-3f);
  p = p * u - 7.8832887e-3f;
  p = p * u + 2.1571052e-2f;
  p = p * u - 5.3920954e-2f;
  p = p * u + 1.3332983e-1f;
  p = p * u - 3.3333325e-1f;
  const F small = x + x * (u * p);
  const F large = 1.0f - 2.0f / (exp<W>(2.0f * a) + 1.0f);
  return a < broadcast<W>(0.7f) ? small : (x < F{} ? -large : large);
}

// erfc(x) for x >= 0: exp(-x^2) * P(1 / (1 + 0.3 x)).
template <int W>
inline Floats<W> erfc_positive(Floats<W> x) {
  const Floats<W> t = 1.0f / (1.0f + 0.3f * x);
  Floats<W> p = broadcast<W>(-0.12651604689878268f);
  p = p * t + 0.4688205034150787f;
  p = p * t - 0.47176553878260175f;
  p = p * t + 0.4918889393468308f;
  p = p * t - 0.04642734844934635f;
  p = p * t + 0.18789101431352553f;
  p = p * t + 0.1581642169898778f;
  p = p * t + 0.16848566178184782f;
  p = p * t + 0.16947444867142614f;
  p = p * t - 1.5866986650357397e-05f;
  return p * exp<W>(-x * x);
}

}  // namespace octavo
