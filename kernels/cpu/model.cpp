#include "model.h"

#include <sys/mman.h>

#include <new>

namespace braid {

Region::~Region() {
    if (data_) munmap(data_, size_);
}

void Region::allocate(size_t bytes) {
    if (data_) munmap(data_, size_);
    data_ = nullptr;
    constexpr size_t kHugePage = size_t(2) << 20;
    size_ = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    void* memory = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        size_ = 0;
        throw std::bad_alloc();
    }
    data_ = static_cast<uint8_t*>(memory);
#ifdef MADV_HUGEPAGE
    madvise(memory, size_, MADV_HUGEPAGE);
#endif
}

Model::Model(const BraidConfig& config, int num_threads)
    : config(config), pool(Pool::shared(num_threads)), layers(config.num_layers) {}

Matrix& Model::matrix(int layer, MatrixPart part) {
    if (part == MatrixPart::kEmbedding) return embedding;
    if (part == MatrixPart::kHead) return head_;
    return layers[layer].matrices[static_cast<int>(part)];
}

void Model::set_matrix(int layer, MatrixPart part, Stored stored, const uint8_t* rows, int num_rows, int num_columns) {
    Matrix& target = matrix(layer, part);
    target.format = format_of(stored);
    target.rows = num_rows;
    target.columns = num_columns;
    announced_.push_back({&target, stored, rows});
}

void Model::set_vector(int layer, VectorPart part, const double* values, int size) {
    if (part == VectorPart::kFrequencies)
        frequencies.assign(values, values + size);
    else if (part == VectorPart::kLocalFrequencies)
        local_frequencies.assign(values, values + size);
    else if (part == VectorPart::kFinalNorm)
        final_norm.assign(values, values + size);
    else
        layers[layer].vectors[static_cast<int>(part)].assign(values, values + size);
}

void Model::place(Matrix* matrix, size_t* offset) {
    matrix->stride = matrix->panel_bytes();
    matrix->panels = region_.data() + *offset;
    *offset += matrix->num_panels() * matrix->stride;
}

// Panel by panel in turn: they are read together, and one stream is easier to fetch ahead than two.
void Model::place_pair(Matrix* gate, Matrix* up, size_t* offset) {
    gate->stride = up->stride = gate->panel_bytes() + up->panel_bytes();
    gate->panels = region_.data() + *offset;
    up->panels = gate->panels + gate->panel_bytes();
    *offset += gate->num_panels() * gate->stride;
}

void Model::pack() {
    size_t bytes = 0;
    for (const Announced& one : announced_) bytes += one.matrix->num_panels() * one.matrix->panel_bytes();
    region_.allocate(bytes);
    size_t offset = 0;
    for (Layer& layer : layers) {
        auto part = [&](MatrixPart which) { return &layer.matrices[static_cast<int>(which)]; };
        for (MatrixPart which : {MatrixPart::kQuery, MatrixPart::kKey, MatrixPart::kValue, MatrixPart::kOutput})
            place(part(which), &offset);
        place_pair(part(MatrixPart::kGate), part(MatrixPart::kUp), &offset);
        place(part(MatrixPart::kDown), &offset);
    }
    place(&embedding, &offset);
    if (head_.rows) place(&head_, &offset);
    pool->run([&](int thread) {
        int turn = 0;
        for (const Announced& one : announced_) {
            for (int panel = 0; panel < one.matrix->num_panels(); panel++) {
                if (turn++ / 8 % pool->num_threads() == thread) pack_panel(*one.matrix, one.stored, one.rows, panel);
            }
        }
    });
    announced_.clear();
}

}  // namespace braid
