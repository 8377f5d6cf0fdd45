// Rows of inputs as integers with digits of 8 bits, and their products with words of numbers.
//
// Four products of a digit and their sum are one instruction, where float32 takes four and the conversion of four
// weights. The largest input of a block uses all digits. One digit or two are lossy. Three have the 24 bits of float32: at most
// about a unit in the last place of the block's largest input is cut off, and the block's sum of products is not rounded
// at all, so that products are closer to the exact ones than chains of float32's operations are (after Ozaki, Ogita,
// Oishi and Rump, doi:10.1007/s11075-011-9478-1, who split both factors and lose nothing).

#pragma once

#include <vector>

#include "weights.hpp"

namespace {

// What is added to numbers of 8 bits, so that they have no sign as the instruction demands.
#if defined(__AVX512VNNI__) || (defined(__AVXVNNI__) && !defined(__AVX512F__))
#define ENTMTP_VNNI
constexpr int BIAS = 128;
#else
constexpr int BIAS = 0;
#endif

// Digits of inputs for products as precise as float32's. 0: in float32, which is faster where there is no instruction
// that multiplies integers and adds them. Without it there is one digit alone, which is never -128.
#if defined(ENTMTP_VNNI)
constexpr int EXACT_DIGITS = 3;
#else
constexpr int EXACT_DIGITS = 0;
#endif

#if defined(__AVX512F__)
typedef __m512i Register;
#elif defined(__AVX2__)
typedef __m256i Register;
#endif

// Adds the products of a group of eight inputs to each lane's sum: numbers of BITS bits in words, as a reader gives them.
template <int BITS>
inline Integers multiply_add(Integers sums, const Words (&numbers)[2], const Words (&inputs)[2]) {
#if defined(ENTMTP_VNNI)
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

// A block of rounded inputs, as its words follow each other: its scale; the scale times the sum of its integers; where the
// sum of products of each digit starts, which takes the number for zero off; and the digits, highest first, of each group
// of eight inputs, in the order in which readers give numbers.
template <int DIGITS, int64_t BLOCK>
struct RoundedBlock {
  float scale, sum;
  int32_t starts[DIGITS];
  int8_t digits[BLOCK / 8][DIGITS][8];
};

// Rounded rows [rows, in].
template <int Digits>
struct RoundedRows {
  static constexpr int DIGITS = Digits;
#if defined(__AVX512F__)
  static constexpr int ROWS = DIGITS == 1 ? 8 : 4;
#else
  static constexpr int ROWS = DIGITS == 1 ? 4 : 2;
#endif

  const uint8_t* blocks;
  int64_t in, row_bytes;

  RoundedRows from(int64_t row) const { return {blocks + row * row_bytes, in, row_bytes}; }
};

// Memory for rounded rows. Of 0 digits, they are as precise as float32.
class Rounding {
 public:
  const int digits;

 private:
  std::vector<uint8_t> blocks;

 public:
  // Room for so many inputs, in blocks of 16 at least.
  Rounding(int32_t wanted, int64_t inputs)
      : digits(wanted ? wanted : EXACT_DIGITS), blocks(inputs / 16 * (8 + 20 * digits)) {}

  template <int DIGITS, int64_t BLOCK>
  RoundedRows<DIGITS> rows(int64_t in) const {
    return {blocks.data(), in, in / BLOCK * int64_t(sizeof(RoundedBlock<DIGITS, BLOCK>))};
  }

  // Rounds a row. A value that is not finite makes its block's products not a number. A block of values that vanish in
  // any sum is rounded to zeros, as their steps would not be finite.
  template <int DIGITS, int64_t BLOCK>
  void round(const float* x, int64_t row, int64_t in, int32_t number_for_zero) {
    constexpr float limit = DIGITS == 1 ? 127 : DIGITS == 2 ? 127 * 256 : 127 * 65536 + 127 * 256;  // all digits in range
    constexpr float vanishing = 1e-30f;
    auto* block = reinterpret_cast<RoundedBlock<DIGITS, BLOCK>*>(blocks.data()) + row * (in / BLOCK);
    for (const float *next = x + row * in, *end = next + in; next < end; next += BLOCK, block++) {
      const float largest = largest_of<BLOCK>(next), steps = largest > vanishing ? limit / largest : 0;
      Integers totals{};
#pragma GCC unroll 4
      for (int i = 0; i < BLOCK; i += LANES) {
        const Integers rounded = nearest(at(next + i) * steps);
        totals += rounded;
        write_digits<DIGITS>(rounded, block->digits[i / 8][0]);
      }
      const int32_t total = reduced(totals, [](const Integers& a, const Integers& b) { return a + b; });
      block->scale = largest < INFINITY ? largest / limit : NAN;
      block->sum = block->scale * total;
      start(-number_for_zero, total, block->starts);
    }
  }

 private:
  // The largest absolute value of a block, as if not a number were larger than infinity.
  template <int64_t BLOCK>
  static float largest_of(const float* values) {
    Integers largest{};
#pragma GCC unroll 4
    for (int i = 0; i < BLOCK; i += LANES) {
      const Integers bits = reinterpret_cast<const Integers&>(values[i]) & 0x7fffffff;  // in the order of their values
      largest = bits > largest ? bits : largest;
    }
    const int32_t bits = reduced(largest, [](const Integers& a, const Integers& b) { return a > b ? a : b; });
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }

  // Writes the digits of as many inputs as there are lanes.
  template <int DIGITS>
  static void write_digits(const Integers& rounded, int8_t* target) {
    typedef uint8_t Bytes __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
    // With 128 added to each digit the bytes are digits without a sign; the other way round, digits with one.
    constexpr int32_t bias = 0x808080 & ((1 << 8 * (DIGITS - 1)) - 1);
    const Integers bytes = (rounded + bias) ^ bias;
    Bytes order;
#pragma GCC unroll 64
    for (int i = 0; i < LANES * 4; i++) {
      const int input = i / (8 * DIGITS) * 8 + i % 4 * 2 + i % 8 / 4, digit = i / 8 % DIGITS;
      order[i] = (input * 4 + DIGITS - 1 - digit) % (LANES * 4);
    }
    const Bytes ordered = __builtin_shuffle(reinterpret_cast<const Bytes&>(bytes), order);
    std::memcpy(target, &ordered, LANES * DIGITS);
  }

  // Splits `total` times a factor into the digits' shares.
  static void start(int32_t factor, int32_t total, int32_t (&starts)[1]) { starts[0] = factor * total; }
  static void start(int32_t factor, int32_t total, int32_t (&starts)[2]) {
    starts[0] = 0;
    starts[1] = factor * total;
  }
  static void start(int32_t factor, int32_t total, int32_t (&starts)[3]) {
    const int32_t high = (total + 32768) >> 16;
    starts[0] = factor * high;
    starts[1] = 0;
    starts[2] = factor * (total - high * 65536);
  }
};

}  // namespace
