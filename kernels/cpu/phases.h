// The phases of a step, and how threads share the work of each.
#pragma once
#include <atomic>
#include <cstdint>

#include "pool.h"

namespace braid {

// Every thread goes through the same phases in the same order. In each it takes pieces of its own share of the units,
// then what others have left of theirs, and goes on when all units are done. So a thread that the system has put aside
// holds up nobody, unless it has a piece in hand. Who did what makes no difference to the results.
class Phases {
public:
    static size_t bytes(int num_phases, int num_threads) { return num_phases * (num_threads + 1) * sizeof(Counter); }

    // `memory` holds `bytes` bytes, aligned to 64; all its counters are reset.
    Phases(uint8_t* memory, int num_phases, int num_threads)
        : counters_(reinterpret_cast<Counter*>(memory)), num_threads_(num_threads) {
        for (int i = 0; i < num_phases * (num_threads + 1); i++) counters_[i].value.store(0, std::memory_order_relaxed);
    }

    int num_threads() const { return num_threads_; }

    // The first unit of a thread's own share.
    int first_unit(int units, int thread) const { return static_cast<int>(int64_t(units) * thread / num_threads_); }

    // Runs work(begin, end) on pieces of units until all of phase number `phase` are done, here or elsewhere; what was
    // written for them is visible then.
    template <class Work>
    void run(int phase, int thread, int units, int units_per_piece, const Work& work) {
        Counter* counters = counters_ + phase * (num_threads_ + 1);
        std::atomic<int>& done = counters[num_threads_].value;
        for (int i = 0; i < num_threads_ && done.load(std::memory_order_relaxed) < units; i++) {
            const int owner = (thread + i) % num_threads_;
            const int finished = run_share(counters[owner].value, first_unit(units, owner),
                                           first_unit(units, owner + 1), units_per_piece, work);
            if (finished) done.fetch_add(finished, std::memory_order_acq_rel);
        }
        for (int spins = 0; done.load(std::memory_order_acquire) < units; spins++) relax(spins);
    }

private:
    struct alignas(64) Counter {
        std::atomic<int> value;
    };

    template <class Work>
    static int run_share(std::atomic<int>& taken, int begin, int end, int units_per_piece, const Work& work) {
        int finished = 0;
        while (begin + taken.load(std::memory_order_relaxed) < end) {
            const int first = begin + taken.fetch_add(units_per_piece, std::memory_order_relaxed);
            if (first >= end) break;
            const int last = first + units_per_piece < end ? first + units_per_piece : end;
            work(first, last);
            finished += last - first;
        }
        return finished;
    }

    Counter* counters_;
    int num_threads_;
};

}  // namespace braid
