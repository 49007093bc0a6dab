// ACmix forward from its input: q, k and v are made some rows at a time, in the core's own cache, where both paths read them.
#pragma once
#include "acmix_forward.h"
#include "projection.h"

namespace {

thread_local Scratch packed_weights, projected_rows;

struct Layer {
    Projection projection;
    const float* in;  // [B, H, W, inputs]
    Tables tables;
    float *qkv, *out;  // qkv: [B, H, W, 3C], where q, k and v are left; null: nowhere

    void skip_images(const Problem& p, int count) {
        in += (size_t)count * p.H * p.W * projection.inputs, out += (size_t)count * p.Ho * p.Wo * p.C;
        if (qkv) qkv += (size_t)count * p.H * p.W * projection.outputs;
    }
};

// Rows of q, k and v of one image, made when they are asked for: all of them where they are left, else as many as are read at once.
struct ProjectedRows {
    const Problem& p;
    const Projection& projection;
    const float* image;
    int next, end;  // the first row to make, and the one after the last
    Rows rows;
    float** target;

    // A block of outputs reads so many. On small maps there are more, so that many pixels share the weights.
    static int slots(const Problem& p) {
        constexpr int least_pixels = 112;
        const int kept = K - p.S, made = larger(p.S * block_rows, ceil_div(least_pixels, p.W));
        return round_up(smaller(p.H, kept + made), p.S);
    }
    static size_t row_floats(const Problem& p) { return (size_t)p.W * 3 * p.C; }
    static size_t floats(const Problem& p) { return slots(p) * (row_floats(p) + 2 * (size_t)p.W); }
    // The caller has reserved floats(p).
    ProjectedRows(const Problem& p, const Layer& layer, const Unit& u)
        : p(p), projection(layer.projection), image(layer.in + (size_t)u.b * p.H * p.W * layer.projection.inputs),
          next(first_row_read(p, u.y_begin)), end(last_row_read(p, u.y_end - 1) + 1),
          target(projected_rows.take_array<float*>((size_t)slots(p) * p.W)) {
        const ptrdiff_t row = row_floats(p);
        if (layer.qkv) rows = {layer.qkv + u.b * p.H * row, row, every_row};
        else rows = {projected_rows.take(slots(p) * row), row, slots(p)};
    }
    void operator()(int first, int last) {
        if (next > last) return;
        const int begin = next;
        int pixels = 0;
        for (const int enough = smaller(end, first + slots(p)); next < enough; next++)
            for (int x = 0; x < p.W; x++) target[pixels++] = rows.at(next) + (ptrdiff_t)x * 3 * p.C;
        if (PROJECT(&projection, image + (size_t)begin * p.W * projection.inputs, pixels, target, 0, projection_blocks(projection)))
            fail();
    }
};

void acmix_by_rows(const Problem& p, Layer layer) {
    if (!layer.projection.packed) {  // once for all rows
        const Projection plain = layer.projection;
        if (!packed_weights.reserve(packed_floats(plain))) return;
        float* weight = packed_weights.take(packed_floats(plain));
#pragma omp parallel for schedule(static) num_threads(p.threads) if (p.threads > 1)
        for (int j = 0; j < projection_blocks(plain); j++) PACK_PROJECTION(&plain, j, weight);
        layer.projection.weight = weight, layer.projection.packed = true;
    }
    const View out = packed(layer.out, p.Ho, p.Wo, p.C);
    choose_window(p, [&](auto L, auto S) {
        over_units(p, converting_cut(p), [&](const Unit& u) {
            if (!projected_rows.reserve(ProjectedRows::floats(p))) return;
            ProjectedRows read(p, layer, u);
            auto nothing = [](auto...) {};
            const Band band = band_of(p, read.rows, rows_of(out, u.b), &read, &nothing);
            acmix_unit<decltype(L)::value, decltype(S)::value>(p, convolution_of(p), layer.tables, band, u);
        });
    });
}

// q, k and v of all pixels.
void project_all(const Problem& p, const Layer& layer) {
    const Projection& projection = layer.projection;
    const ProjectionCut cut = projection_cut((int64_t)p.B * p.H * p.W, projection_blocks(projection), p.threads);
#pragma omp parallel for schedule(static) num_threads(p.threads) if (p.threads > 1)
    for (int64_t u = 0; u < cut.parts * cut.splits; u++) {
        const int64_t part = u / cut.splits, split = u % cut.splits, first = cut.first_pixel(part);
        const int count = (int)(cut.first_pixel(part + 1) - first);
        float* target[ProjectionCut::most_pixels];
        for (int i = 0; i < count; i++) target[i] = layer.qkv + (first + i) * projection.outputs;
        if (PROJECT(&projection, layer.in + first * projection.inputs, count, target, cut.first_block(split), cut.first_block(split + 1)))
            fail();
    }
}

// Whether the rows that neighbouring bands both make are few.
bool makes_few_rows_twice(const Problem& p) {
    const Cut cut = converting_cut(p);
    return cut.heads == 1 && 8 * (cut.bands - 1) * 2 * reach <= p.H;
}

// Where images are cut, into bands that make their own rows, or, where these would make many twice, after q, k and v of all.
void acmix_images(ConvattnWindow s, const float* position, Layer layer, int first, int end) {
    if (first == end) return;
    s.batch = end - first;
    Problem p(s, position);
    if (!p.fits) return;
    read_packed(p, packed(nullptr, p.H, p.W, 3 * p.C), p.q, p.k, p.v);
    layer.skip_images(p, first);
    if (p.B % p.threads == 0 || (!layer.qkv && makes_few_rows_twice(p))) return acmix_by_rows(p, layer);
    Scratch memory;
    const size_t floats = (size_t)p.B * p.H * p.W * layer.projection.outputs;
    if (!layer.qkv && !memory.reserve(floats)) return;
    if (!layer.qkv) layer.qkv = memory.take(floats);
    const int64_t before = failures;
    project_all(p, layer);
    if (failures == before) acmix_of_floats(p, layer.qkv, layer.tables, layer.out);
}

}  // namespace
