// Passes in which draft heads read consecutive tokens of each request, one token ahead of the model.

#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "pass.hpp"

namespace {

// Positions of a request's tokens.
struct Chain {
  int64_t first, count;
};

// A pass over a chain of each request. Shorter chains are padded, and keys and values of padding go to row 0.
class Chains {
  std::vector<int64_t> tokens, positions, prefix, rows, start;
  std::unique_ptr<bool[]> tree;

 public:
  const std::vector<Chain> chains;
  Pass pass;

  // `token_of(request, position)` gives the token of every position.
  template <class TokenOf>
  Chains(const Pass& given, std::vector<Chain> chains, TokenOf token_of) : chains(std::move(chains)), pass(given) {
    for (const Chain& chain : this->chains) start.push_back(chain.first);
    pass.n = pass.tree_rows = 0;
    for (const Chain& chain : this->chains) pass.n = pass.tree_rows = std::max(pass.n, chain.count);
    for (auto* each : {&tokens, &positions, &prefix, &rows}) each->resize(pass.batch * pass.n);
    tree.reset(new bool[pass.batch * pass.n * pass.n]());
    for (int64_t token = 0; token < pass.batch * pass.n; token++) {
      const int64_t at = token % pass.n;
      const auto [first, count] = chain_of(token);
      positions[token] = first + at;
      prefix[token] = first;
      if (at >= count) continue;
      tokens[token] = token_of(token / pass.n, first + at);
      rows[token] = first + at + 1;
      std::fill_n(tree.get() + token * pass.n, at + 1, true);
    }
    pass.tokens = tokens.data(), pass.positions = pass.angles = pass.tree_positions = positions.data();
    pass.prefix = prefix.data(), pass.rows = rows.data(), pass.start = start.data(), pass.tree = tree.get();
  }

  const Chain& chain_of(int64_t token) const { return chains[token / pass.n]; }

  bool is_real(int64_t token) const { return token % pass.n < chain_of(token).count; }
};

}  // namespace
