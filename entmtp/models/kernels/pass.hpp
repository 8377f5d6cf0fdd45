// What a pass of a decoder reads and writes, as its callers give it (compiled.py has the same structures).

#pragma once

#include "packed_product.hpp"

extern "C" {

// Tensors of a decoder layer, null where the model has none. Queries, keys and values are one matrix where they have one
// format; the others are then empty.
struct Layer {
  Matrix qkv[3], output, gates, values, down;
  const float *input_norm, *qkv_bias, *query_norm, *key_norm, *output_bias, *middle_norm, *down_bias;
};

// A decoder: embedding table, layers and last norm. The table's rows are as entmtp_pack takes them.
//
// The decoder of draft heads has a norm of embeddings too. It is given a state of each token's predecessor, and its first
// layer receives the token's normalized embedding and that state, normalized by the layer's own norm, side by side.
struct Model {
  const uint8_t* embeddings;
  const Layer* layers;
  const float *norm, *embedding_norm;
  int64_t row_bytes, count, hidden, inner, heads, kv_heads, dim;
  float eps, scaling;
  int32_t format;
  int32_t digits;  // of 8 bits, to which products round their inputs; 0: as precise as float32
  int32_t adds_to_normalized;  // whether the first layer of draft heads adds to the normalized state, not to the state
  int32_t keeps_states;        // whether the states that are handed out are those before the last norm
};

// A pass over `batch` trees of `n` tokens, which follow the first `start` tokens of their slots. It reads the cache rows
// from `first` to `last`; the token at position p is in row p + 1. Layer i stores its keys in block 2 * i of the pool and
// its values in block 2 * i + 1. A block is [slots, kv_heads, capacity, dim]. Trees have `tree_rows` rows after `start`, of
// which earlier passes may have written some.
struct Pass {
  const int64_t *tokens, *positions;  // [batch, n]
  const int64_t* prefix;              // [batch, n]: tokens from the start of the text that a token sees
  const int64_t* rows;                // [batch, n]: the cache row that a token is stored in
  const int64_t* angles;              // [batch, n]: its row of `rotary`
  const int64_t *slots, *start;       // [batch]
  const bool* tree;                   // [batch, n, tree_rows]: whether a token attends to a row of its tree
  const int64_t* tree_positions;      // [batch, tree_rows]
  const float* rotary;                // [*, 2, dim]: cosines, then sines
  float* pool;
  const int64_t* feature_layers;  // [feature_count]: layers whose inputs are handed out
  float* features;                // [batch, n, feature_count, hidden]
  int64_t batch, n, tree_rows, first, last, pool_slots, capacity, window;  // a token sees fewer than `window` positions back
  int64_t feature_count;
  int threads;
};

// What turns a token's features into the state that draft heads receive of it: a norm of each of `groups` parts of the
// features, where `norm` isn't null, and a product.
struct Projection {
  Matrix weight;             // [hidden, width]
  const float *bias, *norm;  // [hidden], [width]
  int64_t width, groups;
  float eps;
  int32_t digits;
};

// Accepted paths of a step's trees.
struct Paths {
  const float* features;                   // [batch, width, features] of the trees' nodes
  const int64_t *tokens, *nodes, *counts;  // [batch, width], [batch, n], [batch], at least 1
  const int64_t* roots;                    // [batch]: the tokens chosen after the paths
  int64_t width;
};

// What draft heads store of the tokens in each slot besides keys and values.
struct DraftRows {
  float* inputs;           // [slots, capacity, hidden]: row p has the state of the token at p - 1
  int32_t* deferred;       // [slots, capacity]: 1 + the token at p if its keys and values are still to be made, else 0
  float* states;           // [slots, hidden]: the heads' states of the roots
  const int64_t* lengths;  // [slots]: committed tokens, those of a path that is being appended included
};

// Guessed tokens of one depth in the trees of a batch. Nodes of a tree take the rows after `start`, depth by depth.
struct Level {
  const int64_t* tokens;                     // [batch, n]
  const int64_t *prefix, *start, *position;  // [batch]: tokens that all nodes see, and the root's position
  const int64_t* depths;                     // [rows]: of the trees' nodes, those of this level the last n
  const bool* tree;                          // [batch, n, rows]: whether a token attends to a node
  int64_t rows, depth;
};

}  // extern "C"
