// One forward step: embedding, all layers, final norm, and the head on the wanted rows, in one parallel region.
#pragma once
#include "model.h"

namespace braid {

// Null, or why the batch cannot be run.
const char* check_batch(const Model& model, const BraidBatch& batch);
void run_step(Model* model, const BraidBatch& batch);
size_t workspace_bytes(const Model& model, size_t num_tokens, size_t num_logits);

}  // namespace braid
