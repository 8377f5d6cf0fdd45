// Llama-like decoder layers for steps of few rows, in float32, and their exported functions.
//
// fused_linear.py compiles this file for the CPU that it runs on.

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "acceptance.hpp"
#include "cache_rows.hpp"
#include "decoder.hpp"
#include "draft_rows.hpp"
#include "gguf_blocks.hpp"
#include "level.hpp"
#include "top_k.hpp"

namespace {

constexpr int64_t SERIAL = 1 << 14;  // values; with less work than this, starting a thread costs more than it saves

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

// The same for a level of draft heads' trees, and the likeliest tokens of the logits, whose memory is that of the guesses.
void entmtp_draft(const Model* model, const Pass* pass, const Level* level, float* states, const Matrix* output,
                  const float* bias, const Guesses* guesses) {
  const LevelPass nodes(*pass, *level);
  Decoder decoder{*model, nodes.pass};
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

// Appends accepted paths to the cache of draft heads, and what was deferred before them.
void entmtp_append(const Model* model, const Projection* projection, const Pass* pass, const Paths* paths,
                   const DraftRows* rows) {
  append_paths(*model, *projection, *pass, *paths, *rows);
}

// Stores the states that draft heads receive after paths of one token, and defers the rest.
void entmtp_defer(const Projection* projection, const Pass* pass, const Paths* paths, const DraftRows* rows) {
  defer_roots(*projection, *pass, *paths, *rows);
}

// Appends what was deferred of the tokens before positions `ends` [batch].
void entmtp_settle(const Model* model, const Pass* pass, const DraftRows* rows, const int64_t* ends) {
  settle(*model, *pass, *rows, ends);
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
