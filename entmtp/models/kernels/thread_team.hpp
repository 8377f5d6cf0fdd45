// Threads that work through the phases of a pass together.
//
// A phase is a number of tasks, and it ends when all of them are done. There is no barrier: a thread that comes late
// finds its tasks done and goes on. So a preempted thread stalls the others only while it has a task. With a barrier
// for each phase, another process on one core would make a pass a hundred times as long.

#pragma once

#include <omp.h>

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

// The counters of a pass's phases: for each, the next task of each thread's range, then the number of tasks done.
class Phases {
  struct alignas(64) Counter {
    std::atomic<int64_t> value;
  };
  std::vector<Counter> counters;  // [phases, threads + 1]

 public:
  const int threads;

  Phases(int64_t phases, int threads) : counters(phases * (threads + 1)), threads(threads) {}
  std::atomic<int64_t>& next(int64_t phase, int range) { return counters[phase * (threads + 1) + range].value; }
  std::atomic<int64_t>& done(int64_t phase) { return next(phase, threads); }
};

// A thread's part in a pass. All workers of a pass run the same phases in the same order.
class Worker {
  static constexpr int SPINS = 1000;  // checks, some tens of microseconds, before other processes get the core

  Phases& phases;
  const int thread;
  int64_t phase = 0;

  static void wait(const std::atomic<int64_t>& done, int64_t tasks) {
    for (int spin = 0; done.load(std::memory_order_acquire) < tasks; spin++) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
      if (spin >= SPINS) std::this_thread::yield();
    }
  }

 public:
  Worker(Phases& phases, int thread) : phases(phases), thread(thread) {}

  // Does the tasks of the next phase together with the other workers; returns when all of them are done. Each worker has
  // a contiguous range of tasks. After its own range it steals from the others.
  template <class Work>
  void run(int64_t tasks, Work work) {
    std::atomic<int64_t>& done = phases.done(phase);
    int64_t finished = 0;
    for (int turn = 0; turn < phases.threads; turn++) {
      const int range = (thread + turn) % phases.threads;
      const int64_t begin = tasks * range / phases.threads, end = tasks * (range + 1) / phases.threads;
      std::atomic<int64_t>& next = phases.next(phase, range);
      for (int64_t task; (task = begin + next.fetch_add(1, std::memory_order_relaxed)) < end; finished++) work(task);
    }
    done.fetch_add(finished, std::memory_order_release);
    wait(done, tasks);
    phase++;
  }
};

// Runs `program(worker)` in every thread. It has at most `phases` phases.
template <class Program>
void run_team(int threads, int64_t phases, Program program) {
  Phases counters(phases, threads);
#pragma omp parallel num_threads(threads)
  {
    Worker worker(counters, omp_get_thread_num());
    program(worker);
  }
}

}  // namespace
