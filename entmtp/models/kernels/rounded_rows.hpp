// Rows of inputs, rounded to integers of 8 bits, and their products with words of numbers.
//
// Lossy: of each block of inputs the largest is 127 steps. Four products and their sum are then one instruction, where
// float32 takes four and the conversion of four weights.

#pragma once

#include <algorithm>
#include <vector>

#include "weights.hpp"

namespace {

// What is added to numbers of 8 bits, so that they have no sign as the instruction demands.
#if defined(__AVX512VNNI__) || (defined(__AVXVNNI__) && !defined(__AVX512F__))
constexpr int BIAS = 128;
#else
constexpr int BIAS = 0;
#endif

#if defined(__AVX512F__)
typedef __m512i Register;
#elif defined(__AVX2__)
typedef __m256i Register;
#endif

// Adds the products of a group of eight inputs to each lane's sum: numbers of BITS bits in words, as a reader gives them.
template <int BITS>
inline Integers multiply_add(Integers sums, const Words (&numbers)[2], const Words (&inputs)[2]) {
#if defined(__AVX512VNNI__) || (defined(__AVXVNNI__) && !defined(__AVX512F__))
  Register total = reinterpret_cast<const Register&>(sums);
  for (int half = 0; half < 2; half++) {
    const Words unsigned_numbers = BITS == 8 ? numbers[half] ^ 0x80808080 : numbers[half];
    const Register& left = reinterpret_cast<const Register&>(unsigned_numbers);
    const Register& right = reinterpret_cast<const Register&>(inputs[half]);
#if defined(__AVX512F__)
    total = _mm512_dpbusd_epi32(total, left, right);
#else
    total = _mm256_dpbusd_avx_epi32(total, left, right);
#endif
  }
  return reinterpret_cast<const Integers&>(total);
#elif defined(__AVX2__) && !defined(__AVX512F__)
  Register pairs[2];
  for (int half = 0; half < 2; half++) {
    const Register& left = reinterpret_cast<const Register&>(numbers[half]);
    const Register& right = reinterpret_cast<const Register&>(inputs[half]);
    pairs[half] = BITS == 8 ? _mm256_maddubs_epi16(_mm256_abs_epi8(left), _mm256_sign_epi8(right, left))
                            : _mm256_maddubs_epi16(left, right);
  }
  const Register ones = _mm256_set1_epi16(1);
  // Two pairs of products of less than 8 bits fit in 16 bits.
  const Register total = BITS == 8 ? _mm256_add_epi32(_mm256_madd_epi16(pairs[0], ones), _mm256_madd_epi16(pairs[1], ones))
                                   : _mm256_madd_epi16(_mm256_add_epi16(pairs[0], pairs[1]), ones);
  return sums + reinterpret_cast<const Integers&>(total);
#else
  for (int half = 0; half < 2; half++)
    for (int shift = 24; shift >= 0; shift -= 8) {
      const Integers input = reinterpret_cast<const Integers&>(inputs[half]) << shift >> 24;
      const Words number = numbers[half] << shift;
      sums += input * (BITS == 8 ? reinterpret_cast<const Integers&>(number) >> 24
                                 : reinterpret_cast<const Integers&>(number) >> 24 & 255);
    }
  return sums;
#endif
}

// Rounded rows [rows, in]: `scales` and `totals` are of each `block` inputs, [rows, in / block]. The integers of a group
// lie in the order in which readers give numbers.
struct RoundedRows {
  static constexpr int64_t MOST_READ_IN_BLOCKS = 1 << 30;
#if defined(__AVX512F__)
  static constexpr int ROWS = 8;
#else
  static constexpr int ROWS = 4;
#endif

  const int8_t* numbers;
  const float* scales;
  const int32_t* totals;
  int64_t in, block;

  RoundedRows from(int64_t row) const {
    return {numbers + row * in, scales + row * (in / block), totals + row * (in / block), in, block};
  }
};

// Memory for rounded rows.
class Rounding {
  std::vector<int8_t> numbers;
  std::vector<float> scales;
  std::vector<int32_t> totals;

 public:
  Rounding() = default;
  // Room for so many inputs, in blocks of 16 at least.
  explicit Rounding(int64_t inputs) : numbers(inputs), scales(inputs / 16), totals(inputs / 16) {}

  RoundedRows rows(int64_t in, int64_t block) const { return {numbers.data(), scales.data(), totals.data(), in, block}; }

  // Rounds a row. A value that is not finite makes its block's products not a number.
  void round(const float* x, int64_t row, int64_t in, int64_t block) {
    typedef int8_t Bytes __attribute__((vector_size(LANES), aligned(1)));
    Bytes order;
    for (int i = 0; i < LANES; i++) order[i / 8 * 8 + place(i % 8)] = i;
    for (int64_t first = row * in; first < (row + 1) * in; first += block) {
      Vector high{}, check{};
      for (int64_t i = first; i < first + block; i += LANES) {
        high = larger(high, larger(at(x + i), -at(x + i)));
        check += at(x + i) - at(x + i);
      }
      float largest = 0, zero = 0;
      for (int lane = 0; lane < LANES; lane++) {
        largest = std::max(largest, high[lane]);
        zero += check[lane];
      }
      const float steps = largest > 0 ? 127 / largest : 0;
      constexpr float magic = 12582912.f;  // adding it rounds to an integer
      Integers totals_of_lanes{};
      for (int64_t i = first; i < first + block; i += LANES) {
        const Integers whole = __builtin_convertvector((at(x + i) * steps + magic) - magic, Integers);
        totals_of_lanes += whole;
        const Bytes ordered = __builtin_shuffle(__builtin_convertvector(whole, Bytes), order);
        std::memcpy(numbers.data() + i, &ordered, sizeof ordered);
      }
      int32_t total = 0;
      for (int lane = 0; lane < LANES; lane++) total += totals_of_lanes[lane];
      scales[first / block] = largest / 127 + zero;
      totals[first / block] = total;
    }
  }
};

}  // namespace
