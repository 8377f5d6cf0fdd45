// What draft heads store of committed tokens: the states that they receive of them, and keys and values.
//
// A token's keys and values are made when the heads draft next, so that steps that draft nothing leave most of the work
// undone: a text's tokens take no longer together than one.

#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "chains.hpp"
#include "decoder.hpp"

namespace {

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

constexpr int64_t SETTLED = 256;  // most tokens of a request in a pass

// Runs the heads on chains of tokens whose `states` are given; the last one's state becomes that of its slot.
void read_chains(Decoder& decoder, Worker& worker, const Chains& chains, const DraftRows& rows, float* states) {
  const int64_t hidden = decoder.model.hidden;
  decoder.run(worker, states, nullptr, nullptr, nullptr);
  worker.run(chains.pass.batch, [&](int64_t request) {
    if (const int64_t count = chains.chains[request].count)
      std::memcpy(rows.states + chains.pass.slots[request] * hidden,
                  states + (request * chains.pass.n + count - 1) * hidden, hidden * sizeof(float));
  });
}

// Appends what was deferred of the tokens before positions `ends` [batch].
void settle(const Model& model, const Pass& pass, const DraftRows& rows, const int64_t* ends) {
  const auto place = [&](int64_t request, int64_t position) { return pass.slots[request] * pass.capacity + position; };
  for (;;) {
    std::vector<Chain> chains;
    int64_t all = 0;
    for (int64_t request = 0; request < pass.batch; request++) {
      int64_t first = ends[request];
      while (first > 0 && rows.deferred[place(request, first - 1)]) first--;
      chains.push_back({first, std::min(ends[request] - first, SETTLED)});
      all += chains.back().count;
    }
    if (all == 0) return;
    const Chains tokens(pass, chains, [&](int64_t request, int64_t position) {
      return rows.deferred[place(request, position)] - 1;
    });
    const int64_t n = tokens.pass.n, hidden = model.hidden;
    std::vector<float> states(pass.batch * n * hidden);
    Decoder decoder{model, tokens.pass};
    run_team(pass.threads, 5 + model.count * Decoder::PHASES, [&](Worker& worker) {
      worker.run(pass.batch * n, [&](int64_t token) {
        if (!tokens.is_real(token)) return;
        const int64_t from = place(token / n, tokens.pass.positions[token]);
        std::memcpy(states.data() + token * hidden, rows.inputs + from * hidden, hidden * sizeof(float));
        rows.deferred[from] = 0;
      });
      read_chains(decoder, worker, tokens, rows, states.data());
    });
  }
}

// Chains of the tokens after each of accepted paths': the next one's, and the new root after the last.
Chains path_chains(const Pass& pass, const Paths& paths, const DraftRows& rows) {
  std::vector<Chain> chains;
  for (int64_t request = 0; request < pass.batch; request++)
    chains.push_back({rows.lengths[pass.slots[request]] - paths.counts[request] + 1, paths.counts[request]});
  return Chains(pass, chains, [&](int64_t request, int64_t position) {
    const int64_t at = position - chains[request].first;
    if (at == chains[request].count - 1) return paths.roots[request];
    return paths.tokens[request * paths.width + paths.nodes[request * pass.n + at + 1]];
  });
}

// Makes the states [batch, n, hidden] that the heads receive of accepted paths' tokens, and stores them.
void project_paths(Projected& projected, Worker& worker, const Chains& chains, const Pass& pass, const Paths& paths,
                   const DraftRows& rows, int64_t width, int64_t hidden, float* states) {
  const int64_t n = chains.pass.n;
  projected.run(
      worker,
      [&](int64_t token) {
        const int64_t node = paths.nodes[token / n * pass.n + token % n];
        return paths.features + (token / n * paths.width + node) * width;
      },
      states);
  worker.run(pass.batch * n, [&](int64_t token) {
    if (!chains.is_real(token)) return;
    const int64_t to = pass.slots[token / n] * pass.capacity + chains.pass.positions[token];
    std::memcpy(rows.inputs + to * hidden, states + token * hidden, hidden * sizeof(float));
    rows.deferred[to] = 0;
  });
}

void append_paths(const Model& model, const Projection& projection, const Pass& pass, const Paths& paths,
                  const DraftRows& rows) {
  const Chains chains = path_chains(pass, paths, rows);
  settle(model, pass, rows, chains.pass.start);
  std::vector<float> states(pass.batch * chains.pass.n * model.hidden);
  Projected projected(projection, pass.batch * chains.pass.n);
  Decoder decoder{model, chains.pass};
  run_team(pass.threads, 7 + model.count * Decoder::PHASES, [&](Worker& worker) {
    project_paths(projected, worker, chains, pass, paths, rows, projection.width, model.hidden, states.data());
    read_chains(decoder, worker, chains, rows, states.data());
  });
}

// Stores the states that the heads receive of the tokens after paths of one token, whose rest is made when it is needed.
void defer_roots(const Projection& projection, const Pass& pass, const Paths& paths, const DraftRows& rows) {
  const Chains chains = path_chains(pass, paths, rows);
  const int64_t hidden = projection.weight.out;
  std::vector<float> states(pass.batch * hidden);
  Projected projected(projection, pass.batch);
  run_team(pass.threads, 3, [&](Worker& worker) {
    project_paths(projected, worker, chains, pass, paths, rows, projection.width, hidden, states.data());
  });
  for (int64_t request = 0; request < pass.batch; request++)
    rows.deferred[pass.slots[request] * pass.capacity + chains.pass.start[request]] = 1 + paths.roots[request];
}

}  // namespace
