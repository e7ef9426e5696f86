// Functions of float32 over a vector type (simd_<isa>.h). No intermediate result overflows, and NaN comes through.
//
// The polynomials are minimax fits by Lawson's iteration; each says its own error, before that of its evaluation.
#pragma once

#include <cstdint>

namespace onnxpress {
namespace {

// c[0] + c[1] x + ...
template <class S, int Count>
__attribute__((always_inline)) inline typename S::F32 polynomial(const float (&c)[Count], typename S::F32 x) {
  auto sum = S::set1(c[Count - 1]);
  for (int i = Count - 2; i >= 0; --i) sum = S::fma(sum, x, S::set1(c[i]));
  return sum;
}

// e^x within 1.3 units in the last place: 2^n times e^r with |r| <= log(2) / 2. Infinity from 88.4 on, 0 up to -87.7.
template <class S>
__attribute__((always_inline)) inline typename S::F32 exp(typename S::F32 x) {
  // Of relative error 3e-9.
  constexpr float kTerms[] = {1.0f, 1.0f, 0.49999994f, 0.1666652f, 0.041668393f, 0.008368781f, 0.0013814467f};
  constexpr float kInteger = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to an integer
  x = S::min(S::set1(89.0f), S::max(S::set1(-88.0f), x));
  const auto n = S::sub(S::fma(x, S::set1(1.44269504f), S::set1(kInteger)), S::set1(kInteger));
  // log(2) in two parts (Cody and Waite), of which the first has so few bits that n times it is exact.
  const auto r = S::fnma(n, S::set1(-2.12194440e-4f), S::fnma(n, S::set1(0.693359375f), x));
  return S::mul(polynomial<S>(kTerms, r), S::pow2(n));
}

template <class S>
__attribute__((always_inline)) inline typename S::F32 negated(typename S::F32 x) {
  return S::sub(S::zero(), x);
}

template <class S>
__attribute__((always_inline)) inline typename S::F32 relu(typename S::F32 x) {
  return S::max(S::zero(), x);
}

// x / (1 + e^-x)
template <class S>
__attribute__((always_inline)) inline typename S::F32 silu(typename S::F32 x) {
  return S::div(x, S::add(S::set1(1.0f), exp<S>(negated<S>(x))));
}

// x times the normal distribution function, which is erfc(-x / sqrt(2)) / 2.
template <class S>
__attribute__((always_inline)) inline typename S::F32 gelu(typename S::F32 x) {
  // log(erfc(z / sqrt(2)) / 2) + z^2 / 2 for z from 0 to 6, with an error of 1.5e-8 * e^(z^2 / 2).
  constexpr float kTail[] = {-0.6931471f,     -0.7978867f,    0.18171383f,   -0.036432263f,  0.004971232f,
                             -0.00016147633f, -9.753727e-05f, 1.978485e-05f, -1.2614664e-06f};
  const auto z = S::max(negated<S>(x), x);
  const auto tail = polynomial<S>(kTail, S::min(S::set1(6.0f), z));
  const auto outside = exp<S>(S::fma(S::mul(z, S::set1(-0.5f)), z, tail));  // the probability beyond |x|
  return S::mul(x, S::if_negative(x, outside, S::sub(S::set1(1.0f), outside)));
}

// gelu(x) within 4.4e-5 from -4 to 4, and 4.2e-5 |x| beyond: for what is rounded to 8 bits.
template <class S>
__attribute__((always_inline)) inline typename S::F32 near_gelu(typename S::F32 x) {
  // (normal distribution(z) - 1/2) / z of z^2, with an error of 3.8e-5 / z^2.
  constexpr float kTerms[] = {0.39867339f,    -0.065887846f,   0.0095053995f,  -0.0010064907f,
                              7.4855081e-05f, -3.6571353e-06f, 1.0419613e-07f, -1.3012956e-09f};
  const auto z = S::min(S::set1(4.0f), S::max(S::set1(-4.0f), x));
  return S::mul(x, S::fma(z, polynomial<S>(kTerms, S::mul(z, z)), S::set1(0.5f)));
}

// 255 * 2^x for x from -126 to 0, within a relative error of 2.7e-6: for what is rounded to 8 bits. Of less, as of
// -126.
template <class S>
__attribute__((always_inline)) inline typename S::F32 near_exp2_255(typename S::F32 x) {
  constexpr float kTerms[] = {254.99982f, 176.74606f, 61.263096f, 14.259054f, 2.4403760f};
  constexpr float kInteger = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to an integer
  x = S::max(S::set1(-126.0f), x);
  const auto n = S::sub(S::add(x, S::set1(kInteger)), S::set1(kInteger));
  return S::scaled(polynomial<S>(kTerms, S::sub(x, n)), n);
}

// x / 2 * (1 + tanh(u)) with u = sqrt(2 / pi) * (x + 0.044715 x^3), which is x / (1 + e^(-2 u)).
template <class S>
__attribute__((always_inline)) inline typename S::F32 gelu_tanh(typename S::F32 x) {
  constexpr float kLinear = -1.5957691216f, kCubic = 0.044715f * kLinear;
  const auto exponent = S::mul(x, S::fma(S::mul(x, x), S::set1(kCubic), S::set1(kLinear)));
  return S::div(x, S::add(S::set1(1.0f), exp<S>(exponent)));
}

}  // namespace
}  // namespace onnxpress
