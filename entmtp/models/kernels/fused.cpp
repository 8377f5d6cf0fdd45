// Llama-like decoder layers for steps of few rows, in float32, and their exported functions.
//
// fused_linear.py compiles this file for the CPU that it runs on.

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "acceptance.hpp"
#include "accepted_paths.hpp"
#include "attention.hpp"
#include "cache_rows.hpp"
#include "gguf_blocks.hpp"
#include "pass.hpp"
#include "top_k.hpp"

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

}  // namespace


namespace {

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

// Makes the states that draft heads receive of tokens.
class Projected {
  const Projection& projection;
  const int64_t rows;
  std::vector<float> normalized = std::vector<float>(rows * projection.width);
  Rounding rounding = Rounding(projection.digits, rows * projection.width);

  void normalize_row(const float* features, int64_t row) {
    const int64_t size = projection.width / projection.groups;
    float* target = normalized.data() + row * projection.width;
    if (!projection.norm) std::memcpy(target, features, projection.width * sizeof(float));
    if (projection.norm)
      for (int64_t i = 0; i < projection.width; i += size)
        normalize(features + i, projection.norm + i, projection.eps, target + i, size);
  }

 public:
  Projected(const Projection& projection, int64_t rows) : projection(projection), rows(rows) {}

  // States [rows, hidden]; `features_of(row)` gives the features [width] of each row.
  template <class Features>
  void run(Worker& worker, Features features_of, float* states) {
    const Linear linear{projection.weight, projection.bias, nullptr, projection.weight.out};
    multiply(worker, normalized.data(), states, rows, projection.width, linear, rounding,
             [&](int64_t row) { normalize_row(features_of(row), row); });
  }
};

}  // namespace

extern "C" {

// Most digits to which products with blocks can round their inputs.
int32_t entmtp_digits() { return std::max(1, EXACT_DIGITS); }

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

// y [rows, out] = x [rows, in], rounded to so many digits or, with 0, not, times the weight, + bias [out] where given.
void entmtp_linear(const float* x, const Matrix* weight, const float* bias, float* y, int64_t rows, int64_t in,
                   int32_t digits, int threads) {
  Rounding rounding(digits, rows * in);
  run_team(threads, 2, [&](Worker& worker) {
    multiply(worker, x, y, rows, in, Linear{*weight, bias, nullptr, weight->out}, rounding);
  });
}

// States [batch, n, hidden] of a pass, and logits [batch, n, vocabulary] where there is an output layer.
void entmtp_decode(const Model* model, const Pass* pass, float* states, const Matrix* output, float* logits) {
  Decoder decoder{*model, *pass};
  run_team(pass->threads, 4 + model->count * Decoder::PHASES,
           [&](Worker& worker) { decoder.run(worker, states, output, nullptr, logits); });
}

// The same for draft heads, and the likeliest tokens of the logits, whose memory is that of the guesses.
void entmtp_draft(const Model* model, const Pass* pass, float* states, const Matrix* output, const float* bias,
                  const Guesses* guesses) {
  Decoder decoder{*model, *pass};
  run_team(pass->threads, 5 + model->count * Decoder::PHASES, [&](Worker& worker) {
    decoder.run(worker, states, output, bias, guesses->logits);
    worker.run(guesses->rows, [&](int64_t row) { guess(*guesses, row); });
  });
}

// Logits [rows, vocabulary] of states of draft heads, and their likeliest tokens where there are guesses.
void entmtp_guess(const Model* model, const float* states, int64_t rows, const Matrix* output, const float* bias,
                  float* logits, const Guesses* guesses, int threads) {
  const int64_t hidden = model->hidden;
  std::vector<float> normalized(model->keeps_states ? rows * hidden : 0);
  Rounding rounding(model->digits, rows * hidden);
  const Linear linear{*output, bias, nullptr, output->out};
  run_team(threads, 3, [&](Worker& worker) {
    if (model->keeps_states)
      multiply(worker, normalized.data(), logits, rows, hidden, linear, rounding,
               Norm{states, model->norm, model->eps, normalized.data(), hidden});
    else
      multiply(worker, states, logits, rows, hidden, linear, rounding);
    if (guesses) worker.run(rows, [&](int64_t row) { guess(*guesses, row); });
  });
}

// States [rows, hidden] that draft heads receive of tokens with these features [rows, width].
void entmtp_project(const Projection* projection, const float* features, float* states, int64_t rows, int threads) {
  Projected projected(*projection, rows);
  run_team(threads, 2, [&](Worker& worker) {
    projected.run(worker, [&](int64_t row) { return features + row * projection->width; }, states);
  });
}

// Appends accepted paths to the cache of draft heads, in a pass whose tokens are those of the paths.
void entmtp_append(const Model* model, const Projection* projection, const Pass* pass, const Paths* paths) {
  const PathTokens tokens(*pass, *paths);
  const int64_t rows = pass->batch * pass->n, hidden = model->hidden;
  std::vector<float> states(rows * hidden);
  Projected projected(*projection, rows);
  Decoder decoder{*model, tokens.pass};
  const auto features_of = [&](int64_t row) {
    return paths->features + (row / pass->n * paths->width + tokens.node(row)) * projection->width;
  };
  const auto store = [&](int64_t row, float* target) {
    std::memcpy(target, states.data() + row * hidden, hidden * sizeof(float));
  };
  run_team(pass->threads, 6 + model->count * Decoder::PHASES, [&](Worker& worker) {
    projected.run(worker, features_of, states.data());
    worker.run(rows, [&](int64_t row) {
      const int64_t slot = pass->slots[row / pass->n];
      if (tokens.is_real(row)) store(row, paths->inputs + (slot * pass->capacity + tokens.pass.positions[row]) * hidden);
    });
    decoder.run(worker, states.data(), nullptr, nullptr, nullptr);
    worker.run(pass->batch, [&](int64_t request) {
      store(request * pass->n + paths->counts[request] - 1, paths->states + pass->slots[request] * hidden);
    });
  });
}

// Moves the rows of accepted nodes together.
void entmtp_move_rows(const Moves* moves) { move_rows(*moves); }

// Accepts the longest path of each tree.
void entmtp_accept(const Verified* trees, const Accepted* accepted) { accept_greedy(*trees, *accepted); }

// Adds to the reports [batch, columns] of accepted paths whether further states [batch, width] are finite.
void entmtp_check_states(int64_t* report, int64_t columns, const float* states, int64_t batch, int64_t width) {
  check_states(report, columns, states, batch, width);
}

// Finds the likeliest tokens of rows of logits.
void entmtp_top_k(const Guesses* guesses) { guess_rows(*guesses); }

}  // extern "C"
