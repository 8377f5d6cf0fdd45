// Rows of a cache, moved together.

#pragma once

#include <cstdint>
#include <cstring>

extern "C" {

// Accepted nodes of a pass over trees, whose rows follow the first `start` tokens of their slots; the token at position p
// is in row p + 1. The pool is [blocks, pool_slots, heads, capacity, row_bytes].
struct Moves {
  uint8_t* pool;
  const int64_t *slots, *start, *nodes;  // [batch], [batch], [batch, count]
  int64_t blocks, pool_slots, heads, capacity, row_bytes, batch, count;
};

}  // extern "C"

namespace {

// Moves node number i of each request to the i-th row after its start. Nodes ascend, so no row is overwritten before it
// has moved.
void move_rows(const Moves& moves) {
  for (int64_t block = 0; block < moves.blocks; block++)
    for (int64_t request = 0; request < moves.batch; request++)
      for (int64_t head = 0; head < moves.heads; head++) {
        const int64_t first = ((block * moves.pool_slots + moves.slots[request]) * moves.heads + head) * moves.capacity;
        uint8_t* rows = moves.pool + (first + moves.start[request] + 1) * moves.row_bytes;
        for (int64_t i = 0; i < moves.count; i++) {
          const int64_t node = moves.nodes[request * moves.count + i];
          if (node != i) std::memcpy(rows + i * moves.row_bytes, rows + node * moves.row_bytes, moves.row_bytes);
        }
      }
}

}  // namespace
