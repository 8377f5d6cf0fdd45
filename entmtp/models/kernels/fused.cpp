// Llama-like decoder layers for steps of few rows, in float32, and their exported functions.
//
// fused_linear.py compiles this file for the CPU that it runs on.

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <limits>

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

// Sizes that all layers of a model share.
struct Sizes {
  float eps, scaling;
  int64_t hidden, inner, heads, kv_heads, dim;
};

// A pass over batch * n tokens. Layer i stores its keys in block 2 * i of the pool and its values in block 2 * i + 1.
// A block is [slots, kv_heads, capacity, dim].
struct Pass {
  const float *cos, *sin;         // [batch, n, dim]
  const float* mask;              // [batch, mask_rows, last - first], additive; the first n rows are read
  const int64_t *slots, *rows;    // [batch]; [batch, n]: the slot mapping of each token's keys and values
  float* pool;
  int64_t batch, n, mask_rows, first, last, pool_slots, capacity;
  int threads;
};

}  // extern "C"

namespace {

struct Decoder {
  static constexpr int64_t PHASES = 10;  // of a layer

  const Sizes& size;
  const Pass& pass;
  const int64_t tokens = pass.batch * pass.n, length = pass.last - pass.first, groups = size.heads / size.kv_heads;
  // Query rows that share keys are in adjacent lanes; a chunk is one vector of them.
  const int64_t query_rows = groups * pass.n, chunks = (query_rows + LANES - 1) / LANES;
  std::vector<float> mask = std::vector<float>(pass.batch * chunks * length * LANES);
  std::vector<float> normalized = std::vector<float>(tokens * size.hidden);
  std::vector<float> qkv = std::vector<float>(tokens * (size.heads + 2 * size.kv_heads) * size.dim);
  std::vector<float> attended = std::vector<float>(tokens * size.heads * size.dim);
  std::vector<float> middle = std::vector<float>(tokens * size.hidden);
  std::vector<float> gated = std::vector<float>(tokens * size.inner);

  // Transposes the mask to [batch, chunks, length, LANES], once for all layers and heads.
  void transpose_mask(Worker& worker) {
    worker.run(pass.batch * chunks, [&](int64_t chunk) {
      for (int64_t key = 0; key < length; key++)
        for (int64_t lane = 0; lane < LANES; lane++) {
          const int64_t row = chunk % chunks * LANES + lane;
          mask[(chunk * length + key) * LANES + lane] =
              row < query_rows
                  ? pass.mask[(chunk / chunks * pass.mask_rows + row % pass.n) * length + key]
                  : 0.f;
        }
    });
  }

  float* block(int64_t number, int64_t request, int64_t kv_head) const {
    return pass.pool +
           ((number * pass.pool_slots + pass.slots[request]) * size.kv_heads + kv_head) * pass.capacity * size.dim;
  }

  // Normalizes and rotates a token's queries and keys in place, and stores its keys and values in the cache.
  void rotate_and_store(const Layer& layer, int64_t index, int64_t token) {
    const int64_t dim = size.dim, request = token / pass.n, row = pass.rows[token] * dim;
    const float *cos = pass.cos + token * dim, *sin = pass.sin + token * dim;
    float* states = qkv.data() + token * (size.heads + 2 * size.kv_heads) * dim;
    std::vector<float> unrotated(dim);
    for (int64_t head = 0; head < size.heads + size.kv_heads; head++) {
      float* here = states + head * dim;
      const float* norm = head < size.heads ? layer.query_norm : layer.key_norm;
      if (norm)
        normalize(here, norm, size.eps, unrotated.data(), dim);
      else
        std::memcpy(unrotated.data(), here, dim * sizeof(float));
      rotate(unrotated.data(), cos, sin, here, dim);
    }
    const float *keys = states + size.heads * dim, *values = keys + size.kv_heads * dim;
    for (int64_t head = 0; head < size.kv_heads; head++) {
      std::memcpy(block(2 * index, request, head) + row, keys + head * dim, dim * sizeof(float));
      std::memcpy(block(2 * index + 1, request, head) + row, values + head * dim, dim * sizeof(float));
    }
  }

  // Offset of a query row of a key/value head in states [batch, n, heads, dim].
  int64_t query_offset(int64_t heads, int64_t request, int64_t kv_head, int64_t row) const {
    return ((request * pass.n + row % pass.n) * heads + kv_head * groups + row / pass.n) * size.dim;
  }

  // Gathers a chunk's queries as [dim, LANES], transposed and scaled; unused lanes are zero.
  void gather(float* queries, int64_t request, int64_t kv_head, int64_t chunk) const {
    for (int64_t lane = 0; lane < LANES; lane++) {
      const int64_t row = chunk * LANES + lane;
      const int64_t offset = query_offset(size.heads + 2 * size.kv_heads, request, kv_head, row);
      const float* source = &qkv[row < query_rows ? offset : 0];
      const float scaling = row < query_rows ? size.scaling : 0.f;
      for (int64_t i = 0; i < size.dim; i++) queries[i * LANES + lane] = source[i] * scaling;
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
      for (int k = 0; k < KEYS; k++) row[k] = keys + (key + std::min<int64_t>(k, count - 1)) * size.dim;
      Vector sums[KEYS] = {};
      for (int64_t i = 0; i < size.dim; i++)
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
    const int64_t rest = size.dim - column;
    for (int64_t key = 0; key < length; key++) {
      const float* value = values + key * size.dim + column;
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
    workspace.resize((size.dim + length) * LANES);
    float *queries = workspace.data(), *scores = queries + size.dim * LANES;
    const float* keys = block(2 * index, request, kv_head) + pass.first * size.dim;
    const float* values = block(2 * index + 1, request, kv_head) + pass.first * size.dim;
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
      for (int64_t column = 0; column < size.dim; column += PANEL) {
        Vector sums[BLOCK][2] = {};
        mix<BLOCK>(scores + row, values, column, sums);
        for (int64_t r = row; r < std::min(rows, row + BLOCK); r++)
          for (int64_t half = column; half < std::min(size.dim, column + PANEL); half += LANES)
            store(sums[r - row][half > column] / total[r],
                  &attended[query_offset(size.heads, request, kv_head, chunk * LANES + r) + half], size.dim - half);
      }
  }

  void run(Worker& worker, const Layer& layer, int64_t index, const float* input, float* output) {
    const int64_t qkv_size = (size.heads + 2 * size.kv_heads) * size.dim, attended_size = size.heads * size.dim;
    normalize_rows(worker, input, layer.input_norm, size.eps, normalized.data(), tokens, size.hidden);
    int64_t first = 0;
    for (const Matrix& matrix : layer.qkv) {
      const float* bias = layer.qkv_bias ? layer.qkv_bias + first : nullptr;
      multiply(worker, normalized.data(), qkv.data() + first, tokens, size.hidden,
               Linear{matrix, bias, nullptr, qkv_size});
      first += matrix.out;
    }
    worker.run(tokens, [&](int64_t token) { rotate_and_store(layer, index, token); });
    worker.run(pass.batch * size.kv_heads * chunks, [&](int64_t task) {
      attend(index, task / chunks / size.kv_heads, task / chunks % size.kv_heads, task % chunks);
    });
    multiply(worker, attended.data(), middle.data(), tokens, attended_size,
             Linear{layer.output, layer.output_bias, input, size.hidden});
    normalize_rows(worker, middle.data(), layer.middle_norm, size.eps, normalized.data(), tokens, size.hidden);
    multiply(worker, normalized.data(), gated.data(), tokens, size.hidden, Gated{layer.gates, layer.values});
    multiply(worker, gated.data(), output, tokens, size.inner,
             Linear{layer.down, layer.down_bias, middle.data(), size.hidden});
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
    with_reader(format, [&](auto* reader) {
      dequantize_row(rows + numbers[i] * row_bytes, in, format, values + i * in, reader);
    });
}

// Rounds a weight [out, in] to int8 numbers of `scale` [out] each, packed.
void entmtp_quantize(const float* weight, const float* scale, int8_t* packed, int64_t out, int64_t in, int threads) {
  const int64_t strips = (out + PANEL - 1) / PANEL * 2;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t strip = 0; strip < strips; strip++)
    for (int64_t k = 0; k < in; k++)
      for (int64_t lane = 0; lane < LANES; lane++) {
        const int64_t row = strip * LANES + lane;
        packed[(strip * in + k) * LANES + lane] =
            row < out ? static_cast<int8_t>(std::lrintf(weight[row * in + k] / scale[row])) : 0;
      }
}

// y [rows, out] = x [rows, in] times the weight, + bias [out] where given.
void entmtp_linear(const float* x, const Matrix* weight, const float* bias, float* y, int64_t rows, int64_t in,
                   int threads) {
  run_team(threads, 1,
           [&](Worker& worker) { multiply(worker, x, y, rows, in, Linear{*weight, bias, nullptr, weight->out}); });
}

// Runs states [batch, n, hidden] through all layers, in place.
void entmtp_layers(const Layer* layers, int64_t count, const Sizes* sizes, const Pass* pass, float* states) {
  Decoder decoder{*sizes, *pass};
  run_team(pass->threads, 1 + count * Decoder::PHASES, [&](Worker& worker) {
    decoder.transpose_mask(worker);
    for (int64_t index = 0; index < count; index++) decoder.run(worker, layers[index], index, states, states);
  });
}

}  // extern "C"
