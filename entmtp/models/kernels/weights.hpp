// Packed weights of linear layers, and readers that turn them into float32 vectors in registers.
//
// A step of few rows takes as long as reading the weights, so they are packed in the order in which they are read. A
// strip holds the weights of LANES outputs for all inputs. Within a strip the blocks of GGUF's formats follow each
// other: scales of all lanes, then numbers of all lanes. A weight is scale * number + offset, exactly as GGUF defines
// it: every product of a scale and a number is exact in float32.

#pragma once

#include "vectors.hpp"

namespace {

enum Format : int32_t { FLOAT32, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K };

// A reader of a strip. After `open` at every SUPER inputs and `begin` at every BLOCK inputs, `value(i)` is the weight of
// input i of a group of GROUP inputs, and `advance` goes to the next group. Readers of blocks also give the numbers of
// four inputs at once: `numbers(0)` those of inputs 0, 2, 4 and 6 of the group, `numbers(1)` those of the others.
struct Floats {
  static constexpr int SUPER = 1, BLOCK = 1, GROUP = 1;
  static constexpr int64_t bytes(int64_t in) { return in * LANES * sizeof(float); }

  const float* next;

  explicit Floats(const void* strip) : next(static_cast<const float*>(strip)) {}
  void open() {}
  void begin() {}
  Vector value(int) const { return at(next); }
  void advance() { next += LANES; }
};

// Numbers of BITS bits. One scale for `Block` inputs is a float16; or, where `Super` is larger, an integer of one byte
// times a float16 for `Super` inputs. The offset is stored like the scale where OFFSET is STORED, else -OFFSET * scale.
// Words of four inputs are the order of everything else: a word of low bits has two of them, in its bytes' halves; the
// word of high bits has two in adjacent bits of each byte; and numbers of 8 bits are stored input by input in it.
constexpr int STORED = -1;

// Place of input i of a group in the order 0, 2, 4, 6, 1, 3, 5, 7.
constexpr int place(int input) { return input % 2 * 4 + input / 2; }

template <int Bits, int Super, int Block, int Offset>
struct Blocks {
  static constexpr int BITS = Bits, OFFSET = Offset;
  static constexpr int SUPER = Super, BLOCK = Block, GROUP = 8;
  static constexpr bool NESTED = SUPER > BLOCK, SIGNED_SCALE = OFFSET != STORED;
  static constexpr int SCALES = OFFSET == STORED ? 2 : 1;
  static constexpr int WIDTH = BITS - 4;                          // of the high bits of a number
  static constexpr int NUMBERS = BITS == 8 ? BLOCK : BLOCK / 2;   // bytes per lane of the low bits
  static constexpr int HIGH = BITS == 8 || BITS == 4 ? 0 : 4;     // bytes per lane of the bits above the fourth
  static constexpr int BLOCK_BYTES = (NESTED ? 1 : 2) * SCALES + HIGH + NUMBERS;
  static constexpr int SUPER_BYTES = (NESTED ? 2 * SCALES : 0) + SUPER / BLOCK * BLOCK_BYTES;
  static constexpr int64_t bytes(int64_t in) { return in / SUPER * SUPER_BYTES * LANES; }
  static_assert(HIGH == 0 || WIDTH * BLOCK == 32, "the high bits of a block are one word");

  // First of a number's bits in the word of high bits of its block.
  static constexpr int high_bit(int input) { return input % 8 / 2 * 8 + WIDTH * (input % 2 + input / 8 * 2); }

  const uint8_t* next;
  Vector scale{}, offset{}, super_scale{}, super_offset{};
  Words high{};

  explicit Blocks(const void* strip) : next(static_cast<const uint8_t*>(strip)) {}

  Vector take_halves() {
    const Vector values = halves(next);
    next += 2 * LANES;
    return values;
  }

  Vector take_bytes() {
    Vector values = floats(reinterpret_cast<const int8_t*>(next));  // at most 63 where they have no sign
    next += LANES;
    return values;
  }

  void open() {
    if constexpr (NESTED) {
      super_scale = take_halves();
      if constexpr (OFFSET == STORED) super_offset = -take_halves();
    }
  }

  void begin() {
    scale = NESTED ? super_scale * take_bytes() : take_halves();
    if constexpr (OFFSET == STORED)
      offset = NESTED ? super_offset * take_bytes() : take_halves();
    else
      offset = scale * float(-OFFSET);
    if constexpr (HIGH > 0) {
      std::memcpy(&high, next, sizeof high);
      next += sizeof high;
    }
  }

  Vector value(int input) const {
    if constexpr (BITS == 8) {
      return floats(reinterpret_cast<const int8_t*>(next) + place(input) * LANES) * scale;
    } else {
      const Words word = *reinterpret_cast<const Words*>(next) >> (4 * input);
      if constexpr (BITS == 4) return lowest_bits(word) * scale + offset;
      return floats((word & 15) | (high_at_4(high_bit(input)) & HIGH_MASK)) * scale + offset;
    }
  }

  Words numbers(int half) const {
    if constexpr (BITS == 8) {
      return transposed(next + half * 4 * LANES);
    } else {
      const Words low = *reinterpret_cast<const Words*>(next) >> (4 * half) & 0x0f0f0f0f;
      if constexpr (BITS == 4) return low;
      return low | (high_at_4(high_bit(half)) & HIGH_MASK * 0x01010101);
    }
  }

  void advance() {
    next += (BITS == 8 ? 8 : 4) * LANES;
    if constexpr (HIGH > 0) high = high >> (WIDTH * 2);
  }

 private:
  static constexpr uint32_t HIGH_MASK = HIGH > 0 ? ((1 << WIDTH) - 1) << 4 : 0;

  // The high bits, moved so that bit `from` is bit 4.
  Words high_at_4(int from) const { return from > 4 ? high >> (from - 4) : high << (4 - from); }
};

// Calls `use` with the reader type of a format, as a null pointer. Formats that a model has are chosen when this is
// compiled, as each takes its time.
template <class Use>
void with_reader(int32_t format, Use use) {
  switch (format) {
#if defined(ENTMTP_Q4_0)
    case Q4_0: return use(static_cast<Blocks<4, 32, 32, 8>*>(nullptr));
#endif
#if defined(ENTMTP_Q4_1)
    case Q4_1: return use(static_cast<Blocks<4, 32, 32, STORED>*>(nullptr));
#endif
#if defined(ENTMTP_Q5_0)
    case Q5_0: return use(static_cast<Blocks<5, 32, 32, 16>*>(nullptr));
#endif
#if defined(ENTMTP_Q5_1)
    case Q5_1: return use(static_cast<Blocks<5, 32, 32, STORED>*>(nullptr));
#endif
#if defined(ENTMTP_Q8_0)
    case Q8_0: return use(static_cast<Blocks<8, 32, 32, 0>*>(nullptr));
#endif
#if defined(ENTMTP_Q4_K)
    case Q4_K: return use(static_cast<Blocks<4, 256, 32, STORED>*>(nullptr));
#endif
#if defined(ENTMTP_Q5_K)
    case Q5_K: return use(static_cast<Blocks<5, 256, 32, STORED>*>(nullptr));
#endif
#if defined(ENTMTP_Q6_K)
    case Q6_K: return use(static_cast<Blocks<6, 256, 16, 32>*>(nullptr));
#endif
    default: return use(static_cast<Floats*>(nullptr));
  }
}

}  // namespace
