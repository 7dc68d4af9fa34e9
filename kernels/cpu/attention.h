// Attention of a few queries over paged keys and values.
//
// Keys and values are 16-bit integers with float scales, for each token and head one for 32 channels of the key and one
// for the value. They take little more room than half-precision floats; but those keep 11 bits, and a trained model
// multiplies that error up to 0.7 % of a token's logits. Some channels of keys are far larger than the rest, and scores
// are what attention is most sensitive to: hence the finer scales of keys.
//
// A sequence's keys are cut at absolute positions into chunks of 128. Each chunk gives a partial result (largest score,
// sum of exponentials, weighted values) that depends on the query and the chunk alone; partial results are merged in the
// order of positions. So it makes no difference which thread did which chunk, or with which other queries.
#pragma once
#include "vec.h"

namespace braid {

constexpr int kPageTokens = 16;
constexpr int kChunkTokens = 128;
constexpr int kMaxHeadDim = 256;
constexpr int kKeyGroup = 32;  // channels of a key that share a scale; the last may be 16
constexpr int kMaxQueries = 8;  // of one tile: query heads of one KV head, of one or more tokens

// Where one KV head of one layer lies in the pages of one sequence: scales of keys [key_groups][16], of values [16], keys
// [head_dim][16] (so that scores need no sum over lanes), values [16][head_dim].
struct KeyValues {
    static constexpr size_t key_groups(size_t head_dim) { return (head_dim + kKeyGroup - 1) / kKeyGroup; }
    static constexpr size_t scales_bytes(size_t head_dim) {
        return (key_groups(head_dim) + 1) * kPageTokens * sizeof(float);
    }
    static constexpr size_t head_bytes(size_t head_dim) {
        return scales_bytes(head_dim) + head_dim * 2 * kPageTokens * sizeof(int16_t);
    }

    const int32_t* block_table;
    const int64_t* slabs;
    int pages_per_slab;
    size_t page_bytes;
    size_t offset;  // of this layer and head in a page
    int head_dim;

    uint8_t* head(int page) const {
        const int id = block_table[page];
        return reinterpret_cast<uint8_t*>(slabs[id / pages_per_slab]) + (id % pages_per_slab) * page_bytes + offset;
    }
    float* key_scales(int page) const { return reinterpret_cast<float*>(head(page)); }
    float* value_scales(int page) const { return key_scales(page) + key_groups(head_dim) * kPageTokens; }
    int16_t* keys(int page) const { return reinterpret_cast<int16_t*>(head(page) + scales_bytes(head_dim)); }
    int16_t* values(int page) const { return keys(page) + head_dim * kPageTokens; }
};

// Queries that share keys; each sees positions first[r] .. last[r].
struct QueryTile {
    int size = 0;
    int first[kMaxQueries];
    int last[kMaxQueries];
    alignas(64) float values[kMaxHeadDim * kMaxQueries];  // [head_dim][size], scaled
};

// Result of one chunk, or of several merged, for one query.
struct Partial {
    float largest;
    float sum;
    float* values;  // [head_dim]
};

// partials[r] for r < tile.size: the chunk's result. A query that sees nothing of the chunk gets largest = -inf, sum = 0.
void attend_chunk(const QueryTile& tile, const KeyValues& cache, int chunk, Partial* partials);

// into += partial. The first merge is into largest = -inf, sum = 0, values = 0.
void merge(Partial* into, const Partial& partial, int head_dim);

// out = values / sum.
void finish(const Partial& partial, int head_dim, float* out);

}  // namespace braid
