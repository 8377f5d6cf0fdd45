// Llama-like decoder layers for steps of few rows, in float32, and their exported functions.
//
// fused_linear.py compiles this file for the CPU that it runs on.

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <limits>

#include "acceptance.hpp"
#include "cache_rows.hpp"
#include "gguf_blocks.hpp"
#include "packed_product.hpp"

namespace {

constexpr int64_t SERIAL = 1 << 14;  // values; with less work than this, starting a thread costs more than it saves

// y [width] = weight [width] * x / sqrt(mean(x^2) + eps)
void normalize(const float* x, const float* weight, float eps, float* y, int64_t width) {
  Vector sums{};
  int64_t i = 0;
  for (; i + LANES <= width; i += LANES) sums += at(x + i) * at(x + i);
  float squares = 0;
  for (int lane = 0; lane < LANES; lane++) squares += sums[lane];
  for (; i < width; i++) squares += x[i] * x[i];
  const float scale = 1.f / std::sqrt(squares / width + eps);
  for (i = 0; i < width; i++) y[i] = weight[i] * (x[i] * scale);
}

void normalize_rows(Worker& worker, const float* x, const float* weight, float eps, float* y, int64_t rows,
                    int64_t width) {
  worker.run(rows, [&](int64_t row) { normalize(x + row * width, weight, eps, y + row * width, width); });
}

// Values [in] of a row of a table.
void read_row(int32_t format, const uint8_t* row, int64_t in, float* values) {
  with_reader(format, [&](auto* reader) { dequantize_row(row, in, format, values, reader); });
}

void rotate(const float* __restrict x, const float* __restrict cos, const float* __restrict sin, float* __restrict y,
            int64_t dim) {
  const int64_t half = dim / 2;
  for (int64_t i = 0; i < half; i++) {
    y[i] = x[i] * cos[i] - x[half + i] * sin[i];
    y[half + i] = x[half + i] * cos[half + i] + x[i] * sin[half + i];
  }
}

}  // namespace

extern "C" {

// Tensors of a decoder layer, null where the model has none. Queries, keys and values are one matrix where they have one
// format; the others are then empty.
struct Layer {
  Matrix qkv[3], output, gates, values, down;
  const float *input_norm, *qkv_bias, *query_norm, *key_norm, *output_bias, *middle_norm, *down_bias;
};

// A decoder: embedding table, layers and last norm. The table's rows are as entmtp_pack takes them.
struct Model {
  const uint8_t* embeddings;
  const Layer* layers;
  const float* norm;
  int64_t row_bytes, count, hidden, inner, heads, kv_heads, dim;
  float eps, scaling;
  int32_t format;
  int32_t rounds;  // whether products round their inputs
};

// A pass over `batch` trees of `n` tokens, which follow the first `start` tokens of their slots. It reads the cache rows
// from `first` to `last`; the token at position p is in row p + 1. Layer i stores its keys in block 2 * i of the pool and
// its values in block 2 * i + 1. A block is [slots, kv_heads, capacity, dim].
struct Pass {
  const int64_t *tokens, *positions;  // [batch, n]
  const int64_t* rows;                // [batch, n]: the cache row that a token is stored in
  const int64_t* angles;              // [batch, n]: its row of `rotary`
  const int64_t *slots, *start;       // [batch]
  const bool* tree;                   // [batch, n, n]: whether a token attends to another of its tree, or to itself
  const float* rotary;                // [*, 2, dim]: cosines, then sines
  float* pool;
  int64_t batch, n, first, last, pool_slots, capacity, window;  // a token sees fewer than `window` positions back
  int threads;
};

}  // extern "C"

namespace {

struct Decoder {
  static constexpr int64_t PHASES = 16;  // of a layer, at most

  const Model& model;
  const Pass& pass;
  const int64_t tokens = pass.batch * pass.n, length = pass.last - pass.first, groups = model.heads / model.kv_heads;
  // Query rows that share keys are in adjacent lanes; a chunk is one vector of them.
  const int64_t query_rows = groups * pass.n, chunks = (query_rows + LANES - 1) / LANES;
  std::vector<float> mask = std::vector<float>(pass.batch * chunks * length * LANES);
  std::vector<float> normalized = std::vector<float>(tokens * model.hidden);
  std::vector<float> qkv = std::vector<float>(tokens * (model.heads + 2 * model.kv_heads) * model.dim);
  std::vector<float> attended = std::vector<float>(tokens * model.heads * model.dim);
  std::vector<float> middle = std::vector<float>(tokens * model.hidden);
  std::vector<float> gated = std::vector<float>(tokens * model.inner);
  Rounding rounding = Rounding(model.rounds ? tokens * std::max({model.hidden, model.inner, model.heads * model.dim}) : 0);

  template <class Target>
  void product(Worker& worker, const std::vector<float>& x, float* y, int64_t in, Target target) {
    multiply(worker, x.data(), y, tokens, in, target, model.rounds ? &rounding : nullptr);
  }

  // Whether a token attends to a cache row.
  bool sees(int64_t request, int64_t token, int64_t row) const {
    if (row == 0) return false;  // the trash row
    const int64_t node = row - 1 - pass.start[request];
    if (node >= 0 && (node >= pass.n || !pass.tree[token * pass.n + node])) return false;
    const int64_t position = node < 0 ? row - 1 : pass.positions[request * pass.n + node];
    return pass.positions[token] - position < pass.window;
  }

  // Makes a token's part of the additive mask [batch, chunks, length, LANES], which all layers and heads share.
  void hide(int64_t token) {
    const int64_t request = token / pass.n;
    for (int64_t key = 0; key < length; key++) {
      if (sees(request, token, pass.first + key)) continue;
      for (int64_t row = token % pass.n; row < query_rows; row += pass.n)
        mask[((request * chunks + row / LANES) * length + key) * LANES + row % LANES] =
            std::numeric_limits<float>::lowest();
    }
  }

  float* block(int64_t number, int64_t request, int64_t kv_head) const {
    return pass.pool +
           ((number * pass.pool_slots + pass.slots[request]) * model.kv_heads + kv_head) * pass.capacity * model.dim;
  }

  // Normalizes and rotates a token's queries and keys in place, and stores its keys and values in the cache.
  void rotate_and_store(const Layer& layer, int64_t index, int64_t token) {
    const int64_t dim = model.dim, request = token / pass.n, row = pass.rows[token] * dim;
    const float *cos = pass.rotary + pass.angles[token] * 2 * dim, *sin = cos + dim;
    float* states = qkv.data() + token * (model.heads + 2 * model.kv_heads) * dim;
    std::vector<float> unrotated(dim);
    for (int64_t head = 0; head < model.heads + model.kv_heads; head++) {
      float* here = states + head * dim;
      const float* norm = head < model.heads ? layer.query_norm : layer.key_norm;
      if (norm)
        normalize(here, norm, model.eps, unrotated.data(), dim);
      else
        std::memcpy(unrotated.data(), here, dim * sizeof(float));
      rotate(unrotated.data(), cos, sin, here, dim);
    }
    const float *keys = states + model.heads * dim, *values = keys + model.kv_heads * dim;
    for (int64_t head = 0; head < model.kv_heads; head++) {
      std::memcpy(block(2 * index, request, head) + row, keys + head * dim, dim * sizeof(float));
      std::memcpy(block(2 * index + 1, request, head) + row, values + head * dim, dim * sizeof(float));
    }
  }

  // Offset of a query row of a key/value head in states [batch, n, heads, dim].
  int64_t query_offset(int64_t heads, int64_t request, int64_t kv_head, int64_t row) const {
    return ((request * pass.n + row % pass.n) * heads + kv_head * groups + row / pass.n) * model.dim;
  }

  // Gathers a chunk's queries as [dim, LANES], transposed and scaled; unused lanes are zero.
  void gather(float* queries, int64_t request, int64_t kv_head, int64_t chunk) const {
    for (int64_t lane = 0; lane < LANES; lane++) {
      const int64_t row = chunk * LANES + lane;
      const int64_t offset = query_offset(model.heads + 2 * model.kv_heads, request, kv_head, row);
      const float* source = &qkv[row < query_rows ? offset : 0];
      const float scaling = row < query_rows ? model.scaling : 0.f;
      for (int64_t i = 0; i < model.dim; i++) queries[i * LANES + lane] = source[i] * scaling;
    }
  }

  // Computes scores [length, LANES] of a chunk's queries, KEYS keys at a time; returns the largest score of each lane.
  Vector score(const float* queries, const float* keys, const float* mask, float* scores) const {
    constexpr int KEYS = 8;
    Vector largest = broadcast(-std::numeric_limits<float>::infinity());
    for (int64_t key = 0; key < length; key += KEYS) {
      const int64_t count = std::min<int64_t>(KEYS, length - key);
      const float* row[KEYS];
#pragma GCC unroll 8
      for (int k = 0; k < KEYS; k++) row[k] = keys + (key + std::min<int64_t>(k, count - 1)) * model.dim;
      Vector sums[KEYS] = {};
      for (int64_t i = 0; i < model.dim; i++)
#pragma GCC unroll 8
        for (int k = 0; k < KEYS; k++) sums[k] += at(queries + i * LANES) * broadcast(row[k][i]);
#pragma GCC unroll 8
      for (int k = 0; k < KEYS; k++) {
        if (k >= count) break;
        sums[k] += at(mask + (key + k) * LANES);
        at(scores + (key + k) * LANES) = sums[k];
        largest = larger(largest, sums[k]);
      }
    }
    return largest;
  }

  // Adds the weighted values of BLOCK rows of a chunk to their sums.
  template <int BLOCK>
  void mix(const float* weights, const float* values, int64_t column, Vector (&sums)[BLOCK][2]) const {
    const int64_t rest = model.dim - column;
    for (int64_t key = 0; key < length; key++) {
      const float* value = values + key * model.dim + column;
      const Vector first = load(value, rest), second = load(value + LANES, rest - LANES);
#pragma GCC unroll 4
      for (int row = 0; row < BLOCK; row++) {
        const Vector weight = broadcast(weights[key * LANES + row]);
        sums[row][0] += weight * first;
        sums[row][1] += weight * second;
      }
    }
  }

  void attend(int64_t index, int64_t request, int64_t kv_head, int64_t chunk) {
    static thread_local std::vector<float> workspace;
    workspace.resize((model.dim + length) * LANES);
    float *queries = workspace.data(), *scores = queries + model.dim * LANES;
    const float* keys = block(2 * index, request, kv_head) + pass.first * model.dim;
    const float* values = block(2 * index + 1, request, kv_head) + pass.first * model.dim;
    gather(queries, request, kv_head, chunk);
    const Vector largest = score(queries, keys, mask.data() + (request * chunks + chunk) * length * LANES, scores);
    Vector total{};
    for (int64_t key = 0; key < length; key++) {
      at(scores + key * LANES) = exponential(at(scores + key * LANES) - largest);
      total += at(scores + key * LANES);
    }
    constexpr int BLOCK = 4;
    const int64_t rows = std::min<int64_t>(LANES, query_rows - chunk * LANES);
    for (int64_t row = 0; row < rows; row += BLOCK)
      for (int64_t column = 0; column < model.dim; column += PANEL) {
        Vector sums[BLOCK][2] = {};
        mix<BLOCK>(scores + row, values, column, sums);
        for (int64_t r = row; r < std::min(rows, row + BLOCK); r++)
          for (int64_t half = column; half < std::min(model.dim, column + PANEL); half += LANES)
            store(sums[r - row][half > column] / total[r],
                  &attended[query_offset(model.heads, request, kv_head, chunk * LANES + r) + half], model.dim - half);
      }
  }

  void run(Worker& worker, const Layer& layer, int64_t index, float* states) {
    const int64_t qkv_size = (model.heads + 2 * model.kv_heads) * model.dim, attended_size = model.heads * model.dim;
    normalize_rows(worker, states, layer.input_norm, model.eps, normalized.data(), tokens, model.hidden);
    int64_t first = 0;
    for (const Matrix& matrix : layer.qkv) {
      const float* bias = layer.qkv_bias ? layer.qkv_bias + first : nullptr;
      product(worker, normalized, qkv.data() + first, model.hidden, Linear{matrix, bias, nullptr, qkv_size});
      first += matrix.out;
    }
    worker.run(tokens, [&](int64_t token) { rotate_and_store(layer, index, token); });
    worker.run(pass.batch * model.kv_heads * chunks, [&](int64_t task) {
      attend(index, task / chunks / model.kv_heads, task / chunks % model.kv_heads, task % chunks);
    });
    product(worker, attended, middle.data(), attended_size,
            Linear{layer.output, layer.output_bias, states, model.hidden});
    normalize_rows(worker, middle.data(), layer.middle_norm, model.eps, normalized.data(), tokens, model.hidden);
    product(worker, normalized, gated.data(), model.hidden, Gated{layer.gates, layer.values});
    product(worker, gated, states, model.inner, Linear{layer.down, layer.down_bias, middle.data(), model.hidden});
  }

  // States [batch, n, hidden] of the pass, and logits [batch, n, vocabulary] where there is an output layer.
  void run(Worker& worker, float* states, const Matrix* output, float* logits) {
    worker.run(tokens, [&](int64_t token) {
      hide(token);
      read_row(model.format, model.embeddings + pass.tokens[token] * model.row_bytes, model.hidden,
               states + token * model.hidden);
    });
    for (int64_t index = 0; index < model.count; index++) run(worker, model.layers[index], index, states);
    normalize_rows(worker, states, model.norm, model.eps, states, tokens, model.hidden);
    if (output)
      multiply(worker, states, logits, tokens, model.hidden, Linear{*output, nullptr, nullptr, output->out},
               model.rounds ? &rounding : nullptr);
  }
};

}  // namespace

extern "C" {

// Bytes of a packed weight [out, in].
int64_t entmtp_packed_bytes(int32_t format, int64_t out, int64_t in) {
  return (out + PANEL - 1) / PANEL * 2 * strip_bytes(format, in);
}

// Packs rows of float32 values or of GGUF blocks, `row_bytes` after each other. Lanes after the last output are zero.
void entmtp_pack(int32_t format, const uint8_t* rows, int64_t row_bytes, uint8_t* packed, int64_t out, int64_t in,
                 int threads) {
#if defined(MADV_HUGEPAGE)
  // Weights are read from start to end. With small pages, a tenth of that time is address translation.
  constexpr uintptr_t huge = 1 << 21;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(packed) + huge - 1) / huge * huge;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(packed) + entmtp_packed_bytes(format, out, in)) / huge * huge;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
  const int64_t strips = (out + PANEL - 1) / PANEL * 2, bytes = strip_bytes(format, in);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t strip = 0; strip < strips; strip++) {
    const int64_t lanes = std::clamp<int64_t>(out - strip * LANES, 0, LANES);
    const uint8_t* source = rows + (lanes ? strip * LANES : 0) * row_bytes;
    with_reader(format, [&](auto* reader) { pack_strip(source, row_bytes, lanes, in, format, packed + strip * bytes, reader); });
  }
}

// Values [count, in] of the rows `numbers` of a table of GGUF blocks.
void entmtp_dequantize(int32_t format, const uint8_t* rows, int64_t row_bytes, const int64_t* numbers, int64_t count,
                       int64_t in, float* values, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (count * in > SERIAL)
  for (int64_t i = 0; i < count; i++)
    read_row(format, rows + numbers[i] * row_bytes, in, values + i * in);
}

// y [rows, out] = x [rows, in], rounded or not, times the weight, + bias [out] where given.
void entmtp_linear(const float* x, const Matrix* weight, const float* bias, float* y, int64_t rows, int64_t in,
                   int32_t rounds, int threads) {
  Rounding rounding(rounds ? rows * in : 0);
  run_team(threads, 2, [&](Worker& worker) {
    multiply(worker, x, y, rows, in, Linear{*weight, bias, nullptr, weight->out}, rounds ? &rounding : nullptr);
  });
}

// States [batch, n, hidden] of a pass, and logits [batch, n, vocabulary] where there is an output layer.
void entmtp_decode(const Model* model, const Pass* pass, float* states, const Matrix* output, float* logits) {
  Decoder decoder{*model, *pass};
  run_team(pass->threads, 4 + model->count * Decoder::PHASES,
           [&](Worker& worker) { decoder.run(worker, states, output, logits); });
}

// Moves the rows of accepted nodes together.
void entmtp_move_rows(const Moves* moves) { move_rows(*moves); }

// Accepts the longest path of each tree.
void entmtp_accept(const Verified* trees, const Accepted* accepted) { accept_greedy(*trees, *accepted); }

}  // extern "C"
