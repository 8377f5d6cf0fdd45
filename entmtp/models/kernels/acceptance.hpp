// Greedy acceptance of verified trees: the path on which every node holds the model's likeliest token after its parent.

#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "thread_team.hpp"
#include "vectors.hpp"

extern "C" {

// Verified trees: tensors of entmtp.trees.batch, the trees' tokens, and what a pass has computed for their nodes.
struct Verified {
  const int64_t *tokens, *parent;  // [batch, width]
  const bool* real;                // [batch, width]
  const float *logits, *states;    // [batch, width, vocab]; [batch, width, hidden]
  int64_t batch, width, depth, vocab, hidden;
  int threads;
};

// Fields of entmtp.decoding.acceptance.Accepted.
struct Accepted {
  int64_t *nodes, *counts, *root, *report;  // [batch, depth + 1], [batch], [batch], [batch, depth + 6]
};

}  // extern "C"

namespace {

// Number of the largest of the logits, the first one of equals.
int64_t likeliest(const float* logits, int64_t count) {
  Vector best = broadcast(-std::numeric_limits<float>::infinity());
  Integers number{}, block{};
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES, block += 1) {
    const Integers better = at(logits + i) > best;
    best = better ? at(logits + i) : best;
    number = better ? block : number;
  }
  int64_t found = 0;
  for (int lane = 0; lane < LANES && lane < i; lane++) {
    const int64_t other = int64_t(number[lane]) * LANES + lane;
    if (logits[other] > logits[found] || (logits[other] == logits[found] && other < found)) found = other;
  }
  for (; i < count; i++)
    if (logits[i] > logits[found]) found = i;
  return found;
}

// Entropy in nats of the distribution of the logits; not a number unless all of them are finite.
double entropy(const float* logits, int64_t count, float largest) {
  Vector totals{}, products{};
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    const Vector below = at(logits + i) - largest, chance = exponential(below);
    totals += chance;
    products += chance * below;
  }
  double total = 0, product = 0;
  for (int lane = 0; lane < LANES; lane++) {
    total += totals[lane];
    product += products[lane];
  }
  for (; i < count; i++) {
    const double below = logits[i] - largest, chance = std::exp(below);
    total += chance;
    product += chance * below;
  }
  const double nats = std::log(total) - product / total;
  return std::isfinite(nats) ? nats : std::numeric_limits<double>::quiet_NaN();
}

bool all_finite(const float* values, int64_t count) {
  float differences = 0;  // of values and themselves
  for (int64_t i = 0; i < count; i++) differences += values[i] - values[i];
  return differences == 0;
}

// Accepts a request's path. `choice` [width] is the likeliest token after each of its nodes.
void accept_path(const Verified& trees, int64_t request, const int64_t* choice, const Accepted& accepted) {
  const int64_t first = request * trees.width, *tokens = trees.tokens + first, *parent = trees.parent + first;
  const bool* real = trees.real + first;
  int64_t *nodes = accepted.nodes + request * (trees.depth + 1), *report = accepted.report + request * (trees.depth + 6);
  for (int64_t at = 0; at <= trees.depth; at++) nodes[at] = at;  // after the path's end any nodes will do
  int64_t last = 0, count = 1;
  for (int64_t node = 1; node < trees.width; node++)  // in canonical order, so that a child comes after its parent
    if (real[node] && parent[node] == last && tokens[node] == choice[last]) nodes[count++] = last = node;
  const float* logits = trees.logits + (first + last) * trees.vocab;
  const double nats = entropy(logits, trees.vocab, logits[choice[last]]);
  accepted.counts[request] = real[0] ? count : 0;
  accepted.root[request] = choice[last];
  report[0] = all_finite(trees.states + first * trees.hidden, trees.width * trees.hidden);
  report[1] = accepted.counts[request];
  report[2] = last;
  report[3] = choice[last];
  std::memcpy(report + 4, &nats, sizeof nats);
  for (int64_t at = 0; at <= trees.depth; at++) report[5 + at] = tokens[nodes[at]];
}

// Adds to the reports [batch, columns] whether further states [batch, width] are finite.
void check_states(int64_t* report, int64_t columns, const float* states, int64_t batch, int64_t width) {
  for (int64_t request = 0; request < batch; request++)
    report[request * columns] &= all_finite(states + request * width, width);
}

void accept_greedy(const Verified& trees, const Accepted& accepted) {
  const int64_t nodes = trees.batch * trees.width;
  std::vector<int64_t> choice(nodes);
  run_team(std::min<int64_t>(trees.threads, nodes), 2, [&](Worker& worker) {
    worker.run(nodes, [&](int64_t node) { choice[node] = likeliest(trees.logits + node * trees.vocab, trees.vocab); });
    worker.run(trees.batch, [&](int64_t request) {
      accept_path(trees, request, choice.data() + request * trees.width, accepted);
    });
  });
}

}  // namespace
