// A Llama-like decoder for passes of few rows, in float32.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "attention.hpp"
#include "gguf_blocks.hpp"
#include "pass.hpp"

namespace {

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

// Normalizes the rows of a matrix [*, width].
struct Norm {
  const float *x, *weight;
  float eps;
  float* y;
  int64_t width;

  void operator()(int64_t row) const { normalize(x + row * width, weight, eps, y + row * width, width); }
};

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

struct Decoder {
  static constexpr int64_t PHASES = 16 + Attention::PHASES;  // of a layer, at most

  const Model& model;
  const Pass& pass;
  const int64_t tokens = pass.batch * pass.n;
  const int64_t first_inputs = model.embedding_norm ? 2 * model.hidden : model.hidden;
  std::vector<float> normalized = std::vector<float>(tokens * first_inputs);
  std::vector<float> qkv = std::vector<float>(tokens * (model.heads + 2 * model.kv_heads) * model.dim);
  std::vector<float> attended = std::vector<float>(tokens * model.heads * model.dim);
  Attention attention = Attention(model, pass);
  std::vector<float> middle = std::vector<float>(tokens * model.hidden);
  std::vector<float> gated = std::vector<float>(tokens * model.inner);
  const int64_t widest = std::max({first_inputs, model.inner, model.heads * model.dim});
  Rounding rounding = Rounding(model.digits, tokens * widest);

  template <class Target, class Before = Nothing>
  void product(Worker& worker, const std::vector<float>& x, float* y, int64_t in, Target target, Before before = {}) {
    multiply(worker, x.data(), y, tokens, in, target, rounding, before);
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
      std::memcpy(cache_block(model, pass, 2 * index, request, head) + row, keys + head * dim, dim * sizeof(float));
      std::memcpy(cache_block(model, pass, 2 * index + 1, request, head) + row, values + head * dim, dim * sizeof(float));
    }
  }

  // Hands out a token's state that enters a layer, where it was requested.
  void copy_features(int64_t index, int64_t token, const float* states) const {
    float* features = pass.features + token * pass.feature_count * model.hidden;
    for (int64_t i = 0; i < pass.feature_count; i++)
      if (pass.feature_layers[i] == index)
        std::memcpy(features + i * model.hidden, states + token * model.hidden, model.hidden * sizeof(float));
  }

  // Makes what the first layer of draft heads receives of a token.
  void pair_with_embedding(const Layer& layer, int64_t token, float* states) {
    float *embedded = normalized.data() + token * first_inputs, *state = embedded + model.hidden;
    read_embedding(token, embedded);
    normalize(embedded, model.embedding_norm, model.eps, embedded, model.hidden);
    normalize(states + token * model.hidden, layer.input_norm, model.eps, state, model.hidden);
    if (model.adds_to_normalized) std::memcpy(states + token * model.hidden, state, model.hidden * sizeof(float));
  }

  void read_embedding(int64_t token, float* values) const {
    read_row(model.format, model.embeddings + pass.tokens[token] * model.row_bytes, model.hidden, values);
  }

  void run(Worker& worker, const Layer& layer, int64_t index, float* states) {
    const bool pairs = index == 0 && model.embedding_norm;
    const int64_t in = pairs ? first_inputs : model.hidden;
    const int64_t qkv_size = (model.heads + 2 * model.kv_heads) * model.dim, attended_size = model.heads * model.dim;
    const Norm input_norm{states, layer.input_norm, model.eps, normalized.data(), model.hidden};
    const Norm middle_norm{middle.data(), layer.middle_norm, model.eps, normalized.data(), model.hidden};
    // In the phase that normalizes a layer's inputs no thread writes them.
    const auto read_inputs = [&](int64_t token) {
      copy_features(index, token, states);
      if (pairs)
        pair_with_embedding(layer, token, states);
      else
        input_norm(token);
    };
    int64_t first = 0;
    for (const Matrix& matrix : layer.qkv) {
      const Linear linear{matrix, layer.qkv_bias ? layer.qkv_bias + first : nullptr, nullptr, qkv_size};
      if (first == 0)
        product(worker, normalized, qkv.data(), in, linear, read_inputs);
      else
        product(worker, normalized, qkv.data() + first, in, linear);
      first += matrix.out;
    }
    worker.run(tokens, [&](int64_t token) { rotate_and_store(layer, index, token); });
    attention.run(worker, index, qkv.data(), attended.data());
    product(worker, attended, middle.data(), attended_size,
            Linear{layer.output, layer.output_bias, states, model.hidden});
    product(worker, normalized, gated.data(), model.hidden, Gated{layer.gates, layer.values}, middle_norm);
    product(worker, gated, states, model.inner, Linear{layer.down, layer.down_bias, middle.data(), model.hidden});
  }

  // States [batch, n, hidden] of the pass, and logits [batch, n, vocabulary] where there is an output layer. The states of
  // draft heads are given, those of the tokens' predecessors.
  void run(Worker& worker, float* states, const Matrix* output, const float* bias, float* logits) {
    worker.run(tokens, [&](int64_t token) {
      attention.hide(token);
      if (!model.embedding_norm) read_embedding(token, states + token * model.hidden);
    });
    for (int64_t index = 0; index < model.count; index++) run(worker, model.layers[index], index, states);
    float* last = model.keeps_states ? normalized.data() : states;
    const Norm norm{states, model.norm, model.eps, last, model.hidden};
    if (!output && !model.keeps_states) worker.run(tokens, norm);
    if (!output) return;
    const Linear linear{*output, bias, nullptr, output->out};
    multiply(worker, last, logits, tokens, model.hidden, linear, rounding, norm);
  }
};

}  // namespace
