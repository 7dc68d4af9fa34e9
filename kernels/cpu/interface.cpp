// The C interface: what library.py loads. Functions that can fail return null or a static message.
#include <exception>
#include <new>

#include "linear.h"
#include "step.h"

#define BRAID_EXPORT extern "C" __attribute__((visibility("default")))

using braid::Model;

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
