// Products of a few rows with packed weights.
//
// A panel is two strips of weights. One sweep over a panel computes up to ROWS rows at once, and their sums stay in
// registers. A row's sums are the same operations in the same order for any number of rows, so its product has the same
// bits alone and in a batch. Inputs are rounded to integers for products with blocks, or stay in float32; then every sum
// is one chain of fused multiply-adds in the order of the inputs.

#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "rounded_rows.hpp"
#include "thread_team.hpp"
#include "weights.hpp"

namespace {

// Rows [rows, in] of inputs. Of more rows than MOST_READ_IN_BLOCKS, blocks are first unpacked.
struct FloatRows {
#if defined(__AVX512F__)
  static constexpr int ROWS = 12, MOST_READ_IN_BLOCKS = 24;  // 24 sums, 2 weights and 1 input in 32 registers
#else
  static constexpr int ROWS = 6, MOST_READ_IN_BLOCKS = 8;  // 12 sums, 2 weights and 1 input in 16 registers
#endif

  const float* x;
  int64_t in;

  FloatRows from(int64_t row) const { return {x + row * in, in}; }
};

constexpr int PANEL = 2 * LANES;
constexpr int64_t AHEAD = 4096;      // bytes of a strip by which its prefetch is ahead of its use

// A packed weight: strips [out / LANES, in, LANES], an even number of them.
struct Matrix {
  const uint8_t* data;
  int64_t out;
  int32_t format;

  int64_t panels() const { return (out + PANEL - 1) / PANEL; }
};

int64_t strip_bytes(int32_t format, int64_t in) {
  int64_t bytes = 0;
  with_reader(format, [&](auto* reader) { bytes = std::remove_pointer_t<decltype(reader)>::bytes(in); });
  return bytes;
}

// A linear layer: y [rows, stride] = sums + bias [out] + residual [rows, stride], each where given.
struct Linear {
  const Matrix& weight;
  const float *bias, *residual;
  int64_t stride;

  int64_t panels() const { return weight.panels(); }
  const Matrix& matrix(int) const { return weight; }
  // A strip of each half of the outputs, so that the next panel's strips follow them in memory.
  int64_t strip(int64_t panel, int half) const { return panel + half * panels(); }

  void write(Vector sums[2], float* y, int64_t row, int64_t panel) const {
    for (int half = 0; half < 2; half++) {
      const int64_t first = strip(panel, half) * LANES, count = weight.out - first;
      if (bias) sums[half] += load(bias + first, count);
      if (residual) sums[half] += load(residual + row * stride + first, count);
      store(sums[half], y + row * stride + first, count);
    }
  }
};

// A gated layer, whose panels are a strip of gates and a strip of values: y = silu(gate) * value.
struct Gated {
  const Matrix &gates, &values;

  int64_t panels() const { return (gates.out + LANES - 1) / LANES; }
  const Matrix& matrix(int half) const { return half ? values : gates; }
  int64_t strip(int64_t panel, int) const { return panel; }

  void write(Vector sums[2], float* y, int64_t row, int64_t panel) const {
    const int64_t first = panel * LANES;
    store(sums[0] / (1.f + exponential(-sums[0])) * sums[1], y + row * gates.out + first, gates.out - first);
  }
};

// Prefetches the bytes of two strips into the L2 cache before their use: one line of each for every `line` of the
// shares that the calls add up to.
struct Fetch {
  const uint8_t *first, *second;
  int64_t share, line = 64, due = 0;

  void operator()() {
    for (due += share; due > 0; due -= line) {
      __builtin_prefetch(first, 0, 2);
      __builtin_prefetch(second, 0, 2);
      first += 64;
      second += 64;
    }
  }
};

// Calls `open` before each block of a panel, `use` for each of its groups, and `close` after it. Inlined, so that sums
// stay in registers.
template <class Reader, class Open, class Use, class Close>
__attribute__((always_inline)) inline void for_each_group(Reader& first, Reader& second, int64_t in, Fetch fetch,
                                                          Open open, Use use, Close close) {
  for (int64_t super = 0; super < in; super += Reader::SUPER) {
    first.open();
    second.open();
    for (int64_t block = super; block < super + Reader::SUPER; block += Reader::BLOCK) {
      fetch();
      first.begin();
      second.begin();
      open();
      for (int64_t group = block; group < block + Reader::BLOCK; group += Reader::GROUP) {
        use();
        first.advance();
        second.advance();
      }
      close();
    }
  }
}

template <int M, class Reader, class Target>
__attribute__((noinline)) void sweep(FloatRows rows, Reader first, Reader second, float* y, int64_t row, int64_t panel,
                                     Fetch fetch, const Target& target) {
  const int64_t in = rows.in;
  Vector sums[M][2] = {};
  // A pointer for every three rows: the others are one and two strides away, which an address can say by itself.
  const float* inputs[(M + 2) / 3];
  for (int i = 0; i < (M + 2) / 3; i++) inputs[i] = rows.x + 3 * i * in;
  const auto nothing = [] {};
  for_each_group(first, second, in, fetch, nothing, [&]() __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int i = 0; i < Reader::GROUP; i++) {
      const Vector one = first.value(i), two = second.value(i);
#pragma GCC unroll 16
      for (int m = 0; m < M; m++) {
        const Vector input = broadcast(inputs[m / 3][m % 3 * in]);
        sums[m][0] += input * one;
        sums[m][1] += input * two;
      }
#pragma GCC unroll 4
      for (const float*& each : inputs) each++;
    }
  }, nothing);
  for (int m = 0; m < M; m++) target.write(sums[m], y, row + m, panel);
}

// The number that stands for about zero in a reader's blocks, as the instructions take its numbers.
template <class Reader>
constexpr int32_t zero_of() {
  if (Reader::OFFSET == STORED) return 1 << (Reader::BITS - 1);
  return Reader::OFFSET + (Reader::BITS == 8 ? BIAS : 0);
}

// The sum of products of all digits, highest first.
inline Vector whole(const Integers (&products)[1]) { return __builtin_convertvector(products[0], Vector); }
inline Vector whole(const Integers (&products)[2]) {
  return __builtin_convertvector(products[0] * 256 + products[1], Vector);
}
inline Vector whole(const Integers (&products)[3]) {
  return __builtin_convertvector(products[0], Vector) * 65536.f +
         __builtin_convertvector(products[1] * 256 + products[2], Vector);
}

// In integers within a block; the scales of inputs and weights are applied to the block's sum.
template <int M, int DIGITS, class Reader, class Target>
__attribute__((noinline)) void sweep(RoundedRows<DIGITS> rows, Reader first, Reader second, float* y, int64_t row,
                                     int64_t panel, Fetch fetch, const Target& target) {
  using Block = RoundedBlock<DIGITS, Reader::BLOCK>;
  Vector sums[M][2] = {};
  Integers products[M][2][DIGITS];
  // As in the sweep over float32 rows.
  const uint8_t* inputs[(M + 2) / 3];
  for (int i = 0; i < (M + 2) / 3; i++) inputs[i] = rows.blocks + 3 * i * rows.row_bytes;
  const auto block = [&](int m) __attribute__((always_inline)) {
    return reinterpret_cast<const Block*>(inputs[m / 3] + m % 3 * rows.row_bytes);
  };
  const auto advance = [&](int64_t bytes) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (const uint8_t*& each : inputs) each += bytes;
  };
  for_each_group(first, second, rows.in, fetch,
    [&]() __attribute__((always_inline)) {
#pragma GCC unroll 16
      for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int digit = 0; digit < DIGITS; digit++)
          products[m][0][digit] = products[m][1][digit] = block(m)->starts[digit] - Integers{};
    },
    [&]() __attribute__((always_inline)) {
      const Words numbers[2][2] = {{first.numbers(0), first.numbers(1)}, {second.numbers(0), second.numbers(1)}};
#pragma GCC unroll 16
      for (int m = 0; m < M; m++) {
#pragma GCC unroll 4
        for (int digit = 0; digit < DIGITS; digit++) {
          const uint32_t* words = reinterpret_cast<const uint32_t*>(block(m)->digits[0][digit]);
          const Words inputs[2] = {words[0] - Words{}, words[1] - Words{}};
#pragma GCC unroll 2
          for (int half = 0; half < 2; half++)
            products[m][half][digit] = multiply_add<Reader::BITS>(products[m][half][digit], numbers[half], inputs);
        }
      }
      advance(sizeof Block::digits / (Reader::BLOCK / Reader::GROUP));
    },
    [&]() __attribute__((always_inline)) {
      constexpr float zero = zero_of<Reader>();
      advance(-int64_t(sizeof Block::digits));
      const Vector scales[2] = {first.scale, second.scale};
      const Vector offsets[2] = {first.offset + zero * first.scale, second.offset + zero * second.scale};
#pragma GCC unroll 16
      for (int m = 0; m < M; m++) {
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
          sums[m][half] += whole(products[m][half]) * (scales[half] * block(m)->scale);
          if constexpr (Reader::OFFSET == STORED) sums[m][half] += offsets[half] * block(m)->sum;
        }
      }
      advance(sizeof(Block));
    });
  for (int m = 0; m < M; m++) target.write(sums[m], y, row + m, panel);
}

template <int M, class Rows, class Reader, class Target>
void sweep_rows(int64_t m, Rows rows, Reader first, Reader second, float* y, int64_t row, int64_t panel, Fetch fetch,
                const Target& target) {
  if constexpr (M > 0) {
    if (m == M) return sweep<M>(rows, first, second, y, row, panel, fetch, target);
    sweep_rows<M - 1>(m, rows, first, second, y, row, panel, fetch, target);
  }
}

// Writes a strip's weights as float32.
template <class Reader>
void unpack(Reader strip, int64_t in, float* target) {
  for (int64_t super = 0; super < in; super += Reader::SUPER) {
    strip.open();
    for (int64_t block = 0; block < Reader::SUPER; block += Reader::BLOCK) {
      strip.begin();
      for (int64_t group = 0; group < Reader::BLOCK; group += Reader::GROUP) {
#pragma GCC unroll 8
        for (int input = 0; input < Reader::GROUP; input++, target += LANES) at(target) = strip.value(input);
        strip.advance();
      }
    }
  }
}

// Rows times one panel, in sweeps of up to Rows::ROWS. Each sweep turns blocks into numbers anew. For many rows in
// float32 they are unpacked once. Where such rows are the exception, since only two formats in one product need them,
// they are for any number.
template <class Rows, class Target>
struct PanelProduct {
  Rows x;
  float* y;
  int64_t rows;
  Target target;
  int64_t bytes[2] = {strip_bytes(target.matrix(0).format, x.in), strip_bytes(target.matrix(1).format, x.in)};

  const uint8_t* strip(int64_t panel, int half) const {
    return target.matrix(half).data + target.strip(panel, half) * bytes[half];
  }

  void operator()(int64_t panel) const {
    const int32_t format = target.matrix(0).format;
    if constexpr (std::is_same_v<Rows, FloatRows>)
      if (format != target.matrix(1).format ||
          (format != FLOAT32 && (EXACT_DIGITS > 0 || rows > Rows::MOST_READ_IN_BLOCKS)))
        return unpacked(panel);
    with_reader(format, [&](auto* reader) {
      using Reader = std::remove_pointer_t<decltype(reader)>;
      if constexpr (std::is_same_v<Rows, FloatRows> ? EXACT_DIGITS == 0 || std::is_same_v<Reader, Floats>
                                                    : !std::is_same_v<Reader, Floats>)
        sweeps(panel, Reader(strip(panel, 0)), Reader(strip(panel, 1)));
    });
  }

  // A single sweep prefetches AHEAD bytes ahead. Of several sweeps, each prefetches a part of the next panel.
  template <class Reader>
  void sweeps(int64_t panel, Reader first, Reader second) const {
    const int64_t blocks = (rows + Rows::ROWS - 1) / Rows::ROWS, block = (rows + blocks - 1) / blocks;
    const int64_t share = bytes[0] * Reader::BLOCK / x.in;
    Fetch fetch{strip(panel, 0) + AHEAD, strip(panel, 1) + AHEAD, share};
    if (blocks > 1) fetch = {strip(panel + 1, 0), strip(panel + 1, 1), share, 64 * blocks};
    for (int64_t row = 0; row < rows; row += block) {
      sweep_rows<Rows::ROWS>(std::min(block, rows - row), x.from(row), first, second, y, row, panel, fetch, target);
      fetch.first += bytes[0] / blocks;
      fetch.second += bytes[0] / blocks;
    }
  }

  void unpacked(int64_t panel) const {
    static thread_local std::vector<float> tile;
    const float* floats[2];
    if (int64_t(tile.size()) < PANEL * x.in) tile.resize(PANEL * x.in);
    for (int half = 0; half < 2; half++)
      with_reader(target.matrix(half).format, [&](auto* reader) {
        using Reader = std::remove_pointer_t<decltype(reader)>;
        if constexpr (std::is_same_v<Reader, Floats>) {
          floats[half] = reinterpret_cast<const float*>(strip(panel, half));
        } else {
          floats[half] = tile.data() + half * LANES * x.in;
          unpack(Reader(strip(panel, half)), x.in, tile.data() + half * LANES * x.in);
        }
      });
    sweeps(panel, Floats(floats[0]), Floats(floats[1]));
  }
};

// Calls `use` with the type of reader that both weights of a product have in common; otherwise, with that of float32.
template <class Target, class Use>
void with_common_reader(const Target& target, Use use) {
  const int32_t format = target.matrix(0).format;
  with_reader(format == target.matrix(1).format ? format : FLOAT32, use);
}

template <int DIGITS, class Reader, class Target, class Before>
void multiply_rounded(Worker& worker, const float* x, float* y, int64_t rows, int64_t in, Target target,
                      Rounding& rounding, Before before) {
  constexpr int64_t block = Reader::BLOCK;
  worker.run(rows, [&](int64_t row) {
    before(row);
    rounding.round<DIGITS, block>(x, row, in, zero_of<Reader>());
  });
  using Product = PanelProduct<RoundedRows<DIGITS>, Target>;
  worker.run(target.panels(), Product{rounding.rows<DIGITS, block>(in), y, rows, target});
}

struct Nothing {
  void operator()(int64_t) const {}
};

// `before(row)` makes a row of inputs, where they are not yet there. Two phases if it does or if inputs are rounded.
template <class Target, class Before = Nothing>
void multiply(Worker& worker, const float* x, float* y, int64_t rows, int64_t in, Target target, Rounding& rounding,
              Before before = {}) {
  with_common_reader(target, [&](auto* reader) {
    using Reader = std::remove_pointer_t<decltype(reader)>;
    if constexpr (!std::is_same_v<Reader, Floats>) {
      if constexpr (EXACT_DIGITS > 0)
        if (rounding.digits == EXACT_DIGITS)
          return multiply_rounded<EXACT_DIGITS, Reader>(worker, x, y, rows, in, target, rounding, before);
      if constexpr (EXACT_DIGITS > 0)
        if (rounding.digits == 2)
          return multiply_rounded<2, Reader>(worker, x, y, rows, in, target, rounding, before);
      if (rounding.digits == 1)
        return multiply_rounded<1, Reader>(worker, x, y, rows, in, target, rounding, before);
    }
    if constexpr (!std::is_same_v<Before, Nothing>) worker.run(rows, before);
    worker.run(target.panels(), PanelProduct<FloatRows, Target>{{x, in}, y, rows, target});
  });
}

}  // namespace
