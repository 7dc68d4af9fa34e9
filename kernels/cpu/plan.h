// How the attention of one step is cut into pieces of work.
#pragma once
#include "attention.h"
#include "model.h"
#include "workspace.h"

namespace braid {

// Tokens of one sequence that are attended to together.
struct TokenTile {
    int first_token, num_tokens, sequence;
};

// Chunks begin .. end - 1 of the keys that a tile sees. Where a tile has several parts, each is one chunk, whose partial
// result is kept in the workspace; whoever ends the last part merges them.
struct Piece {
    int tile, begin, end;
    int part, parts;
    int first_slot;  // of the tile's first part; a part has queries_per_tile slots for each head group
};

// Query heads that share a KV head, cut so that they fit a query tile.
struct HeadGroup {
    int first_head, num_heads, kv_head;
};

struct AttentionPlan {
    std::vector<TokenTile> tiles;
    std::vector<HeadGroup> head_groups;
    std::vector<Piece> pieces;          // for layers that see everything
    std::vector<Piece> sliding_pieces;  // for layers with a window
    int queries_per_tile = 0;           // at most; the slots of one piece and head group
    // The tokens whose final states somebody wants, ascending. Only theirs are computed after the last layer's keys and
    // values; `is_wanted` tells it for tiles.
    std::vector<int> wanted_tokens;
    std::vector<bool> is_wanted;
    PlanSizes sizes;
};

AttentionPlan plan_attention(const Model& model, const BraidBatch& batch);

// The most that any batch of so many tokens can need.
PlanSizes largest_plan(const Model& model, size_t num_tokens);

}  // namespace braid
