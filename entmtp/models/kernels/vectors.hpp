// Vectors of float32 as wide as this CPU's registers.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif

typedef float Vector __attribute__((vector_size(LANES * 4), aligned(4)));
typedef int32_t Integers __attribute__((vector_size(LANES * 4), aligned(4)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

Vector& at(float* values) { return *reinterpret_cast<Vector*>(values); }
const Vector& at(const float* values) { return *reinterpret_cast<const Vector*>(values); }
Vector broadcast(float value) { return value - Vector{}; }
Vector larger(const Vector& a, const Vector& b) { return a > b ? a : b; }
Vector floats(const Words& values) { return __builtin_convertvector(reinterpret_cast<const Integers&>(values), Vector); }

// Integers next to the values, which are less than 2^22 from zero; where there is an instruction for it, less than 2^31.
Integers nearest(const Vector& values) {
#if defined(__AVX512F__)
  return reinterpret_cast<Integers>(_mm512_cvtps_epi32(values));
#elif defined(__AVX2__)
  return reinterpret_cast<Integers>(_mm256_cvtps_epi32(values));
#else
  constexpr float magic = 12582912.f;  // adding it rounds to an integer
  return __builtin_convertvector((values + magic) - magic, Integers);
#endif
}

// All lanes combined in pairs, and the pairs again.
template <class Lanes, class Combine>
auto reduced(Lanes values, Combine combine) {
  Integers other;
#pragma GCC unroll 4
  for (int width = LANES / 2; width > 0; width /= 2) {
#pragma GCC unroll 16
    for (int lane = 0; lane < LANES; lane++) other[lane] = lane ^ width;
    values = combine(values, __builtin_shuffle(values, other));
  }
  return values[0];
}

// The numbers in the lowest four bits of each lane.
Vector lowest_bits(const Words& values) {
#if defined(__AVX512F__)
  // A look-up reads no more bits than these, so it is mask and conversion in one.
  const __m512 numbers = _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  return _mm512_permutexvar_ps(reinterpret_cast<const __m512i&>(values), numbers);
#else
  return floats(values & 15);
#endif
}

Vector floats(const int8_t* values) {
#if defined(__AVX512F__)
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values))));
#elif defined(__AVX2__)
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(values))));
#else
  Vector wide;
  for (int lane = 0; lane < LANES; lane++) wide[lane] = values[lane];
  return wide;
#endif
}

// float32 of a float16, in integer arithmetic.
inline float half(uint16_t bits) {
  const uint32_t sign = uint32_t(bits & 0x8000) << 16, exponent = bits >> 10 & 31, mantissa = bits & 0x3ff;
  const float small = float(mantissa) * 5.9604644775390625e-8f;  // subnormal: 2^-24 each
  uint32_t word;
  std::memcpy(&word, &small, sizeof word);
  if (exponent == 31) word = 0x7f800000 | mantissa << 13;
  if (exponent > 0 && exponent < 31) word = (exponent + 112) << 23 | mantissa << 13;
  word |= sign;
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

// The same four of each lane's bytes, next to each other: [4, LANES] becomes [LANES, 4].
Words transposed(const uint8_t* bytes) {
  typedef uint8_t Bytes __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
  Bytes order;
  for (int i = 0; i < LANES * 4; i++) order[i] = i % 4 * LANES + i / 4;
  const Bytes moved = __builtin_shuffle(*reinterpret_cast<const Bytes*>(bytes), order);
  return reinterpret_cast<const Words&>(moved);
}

Vector halves(const uint8_t* values) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values)));
#elif defined(__F16C__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)));
#else
  uint16_t bits[LANES];
  std::memcpy(bits, values, sizeof bits);
  Vector wide;
  for (int lane = 0; lane < LANES; lane++) wide[lane] = half(bits[lane]);
  return wide;
#endif
}

// Loads the first `count` values of a vector, at most LANES; the others are zero.
Vector load(const float* source, int64_t count) {
  if (count >= LANES) return at(source);
  Vector values{};
  if (count > 0) std::memcpy(&values, source, count * sizeof(float));
  return values;
}

void store(const Vector& values, float* target, int64_t count) {
  if (count >= LANES)
    at(target) = values;
  else if (count > 0)
    std::memcpy(target, &values, count * sizeof(float));
}

// Cephes' expf: 2^n times a polynomial in the remainder. The error is at most two units in the last place.
__attribute__((always_inline)) inline Vector exponential(Vector x) {
  x = larger(x > 88.f ? broadcast(88.f) : x, broadcast(-87.f));
  constexpr float magic = 12582912.f;  // adding it rounds to an integer
  const Vector n = (x * 1.44269504088896341f + magic) - magic;
  const Vector r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Vector p = 1.9875691500e-4f * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  const Integers power = (__builtin_convertvector(n, Integers) + 127) << 23;
  Vector scale;
  std::memcpy(&scale, &power, sizeof scale);
  return p * scale;
}

}  // namespace
