#include "step.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "linear.h"
#include "plan.h"
#include "workspace.h"

namespace braid {
namespace {

constexpr size_t kBlockBytes = 192 << 10;  // activations that stay in the L2 cache while weights pass by
constexpr int kPiecesPerShare = 8;        // of a thread's work in a phase
constexpr int kFetchedBytes = 16 << 10;  // by each thread for its next phase
constexpr float kLargestInt16 = 32767.0f;

struct Range {
    int begin, end;
};

template <bool Exact>
class Step {
public:
    Step(Model* model, const BraidBatch& batch, const AttentionPlan& plan, const Workspace& workspace)
        : model_(*model), config_(model->config), batch_(batch), plan_(plan), space_(workspace),
          phases_(workspace.phases, plan.sizes.phases, model->pool->num_threads()) {
        for (size_t i = 0; i < plan.sizes.counters; i++) space_.counters[i].store(0, std::memory_order_relaxed);
    }

    void run(int thread) {
        Worker me{thread};
        embed(me);
        for (int layer = 0; layer < config_.num_layers; layer++) {
            copy_hidden(layer, me);
            project_qkv(layer, me);
            attend(layer, me);
            if (layer + 1 == config_.num_layers && !keep_wanted(me)) return;
            project_output(layer, me);
            gate_and_up(layer, me);
            project_down(layer, me);
        }
        copy_final_hidden(me);
        project_logits(me);
    }

private:
    // A thread on its way through the step.
    struct Worker {
        int thread;
        int phase = 0;  // the next one's number
    };

    template <class Work>
    void phase(Worker& me, int units, int units_per_piece, const Work& work) {
        phases_.run(me.phase++, me.thread, units, std::max(1, units_per_piece), work);
    }

    // work(unit) for each, in pieces that leave some to be taken over by who is early.
    template <class Work>
    void for_each(Worker& me, int units, const Work& work) {
        phase(me, units, units / (kPiecesPerShare * phases_.num_threads()), [&](int begin, int end) {
            for (int unit = begin; unit < end; unit++) work(unit);
        });
    }

    // work(x, unit, tile) for all units of rows and tiles of tokens, where x are the tokens' activations, each made by
    // make(x, token). The activations of a single token are made by every thread for itself, when it has got a piece of
    // work: that takes less than to wait for them.
    template <class Make, class Work>
    void make_and_multiply(Worker& me, const Activations& common, const Make& make, int units, const Work& work) {
        if (common.num_tokens > 1) {
            for_each(me, common.num_tokens, [&](int token) { make(common, token); });
            return multiply_all(me, common, units, work);
        }
        Activations mine = space_.own[me.thread];
        mine.groups = common.groups;
        bool is_made = false;
        phase(me, units, units / (kPiecesPerShare * phases_.num_threads()), [&](int begin, int end) {
            if (!is_made) make(mine, 0);
            is_made = true;
            for_blocks(mine, {begin, end}, work);
        });
    }

    template <class Work>
    void multiply_all(Worker& me, const Activations& x, int units, const Work& work) {
        phase(me, units, units / (kPiecesPerShare * phases_.num_threads()),
              [&](int begin, int end) { for_blocks(x, {begin, end}, work); });
    }

    // Calls work(x, unit, tile) for blocks of tiles that fit the cache, all units inside each block.
    template <class Work>
    void for_blocks(const Activations& x, Range units, const Work& work) {
        const int tile_bytes = kTile * x.groups * (kCodesBytes + kScalesFloats * 4);
        const int tiles_per_block = std::max(1, static_cast<int>(kBlockBytes / tile_bytes));
        for (int block = 0; block < x.num_tiles(); block += tiles_per_block) {
            const int end = std::min(x.num_tiles(), block + tiles_per_block);
            for (int unit = units.begin; unit < units.end; unit++) {
                for (int tile = block; tile < end; tile++) work(x, unit, tile);
            }
        }
    }

    // Starts to load the panels with which this thread begins a phase to come: memory would rest while the threads meet,
    // normalise and quantise. Large batches wait for arithmetic, not for memory.
    void fetch(const Matrix& matrix, int first_panel) const {
        if (batch_.num_tokens > kTile) return;
        const char* bytes = reinterpret_cast<const char*>(matrix.panel(first_panel));
        for (int i = 0; i < kFetchedBytes; i += 64) _mm_prefetch(bytes + i, _MM_HINT_T1);
    }

    void fetch_panels(const Matrix& matrix, const Worker& me) const {
        fetch(matrix, phases_.first_unit(matrix.num_panels(), me.thread));
    }

    void fetch_layer(int index, const Worker& me) const {
        if (index == config_.num_layers) return fetch_panels(model_.head(), me);
        const HeadRows rows = head_rows(phases_.first_unit(num_heads(), me.thread));
        fetch(model_.layers[index].matrices[rows.kind], rows.head * config_.head_dim / kPanelRows);
    }

    void multiply(const Matrix& matrix, int panel, const Activations& x, int tile, float* out, int out_stride) {
        panel_kernel(matrix.format, x.tile_size(tile), Exact)(matrix.panel(panel), x.groups, x.tile(tile), out,
                                                             out_stride);
    }

    // Embeddings, and the rotation of each position (the same for all layers).
    void embed(Worker& me) {
        const int count = batch_.num_tokens;
        for_each(me, 2 * count, [&](int job) { job < count ? embed_token(job) : rotate_position(job - count); });
    }

    void embed_token(int token) {
        float* hidden = hidden_row(token);
        dequantize_row(model_.embedding, batch_.input_ids[token], hidden);
        for (int i = 0; i < config_.hidden_size; i++) hidden[i] *= config_.embedding_scale;
    }

    void rotate_position(int token) {
        float* out = rotation(token, false);
        for (const std::vector<double>* frequencies : {&model_.frequencies, &model_.local_frequencies}) {
            const size_t half = frequencies->size();
            for (size_t i = 0; i < half; i++) {
                const double angle = batch_.positions[token] * (*frequencies)[i];
                out[i] = static_cast<float>(std::cos(angle));
                out[half + i] = static_cast<float>(std::sin(angle));
            }
            out += 2 * half;
        }
    }

    float* rotation(int token, bool local) const {
        const int floats = config_.head_dim;
        const int kinds = model_.local_frequencies.empty() ? 1 : 2;
        return space_.rotation + size_t(token) * floats * kinds + (local && kinds == 2 ? floats : 0);
    }

    float* hidden_row(int token) const { return space_.hidden + size_t(token) * config_.hidden_size; }

    // ---- attention ----

    void project_qkv(int index, Worker& me) {
        const Layer& layer = model_.layers[index];
        const float* weight = layer[VectorPart::kInputNorm].data();
        const auto make = [&](const Activations& to, int token) {
            norm_quantize_row<Exact>(to, token, hidden_row(token), weight, config_.norm_eps);
        };
        make_and_multiply(me, space_.normed, make, num_heads(), [&](const Activations& x, int head, int tile) {
            project_head(index, head, x, tile);
        });
        fetch_panels(layer[MatrixPart::kOutput], me);
    }

    int num_heads() const { return config_.num_heads + 2 * config_.num_kv_heads; }

    // Which head of q (kind 0), k (1) or v (2) is head `index` of them all.
    struct HeadRows {
        int kind, head;
    };
    HeadRows head_rows(int index) const {
        if (index < config_.num_heads) return {0, index};
        index -= config_.num_heads;
        return index < config_.num_kv_heads ? HeadRows{1, index} : HeadRows{2, index - config_.num_kv_heads};
    }

    // One head of q, k or v for one tile: its rows, bias, norm and rotation, and then to where attention reads it.
    void project_head(int index, int row_of_heads, const Activations& x, int tile) {
        const Layer& layer = model_.layers[index];
        const auto [kind, head] = head_rows(row_of_heads);
        const int head_dim = config_.head_dim, panels = head_dim / kPanelRows;
        alignas(64) float rows[kTile * kMaxHeadDim];
        for (int panel = 0; panel < panels; panel++)
            multiply(layer.matrices[kind], head * panels + panel, x, tile, rows + panel * kPanelRows, head_dim);
        const Vector& bias = layer.vectors[static_cast<int>(VectorPart::kQueryBias) + kind];
        for (int t = 0; t < x.tile_size(tile); t++) {
            float* row = rows + t * head_dim;
            const int token = tile * kTile + t;
            if (!bias.empty())
                for (int i = 0; i < head_dim; i++) row[i] += bias[head * head_dim + i];
            if (kind == 2) {
                store_value(index, head, token, row);
                continue;
            }
            const Vector& norm = layer.vectors[static_cast<int>(VectorPart::kQueryNorm) + kind];
            if (!norm.empty()) norm_row(row, row, norm.data(), head_dim, config_.norm_eps);
            rotate(row, rotation(token, layer.is_sliding));
            if (kind == 0)
                store_query(head, token, row);
            else
                store_key(index, head, token, row);
        }
    }

    void rotate(float* row, const float* cos) const {
        const int half = config_.head_dim / 2;
        const float* sin = cos + half;
        const int next = config_.rope_interleaved ? 1 : half, step = config_.rope_interleaved ? 2 : 1;
        for (int i = 0; i < half; i++) {
            float *x = row + i * step, *y = x + next;
            const float a = *x, b = *y;
            *x = a * cos[i] - b * sin[i];
            *y = b * cos[i] + a * sin[i];
        }
    }

    void store_query(int head, int token, const float* row) {
        float* query = space_.queries + (size_t(token) * config_.num_heads + head) * config_.head_dim;
        for (int i = 0; i < config_.head_dim; i++) query[i] = row[i] * config_.attention_scale;
    }

    KeyValues cache(int layer, int kv_head, int sequence) const {
        const size_t head_bytes = KeyValues::head_bytes(config_.head_dim);
        const size_t heads = config_.num_kv_heads;
        return {batch_.block_tables + size_t(sequence) * batch_.max_pages,
                batch_.slabs,
                batch_.pages_per_slab,
                config_.num_layers * heads * head_bytes,
                (layer * heads + kv_head) * head_bytes,
                config_.head_dim};
    }

    // Rounds channels of a token's key or value to 16-bit integers and returns their scale.
    static float to_int16(const float* row, int size, int16_t* out) {
        Floats largest = zeros();
        for (int i = 0; i < size; i += kLanes) largest = max(largest, abs(load(row + i)));
        const float most = max_lanes(largest);
        const Floats inverse = splat(most > kTooSmall ? kLargestInt16 / most : 0.0f);
        for (int i = 0; i < size; i += kLanes) store_int16(out + i, round_to_int(load(row + i) * inverse));
        return most / kLargestInt16;
    }

    void store_key(int layer, int kv_head, int token, const float* row) {
        const int position = batch_.positions[token], page = position / kPageTokens, slot = position % kPageTokens;
        const KeyValues to = cache(layer, kv_head, batch_.sequence_index[token]);
        int16_t key[kMaxHeadDim];
        for (int first = 0; first < config_.head_dim; first += kKeyGroup) {
            const int size = std::min(kKeyGroup, config_.head_dim - first);
            to.key_scales(page)[first / kKeyGroup * kPageTokens + slot] = to_int16(row + first, size, key + first);
        }
        int16_t* keys = to.keys(page) + slot;
        for (int i = 0; i < config_.head_dim; i++) keys[i * kPageTokens] = key[i];
    }

    void store_value(int layer, int kv_head, int token, const float* row) {
        const int position = batch_.positions[token], page = position / kPageTokens, slot = position % kPageTokens;
        const KeyValues to = cache(layer, kv_head, batch_.sequence_index[token]);
        to.value_scales(page)[slot] = to_int16(row, config_.head_dim, to.values(page) + slot * config_.head_dim);
    }

    void attend(int layer, Worker& me) {
        const std::vector<Piece>& pieces = model_.layers[layer].is_sliding ? plan_.sliding_pieces : plan_.pieces;
        const int groups = static_cast<int>(plan_.head_groups.size());
        const bool is_last = layer + 1 == config_.num_layers;
        phase(me, static_cast<int>(pieces.size()) * groups, 1, [&](int unit, int) {
            const Piece& piece = pieces[unit / groups];
            if (!is_last || plan_.is_wanted[piece.tile]) attend_piece(layer, piece, unit % groups);
        });
    }

    // Moves the tokens whose final states are wanted to the front, and forgets the others. False if there are none.
    bool keep_wanted(Worker& me) {
        const int kept = static_cast<int>(plan_.wanted_tokens.size());
        if (kept == batch_.num_tokens) return true;
        const size_t heads = size_t(config_.num_heads) * config_.head_dim;
        phase(me, 1, 1, [&](int, int) {  // in order: a row may be another one's source
            for (int row = 0; row < kept; row++) {
                const int token = plan_.wanted_tokens[row];
                std::copy_n(hidden_row(token), config_.hidden_size, hidden_row(row));
                std::copy_n(space_.attended + token * heads, heads, space_.attended + row * heads);
            }
        });
        return kept > 0;
    }

    // Where keep_wanted has put a token.
    int kept_row(int token) const {
        const std::vector<int>& wanted = plan_.wanted_tokens;
        return static_cast<int>(std::lower_bound(wanted.begin(), wanted.end(), token) - wanted.begin());
    }

    // The tokens that a layer's attention leaves to what follows it.
    Activations tokens_of(int layer, Activations activations) const {
        if (layer + 1 == config_.num_layers) activations.num_tokens = static_cast<int>(plan_.wanted_tokens.size());
        return activations;
    }

    void gather_queries(int layer, const TokenTile& tokens, const HeadGroup& heads, QueryTile* tile) const {
        const int head_dim = config_.head_dim;
        const int window = model_.layers[layer].is_sliding ? config_.sliding_window : 0;
        tile->size = tokens.num_tokens * heads.num_heads;
        for (int r = 0; r < tile->size; r++) {
            const int token = tokens.first_token + r / heads.num_heads;
            const int head = heads.first_head + r % heads.num_heads;
            const float* query = space_.queries + (size_t(token) * config_.num_heads + head) * head_dim;
            for (int i = 0; i < head_dim; i++) tile->values[i * tile->size + r] = query[i];
            tile->last[r] = batch_.positions[token];
            tile->first[r] = window ? std::max(0, tile->last[r] - window + 1) : 0;
        }
    }

    void attend_piece(int layer, const Piece& piece, int group) {
        const TokenTile& tokens = plan_.tiles[piece.tile];
        const HeadGroup& heads = plan_.head_groups[group];
        const KeyValues keys_values = cache(layer, heads.kv_head, tokens.sequence);
        QueryTile tile;
        gather_queries(layer, tokens, heads, &tile);
        if (piece.parts > 1) return attend_part(piece, group, tile, keys_values);

        alignas(64) float values[2][kMaxQueries * kMaxHeadDim];
        Partial merged[kMaxQueries], partials[kMaxQueries];
        for (int r = 0; r < tile.size; r++) {
            merged[r] = empty_partial(values[0] + r * config_.head_dim);
            partials[r].values = values[1] + r * config_.head_dim;
        }
        for (int chunk = piece.begin; chunk < piece.end; chunk++) {
            attend_chunk(tile, keys_values, chunk, partials);
            for (int r = 0; r < tile.size; r++) merge(&merged[r], partials[r], config_.head_dim);
        }
        for (int r = 0; r < tile.size; r++) finish(merged[r], config_.head_dim, attended(tokens, heads, r));
    }

    Partial empty_partial(float* values) const {
        std::fill(values, values + config_.head_dim, 0.0f);
        return {kMinusInfinity, 0.0f, values};
    }

    float* attended(const TokenTile& tokens, const HeadGroup& heads, int r) const {
        const size_t token = tokens.first_token + r / heads.num_heads;
        return space_.attended + (token * config_.num_heads + heads.first_head + r % heads.num_heads) * config_.head_dim;
    }

    size_t slot(const Piece& piece, int part, int group, int r) const {
        return piece.first_slot + (part * plan_.head_groups.size() + group) * plan_.queries_per_tile + r;
    }

    void attend_part(const Piece& piece, int group, const QueryTile& tile, const KeyValues& keys_values) {
        Partial partials[kMaxQueries];
        for (int r = 0; r < tile.size; r++)
            partials[r].values = space_.partials + slot(piece, piece.part, group, r) * config_.head_dim;
        attend_chunk(tile, keys_values, piece.begin, partials);
        for (int r = 0; r < tile.size; r++) {
            float* sums = space_.partial_sums + slot(piece, piece.part, group, r) * 2;
            sums[0] = partials[r].largest;
            sums[1] = partials[r].sum;
        }
        std::atomic<int>& done = space_.counters[piece.tile * plan_.head_groups.size() + group];
        if (done.fetch_add(1, std::memory_order_acq_rel) + 1 < piece.parts) return;
        done.store(0, std::memory_order_relaxed);
        merge_parts(piece, group, tile.size);
    }

    void merge_parts(const Piece& piece, int group, int num_queries) {
        alignas(64) float values[kMaxHeadDim];
        for (int r = 0; r < num_queries; r++) {
            Partial merged = empty_partial(values);
            for (int part = 0; part < piece.parts; part++) {
                const size_t from = slot(piece, part, group, r);
                const float* sums = space_.partial_sums + from * 2;
                merge(&merged, {sums[0], sums[1], space_.partials + from * config_.head_dim}, config_.head_dim);
            }
            finish(merged, config_.head_dim, attended(plan_.tiles[piece.tile], plan_.head_groups[group], r));
        }
    }

    // ---- projections back into the residual stream ----

    void project_output(int index, Worker& me) {
        const Layer& layer = model_.layers[index];
        const Matrix& matrix = layer[MatrixPart::kOutput];
        const Vector& norm = layer[VectorPart::kPostAttentionNorm];
        const size_t size = size_t(config_.num_heads) * config_.head_dim;
        const auto make = [&](const Activations& to, int token) {
            quantize_row<Exact>(to, token, space_.attended + token * size);
        };
        const Activations tokens = tokens_of(index, space_.attended_codes);
        make_and_multiply(me, tokens, make, matrix.num_panels(), [&](const Activations& x, int panel, int tile) {
            add_panel(matrix, panel, x, tile, norm.empty());
        });
        add_all_normed(me, norm, tokens.num_tokens);
        fetch(layer[MatrixPart::kGate], 2 * phases_.first_unit(config_.intermediate_size / kGroup, me.thread));
    }

    void project_down(int index, Worker& me) {
        const Layer& layer = model_.layers[index];
        const Matrix& matrix = layer[MatrixPart::kDown];
        const Vector& norm = layer[VectorPart::kPostFfnNorm];
        const Activations tokens = tokens_of(index, space_.gated);
        multiply_all(me, tokens, matrix.num_panels(), [&](const Activations& x, int panel, int tile) {
            add_panel(matrix, panel, x, tile, norm.empty());
        });
        add_all_normed(me, norm, tokens.num_tokens);
        fetch_layer(index + 1, me);
    }

    // hidden += matrix x for 16 rows and a tile; or, if a norm comes between, projected = matrix x.
    void add_panel(const Matrix& matrix, int panel, const Activations& x, int tile, bool to_hidden) {
        alignas(64) float rows[kTile * kPanelRows];
        float* target = to_hidden ? space_.hidden : space_.projected;
        float* first = target + size_t(tile * kTile) * config_.hidden_size + panel * kPanelRows;
        for (int t = 0; t < x.tile_size(tile); t++)
            _mm_prefetch(reinterpret_cast<const char*>(first + size_t(t) * config_.hidden_size), _MM_HINT_T0);
        multiply(matrix, panel, x, tile, rows, kPanelRows);
        for (int t = 0; t < x.tile_size(tile); t++) {
            float* out = first + size_t(t) * config_.hidden_size;
            const Floats row = load(rows + t * kPanelRows);
            store(out, to_hidden ? load(out) + row : row);
        }
    }

    void add_all_normed(Worker& me, const Vector& norm, int num_tokens) {
        if (!norm.empty()) for_each(me, num_tokens, [&](int token) { add_normed(token, norm); });
    }

    void add_normed(int token, const Vector& norm) {
        float* hidden = hidden_row(token);
        float* projected = space_.projected + size_t(token) * config_.hidden_size;
        norm_row(projected, projected, norm.data(), config_.hidden_size, config_.norm_eps);
        for (int i = 0; i < config_.hidden_size; i++) hidden[i] += projected[i];
    }

    // ---- feed-forward ----

    void gate_and_up(int index, Worker& me) {
        const Layer& layer = model_.layers[index];
        const float* weight = layer[VectorPart::kFfnNorm].data();
        const auto make = [&](const Activations& to, int token) {
            norm_quantize_row<Exact>(to, token, hidden_row(token), weight, config_.norm_eps);
        };
        const Activations tokens = tokens_of(index, space_.normed), gated = tokens_of(index, space_.gated);
        const int groups = config_.intermediate_size / kGroup;
        make_and_multiply(me, tokens, make, groups, [&](const Activations& x, int group, int tile) {
            gate_group(layer, group, x, tile, gated);
        });
        fetch_panels(layer[MatrixPart::kDown], me);
    }

    // 32 rows of gate and up, so that what `down` reads can be quantised here.
    void gate_group(const Layer& layer, int group, const Activations& x, int tile, const Activations& gated) {
        alignas(64) float gate[kTile * kGroup], up[kTile * kGroup];
        for (int half = 0; half < 2; half++) {
            multiply(layer[MatrixPart::kGate], 2 * group + half, x, tile, gate + half * kPanelRows, kGroup);
            multiply(layer[MatrixPart::kUp], 2 * group + half, x, tile, up + half * kPanelRows, kGroup);
        }
        for (int t = 0; t < x.tile_size(tile); t++) {
            const float *g = gate + t * kGroup, *u = up + t * kGroup;
            quantize_group<Exact>(gated, tile * kTile + t, group, activate(load(g)) * load(u),
                                  activate(load(g + kLanes)) * load(u + kLanes));
        }
    }

    Floats activate(Floats x) const { return config_.gelu ? gelu_tanh(x) : silu(x); }

    // ---- outputs ----

    float* hidden_out(int which, int row) const {
        return batch_.hidden + (size_t(which) * batch_.num_hidden + row) * config_.hidden_size;
    }

    void copy_hidden(int layer, Worker& me) {
        for (int which = 0; which < batch_.num_hidden_layers; which++) {
            if (batch_.hidden_layers[which] != layer) continue;
            for_each(me, batch_.num_hidden, [&](int row) {
                std::copy_n(hidden_row(batch_.hidden_rows[row]), config_.hidden_size, hidden_out(which, row));
            });
        }
    }

    void copy_final_hidden(Worker& me) {
        for (int which = 0; which < batch_.num_hidden_layers; which++) {
            if (batch_.hidden_layers[which] != config_.num_layers) continue;
            for_each(me, batch_.num_hidden, [&](int row) {
                norm_row(hidden_out(which, row), hidden_row(kept_row(batch_.hidden_rows[row])),
                         model_.final_norm.data(), config_.hidden_size, config_.norm_eps);
            });
        }
    }

    void project_logits(Worker& me) {
        if (batch_.num_logits == 0) return;
        const Matrix& head = model_.head();
        const auto make = [&](const Activations& to, int row) {
            norm_quantize_row<Exact>(to, row, hidden_row(kept_row(batch_.logits_rows[row])), model_.final_norm.data(),
                                     config_.norm_eps);
        };
        make_and_multiply(me, space_.final_normed, make, head.num_panels(), [&](const Activations& x, int panel, int tile) {
            store_logits(head, panel, x, tile);
        });
    }

    void store_logits(const Matrix& head, int panel, const Activations& x, int tile) {
        alignas(64) float rows[kTile * kPanelRows];
        multiply(head, panel, x, tile, rows, kPanelRows);
        const int first = panel * kPanelRows, count = std::min(kPanelRows, head.rows - first);
        for (int t = 0; t < x.tile_size(tile); t++)
            std::copy_n(rows + t * kPanelRows, count, batch_.logits + size_t(tile * kTile + t) * head.rows + first);
    }

    Model& model_;
    const BraidConfig& config_;
    const BraidBatch& batch_;
    const AttentionPlan& plan_;
    const Workspace& space_;
    Phases phases_;
};

template <bool Exact>
void run(Model* model, const BraidBatch& batch, const AttentionPlan& plan, const Workspace& space) {
    Step<Exact> step(model, batch, plan, space);
    model->pool->run([&](int thread) { step.run(thread); });
}

}  // namespace

const char* check_batch(const Model& model, const BraidBatch& batch) {
    const BraidConfig& config = model.config;
    for (int token = 0; token < batch.num_tokens; token++) {
        const int id = batch.input_ids[token], position = batch.positions[token], row = batch.sequence_index[token];
        if (id < 0 || id >= config.vocab_size) return "a token id is outside of the vocabulary";
        if (position < 0 || position >= config.context_length) return "a position is outside of the context";
        if (row < 0 || row >= batch.num_sequences) return "a sequence_index has no row in block_tables";
        if (position / kPageTokens >= batch.max_pages) return "a block table is too short for a position";
        const int page = batch.block_tables[size_t(row) * batch.max_pages + position / kPageTokens];
        if (page < 0 || page / batch.pages_per_slab >= batch.num_slabs) return "a page id has no slab";
        if (batch.slabs[page / batch.pages_per_slab] == 0) return "a page is in a slab that has been given back";
    }
    auto are_tokens = [&](const int32_t* rows, int count) {
        return std::all_of(rows, rows + count, [&](int row) { return row >= 0 && row < batch.num_tokens; });
    };
    if (!are_tokens(batch.logits_rows, batch.num_logits)) return "a row of logits_rows is not a token of the batch";
    if (!are_tokens(batch.hidden_rows, batch.num_hidden)) return "a row of hidden_rows is not a token of the batch";
    return nullptr;
}

void run_step(Model* model, const BraidBatch& batch) {
    const AttentionPlan plan = plan_attention(*model, batch);
    Workspace space;
    const size_t bytes = space.lay_out(nullptr, *model, batch.num_tokens, batch.num_logits, plan.sizes);
    if (bytes > model->workspace.size()) model->workspace.allocate(bytes);
    space.lay_out(model->workspace.data(), *model, batch.num_tokens, batch.num_logits, plan.sizes);
    if (model->config.exact)
        run<true>(model, batch, plan, space);
    else
        run<false>(model, batch, plan, space);
}

size_t workspace_bytes(const Model& model, size_t num_tokens, size_t num_logits) {
    Workspace space;
    return space.lay_out(nullptr, model, num_tokens, num_logits, largest_plan(model, num_tokens));
}

}  // namespace braid
