// The pass in which draft heads read accepted paths, one token ahead of the model.

#pragma once

#include <memory>
#include <vector>

#include "pass.hpp"

namespace {

// A pass over the tokens after each of a path's: the next one's, and the new root after the last. After a path's end its
// tokens are padding, whose keys and values go to row 0.
class PathTokens {
  const Paths& paths;
  std::vector<int64_t> tokens, positions, prefix, rows, start;
  std::unique_ptr<bool[]> tree;

 public:
  Pass pass;

  PathTokens(const Pass& given, const Paths& paths) : paths(paths), pass(given) {
    const int64_t batch = pass.batch, n = pass.n;
    for (auto* each : {&tokens, &positions, &prefix, &rows}) each->resize(batch * n);
    start.resize(batch);
    tree.reset(new bool[batch * n * n]);
    for (int64_t token = 0; token < batch * n; token++) place(token);
    pass.tokens = tokens.data(), pass.positions = pass.angles = pass.tree_positions = positions.data();
    pass.prefix = prefix.data(), pass.rows = rows.data(), pass.start = start.data(), pass.tree = tree.get();
    pass.tree_rows = n;
  }

  // The first position of a request's tokens.
  int64_t first(int64_t request) const {
    return paths.lengths[pass.slots[request]] - paths.counts[request] + 1;
  }

  // Tree node whose features a token receives.
  int64_t node(int64_t token) const { return paths.nodes[token]; }

  bool is_real(int64_t token) const { return token % pass.n < paths.counts[token / pass.n]; }

 private:
  void place(int64_t token) {
    const int64_t request = token / pass.n, at = token % pass.n, count = paths.counts[request];
    const int64_t next = paths.nodes[request * pass.n + (at + 1) % pass.n];
    tokens[token] = at == count - 1 ? paths.roots[request] : paths.tokens[request * paths.width + next];
    start[request] = prefix[token] = first(request);
    positions[token] = first(request) + at;
    rows[token] = at < count ? positions[token] + 1 : 0;
    for (int64_t other = 0; other < pass.n; other++) tree[token * pass.n + other] = other <= at && at < count;
  }
};

}  // namespace
