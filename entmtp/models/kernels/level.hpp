// The pass in which draft heads read one level of trees.

#pragma once

#include <algorithm>
#include <vector>

#include "pass.hpp"

namespace {

class LevelPass {
  std::vector<int64_t> positions, prefix, rows, tree_positions;

 public:
  Pass pass;

  LevelPass(const Pass& given, const Level& level) : pass(given) {
    const int64_t n = pass.n, first = level.rows - n;
    for (int64_t token = 0; token < pass.batch * n; token++) {
      const int64_t request = token / n;
      const bool* seen = level.tree + token * level.rows;
      const bool real = std::any_of(seen, seen + level.rows, [](bool sees) { return sees; });
      positions.push_back(level.position[request] + level.depth);
      prefix.push_back(level.prefix[request]);
      rows.push_back(real ? level.start[request] + first + token % n + 1 : 0);
    }
    for (int64_t request = 0; request < pass.batch; request++)
      for (int64_t row = 0; row < level.rows; row++) tree_positions.push_back(level.position[request] + level.depths[row]);
    pass.tokens = level.tokens, pass.start = level.start, pass.tree = level.tree, pass.tree_rows = level.rows;
    pass.positions = pass.angles = positions.data(), pass.prefix = prefix.data(), pass.rows = rows.data();
    pass.tree_positions = tree_positions.data();
  }
};

}  // namespace
