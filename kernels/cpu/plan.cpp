#include "plan.h"

#include <algorithm>

namespace braid {
namespace {

constexpr int kPiecesPerThread = 4;  // fewer than this, and chunks are spread over threads

std::vector<HeadGroup> head_groups_of(const BraidConfig& config) {
    const int shared = config.num_heads / config.num_kv_heads;
    std::vector<HeadGroup> groups;
    for (int kv_head = 0; kv_head < config.num_kv_heads; kv_head++) {
        for (int head = 0; head < shared; head += kMaxQueries)
            groups.push_back({kv_head * shared + head, std::min(kMaxQueries, shared - head), kv_head});
    }
    return groups;
}

std::vector<TokenTile> tiles_of(const BraidBatch& batch, int tokens_per_tile) {
    std::vector<TokenTile> tiles;
    for (int token = 0; token < batch.num_tokens; token++) {
        const int sequence = batch.sequence_index[token];
        const bool joins = !tiles.empty() && tiles.back().sequence == sequence &&
                           tiles.back().num_tokens < tokens_per_tile;
        if (joins)
            tiles.back().num_tokens++;
        else
            tiles.push_back({token, 1, sequence});
    }
    return tiles;
}

std::vector<Piece> pieces_of(const AttentionPlan& plan, const BraidBatch& batch, int window, bool split, int* slots) {
    std::vector<Piece> pieces;
    for (int index = static_cast<int>(plan.tiles.size()) - 1; index >= 0; index--) {  // the longest first
        const TokenTile& tile = plan.tiles[index];
        const int first = batch.positions[tile.first_token];
        const int begin = window ? std::max(0, first - window + 1) / kChunkTokens : 0;
        const int end = (first + tile.num_tokens - 1) / kChunkTokens + 1;
        if (!split || end - begin == 1) {
            pieces.push_back({index, begin, end, 0, 1, 0});
            continue;
        }
        for (int chunk = begin; chunk < end; chunk++)
            pieces.push_back({index, chunk, chunk + 1, chunk - begin, end - begin, *slots});
        *slots += (end - begin) * plan.queries_per_tile * static_cast<int>(plan.head_groups.size());
    }
    return pieces;
}

std::vector<int> wanted_tokens_of(const BraidConfig& config, const BraidBatch& batch) {
    std::vector<int> tokens(batch.logits_rows, batch.logits_rows + batch.num_logits);
    const int32_t* layers_end = batch.hidden_layers + batch.num_hidden_layers;
    if (std::find(batch.hidden_layers, layers_end, config.num_layers) != layers_end)
        tokens.insert(tokens.end(), batch.hidden_rows, batch.hidden_rows + batch.num_hidden);
    std::sort(tokens.begin(), tokens.end());
    tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
    return tokens;
}

std::vector<bool> wanted_tiles_of(const AttentionPlan& plan) {
    std::vector<bool> is_wanted;
    for (const TokenTile& tile : plan.tiles) {
        const auto next = std::lower_bound(plan.wanted_tokens.begin(), plan.wanted_tokens.end(), tile.first_token);
        is_wanted.push_back(next != plan.wanted_tokens.end() && *next < tile.first_token + tile.num_tokens);
    }
    return is_wanted;
}

// Ten a layer (where norms follow the projections), one for each hidden state, and those before and after the layers.
int count_phases(const BraidConfig& config, int num_hidden_layers) {
    return 10 * config.num_layers + num_hidden_layers + 4;
}

}  // namespace

AttentionPlan plan_attention(const Model& model, const BraidBatch& batch) {
    AttentionPlan plan;
    plan.head_groups = head_groups_of(model.config);
    const int heads = plan.head_groups[0].num_heads;
    const int tokens_per_tile = std::max(1, kMaxQueries / heads);
    plan.queries_per_tile = tokens_per_tile * heads;
    plan.tiles = tiles_of(batch, tokens_per_tile);
    plan.wanted_tokens = wanted_tokens_of(model.config, batch);
    plan.is_wanted = wanted_tiles_of(plan);
    const size_t whole = plan.tiles.size() * plan.head_groups.size();
    const bool split = model.pool->num_threads() > 1 && whole < size_t(kPiecesPerThread) * model.pool->num_threads();
    int slots = 0, sliding_slots = 0;
    plan.pieces = pieces_of(plan, batch, 0, split, &slots);
    if (model.config.sliding_window)
        plan.sliding_pieces = pieces_of(plan, batch, model.config.sliding_window, split, &sliding_slots);
    plan.sizes.counters = whole;
    plan.sizes.phases = count_phases(model.config, batch.num_hidden_layers);
    plan.sizes.partial_queries = std::max(slots, sliding_slots);
    return plan;
}

PlanSizes largest_plan(const Model& model, size_t num_tokens) {
    const BraidConfig& config = model.config;
    const std::vector<HeadGroup> groups = head_groups_of(config);
    const size_t queries = std::max(1, kMaxQueries / groups[0].num_heads) * groups[0].num_heads;
    const size_t most = size_t(kPiecesPerThread) * model.pool->num_threads();  // tiles x head groups that are split
    const size_t chunks = (config.context_length - 1) / kChunkTokens + 1;
    const size_t split = model.pool->num_threads() > 1 ? std::min(num_tokens * groups.size(), most) : 0;
    return {num_tokens * groups.size(), split * queries * chunks, count_phases(config, config.num_layers + 1)};
}

}  // namespace braid
