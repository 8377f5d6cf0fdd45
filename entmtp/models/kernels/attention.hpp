// Attention of the tokens of a pass to the cache rows that they see.
//
// The keys of a text are taken in parts of PART positions, so that threads can share even one token's. A part gives its
// largest score, and relative to it the sums of weights and of weighted values; parts are folded in their order
// (arXiv 2205.14135, section 3.1). What belongs to a part depends on positions alone, and sums run in the order of the
// keys. So a token's result has the same bits in any tree and batch, and with any number of threads.

#pragma once

#include <cmath>
#include <limits>

#include "attention_tiles.hpp"
#include "pass.hpp"

namespace {

float* cache_block(const Model& model, const Pass& pass, int64_t number, int64_t request, int64_t kv_head) {
  return pass.pool +
         ((number * pass.pool_slots + pass.slots[request]) * model.kv_heads + kv_head) * pass.capacity * model.dim;
}

constexpr float HIDDEN = std::numeric_limits<float>::lowest();  // mask of a row that a token does not see

int64_t padded(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

class Attention {
  static constexpr int64_t PART = 128;         // positions
  static constexpr int64_t MOST_ROWS = 48;     // of a task, which share the transposed keys
  static constexpr int64_t TASKS_OF_THREAD = 4;  // with fewer tasks, parts of a text become tasks of their own

  // The PART positions from `begin` on: cache rows from `row` to `end`, and their first column of the mask.
  struct Part {
    int64_t begin, row, end, column;

    bool has(int64_t position) const { return position >= begin && position < begin + PART; }
  };

  const Model& model;
  const Pass& pass;
  const int64_t groups = model.heads / model.kv_heads;
  const int64_t block = std::clamp<int64_t>(MOST_ROWS / groups, 1, pass.n);  // tokens of a task
  const int64_t blocks = (pass.n + block - 1) / block;
  const int64_t result = model.dim + 2;  // largest score, sum of weights, sums of weighted values
  std::vector<std::vector<Part>> parts = std::vector<std::vector<Part>>(pass.batch);
  std::vector<int64_t> ends = std::vector<int64_t>(pass.batch * pass.n);  // of the rows that a token sees
  int64_t width = 0, longest = 0, slices = 1;  // columns of the mask, and of a part
  std::vector<float> mask;     // [batch, n, width]
  std::vector<float> results;  // [batch, n, heads, slices, result]

  // The rows of each part. A tree's tokens follow the text, in any order of positions.
  std::vector<Part> divide(int64_t request) {
    std::vector<Part> found;
    const int64_t start = pass.start[request], *positions = pass.tree_positions + request * pass.tree_rows;
    const int64_t last = std::max(start - 1, *std::max_element(positions, positions + pass.tree_rows));
    int64_t column = 0;
    for (int64_t begin = 0; begin <= last; begin += PART) {
      Part part{begin, std::max(begin + 1, pass.first), std::min(begin + PART, start) + 1, column};
      part.row = std::min(part.row, part.end);
      for (int64_t node = 0; node < pass.tree_rows; node++)
        if (part.has(positions[node])) {
          if (part.row == part.end) part.row = start + 1 + node;
          part.end = start + 2 + node;
        }
      if (part.row >= part.end) continue;
      const int64_t keys = padded(part.end - part.row, PANEL);
      longest = std::max(longest, keys);
      column += keys;
      found.push_back(part);
    }
    width = std::max(width, column);
    return found;
  }

  // Makes a result that no part has been added to.
  void clear(float* sums) const {
    std::fill_n(sums, result, 0.f);
    sums[0] = HIDDEN;
  }

  // Adds a part's result to that of the parts before it.
  void fold(float* sums, const float* part) const {
    if (part[0] == HIDDEN) return;
    const float largest = std::max(sums[0], part[0]);
    const float before = sums[0] == HIDDEN ? 0 : std::exp(sums[0] - largest), here = std::exp(part[0] - largest);
    sums[0] = largest;
    for (int64_t i = 1; i < result; i++) sums[i] = sums[i] * before + part[i] * here;
  }

  // Gathers query rows as [rows / QUERIES, dim, QUERIES], scaled; those after the last are zero.
  void gather(const float* qkv, int64_t token, int64_t kv_head, int64_t rows, float* queries) const {
    const int64_t stride = (model.heads + 2 * model.kv_heads) * model.dim;
    for (int64_t row = 0; row < rows; row++) {
      const float* source = qkv + (token + row / groups) * stride + (kv_head * groups + row % groups) * model.dim;
      float* target = queries + row / QUERIES * QUERIES * model.dim + row % QUERIES;
      for (int64_t i = 0; i < model.dim; i++) target[i * QUERIES] = source[i] * model.scaling;
    }
  }

  // Scores [rows, stride] of query rows with a part's keys.
  void score_part(const float* queries, int64_t rows, const float* keys, int64_t count, float* tile, float* scores,
                  int64_t stride) const {
    for (int64_t key = 0; key < count; key += PANEL) {
      for (int half = 0; half < 2; half++) {
        const float* lanes[LANES];
        for (int lane = 0; lane < LANES; lane++)
          lanes[lane] = keys + std::min(key + half * LANES + lane, count - 1) * model.dim;
        transpose_rows(lanes, model.dim, tile + half * LANES);
      }
      for (int64_t row = 0; row < rows; row += QUERIES)
        with_count<QUERIES>(rows - row, [&](auto m) {
          score<decltype(m)::value>(queries + row * model.dim, tile, model.dim, scores + row * stride + key, stride);
        });
    }
  }

  // Turns scores into weights relative to the largest of them, which is returned.
  static float weigh(float* scores, const float* mask, int64_t count) {
    Vector high = broadcast(HIDDEN);
    for (int64_t key = 0; key < count; key += LANES) {
      at(scores + key) += at(mask + key);
      high = larger(at(scores + key), high);
    }
    float largest = HIDDEN;
    for (int lane = 0; lane < LANES; lane++) largest = std::max(largest, high[lane]);
    for (int64_t key = 0; key < count; key += LANES)
      at(scores + key) = at(mask + key) < 0.f ? Vector{} : exponential(at(scores + key) - largest);
    return largest;
  }

  // Folds the parts of a slice for a block of tokens and a key/value head.
  void attend(int64_t layer, const float* qkv, int64_t request, int64_t kv_head, int64_t first_token, int64_t slice) {
    const int64_t token = request * pass.n + first_token, count = std::min(block, pass.n - first_token);
    const int64_t rows = count * groups, stride = longest;
    static thread_local std::vector<float> workspace;
    workspace.resize((padded(rows, QUERIES) + PANEL) * model.dim + rows * (stride + result));
    float *queries = workspace.data(), *tile = queries + padded(rows, QUERIES) * model.dim;
    float *scores = tile + PANEL * model.dim, *found = scores + rows * stride;
    const auto sums = [&](int64_t row) {
      const int64_t head = (token + row / groups) * model.heads + kv_head * groups + row % groups;
      return results.data() + (head * slices + slice) * result;
    };
    for (int64_t row = 0; row < rows; row++) clear(sums(row));
    gather(qkv, token, kv_head, rows, queries);
    const int64_t end = *std::max_element(ends.data() + token, ends.data() + token + count);
    const int64_t all = parts[request].size(), last = slices > 1 ? std::min(slice + 1, all) : all;
    for (int64_t number = slice; number < last; number++) {
      const Part& part = parts[request][number];
      const int64_t keys = std::min(part.end, end) - part.row, offset = part.row * model.dim;
      if (keys <= 0) continue;
      const float* values = cache_block(model, pass, 2 * layer + 1, request, kv_head) + offset;
      score_part(queries, rows, cache_block(model, pass, 2 * layer, request, kv_head) + offset, keys, tile, scores, stride);
      for (int64_t row = 0; row < rows; row++)
        found[row * result] =
            weigh(scores + row * stride, mask.data() + (token + row / groups) * width + part.column, keys);
      mix_part(scores, stride, rows, values, keys, found + 2);
      for (int64_t row = 0; row < rows; row++) fold(sums(row), found + row * result);
    }
  }

  void mix_part(const float* weights, int64_t stride, int64_t rows, const float* values, int64_t keys, float* sums) const {
    for (int64_t row = 0; row < rows; row += MIXED_ROWS)
      with_count<MIXED_ROWS>(rows - row, [&](auto m) {
        for (int64_t column = 0, step; column < model.dim; column += step) {
          const bool whole = model.dim - column >= MIXED_VECTORS * LANES;
          step = whole ? MIXED_VECTORS * LANES : LANES;
          const auto use = whole ? mix<decltype(m)::value, MIXED_VECTORS> : mix<decltype(m)::value, 1>;
          use(weights + row * stride, stride, values, keys, model.dim, column, sums + row * result, result);
        }
      });
  }

 public:
  static constexpr int64_t PHASES = 2;  // of a layer

  Attention(const Model& model, const Pass& pass) : model(model), pass(pass) {
    int64_t most = 0;
    for (int64_t request = 0; request < pass.batch; request++) {
      parts[request] = divide(request);
      most = std::max<int64_t>(most, parts[request].size());
    }
    if (pass.batch * model.kv_heads * blocks < TASKS_OF_THREAD * pass.threads) slices = most;
    mask = std::vector<float>(pass.batch * pass.n * width);
    results = std::vector<float>(pass.batch * pass.n * model.heads * slices * result);
  }

  // Makes a token's part of the mask, which all layers and heads share.
  void hide(int64_t token) {
    const int64_t request = token / pass.n, start = pass.start[request], position = pass.positions[token];
    const int64_t prefix = pass.prefix[token];
    const int64_t* positions = pass.tree_positions + request * pass.tree_rows;
    const bool* tree = pass.tree + token * pass.tree_rows;
    ends[token] = prefix + 1;
    for (const Part& part : parts[request]) {
      float* here = mask.data() + token * width + part.column;
      std::fill_n(here, padded(part.end - part.row, PANEL), HIDDEN);
      const int64_t oldest = std::max(part.row, position - pass.window + 2);
      // Where the text goes on after the tree's positions, the rows up to the tree's are of later parts.
      const int64_t text_end = std::min({part.end, part.begin + PART + 1, prefix + 1});
      if (oldest < text_end) std::fill(here + oldest - part.row, here + text_end - part.row, 0.f);
      for (int64_t row = std::max(part.row, start + 1); row < part.end; row++) {
        const int64_t node = row - 1 - start;
        if (!tree[node] || !part.has(positions[node]) || position - positions[node] >= pass.window) continue;
        here[row - part.row] = 0.f;
        ends[token] = std::max(ends[token], row + 1);
      }
    }
  }

  // Attended values [batch, n, heads, dim] of queries, keys and values [batch, n, heads + 2 * kv_heads, dim] of a layer.
  void run(Worker& worker, int64_t layer, const float* qkv, float* attended) {
    worker.run(pass.batch * model.kv_heads * blocks * slices, [&](int64_t task) {
      const int64_t slice = task % slices, first_token = task / slices % blocks * block, pair = task / slices / blocks;
      attend(layer, qkv, pair / model.kv_heads, pair % model.kv_heads, first_token, slice);
    });
    worker.run(pass.batch * pass.n * model.heads, [&](int64_t head) {
      float* sums = results.data() + head * slices * result;
      for (int64_t slice = 1; slice < slices; slice++) fold(sums, sums + slice * result);
      const float total = sums[1] > 0 ? sums[1] : 1;  // padding may see nothing
      for (int64_t i = 0; i < model.dim; i++) attended[head * model.dim + i] = sums[2 + i] / total;
    });
  }
};

}  // namespace
