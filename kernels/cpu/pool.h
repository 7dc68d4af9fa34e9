// Threads that work on one job together.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace braid {

// One turn of waiting for another thread, the `spins`th.
void relax(int spins);

// The caller of `run` is thread 0. One job at a time: callers of a shared pool wait for each other. Workers spin for a
// short while after a job, because the next token usually follows, and then sleep.
class Pool {
public:
    explicit Pool(int num_threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    // The pool of this size, shared by all models that want one; it ends with its last user.
    static std::shared_ptr<Pool> shared(int num_threads);

    int num_threads() const { return num_threads_; }
    // Returns when the job has returned on every thread.
    void run(const std::function<void(int thread)>& job);

private:
    void barrier();
    void work(int thread);
    uint64_t wait_for_job(uint64_t seen);

    const int num_threads_;
    std::vector<std::thread> workers_;
    std::mutex turn_;
    std::mutex sleep_;
    std::condition_variable wake_;
    const std::function<void(int)>* job_ = nullptr;
    bool stopping_ = false;
    alignas(64) std::atomic<uint64_t> job_number_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
};

}  // namespace braid
