// Runs the kernels of every format on memory that ends exactly where the tensors do; address sanitizer ends the program
// at the first read or write outside.

#include "fused.cpp"

#include <cstdio>
#include <memory>

template <class T>
std::unique_ptr<T[]> filled(int64_t count, int seed) {
  std::unique_ptr<T[]> values(new T[count]);
  for (int64_t i = 0; i < count; i++) values[i] = T((i * 7 + seed) % 5);
  return values;
}

void run(int32_t format, int64_t out, int64_t in, int64_t rows) {
  const bool is_file = format >= Q4_0;
  const FileFormat file = is_file ? file_format(format) : FileFormat{1, 4, nullptr};
  const int64_t row_bytes = in / file.weights * file.bytes;
  const auto source = filled<uint8_t>(out * row_bytes, 1);
  const auto packed = filled<uint8_t>(entmtp_packed_bytes(format, out, in), 2);
  entmtp_pack(format, source.get(), row_bytes, packed.get(), out, in, 2);
  const auto x = filled<float>(rows * in, 3);
  const auto bias = filled<float>(out, 4), y = filled<float>(rows * out, 5);
  const Matrix weight{packed.get(), out, format};
  for (int digits : {0, 1, 2}) {
    entmtp_linear(x.get(), &weight, bias.get(), y.get(), rows, in, digits, 2);
    Rounding rounding(digits, rows * in);
    run_team(2, 2, [&](Worker& worker) {
      multiply(worker, x.get(), y.get(), rows, in, Gated{weight, weight}, rounding);
    });
  }
  if (!is_file) return;
  const auto numbers = filled<int64_t>(out, 0);
  for (int64_t i = 0; i < out; i++) numbers[i] = out - 1 - i;
  const auto values = filled<float>(out * in, 6);
  entmtp_dequantize(format, source.get(), row_bytes, numbers.get(), out, in, values.get(), 2);
}

void move() {
  const int64_t blocks = 2, slots = 2, heads = 3, capacity = 6, row_bytes = 5;
  const auto pool = filled<uint8_t>(blocks * slots * heads * capacity * row_bytes, 7);
  const int64_t slot[] = {1, 0}, start[] = {1, 2}, nodes[] = {0, 2, 3, 0, 1, 2};
  const Moves moves{pool.get(), slot, start, nodes, blocks, slots, heads, capacity, row_bytes, 2, 3};
  entmtp_move_rows(&moves);
}

void guess(int64_t width, int64_t count) {
  const int64_t rows = 3;
  const auto logits = filled<float>(rows * width, 11), log_probs = filled<float>(rows * count, 12);
  const auto vocabulary = filled<int32_t>(width, 13);
  const auto tokens = filled<int64_t>(rows * count, 14);
  const Guesses guesses{logits.get(), vocabulary.get(), tokens.get(), log_probs.get(), rows, width, count, 2};
  entmtp_top_k(&guesses);
}

void attend(int64_t dim, int64_t length, int64_t n) {
  const int64_t heads = 6, kv_heads = 2, capacity = length + n + 1;
  Model model{};
  model.heads = heads, model.kv_heads = kv_heads, model.dim = dim, model.scaling = 1;
  const auto pool = filled<float>(2 * kv_heads * capacity * dim, 8), qkv = filled<float>(n * (heads + 2 * kv_heads) * dim, 9);
  const auto attended = filled<float>(n * heads * dim, 10);
  const auto positions = filled<int64_t>(n, 0);
  const auto tree = filled<bool>(n * n, 1);
  for (int64_t i = 0; i < n; i++) positions[i] = length + i;
  const int64_t slot = 0;
  Pass pass{};
  const auto prefix = filled<int64_t>(n, 0);
  for (int64_t i = 0; i < n; i++) prefix[i] = length;
  pass.positions = pass.tree_positions = positions.get(), pass.prefix = prefix.get(), pass.slots = &slot, pass.start = &length, pass.tree = tree.get(), pass.pool = pool.get();
  pass.batch = 1, pass.n = pass.tree_rows = n, pass.first = 1, pass.last = capacity, pass.pool_slots = 1, pass.capacity = capacity;
  pass.window = 1 << 20, pass.threads = 2;
  Attention attention(model, pass);
  run_team(2, Attention::PHASES + 1, [&](Worker& worker) {
    worker.run(n, [&](int64_t token) { attention.hide(token); });
    attention.run(worker, 0, qkv.get(), attended.get());
  });
}

int main() {
  move();
  for (int64_t width : {1, 17, 300, 1024}) guess(width, std::min<int64_t>(width, 9));
  for (int64_t dim : {10, 64, 80})
    for (int64_t length : {0, 5, 127, 300})
      for (int64_t n : {1, 3, 40}) attend(dim, length, n);
  for (int32_t format : {int32_t(FLOAT32), int32_t(Q4_0), int32_t(Q4_1), int32_t(Q5_0), int32_t(Q5_1), int32_t(Q8_0),
                         int32_t(Q4_K), int32_t(Q5_K), int32_t(Q6_K)})
    for (int64_t out : {1, 17, 70})
      for (int64_t in : {256, 768})
        for (int64_t rows : {1, 6, 9, 13, 40}) run(format, out, in, rows);
  std::puts("nothing outside");
}
