// The scratch memory of one forward step.
#pragma once
#include <atomic>

#include "activations.h"
#include "attention.h"
#include "model.h"
#include "phases.h"

namespace braid {

// Hands out pieces of a block of memory, each on a cache line of its own; with a null base it only counts.
class Carver {
public:
    explicit Carver(uint8_t* base) : base_(base) {}
    template <class T>
    T* take(size_t count) {
        uint8_t* at = base_ ? base_ + used_ : nullptr;
        used_ += (count * sizeof(T) + 63) / 64 * 64;
        return reinterpret_cast<T*>(at);
    }
    Codes take_codes(size_t tokens, size_t groups) {
        uint8_t* codes = take<uint8_t>(Activations::codes_bytes(tokens, groups));
        return {codes, take<float>(Activations::scales_bytes(tokens, groups) / sizeof(float))};
    }
    Activations take_activations(size_t tokens, size_t columns, bool exact) {
        Activations made;
        made.num_tokens = static_cast<int>(tokens);
        made.groups = static_cast<int>(columns / kGroup);
        made.coarse = take_codes(tokens, made.groups);
        if (exact) made.fine = take_codes(tokens, made.groups);
        return made;
    }
    size_t used() const { return used_; }

private:
    uint8_t* base_;
    size_t used_ = 0;
};

struct PlanSizes {
    size_t counters = 0;         // one per query tile and head group
    size_t partial_queries = 0;  // queries x chunks whose partial results are kept
    int phases = 0;              // at most; see Step::run
};

struct Workspace {
    float* hidden;     // (num_tokens, hidden_size), the residual stream
    float* projected;  // (num_tokens, hidden_size), where norms follow the projections
    float* queries;    // (num_tokens, num_heads * head_dim), scaled
    float* attended;   // (num_tokens, num_heads * head_dim)
    float* rotation;   // (num_tokens, 2 or 4, head_dim / 2): cos and sin, then those of sliding layers
    float* partials;       // (partial_queries, head_dim)
    float* partial_sums;   // (partial_queries, 2): largest score and sum
    std::atomic<int>* counters;
    uint8_t* phases;  // see Phases
    Activations normed, attended_codes, gated, final_normed;
    std::vector<Activations> own;  // one token's activations for each thread

    // Lays everything out from `base` and returns the bytes used; `base` null only counts.
    size_t lay_out(uint8_t* base, const Model& model, size_t num_tokens, size_t num_logits, PlanSizes plan) {
        const BraidConfig& c = model.config;
        const size_t heads = size_t(c.num_heads) * c.head_dim;
        Carver carver(base);
        hidden = carver.take<float>(num_tokens * c.hidden_size);
        projected = carver.take<float>(model.has_post_norms() ? num_tokens * c.hidden_size : 0);
        queries = carver.take<float>(num_tokens * heads);
        attended = carver.take<float>(num_tokens * heads);
        rotation = carver.take<float>(num_tokens * c.head_dim * (model.local_frequencies.empty() ? 1 : 2));
        partials = carver.take<float>(plan.partial_queries * c.head_dim);
        partial_sums = carver.take<float>(plan.partial_queries * 2);
        counters = carver.take<std::atomic<int>>(plan.counters);
        phases = carver.take<uint8_t>(Phases::bytes(plan.phases, model.pool->num_threads()));
        normed = carver.take_activations(num_tokens, c.hidden_size, c.exact);
        attended_codes = carver.take_activations(num_tokens, heads, c.exact);
        gated = carver.take_activations(num_tokens, c.intermediate_size, c.exact);
        final_normed = carver.take_activations(num_logits, c.hidden_size, c.exact);
        own.resize(model.pool->num_threads());
        for (Activations& mine : own) mine = carver.take_activations(1, std::max<size_t>(c.hidden_size, heads), c.exact);
        return carver.used();
    }
};

}  // namespace braid
