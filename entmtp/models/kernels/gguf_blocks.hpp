// Blocks as they lie in GGUF files (ggml's quantization formats), and packing of them into strips.

#pragma once

#include <algorithm>

#include "weights.hpp"

namespace {

// A block of a row: 32 weights, or 256 in the K formats. Weight i is scale * numbers[i] + offset.
struct RowBlock {
  uint8_t numbers[256];           // bit patterns of int8 where BITS is 8
  uint16_t scale, offset;         // float16
  uint8_t scales[16], offsets[8]; // of the parts of a block, in the K formats
};

uint16_t read_half(const uint8_t* bytes) { return uint16_t(bytes[0] | bytes[1] << 8); }

// Q4 and Q5: the low bits of weights i and i + 16 share a byte; their fifth bits are bits i and i + 16 of a word.
template <bool FIFTH, bool OFFSET>
void read_block32(const uint8_t* raw, RowBlock& block) {
  block.scale = read_half(raw);
  if (OFFSET) block.offset = read_half(raw + 2);
  const uint8_t *high = raw + (OFFSET ? 4 : 2), *low = high + (FIFTH ? 4 : 0);
  for (int i = 0; i < 32; i++) {
    block.numbers[i] = i < 16 ? low[i] & 15 : low[i - 16] >> 4;
    if (FIFTH) block.numbers[i] |= (high[i / 8] >> i % 8 & 1) << 4;
  }
}

void read_block8(const uint8_t* raw, RowBlock& block) {
  block.scale = read_half(raw);
  std::memcpy(block.numbers, raw + 2, 32);
}

// Q4_K and Q5_K: eight parts of 32, whose scales and offsets have 6 bits each.
template <bool FIFTH>
void read_block_k(const uint8_t* raw, RowBlock& block) {
  block.scale = read_half(raw);
  block.offset = read_half(raw + 2);
  const uint8_t *packed = raw + 4, *high = raw + 16, *low = high + (FIFTH ? 32 : 0);
  for (int part = 0; part < 8; part++) {
    const bool plain = part < 4;
    block.scales[part] = plain ? packed[part] & 63 : (packed[part + 4] & 15) | packed[part - 4] >> 6 << 4;
    block.offsets[part] = plain ? packed[part + 4] & 63 : packed[part + 4] >> 4 | packed[part] >> 6 << 4;
  }
  for (int i = 0; i < 256; i++) {
    const uint8_t both = low[i / 64 * 32 + i % 32];
    block.numbers[i] = i % 64 < 32 ? both & 15 : both >> 4;
    if (FIFTH) block.numbers[i] |= (high[i % 32] >> i / 32 & 1) << 4;
  }
}

// Q6_K: sixteen parts of 16, whose scales are int8.
void read_block_q6k(const uint8_t* raw, RowBlock& block) {
  const uint8_t *low = raw, *high = raw + 128;
  std::memcpy(block.scales, raw + 192, 16);
  block.scale = read_half(raw + 208);
  for (int i = 0; i < 256; i++) {
    const int side = i / 128, quarter = i % 128 / 32, column = i % 32;
    const uint8_t both = low[side * 64 + quarter % 2 * 32 + column];
    const uint8_t two = high[side * 32 + column] >> 2 * quarter & 3;
    block.numbers[i] = (quarter < 2 ? both & 15 : both >> 4) | two << 4;
  }
}

// Bytes of a block in a file, and how it is read.
struct FileFormat {
  int64_t weights, bytes;
  void (*read)(const uint8_t*, RowBlock&);
};

FileFormat file_format(int32_t format) {
  switch (format) {
    case Q4_0: return {32, 18, read_block32<false, false>};
    case Q4_1: return {32, 20, read_block32<false, true>};
    case Q5_0: return {32, 22, read_block32<true, false>};
    case Q5_1: return {32, 24, read_block32<true, true>};
    case Q8_0: return {32, 34, read_block8};
    case Q4_K: return {256, 144, read_block_k<false>};
    case Q5_K: return {256, 176, read_block_k<true>};
    default: return {256, 210, read_block_q6k};
  }
}

// Writes the same block of LANES rows in the order in which a reader takes it; returns the end.
template <int BITS, int SUPER, int BLOCK, int OFFSET>
uint8_t* write_blocks(const RowBlock (&rows)[LANES], uint8_t* target, Blocks<BITS, SUPER, BLOCK, OFFSET>*) {
  using Reader = Blocks<BITS, SUPER, BLOCK, OFFSET>;
  const auto write = [&](auto value) {
    for (const RowBlock& row : rows) {
      const auto bytes = value(row);
      std::memcpy(target, &bytes, sizeof bytes);
      target += sizeof bytes;
    }
  };
  write([](const RowBlock& row) { return row.scale; });
  if (OFFSET == STORED) write([](const RowBlock& row) { return row.offset; });
  for (int part = 0; part < SUPER / BLOCK; part++) {
    if (Reader::NESTED) write([&](const RowBlock& row) { return row.scales[part]; });
    if (Reader::NESTED && OFFSET == STORED) write([&](const RowBlock& row) { return row.offsets[part]; });
    if constexpr (Reader::HIGH > 0)
      write([&](const RowBlock& row) {
        uint32_t word = 0;
        for (int i = 0; i < BLOCK; i++) word |= uint32_t(row.numbers[part * BLOCK + i] >> 4) << Reader::high_bit(i);
        return word;
      });
    for (int first = part * BLOCK; first < (part + 1) * BLOCK; first += 8)
      if constexpr (BITS == 8)
        for (int input : {0, 2, 4, 6, 1, 3, 5, 7}) write([&](const RowBlock& row) { return row.numbers[first + input]; });
      else
        write([&](const RowBlock& row) {
          uint32_t word = 0;
          for (int i = 0; i < 8; i++) word |= (row.numbers[first + i] & 15u) << 4 * i;
          return word;
        });
  }
  return target;
}

// Packs a strip's rows, `bytes` after each other in a file; the lanes from `lanes` on are zero.
template <int BITS, int SUPER, int BLOCK, int OFFSET>
void pack_strip(const uint8_t* rows, int64_t bytes, int64_t lanes, int64_t in, int32_t format, uint8_t* target,
                Blocks<BITS, SUPER, BLOCK, OFFSET>* reader) {
  const FileFormat file = file_format(format);
  RowBlock blocks[LANES] = {};
  for (int64_t block = 0; block < in / SUPER; block++) {
    for (int64_t lane = 0; lane < lanes; lane++) file.read(rows + lane * bytes + block * file.bytes, blocks[lane]);
    target = write_blocks(blocks, target, reader);
  }
}

// Packs a strip's rows of float32.
void pack_strip(const uint8_t* rows, int64_t bytes, int64_t lanes, int64_t in, int32_t, uint8_t* target,
                Floats*) {
  for (int64_t k = 0; k < in; k++)
    for (int64_t lane = 0; lane < LANES; lane++, target += sizeof(float))
      if (lane < lanes)
        std::memcpy(target, rows + lane * bytes + k * sizeof(float), sizeof(float));
      else
        std::memset(target, 0, sizeof(float));
}

void dequantize_row(const uint8_t* row, int64_t in, int32_t, float* values, Floats*) {
  std::memcpy(values, row, in * sizeof(float));
}

// Values [in] of one row of a file.
template <int BITS, int SUPER, int BLOCK, int OFFSET>
void dequantize_row(const uint8_t* row, int64_t in, int32_t format, float* values,
                    Blocks<BITS, SUPER, BLOCK, OFFSET>*) {
  const FileFormat file = file_format(format);
  RowBlock block;
  for (int64_t first = 0; first < in; first += SUPER, row += file.bytes) {
    file.read(row, block);
    for (int i = 0; i < SUPER; i++) {
      const int part = i / BLOCK;
      float scale = half(block.scale), offset = half(block.offset);
      if (SUPER > BLOCK) {
        scale *= OFFSET == STORED ? block.scales[part] : float(int8_t(block.scales[part]));
        offset *= -float(block.offsets[part % 8]);
      }
      const float number = BITS == 8 ? float(int8_t(block.numbers[i])) : float(block.numbers[i]);
      values[first + i] = scale * number + (OFFSET == STORED ? offset : -OFFSET * scale);
    }
  }
}

}  // namespace
