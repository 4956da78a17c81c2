// Shares a loop among threads without waiting for a thread that is late.
//
//   caller                               worker
//   ------                               ------
//   write the loop's fields              inside += 1
//   open = true                          if open: take ranges until none are left
//   take ranges until none are left      inside -= 1
//   open = false
//   wait until inside == 0
//
// All of these are sequentially consistent, so either the caller sees the worker inside and waits, or the
// worker sees the loop closed and leaves. Nobody waits for a worker that sleeps or
// that the system has descheduled: the others take its share.
#include "octavo/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace octavo {
namespace {

using Clock = std::chrono::steady_clock;
using Body = std::function<void(int64_t, int64_t, int)>;

constexpr auto kSpinTime = std::chrono::milliseconds(1);
constexpr int kSpinsPerClockRead = 64;
constexpr int kSpinsBeforeYield = 2000;  // reached only if there are more threads than cores

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

struct ThreadPool::State {
  // The loop; written by the caller while `open` is false and nobody is inside.
  const Body* body = nullptr;
  int64_t grain = 1;
  std::atomic<int64_t> count{0};  // atomic: workers outside the loop check whether any of it is left

  // Each on its own cache line: `open` is polled, the other two are contended.
  alignas(64) std::atomic<bool> open{false};
  alignas(64) std::atomic<int64_t> next{0};
  alignas(64) std::atomic<int> inside{0};
  alignas(64) std::atomic<int> sessions{0};
  std::atomic<int> asleep{0};
  std::atomic<bool> stopping{false};

  std::mutex fault_mutex;
  std::exception_ptr fault;  // the first that a body of this loop threw

  std::mutex mutex;
  std::condition_variable wake;
  std::vector<std::thread> workers;

  int num_threads() const { return static_cast<int>(workers.size()) + 1; }

  // Large ranges first, then smaller ones: few hand-outs, and all threads finish at about the same time.
  bool take(int64_t& begin, int64_t& end) {
    const int64_t total = count.load(std::memory_order_relaxed);
    begin = next.load(std::memory_order_relaxed);
    do {
      if (begin >= total) return false;
      const int64_t grains = (total - begin) / (grain * 2 * num_threads());
      end = std::min(total, begin + grain * std::max<int64_t>(1, grains));
    } while (!next.compare_exchange_weak(begin, end));
    return true;
  }

  // A body may throw for lack of memory. The caller gets the exception once all others have left; ranges that
  // have not been taken are dropped.
  void run_ranges(int thread) {
    try {
      int64_t begin, end;
      while (take(begin, end)) (*body)(begin, end, thread);
    } catch (...) {
      next.store(count.load());
      std::lock_guard<std::mutex> lock(fault_mutex);
      if (!fault) fault = std::current_exception();
    }
  }

  void join_loop(int thread) {
    inside.fetch_add(1);
    if (open.load()) run_ranges(thread);
    inside.fetch_sub(1);
  }

  bool has_work() const { return open.load() && next.load() < count.load(); }

  // Spins while a session lives and loops keep coming. Returns at once when there is work.
  void spin() {
    auto deadline = Clock::now() + kSpinTime;
    while (sessions.load(std::memory_order_relaxed) > 0 && !stopping.load(std::memory_order_relaxed)) {
      for (int i = 0; i < kSpinsPerClockRead; ++i) {
        if (has_work()) return;
        relax();
      }
      if (Clock::now() > deadline) return;
    }
  }

  void sleep() {
    std::unique_lock<std::mutex> lock(mutex);
    const int sessions_before = sessions.load();
    asleep.fetch_add(1);
    wake.wait(lock, [&] { return has_work() || stopping.load() || sessions.load() > sessions_before; });
    asleep.fetch_sub(1);
  }

  void wake_all() {
    if (asleep.load() == 0) return;
    { std::lock_guard<std::mutex> lock(mutex); }
    wake.notify_all();
  }

  void worker(int thread) {
    while (!stopping.load()) {
      spin();
      if (!has_work()) sleep();
      join_loop(thread);
    }
  }
};

ThreadPool::ThreadPool(int num_threads) : state_(new State) {
  // Workers read the number of threads, so they start only once the vector is complete.
  std::lock_guard<std::mutex> lock(state_->mutex);
  for (int thread = 1; thread < num_threads; ++thread) {
    state_->workers.emplace_back([state = state_, thread] {
      { std::lock_guard<std::mutex> started(state->mutex); }
      state->worker(thread);
    });
  }
}

ThreadPool::~ThreadPool() {
  state_->stopping.store(true);
  { std::lock_guard<std::mutex> lock(state_->mutex); }
  state_->wake.notify_all();
  for (auto& worker : state_->workers) worker.join();
  delete state_;
}

int ThreadPool::num_threads() const { return state_->num_threads(); }

void ThreadPool::parallel_for(int64_t count, int64_t grain, const Body& body) {
  if (count <= 0) return;
  State& state = *state_;
  if (count <= grain || state.workers.empty()) {
    body(0, count, 0);
    return;
  }
  state.body = &body;
  state.grain = std::max<int64_t>(1, grain);
  state.count.store(count);
  state.next.store(0);
  state.open.store(true);
  state.wake_all();
  state.run_ranges(0);
  state.open.store(false);
  for (int spins = 0; state.inside.load() > 0; ++spins) {
    if (spins < kSpinsBeforeYield) {
      relax();
    } else {
      std::this_thread::yield();
    }
  }
  if (state.fault) std::rethrow_exception(std::exchange(state.fault, nullptr));
}

ThreadPool::Session::Session(ThreadPool& pool) : pool_(pool) {
  pool_.state_->sessions.fetch_add(1);
  pool_.state_->wake_all();
}

ThreadPool::Session::~Session() { pool_.state_->sessions.fetch_sub(1); }

}  // namespace octavo
