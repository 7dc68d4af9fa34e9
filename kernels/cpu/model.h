// A decoder-only transformer in memory: sizes, switches, packed weights and the pool that runs it.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "pool.h"
#include "weights.h"

extern "C" {

// Mirrored field by field in transformer.py.
struct BraidConfig {
    int32_t vocab_size, hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, head_dim;
    int32_t context_length;
    int32_t sliding_window;  // 0: none
    int32_t rope_interleaved, gelu, exact;
    float norm_eps, attention_scale, embedding_scale;
};

struct BraidBatch {
    int32_t num_tokens, num_sequences, max_pages, num_logits, num_hidden, num_hidden_layers;
    int32_t num_slabs, pages_per_slab;
    const int32_t *input_ids, *positions, *sequence_index, *block_tables, *logits_rows, *hidden_rows, *hidden_layers;
    const int64_t* slabs;
    float* logits;  // (num_logits, vocab_size)
    float* hidden;  // (num_hidden_layers, num_hidden, hidden_size)
};

}  // extern "C"

namespace braid {

enum class MatrixPart : int32_t { kQuery, kKey, kValue, kOutput, kGate, kUp, kDown, kEmbedding, kHead };
constexpr int kLayerMatrices = 7;

enum class VectorPart : int32_t {
    kInputNorm, kPostAttentionNorm, kFfnNorm, kPostFfnNorm, kQueryNorm, kKeyNorm, kQueryBias, kKeyBias, kValueBias,
    kFinalNorm, kFrequencies, kLocalFrequencies
};
constexpr int kLayerVectors = 9;

// A vector that the model may lack; aligned copies are not needed, the kernels load unaligned.
using Vector = std::vector<float>;

struct Layer {
    Matrix matrices[kLayerMatrices];
    Vector vectors[kLayerVectors];
    bool is_sliding = false;

    const Matrix& operator[](MatrixPart part) const { return matrices[static_cast<int>(part)]; }
    const Vector& operator[](VectorPart part) const { return vectors[static_cast<int>(part)]; }
};

// Anonymous memory in huge pages where the system has them: the weights are read once a token, and 4 KB pages would
// cost a table walk each.
class Region {
public:
    Region() = default;
    ~Region();
    Region(const Region&) = delete;
    Region& operator=(const Region&) = delete;
    // Replaces what was there; throws std::bad_alloc.
    void allocate(size_t bytes);
    uint8_t* data() const { return data_; }
    size_t size() const { return size_; }

private:
    uint8_t* data_ = nullptr;
    size_t size_ = 0;
};

class Model {
public:
    Model(const BraidConfig& config, int num_threads);

    // Announces a matrix: `rows` is read in `pack`, and must stay until then.
    void set_matrix(int layer, MatrixPart part, Stored stored, const uint8_t* rows, int num_rows, int num_columns);
    void set_vector(int layer, VectorPart part, const double* values, int size);
    void set_sliding(int layer) { layers[layer].is_sliding = true; }
    // Repacks all announced matrices, with all threads.
    void pack();

    size_t weight_bytes() const { return region_.size(); }
    const Matrix& head() const { return head_.rows ? head_ : embedding; }
    bool has_post_norms() const { return !layers[0][VectorPart::kPostAttentionNorm].empty(); }

    const BraidConfig config;
    std::shared_ptr<Pool> pool;
    std::vector<Layer> layers;
    Matrix embedding;
    Vector final_norm;
    std::vector<double> frequencies, local_frequencies;  // radians per position, of each rotation pair
    Region workspace;

private:
    struct Announced {
        Matrix* matrix;
        Stored stored;
        const uint8_t* rows;
    };
    Matrix& matrix(int layer, MatrixPart part);
    void place(Matrix* matrix, size_t* offset);
    void place_pair(Matrix* gate, Matrix* up, size_t* offset);

    Matrix head_;
    Region region_;
    std::vector<Announced> announced_;
};

}  // namespace braid
