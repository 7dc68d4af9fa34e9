#include "attention.h"

#include <algorithm>

namespace braid {
namespace {

constexpr int kBlocks = kChunkTokens / kPageTokens;

// The pages of a chunk that some query of the tile sees: blocks begin .. end - 1.
struct Span {
    int begin, end;
};

// A page's share of one head.
struct Block {
    const float* key_scales;
    const float* value_scales;
    const int16_t* keys;
    const int16_t* values;
    const int16_t* next_keys;  // of the page one chunk later, or the same again
};

Span visible_blocks(const QueryTile& tile, int chunk) {
    const int first = *std::min_element(tile.first, tile.first + tile.size);
    const int last = *std::max_element(tile.last, tile.last + tile.size);
    const int start = chunk * kChunkTokens;
    return {std::max(0, (first - start) / kPageTokens), std::min(kBlocks, (last - start) / kPageTokens + 1)};
}


// Keys and values are read once a step, from all over memory, so each pass fetches what the next one reads: scores fetch
// the values of their blocks, values the keys of the same blocks of the next chunk.
[[gnu::always_inline]] inline void prefetch(const void* address) {
    _mm_prefetch(static_cast<const char*>(address), _MM_HINT_T0);
}

// sum[r][b] += one channel of R queries times that of B blocks of keys.
template <int R, int B>
[[gnu::always_inline]] inline void add_channel(const float* queries, const Block* blocks, int d, Floats (*sum)[B]) {
    Floats key[B];
#pragma GCC unroll 4
    for (int b = 0; b < B; b++) {
        key[b] = load_int16(blocks[b].keys + d * kPageTokens);
        if (d % 2 == 0) prefetch(blocks[b].values + d * kPageTokens);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
#pragma GCC unroll 4
        for (int b = 0; b < B; b++) sum[r][b] = fma(splat(queries[d * R + r]), key[b], sum[r][b]);
    }
}

// scores[r][16 * b ..] of B blocks at once; each score adds up its products in the order of the head's channels, those
// that share a scale first.
template <int R, int B>
void score_blocks(const float* queries, const Block* blocks, int head_dim, float* scores) {
    Floats score[R][B], sum[R][B];
    const auto clear = [](Floats(*all)[B]) {
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
#pragma GCC unroll 4
            for (int b = 0; b < B; b++) all[r][b] = zeros();
        }
    };
    clear(score);
    for (int first = 0; first < head_dim; first += kKeyGroup) {
        clear(sum);
        const int end = std::min(head_dim, first + kKeyGroup);
        for (int d = first; d < end; d++) add_channel<R, B>(queries, blocks, d, sum);
#pragma GCC unroll 4
        for (int b = 0; b < B; b++) {
            const Floats scale = load(blocks[b].key_scales + first / kKeyGroup * kPageTokens);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) score[r][b] = fma(sum[r][b], scale, score[r][b]);
        }
    }
#pragma GCC unroll 4
    for (int b = 0; b < B; b++) {
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) store(scores + r * kChunkTokens + b * kPageTokens, score[r][b]);
    }
}

template <int R>
void score_chunk(const QueryTile& tile, const Block* blocks, int head_dim, Span span, float* scores) {
    constexpr int B = R <= 3 ? 4 : 2;
    int b = span.begin;
    for (; b + B <= span.end; b += B)
        score_blocks<R, B>(tile.values, blocks + b, head_dim, scores + b * kPageTokens);
    for (; b < span.end; b++) score_blocks<R, 1>(tile.values, blocks + b, head_dim, scores + b * kPageTokens);
}

// Turns one query's scores into the weights of the stored values: exponentials, 0 where it does not see the key, times
// the values' scales.
void weigh(float* scores, const Block* blocks, int start, Span span, int first, int last, Partial* partial) {
    const Floats hidden = splat(kMinusInfinity);
    Floats largest = hidden;
    for (int b = span.begin; b < span.end; b++) {
        const Floats position = splat(static_cast<float>(start + b * kPageTokens)) + iota();
        Floats score = load(scores + b * kPageTokens);
        score = where_le(position, splat(static_cast<float>(last)), score, hidden);
        score = where_le(splat(static_cast<float>(first)), position, score, hidden);
        store(scores + b * kPageTokens, score);
        largest = max(largest, score);
    }
    partial->largest = max_lanes(largest);
    const Floats shift = splat(std::max(partial->largest, -1e30f));  // finite where nothing is seen
    Floats sum = zeros();
    for (int b = span.begin; b < span.end; b++) {
        const Floats weight = exp(load(scores + b * kPageTokens) - shift);
        store(scores + b * kPageTokens, weight * load(blocks[b].value_scales));
        sum = sum + weight;
    }
    partial->sum = sum_lanes(sum);
}

// values[r][v ..] = sum over the chunk's keys, in order, of weight * value; V vectors of the head at once.
template <int R, int V>
void add_values(const float* weights, const Block* blocks, Span span, int keys_in_last, int head_dim, int v,
                  Partial* partials) {
    Floats sum[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
#pragma GCC unroll 4
        for (int i = 0; i < V; i++) sum[r][i] = zeros();
    }
    for (int b = span.begin; b < span.end; b++) {
        const int16_t* value = blocks[b].values + v * kLanes;
        const float* weight = weights + b * kPageTokens;
        const int keys = b == span.end - 1 ? keys_in_last : kPageTokens;
        for (int j = 0; j < keys; j++, value += head_dim, weight++) {
            if (v == 0)
                for (int i = 0; i < head_dim; i += 32) prefetch(blocks[b].next_keys + j * head_dim + i);
            Floats x[V];
#pragma GCC unroll 4
            for (int i = 0; i < V; i++) x[i] = load_int16(value + i * kLanes);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                const Floats w = splat(weight[r * kChunkTokens]);
#pragma GCC unroll 4
                for (int i = 0; i < V; i++) sum[r][i] = fma(w, x[i], sum[r][i]);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
#pragma GCC unroll 4
        for (int i = 0; i < V; i++) store(partials[r].values + (v + i) * kLanes, sum[r][i]);
    }
}

template <int R>
void attend(const QueryTile& tile, const KeyValues& cache, int chunk, Partial* partials) {
    const int start = chunk * kChunkTokens;
    const Span span = visible_blocks(tile, chunk);
    alignas(64) float scores[R * kChunkTokens];
    Block blocks[kBlocks];
    const int last = *std::max_element(tile.last, tile.last + R);
    for (int b = span.begin; b < span.end; b++) {
        const int page = chunk * kBlocks + b, next = page + kBlocks;
        blocks[b] = {cache.key_scales(page), cache.value_scales(page), cache.keys(page), cache.values(page),
                     cache.keys(next * kPageTokens <= last ? next : page)};
    }
    score_chunk<R>(tile, blocks, cache.head_dim, span, scores);
    for (int r = 0; r < R; r++)
        weigh(scores + r * kChunkTokens, blocks, start, span, tile.first[r], tile.last[r], &partials[r]);

    // Slots after the last visible key have never been written: they may hold anything.
    const int keys_in_last = std::min(kPageTokens, last - start - (span.end - 1) * kPageTokens + 1);
    constexpr int V = R <= 4 ? 4 : 2;
    const int vectors = cache.head_dim / kLanes;
    int v = 0;
    for (; v + V <= vectors; v += V)
        add_values<R, V>(scores, blocks, span, keys_in_last, cache.head_dim, v, partials);
    for (; v < vectors; v++) add_values<R, 1>(scores, blocks, span, keys_in_last, cache.head_dim, v, partials);
}

}  // namespace

void attend_chunk(const QueryTile& tile, const KeyValues& cache, int chunk, Partial* partials) {
    switch (tile.size) {
        case 1: return attend<1>(tile, cache, chunk, partials);
        case 2: return attend<2>(tile, cache, chunk, partials);
        case 3: return attend<3>(tile, cache, chunk, partials);
        case 4: return attend<4>(tile, cache, chunk, partials);
        case 5: return attend<5>(tile, cache, chunk, partials);
        case 6: return attend<6>(tile, cache, chunk, partials);
        case 7: return attend<7>(tile, cache, chunk, partials);
        default: return attend<8>(tile, cache, chunk, partials);
    }
}

void merge(Partial* into, const Partial& partial, int head_dim) {
    const float largest = std::max(into->largest, partial.largest);
    if (largest == kMinusInfinity) return;
    const float keep = exp(into->largest - largest), take = exp(partial.largest - largest);
    into->largest = largest;
    into->sum = __builtin_fmaf(into->sum, keep, partial.sum * take);
    for (int d = 0; d < head_dim; d += kLanes) {
        const Floats added = load(partial.values + d) * splat(take);
        store(into->values + d, fma(load(into->values + d), splat(keep), added));
    }
}

void finish(const Partial& partial, int head_dim, float* out) {
    const Floats scale = splat(1.0f / partial.sum);
    for (int d = 0; d < head_dim; d += kLanes) store(out + d, load(partial.values + d) * scale);
}

}  // namespace braid
