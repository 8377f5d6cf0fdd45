// Decoder layers of the Llama kind for steps of few rows, in float32. Compiled for this CPU by fused.py.
//
// A step of few rows is as long as it takes to read the weights, so they are laid out in the order in which they are
// read: panels of PANEL outputs, [panel][in][PANEL]. One sweep over a panel serves up to ROWS rows at once, whose sums
// stay in registers. Every sum is one chain of fused multiply-adds in the order of the inputs, whatever the number of
// rows: a row's product is the same bits alone and among others.

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>
#if defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 12;  // 24 sums, 2 weights and 1 input in 32 registers
#else
constexpr int LANES = 8, ROWS = 6;  // 12 sums, 2 weights and 1 input in 16 registers
#endif
constexpr int PANEL = 2 * LANES;
constexpr int64_t AHEAD = 8192;      // bytes: how far ahead of its use a panel is fetched
constexpr int64_t SERIAL = 1 << 14;  // values: less work than this is not worth waking a thread for

typedef float Vector __attribute__((vector_size(LANES * 4), aligned(4)));
typedef int32_t Integers __attribute__((vector_size(LANES * 4)));

Vector& at(float* values) { return *reinterpret_cast<Vector*>(values); }
const Vector& at(const float* values) { return *reinterpret_cast<const Vector*>(values); }
Vector weights(const float* values) { return at(values); }
Vector weights(const int8_t* values) {
#if defined(__AVX512F__)
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values))));
#elif defined(__AVX2__)
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(values))));
#else
  Vector wide;
  for (int lane = 0; lane < LANES; lane++) wide[lane] = values[lane];
  return wide;
#endif
}
Vector broadcast(float value) { return value - Vector{}; }
Vector larger(const Vector& a, const Vector& b) { return a > b ? a : b; }

// The first `count` of a vector's values; all where there are as many.
Vector load(const float* source, int64_t count) {
  if (count >= LANES) return at(source);
  Vector values{};
  if (count > 0) std::memcpy(&values, source, count * sizeof(float));
  return values;
}

void store(const Vector& values, float* target, int64_t count) {
  if (count >= LANES)
    at(target) = values;
  else if (count > 0)
    std::memcpy(target, &values, count * sizeof(float));
}

// Cephes' expf: 2^n times a polynomial in the rest; two units in the last place.
Vector exponential(Vector x) {
  x = larger(x > 88.f ? broadcast(88.f) : x, broadcast(-87.f));
  constexpr float magic = 12582912.f;  // adding it rounds to an integer
  const Vector n = (x * 1.44269504088896341f + magic) - magic;
  const Vector r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Vector p = 1.9875691500e-4f * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  const Integers power = (__builtin_convertvector(n, Integers) + 127) << 23;
  Vector scale;
  std::memcpy(&scale, &power, sizeof scale);
  return p * scale;
}

// What becomes of a row's sums over a panel: y = sums * scale [out] + bias [out] + residual [rows, out], where given.
struct Linear {
  const float *bias, *residual;
  int64_t out;
  const float* scale = nullptr;

  int64_t panels() const { return (out + PANEL - 1) / PANEL; }

  void write(Vector sums[2], float* y, int64_t row, int64_t panel) const {
    for (int half = 0; half < 2; half++) {
      const int64_t first = panel * PANEL + half * LANES, count = out - first;
      if (scale) sums[half] *= load(scale + first, count);
      if (bias) sums[half] += load(bias + first, count);
      if (residual) sums[half] += load(residual + row * out + first, count);
      store(sums[half], y + row * out + first, count);
    }
  }
};

// The same for panels of LANES gates beside LANES values: y = silu(gate) * value.
struct Gated {
  int64_t out;

  int64_t panels() const { return (out + LANES - 1) / LANES; }

  void write(Vector sums[2], float* y, int64_t row, int64_t panel) const {
    const int64_t first = panel * LANES;
    store(sums[0] / (1.f + exponential(-sums[0])) * sums[1], y + row * out + first, out - first);
  }
};

// Fetches weights into the second cache before their use: an input's share of a panel at every so many inputs.
template <class Weight>
struct Fetch {
  const Weight* next;
  int64_t every, wait = 1;

  void operator()() {
    if (--wait) return;
    for (int i = 0; i < PANEL; i += 64 / sizeof(Weight)) __builtin_prefetch(next + i, 0, 2);
    next += PANEL;
    wait = every;
  }
};

template <int M, class Weight, class Target>
void sweep(const float* x, const Weight* weight, int64_t in, float* y, int64_t row, int64_t panel, Fetch<Weight> fetch,
           Target target) {
  Vector sums[M][2] = {};
  for (int64_t k = 0; k < in; k++) {
    const Weight* w = weight + k * PANEL;
    fetch();
    const Vector first = weights(w), second = weights(w + LANES);
    for (int m = 0; m < M; m++) {
      const Vector input = broadcast(x[m * in + k]);
      sums[m][0] += input * first;
      sums[m][1] += input * second;
    }
  }
  for (int m = 0; m < M; m++) target.write(sums[m], y, row + m, panel);
}

template <class Weight, class Target, int M = ROWS>
void sweep_rows(int64_t m, const float* x, const Weight* w, int64_t in, float* y, int64_t row, int64_t panel,
                Fetch<Weight> fetch, Target target) {
  if constexpr (M > 0) {
    if (m == M) return sweep<M>(x, w, in, y, row, panel, fetch, target);
    sweep_rows<Weight, Target, M - 1>(m, x, w, in, y, row, panel, fetch, target);
  }
}

// Panels in order, a share for each thread; who has done his own helps others with theirs. A thread that another process
// interrupts would else keep all waiting.
class PanelQueue {
  struct alignas(64) Next {
    std::atomic<int64_t> panel;
  };
  int64_t panels;
  std::vector<Next> next;

  int64_t begin(int64_t share) const { return panels * share / int64_t(next.size()); }

 public:
  PanelQueue(int64_t panels, int threads) : panels(panels), next(threads) {
    for (int share = 0; share < threads; share++) next[share].panel = begin(share);
  }

  template <class Work>
  void run(int thread, Work work) {
    for (size_t turn = 0; turn < next.size(); turn++) {
      const int64_t share = (thread + turn) % next.size(), end = begin(share + 1);
      for (int64_t panel; (panel = next[share].panel.fetch_add(1, std::memory_order_relaxed)) < end;) work(panel);
    }
  }
};

template <class Weight, class Target>
void multiply(const float* x, const Weight* packed, float* y, int64_t rows, int64_t in, int threads, Target target) {
  const int64_t blocks = (rows + ROWS - 1) / ROWS, block = (rows + blocks - 1) / blocks;
  PanelQueue queue(target.panels(), threads);
#pragma omp parallel num_threads(threads)
  queue.run(omp_get_thread_num(), [&](int64_t panel) {
    for (int64_t row = 0; row < rows; row += block) {
      const Weight* weight = packed + panel * PANEL * in;
      // One sweep over a panel waits for memory; where there are several, each fetches its share of the next panel.
      constexpr int64_t ahead = AHEAD / sizeof(Weight);
      const Fetch<Weight> fetch{weight + (blocks == 1 ? ahead : (in + row / block * (in / blocks)) * PANEL), blocks};
      sweep_rows(std::min(block, rows - row), x + row * in, weight, in, y, row, panel, fetch, target);
    }
  });
}

// y [width] = weight [width] * x / sqrt(mean(x^2) + eps)
void normalize(const float* x, const float* weight, float eps, float* y, int64_t width) {
  Vector sums{};
  int64_t i = 0;
  for (; i + LANES <= width; i += LANES) sums += at(x + i) * at(x + i);
  float squares = 0;
  for (int lane = 0; lane < LANES; lane++) squares += sums[lane];
  for (; i < width; i++) squares += x[i] * x[i];
  const float scale = 1.f / std::sqrt(squares / width + eps);
  for (i = 0; i < width; i++) y[i] = weight[i] * (x[i] * scale);
}

void normalize_rows(const float* x, const float* weight, float eps, float* y, int64_t rows, int64_t width,
                    int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * width > SERIAL)
  for (int64_t row = 0; row < rows; row++) normalize(x + row * width, weight, eps, y + row * width, width);
}

void rotate(const float* x, const float* cos, const float* sin, float* y, int64_t dim) {
  const int64_t half = dim / 2;
  for (int64_t i = 0; i < half; i++) {
    y[i] = x[i] * cos[i] - x[half + i] * sin[i];
    y[half + i] = x[half + i] * cos[half + i] + x[i] * sin[half + i];
  }
}

}  // namespace

extern "C" {

// A decoder layer; weights are packed, what a model lacks is null.
struct Layer {
  const float *input_norm, *qkv, *qkv_bias, *query_norm, *key_norm;
  const float *output, *output_bias, *middle_norm, *gated, *down, *down_bias;
};

// What all layers of a model have in common.
struct Sizes {
  float eps, scaling;
  int64_t hidden, inner, heads, kv_heads, dim;
};

// A pass over batch * n tokens. Layer i keeps its keys in block 2 * i of the pool and its values in the block behind,
// [slots, kv_heads, capacity, dim] each.
struct Pass {
  const float *cos, *sin;         // [batch, n, dim]
  const float* mask;              // [batch, mask_rows, last - first], additive; the first n rows are read
  const int64_t *slots, *rows;    // [batch]; [batch, n]: where the keys and values of each token are kept
  float* pool;
  int64_t batch, n, mask_rows, first, last, pool_slots, capacity;
  int threads;
};

}  // extern "C"

namespace {

struct Decoder {
  const Sizes& size;
  const Pass& pass;
  const int64_t tokens = pass.batch * pass.n, length = pass.last - pass.first, groups = size.heads / size.kv_heads;
  // Query rows that share keys lie side by side in lanes; a chunk is one vector of them.
  const int64_t query_rows = groups * pass.n, chunks = (query_rows + LANES - 1) / LANES;
  std::vector<float> mask = std::vector<float>(pass.batch * chunks * length * LANES);
  std::vector<float> normalized = std::vector<float>(tokens * size.hidden);
  std::vector<float> qkv = std::vector<float>(tokens * (size.heads + 2 * size.kv_heads) * size.dim);
  std::vector<float> attended = std::vector<float>(tokens * size.heads * size.dim);
  std::vector<float> middle = std::vector<float>(tokens * size.hidden);
  std::vector<float> gated = std::vector<float>(tokens * size.inner);

  // [batch, chunks, length, LANES]: turned once for all layers and heads.
  void transpose_mask() {
#pragma omp parallel for schedule(static) num_threads(pass.threads) if (int64_t(mask.size()) > SERIAL)
    for (int64_t chunk = 0; chunk < pass.batch * chunks; chunk++)
      for (int64_t key = 0; key < length; key++)
        for (int64_t lane = 0; lane < LANES; lane++) {
          const int64_t row = chunk % chunks * LANES + lane;
          mask[(chunk * length + key) * LANES + lane] =
              row < query_rows
                  ? pass.mask[(chunk / chunks * pass.mask_rows + row % pass.n) * length + key]
                  : 0.f;
        }
  }

  float* block(int64_t number, int64_t request, int64_t kv_head) const {
    return pass.pool +
           ((number * pass.pool_slots + pass.slots[request]) * size.kv_heads + kv_head) * pass.capacity * size.dim;
  }

  // Normalises and turns a token's queries and keys in place; keeps its keys and values.
  void rotate_and_store(const Layer& layer, int64_t index, int64_t token) {
    const int64_t dim = size.dim, request = token / pass.n, row = pass.rows[token] * dim;
    const float *cos = pass.cos + token * dim, *sin = pass.sin + token * dim;
    float* states = qkv.data() + token * (size.heads + 2 * size.kv_heads) * dim;
    std::vector<float> unturned(dim);
    for (int64_t head = 0; head < size.heads + size.kv_heads; head++) {
      float* here = states + head * dim;
      const float* norm = head < size.heads ? layer.query_norm : layer.key_norm;
      if (norm)
        normalize(here, norm, size.eps, unturned.data(), dim);
      else
        std::memcpy(unturned.data(), here, dim * sizeof(float));
      rotate(unturned.data(), cos, sin, here, dim);
    }
    const float *keys = states + size.heads * dim, *values = keys + size.kv_heads * dim;
    for (int64_t head = 0; head < size.kv_heads; head++) {
      std::memcpy(block(2 * index, request, head) + row, keys + head * dim, dim * sizeof(float));
      std::memcpy(block(2 * index + 1, request, head) + row, values + head * dim, dim * sizeof(float));
    }
  }

  // Where a query row of a key/value head begins in states [batch, n, heads, dim].
  int64_t query_offset(int64_t heads, int64_t request, int64_t kv_head, int64_t row) const {
    return ((request * pass.n + row % pass.n) * heads + kv_head * groups + row / pass.n) * size.dim;
  }

  // A chunk's queries turned [dim, LANES] and scaled; lanes behind the last are zero.
  void gather(float* queries, int64_t request, int64_t kv_head, int64_t chunk) const {
    for (int64_t lane = 0; lane < LANES; lane++) {
      const int64_t row = chunk * LANES + lane;
      const float* source = &qkv[row < query_rows ? query_offset(size.heads + 2 * size.kv_heads, request, kv_head, row) : 0];
      const float scaling = row < query_rows ? size.scaling : 0.f;
      for (int64_t i = 0; i < size.dim; i++) queries[i * LANES + lane] = source[i] * scaling;
    }
  }

  // scores [length, LANES] of a chunk's queries, KEYS keys at a time; returns the largest of each lane.
  Vector score(const float* queries, const float* keys, const float* mask, float* scores) const {
    constexpr int KEYS = 8;
    Vector largest = broadcast(-std::numeric_limits<float>::infinity());
    for (int64_t key = 0; key < length; key += KEYS) {
      const int64_t count = std::min<int64_t>(KEYS, length - key);
      const float* row[KEYS];
      for (int k = 0; k < KEYS; k++) row[k] = keys + (key + std::min<int64_t>(k, count - 1)) * size.dim;
      Vector sums[KEYS] = {};
      for (int64_t i = 0; i < size.dim; i++)
        for (int k = 0; k < KEYS; k++) sums[k] += at(queries + i * LANES) * broadcast(row[k][i]);
      for (int k = 0; k < count; k++) {
        sums[k] += at(mask + (key + k) * LANES);
        at(scores + (key + k) * LANES) = sums[k];
        largest = larger(largest, sums[k]);
      }
    }
    return largest;
  }

  // The sum of the values, weighted, of BLOCK of a chunk's rows.
  template <int BLOCK>
  void mix(const float* weights, const float* values, int64_t column, Vector (&sums)[BLOCK][2]) const {
    const int64_t rest = size.dim - column;
    for (int64_t key = 0; key < length; key++) {
      const float* value = values + key * size.dim + column;
      const Vector first = load(value, rest), second = load(value + LANES, rest - LANES);
      for (int row = 0; row < BLOCK; row++) {
        const Vector weight = broadcast(weights[key * LANES + row]);
        sums[row][0] += weight * first;
        sums[row][1] += weight * second;
      }
    }
  }

  void attend(int64_t index, int64_t request, int64_t kv_head, int64_t chunk, float* queries, float* scores) {
    const float* keys = block(2 * index, request, kv_head) + pass.first * size.dim;
    const float* values = block(2 * index + 1, request, kv_head) + pass.first * size.dim;
    gather(queries, request, kv_head, chunk);
    const Vector largest = score(queries, keys, mask.data() + (request * chunks + chunk) * length * LANES, scores);
    Vector total{};
    for (int64_t key = 0; key < length; key++) {
      at(scores + key * LANES) = exponential(at(scores + key * LANES) - largest);
      total += at(scores + key * LANES);
    }
    constexpr int BLOCK = 4;
    const int64_t rows = std::min<int64_t>(LANES, query_rows - chunk * LANES);
    for (int64_t row = 0; row < rows; row += BLOCK)
      for (int64_t column = 0; column < size.dim; column += PANEL) {
        Vector sums[BLOCK][2] = {};
        mix<BLOCK>(scores + row, values, column, sums);
        for (int64_t r = row; r < std::min(rows, row + BLOCK); r++)
          for (int64_t half = column; half < std::min(size.dim, column + PANEL); half += LANES)
            store(sums[r - row][half > column] / total[r],
                  &attended[query_offset(size.heads, request, kv_head, chunk * LANES + r) + half], size.dim - half);
      }
  }

  void attend_all(int64_t index) {
    const int64_t tasks = pass.batch * size.kv_heads * chunks;
#pragma omp parallel num_threads(pass.threads) if (tasks * length * size.dim > SERIAL)
    {
      std::vector<float> queries(size.dim * LANES), scores(length * LANES);
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < tasks; task++)
        attend(index, task / chunks / size.kv_heads, task / chunks % size.kv_heads, task % chunks, queries.data(),
               scores.data());
    }
  }

  void run(const Layer& layer, int64_t index, const float* input, float* output) {
    const int64_t qkv_size = (size.heads + 2 * size.kv_heads) * size.dim, attended_size = size.heads * size.dim;
    const int threads = pass.threads;
    normalize_rows(input, layer.input_norm, size.eps, normalized.data(), tokens, size.hidden, threads);
    multiply(normalized.data(), layer.qkv, qkv.data(), tokens, size.hidden, threads,
             Linear{layer.qkv_bias, nullptr, qkv_size});
#pragma omp parallel for schedule(static) num_threads(threads) if (tokens * qkv_size > SERIAL)
    for (int64_t token = 0; token < tokens; token++) rotate_and_store(layer, index, token);
    attend_all(index);
    multiply(attended.data(), layer.output, middle.data(), tokens, attended_size, threads,
             Linear{layer.output_bias, input, size.hidden});
    normalize_rows(middle.data(), layer.middle_norm, size.eps, normalized.data(), tokens, size.hidden, threads);
    multiply(normalized.data(), layer.gated, gated.data(), tokens, size.hidden, threads, Gated{size.inner});
    multiply(gated.data(), layer.down, output, tokens, size.inner, threads,
             Linear{layer.down_bias, middle.data(), size.hidden});
  }
};

}  // namespace

extern "C" {

int64_t entmtp_panel() { return PANEL; }

// weight [out, in] -> packed [panels, in, PANEL], zeros behind the last output. With values [out, in] beside it,
// panels are turns of LANES outputs of each: what a gated product wants.
void entmtp_pack(const float* weight, const float* values, float* packed, int64_t out, int64_t in, int threads) {
  const int64_t width = values ? LANES : PANEL, panels = (out + width - 1) / width;
#if defined(MADV_HUGEPAGE)
  // Weights are read from end to end: with small pages, a tenth of that time goes into looking up their addresses.
  constexpr uintptr_t huge = 1 << 21;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(packed) + huge - 1) / huge * huge;
  const uintptr_t last = reinterpret_cast<uintptr_t>(packed + panels * PANEL * in) / huge * huge;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
  const std::vector<float> zeros(in);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t panel = 0; panel < panels; panel++) {
    const float* sources[PANEL];
    for (int64_t i = 0; i < PANEL; i++) {
      const int64_t row = panel * width + i % width;
      sources[i] = row < out ? (i < width ? weight : values) + row * in : zeros.data();
    }
    float* target = packed + panel * PANEL * in;
    for (int64_t k = 0; k < in; k++)
      for (int64_t i = 0; i < PANEL; i++) target[k * PANEL + i] = sources[i][k];
  }
}

// packed [panels, in, PANEL] -> quantized, the same in bytes: packed is about quantized * scale [out].
void entmtp_quantize(const float* packed, const float* scale, int8_t* quantized, int64_t out, int64_t in, int threads) {
  const int64_t panels = (out + PANEL - 1) / PANEL;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t panel = 0; panel < panels; panel++)
    for (int64_t k = 0; k < in; k++)
      for (int64_t i = 0; i < PANEL; i++) {
        const int64_t row = panel * PANEL + i, at = (panel * in + k) * PANEL + i;
        quantized[at] = row < out ? static_cast<int8_t>(std::lrintf(packed[at] / scale[row])) : 0;
      }
}

// y [rows, out] = x [rows, in] times a weight in bytes * scale [out], + bias [out] where there is one.
void entmtp_int8_linear(const float* x, const int8_t* quantized, const float* scale, const float* bias, float* y,
                          int64_t rows, int64_t out, int64_t in, int threads) {
  multiply(x, quantized, y, rows, in, threads, Linear{bias, nullptr, out, scale});
}

// y [rows, out] = x [rows, in] times the packed weight, + bias [out] where there is one.
void entmtp_linear(const float* x, const float* packed, const float* bias, float* y, int64_t rows, int64_t out,
                   int64_t in, int threads) {
  multiply(x, packed, y, rows, in, threads, Linear{bias, nullptr, out});
}

// states [batch, n, hidden] through all layers, in place.
void entmtp_layers(const Layer* layers, int64_t count, const Sizes* sizes, const Pass* pass, float* states) {
  Decoder decoder{*sizes, *pass};
  decoder.transpose_mask();
  for (int64_t index = 0; index < count; index++) decoder.run(layers[index], index, states, states);
}

}  // extern "C"
