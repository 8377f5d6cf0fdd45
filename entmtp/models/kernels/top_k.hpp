// The likeliest tokens of rows of logits, and their log-probabilities.

#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "thread_team.hpp"
#include "vectors.hpp"

extern "C" {

// Rows of logits [rows, width] over a vocabulary [width] of tokens, and what is found in them [rows, count].
struct Guesses {
  float* logits;
  const int32_t* vocabulary;
  int64_t* tokens;
  float* log_probs;
  int64_t rows, width, count;
  int threads;
};

}  // extern "C"

namespace {

constexpr int64_t CHUNK = 128;  // values that are searched again when one of them is among the likeliest

// A value of a row and its place. Larger values come first, and of equals the first one.
struct Ranked {
  float value = -std::numeric_limits<float>::infinity();
  int64_t place = 0;

  bool before(const Ranked& other) const {
    return value > other.value || (value == other.value && place < other.place);
  }
};

float largest_of(const float* values, int64_t count) {
  Vector best = broadcast(-std::numeric_limits<float>::infinity());
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) best = larger(at(values + i), best);
  float largest = reduced(best, [](const Vector& a, const Vector& b) { return larger(a, b); });
  for (; i < count; i++) largest = std::max(largest, values[i]);
  return largest;
}

// Logarithm of the sum of the values' exponentials; not a number if one of them isn't.
float log_sum_exp(const float* values, int64_t count, float largest) {
  Vector totals{};
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    const Vector below = at(values + i) - largest;
    totals += below == below ? exponential(below) : below;
  }
  float total = reduced(totals, [](const Vector& a, const Vector& b) { return a + b; });
  for (; i < count; i++) total += std::exp(values[i] - largest);
  return largest + std::log(total);
}

// The first value of a chunk that comes after `bound`.
Ranked next_in(const float* row, int64_t begin, int64_t end, const Ranked& bound) {
  Ranked next{-std::numeric_limits<float>::infinity(), begin};
  for (int64_t place = begin; place < end; place++) {
    const Ranked each{row[place], place};
    if (bound.before(each) && each.before(next)) next = each;
  }
  return next;
}

void guess(const Guesses& guesses, int64_t row) {
  const float* logits = guesses.logits + row * guesses.width;
  const int64_t chunks = (guesses.width + CHUNK - 1) / CHUNK;
  const auto end_of = [&](int64_t chunk) { return std::min((chunk + 1) * CHUNK, guesses.width); };
  std::vector<float> largest(chunks);  // of the values that are not yet taken
  std::vector<Ranked> taken(chunks, {std::numeric_limits<float>::infinity(), -1});  // the last one of each chunk
  for (int64_t chunk = 0; chunk < chunks; chunk++)
    largest[chunk] = largest_of(logits + chunk * CHUNK, end_of(chunk) - chunk * CHUNK);
  const float total = log_sum_exp(logits, guesses.width, *std::max_element(largest.begin(), largest.end()));
  for (int64_t rank = row * guesses.count; rank < (row + 1) * guesses.count; rank++) {
    const int64_t chunk = std::max_element(largest.begin(), largest.end()) - largest.begin();
    const auto next = [&] { return next_in(logits, chunk * CHUNK, end_of(chunk), taken[chunk]); };
    taken[chunk] = next();
    largest[chunk] = next().value;
    guesses.tokens[rank] = guesses.vocabulary[taken[chunk].place];
    guesses.log_probs[rank] = taken[chunk].value - total;
  }
}

void guess_rows(const Guesses& guesses) {
  run_team(std::min<int64_t>(guesses.threads, guesses.rows), 1, [&](Worker& worker) {
    worker.run(guesses.rows, [&](int64_t row) { guess(guesses, row); });
  });
}

}  // namespace
