// Products of a few float32 rows with packed weights.
//
// A step of few rows takes as long as reading the weights. So the weights are packed in the order in which they are
// read: panels of PANEL outputs, [panel][in][PANEL]. One sweep over a panel computes up to ROWS rows at once, and their
// sums stay in registers. Every sum is one chain of fused multiply-adds in the order of the inputs, for any number of
// rows. So the product of a row has the same bits alone and in a batch.

#pragma once

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

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 12;  // 24 sums, 2 weights and 1 input in 32 registers
#else
constexpr int LANES = 8, ROWS = 6;  // 12 sums, 2 weights and 1 input in 16 registers
#endif
constexpr int PANEL = 2 * LANES;
constexpr int64_t AHEAD = 8192;      // bytes by which the prefetch of a panel is ahead of its use
constexpr int64_t SERIAL = 1 << 14;  // values; with less work than this, starting a thread costs more than it saves

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

// Loads the first `count` values of a vector, at most LANES; the others are zero.
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

// Cephes' expf: 2^n times a polynomial in the remainder. The error is at most two units in the last place.
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

// Epilogue of a linear layer: y = sums * scale [out] + bias [out] + residual [rows, out], each where given.
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

// Epilogue of a gated layer, whose panels are LANES gates followed by LANES values: y = silu(gate) * value.
struct Gated {
  int64_t out;

  int64_t panels() const { return (out + LANES - 1) / LANES; }

  void write(Vector sums[2], float* y, int64_t row, int64_t panel) const {
    const int64_t first = panel * LANES;
    store(sums[0] / (1.f + exponential(-sums[0])) * sums[1], y + row * out + first, out - first);
  }
};

// Prefetches weights into the L2 cache before their use: one input of a panel in every `every` inputs.
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

// Distributes panels over threads, a contiguous range for each. A thread that has finished its range steals panels from
// the others, so that a preempted thread does not stall the rest.
class PanelQueue {
  struct alignas(64) Next {
    std::atomic<int64_t> panel;
  };
  int64_t panels;
  std::vector<Next> next;

  int64_t begin(int64_t range) const { return panels * range / int64_t(next.size()); }

 public:
  PanelQueue(int64_t panels, int threads) : panels(panels), next(threads) {
    for (int range = 0; range < threads; range++) next[range].panel = begin(range);
  }

  template <class Work>
  void run(int thread, Work work) {
    for (size_t turn = 0; turn < next.size(); turn++) {
      const int64_t range = (thread + turn) % next.size(), end = begin(range + 1);
      for (int64_t panel; (panel = next[range].panel.fetch_add(1, std::memory_order_relaxed)) < end;) work(panel);
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
      // A single sweep prefetches AHEAD bytes ahead. Of several sweeps, each prefetches a part of the next panel.
      constexpr int64_t ahead = AHEAD / sizeof(Weight);
      const Fetch<Weight> fetch{weight + (blocks == 1 ? ahead : (in + row / block * (in / blocks)) * PANEL), blocks};
      sweep_rows(std::min(block, rows - row), x + row * in, weight, in, y, row, panel, fetch, target);
    }
  });
}

}  // namespace
