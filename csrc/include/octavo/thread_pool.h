// A fixed set of threads that share loops.
//
// Workers sleep on a condition variable while nobody is inside a Session. Inside one (a step of the engine)
// they spin between loops, because a step is hundreds of loops of tens of microseconds; they sleep again when
// the session ends, or when a loop does not come for about a millisecond. So an idle engine burns no core,
// and torch's own threads are never fought.
#pragma once
#include <cstdint>
#include <functional>

namespace octavo {

class ThreadPool {
 public:
  // num_threads counts the calling thread: 1 starts no worker.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const;

  // Calls body(begin, end, thread) on disjoint ranges that cover [0, count), each a multiple of `grain` long
  // (but for the last), and returns when all are done. Ranges are handed out on demand, so uneven work
  // balances. Runs inline if count <= grain. Not reentrant. What a body throws is thrown here, once all have stopped.
  void parallel_for(int64_t count, int64_t grain,
                    const std::function<void(int64_t begin, int64_t end, int thread)>& body);

  // Keeps workers awake while it lives.
  class Session {
   public:
    explicit Session(ThreadPool& pool);
    ~Session();

   private:
    ThreadPool& pool_;
  };

 private:
  struct State;
  State* state_;
};

}  // namespace octavo
