// Tiles of keys and values in registers: products of queries with keys, and weighted sums of values.

#pragma once

#include <type_traits>

#include "packed_product.hpp"

namespace {

#if defined(__AVX512F__)
constexpr int QUERIES = 8, MIXED_VECTORS = 4;
#else
constexpr int QUERIES = 4, MIXED_VECTORS = 2;
#endif
constexpr int MIXED_ROWS = 4;

// Which lanes of two vectors, one after the other, make up each of the two that a step of a transposition makes of them.
template <int STEP>
struct Exchange {
  alignas(Vector) int32_t low[LANES], high[LANES];

  constexpr Exchange() : low(), high() {
    for (int lane = 0; lane < LANES; lane++) {
      low[lane] = lane & STEP ? LANES + lane - STEP : lane;
      high[lane] = lane & STEP ? LANES + lane : lane + STEP;
    }
  }
};

// Exchanges blocks of STEP lanes and rows of a square, then the smaller ones.
template <int STEP>
inline void exchange(Vector (&square)[LANES]) {
  static constexpr Exchange<STEP> lanes;
  const Integers low = *reinterpret_cast<const Integers*>(lanes.low), high = *reinterpret_cast<const Integers*>(lanes.high);
#pragma GCC unroll 16
  for (int row = 0; row < LANES; row++)
    if (!(row & STEP)) {
      const Vector one = square[row], other = square[row + STEP];
      square[row] = __builtin_shuffle(one, other, low);
      square[row + STEP] = __builtin_shuffle(one, other, high);
    }
  if constexpr (STEP > 1) exchange<STEP / 2>(square);
}

// Writes LANES rows of LANES values as columns of a tile [LANES, PANEL].
inline void transpose(const float* const (&rows)[LANES], int64_t first, float* tile) {
  Vector square[LANES];
#pragma GCC unroll 16
  for (int row = 0; row < LANES; row++) square[row] = at(rows[row] + first);
  exchange<LANES / 2>(square);
#pragma GCC unroll 16
  for (int row = 0; row < LANES; row++) at(tile + row * PANEL) = square[row];
}

// Writes LANES rows of `width` values as columns of a tile [width, PANEL].
void transpose_rows(const float* const (&rows)[LANES], int64_t width, float* tile) {
  int64_t first = 0;
  for (; first + LANES <= width; first += LANES) transpose(rows, first, tile + first * PANEL);
  for (; first < width; first++)
    for (int row = 0; row < LANES; row++) tile[first * PANEL + row] = rows[row][first];
}

// Scores of M of the queries [dim, QUERIES] with a tile of keys [dim, PANEL].
template <int M>
void score(const float* queries, const float* tile, int64_t dim, float* scores, int64_t stride) {
  Vector sums[M][2] = {};
  for (int64_t i = 0; i < dim; i++, queries += QUERIES, tile += PANEL) {
    const Vector first = at(tile), second = at(tile + LANES);
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      const Vector query = broadcast(queries[m]);
      sums[m][0] += query * first;
      sums[m][1] += query * second;
    }
  }
  for (int m = 0; m < M; m++)
    for (int half = 0; half < 2; half++) at(scores + m * stride + half * LANES) = sums[m][half];
}

// Writes to `sums` [M, stride] the values [keys, dim], from a column on, weighted for each of M rows and added up. With the
// first column, a row's sum of weights is written in front of it.
template <int M, int VECTORS>
void mix(const float* weights, int64_t weight_stride, const float* values, int64_t keys, int64_t dim, int64_t column,
         float* sums, int64_t stride) {
  Vector mixed[M][VECTORS] = {}, totals[M] = {};
  const int64_t rest = dim - column;
  for (int64_t key = 0; key < keys; key++) {
    const float* value = values + key * dim + column;
    Vector parts[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) parts[v] = VECTORS > 1 ? at(value + v * LANES) : load(value, rest);
#pragma GCC unroll 4
    for (int m = 0; m < M; m++) {
      const Vector weight = broadcast(weights[m * weight_stride + key]);
      totals[m] += weight;
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; v++) mixed[m][v] += weight * parts[v];
    }
  }
  for (int m = 0; m < M; m++) {
    if (column == 0) sums[m * stride - 1] = totals[m][0];
    for (int v = 0; v < VECTORS; v++) store(mixed[m][v], sums + m * stride + column + v * LANES, rest - v * LANES);
  }
}

// Calls `use` with a number from 1 to MOST, as a type.
template <int MOST, class Use>
void with_count(int64_t count, Use use) {
  if constexpr (MOST > 1)
    if (count < MOST) return with_count<MOST - 1>(count, use);
  use(std::integral_constant<int, MOST>{});
}

}  // namespace
