// The C interface: what library.py loads. Functions that can fail return null or a static message.
#include <algorithm>
#include <exception>
#include <new>
#include <vector>

#include "linear.h"
#include "step.h"

#define BRAID_EXPORT extern "C" __attribute__((visibility("default")))

using braid::Model;

namespace {

// One matrix on its own, for a linear layer outside of a packed model.
struct Linear {
    braid::Matrix matrix;
    braid::Region region;
    bool exact;
};

template <bool Exact>
void multiply(const Linear& linear, const float* x, int32_t num_tokens, float* out) {
    const braid::Matrix& matrix = linear.matrix;
    braid::Activations codes;
    codes.num_tokens = num_tokens;
    codes.groups = matrix.num_groups();
    std::vector<uint8_t> code_bytes[2];
    std::vector<float> scales[2];
    for (int part = 0; part <= Exact; part++) {
        code_bytes[part].resize(braid::Activations::codes_bytes(num_tokens, codes.groups));
        scales[part].resize(braid::Activations::scales_bytes(num_tokens, codes.groups) / sizeof(float));
        (part ? codes.fine : codes.coarse) = braid::Codes{code_bytes[part].data(), scales[part].data()};
    }
    for (int token = 0; token < num_tokens; token++)
        braid::quantize_row<Exact>(codes, token, x + size_t(token) * matrix.columns);
    for (int panel = 0; panel < matrix.num_panels(); panel++) {
        const int first = panel * braid::kPanelRows, count = std::min(braid::kPanelRows, matrix.rows - first);
        for (int tile = 0; tile < codes.num_tiles(); tile++) {
            float rows[braid::kTile * braid::kPanelRows];
            const int size = codes.tile_size(tile);
            braid::panel_kernel(matrix.format, size, Exact)(matrix.panel(panel), codes.groups, codes.tile(tile),
                                                            rows, braid::kPanelRows);
            for (int t = 0; t < size; t++)
                std::copy_n(rows + t * braid::kPanelRows, count,
                            out + (size_t(tile) * braid::kTile + t) * matrix.rows + first);
        }
    }
}

}  // namespace

BRAID_EXPORT Linear* braid_linear_create(int32_t stored, const uint8_t* blocks, int32_t rows, int32_t columns,
                                         int32_t exact) try {
    Linear* linear = new Linear();
    braid::Matrix& matrix = linear->matrix;
    linear->exact = exact;
    matrix.format = braid::format_of(static_cast<braid::Stored>(stored));
    matrix.rows = rows;
    matrix.columns = columns;
    matrix.stride = matrix.panel_bytes();
    linear->region.allocate(matrix.num_panels() * matrix.stride);
    matrix.panels = linear->region.data();
    for (int panel = 0; panel < matrix.num_panels(); panel++)
        braid::pack_panel(matrix, static_cast<braid::Stored>(stored), blocks, panel);
    return linear;
} catch (const std::bad_alloc&) {
    return nullptr;
}

// x (num_tokens, columns), out (num_tokens, rows); on the calling thread.
BRAID_EXPORT void braid_linear_multiply(const Linear* linear, const float* x, int32_t num_tokens, float* out) {
    linear->exact ? multiply<true>(*linear, x, num_tokens, out) : multiply<false>(*linear, x, num_tokens, out);
}

// Row `row` of the matrix, dequantised.
BRAID_EXPORT void braid_linear_row(const Linear* linear, int32_t row, float* out) {
    braid::dequantize_row(linear->matrix, row, out);
}

BRAID_EXPORT void braid_linear_free(Linear* linear) { delete linear; }

BRAID_EXPORT Model* braid_model_create(const BraidConfig* config, int32_t num_threads) try {
    return new Model(*config, num_threads);
} catch (const std::exception&) {
    return nullptr;
}

BRAID_EXPORT void braid_model_free(Model* model) { delete model; }

BRAID_EXPORT int32_t braid_can_pack(int32_t stored, int64_t columns) { return braid::is_packable(stored, columns); }

BRAID_EXPORT void braid_model_set_matrix(Model* model, int32_t layer, int32_t part, int32_t stored,
                                         const uint8_t* rows, int32_t num_rows, int32_t num_columns) {
    model->set_matrix(layer, static_cast<braid::MatrixPart>(part), static_cast<braid::Stored>(stored), rows, num_rows,
                      num_columns);
}

BRAID_EXPORT void braid_model_set_vector(Model* model, int32_t layer, int32_t part, const double* values,
                                         int32_t size) {
    model->set_vector(layer, static_cast<braid::VectorPart>(part), values, size);
}

BRAID_EXPORT void braid_model_set_sliding(Model* model, int32_t layer) { model->set_sliding(layer); }

BRAID_EXPORT const char* braid_model_pack(Model* model) try {
    model->pack();
    return nullptr;
} catch (const std::bad_alloc&) {
    return "not enough memory for the weights";
}

BRAID_EXPORT int64_t braid_model_weight_bytes(const Model* model) { return model->weight_bytes(); }

BRAID_EXPORT int64_t braid_model_workspace_bytes(const Model* model, int64_t num_tokens, int64_t num_logits) {
    return braid::workspace_bytes(*model, num_tokens, num_logits);
}

BRAID_EXPORT const char* braid_model_step(Model* model, const BraidBatch* batch) try {
    if (const char* wrong = braid::check_batch(*model, *batch)) return wrong;
    if (batch->num_tokens > 0) braid::run_step(model, *batch);
    return nullptr;
} catch (const std::bad_alloc&) {
    return "not enough memory for the workspace";
}

// For benchmarks: runs `rounds` rounds of dot instructions; `braid_peak_products` says how many products a round is.
BRAID_EXPORT int32_t braid_dots_at_peak(int64_t rounds) { return braid::dots_at_peak(rounds); }
BRAID_EXPORT int64_t braid_peak_products() { return braid::kPeakProducts; }
