#include "pool.h"

#include <immintrin.h>
#include <sched.h>

#include <chrono>
#include <map>

namespace braid {
namespace {

constexpr int kSpinsBeforeYield = 50;  // half a microsecond: where cores are few, the other thread may need this one
// Longer than the engine takes between two steps of a large batch: waking a sleeping thread costs 50 us.
constexpr auto kAwakeAfterJob = std::chrono::milliseconds(2);

}  // namespace

void relax(int spins) {
    if (spins < kSpinsBeforeYield)
        _mm_pause();
    else
        sched_yield();
}

Pool::Pool(int num_threads) : num_threads_(num_threads) {
    for (int thread = 1; thread < num_threads; thread++) workers_.emplace_back([this, thread] { work(thread); });
}

Pool::~Pool() {
    {
        std::lock_guard<std::mutex> lock(sleep_);
        stopping_ = true;
        job_number_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

std::shared_ptr<Pool> Pool::shared(int num_threads) {
    static std::mutex mutex;
    static std::map<int, std::weak_ptr<Pool>> pools;
    std::lock_guard<std::mutex> lock(mutex);
    std::shared_ptr<Pool> pool = pools[num_threads].lock();
    if (!pool) pools[num_threads] = pool = std::make_shared<Pool>(num_threads);
    return pool;
}

void Pool::run(const std::function<void(int)>& job) {
    std::lock_guard<std::mutex> turn(turn_);
    {
        std::lock_guard<std::mutex> lock(sleep_);
        job_ = &job;
        job_number_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    job(0);
    barrier();
}

void Pool::barrier() {
    if (num_threads_ == 1) return;
    const uint32_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == num_threads_ - 1) {
        arrived_.store(0, std::memory_order_relaxed);
        phase_.store(phase + 1, std::memory_order_release);
        return;
    }
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; spins++) relax(spins);
}

uint64_t Pool::wait_for_job(uint64_t seen) {
    using Clock = std::chrono::steady_clock;
    const auto sleep_at = Clock::now() + kAwakeAfterJob;
    for (int spins = 0; job_number_.load(std::memory_order_acquire) == seen; spins++) {
        relax(spins);
        if (spins % 64 == 63 && Clock::now() > sleep_at) {
            std::unique_lock<std::mutex> lock(sleep_);
            wake_.wait(lock, [&] { return job_number_.load(std::memory_order_relaxed) != seen; });
            break;
        }
    }
    return job_number_.load(std::memory_order_acquire);
}

void Pool::work(int thread) {
    for (uint64_t seen = 0;;) {
        seen = wait_for_job(seen);
        if (stopping_) return;
        (*job_)(thread);
        barrier();
    }
}

}  // namespace braid
