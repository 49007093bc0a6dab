// ACmix forward: both paths of a unit of work, over maps of any type.
#pragma once
#include "group_conv.h"
#include "half.h"
#include "window_forward.h"

namespace {

inline GroupConv convolution_of(const Problem& p) { return GroupConv(p.H, p.W, p.S, 3 * p.N, p.N, p.d); }

// What follows both paths and the maps they read: scale [C], weight [3N][9][N][d], bias [C] or null.
struct Tables {
    const float *scale, *weight, *bias;
};

// What both paths read of one image and where outputs go, block by block: `read(first row, last row)` before a block of
// outputs that reads these, `written(first row, rows)` after it. Pixels are as far apart as those of the Problem's maps.
struct Band {
    Rows queries, keys, values, maps, out;  // queries: of every row of outputs
    ptrdiff_t map_pixel;
    Callback<int, int> read;
    Callback<int, int> written;
};

// Both paths of one unit, block by block, so that q, k and v are read while they are in cache.
template <int L, int S, class E = Floats>
void acmix_unit(const Problem& p, const GroupConv& whole, const Tables& tables, const Band& band, const Unit& u) {
    typedef ForwardAttention<L, S, E> Attention;
    const GroupConv conv = whole.of_groups(p.d * u.heads() / p.N);
    const int first_group = p.d * u.n_begin / p.N, first_output = first_group * p.N;
    const Rows inputs = {band.maps.data + first_group, band.maps.step, band.maps.slots};
    const size_t input = 3 * (size_t)p.C, row_floats = (size_t)p.Wo * conv.outputs();
    if (!scratch.reserve(key_ring_floats<L, E>(p, u.heads()) + Attention::Buffers::floats(p) + row_floats + input, 32 + 2 * u.heads())) return;
    float* row = scratch.take(row_floats);
    float* zeros = scratch.take(input);
    memset(zeros, 0, input * sizeof(float));
    typename Attention::Buffers buffers(p);
    PlanarRows<L, E>* keys = key_rings<L, E>(p, band.keys, u);
    auto finish = [&](auto v, float* o, int c, auto sum) UNROLLED {
        constexpr int V = v.value;
        Vec<V> result = load<V>(o) + sum * load<V>(tables.scale + c);
        if (p.relu) result = result < 0.f ? Vec<V>{} : result;
        store<V>(o, result);
    };
    for (int y = u.y_begin; y < u.y_end; y += block_rows) {
        const int rows = smaller(block_rows, u.y_end - y);
        band.read(first_row_read(p, y), last_row_read(p, y + rows - 1));
        const View out(band.out.at(y) - y * band.out.step, 0, band.out.step, p.C);
        conv_forward_rows<E>(conv, inputs, band.map_pixel, tables.weight + first_group, tables.bias ? tables.bias + first_output : nullptr,
                             zeros, row, out.from_channel(first_output), u.b, y, y + rows);
        for (int n = u.n_begin; n < u.n_end; n++)
            Attention::block(p, buffers, keys[n - u.n_begin], band.queries, band.values, out, u.b, n, y, rows, finish);
        band.written(y, rows);
    }
}

// q, k and v are thirds of a pixel of `maps`, which keeps a multiple of the stride of rows.
inline Band band_of(const Problem& p, const Rows& maps, const Rows& out, Callback<int, int> read, Callback<int, int> written) {
    const Rows queries = {maps.data, p.S * maps.step, maps.slots / p.S};
    return {queries, maps.from_channel(p.C), maps.from_channel(2 * p.C), maps, out, p.k.pixel, read, written};
}

// Of maps that are converted on the way in. A unit converts whole rows: heads are cut only where rows are too few.
Cut converting_cut(const Problem& p, int limit = 0x7fffffff) {
    const bool few = ceil_div(p.Ho, block_rows) < parts_of_image(p.B, p.threads);
    return Cut(p, [&](int parts) { return few && whole_vectors(p.d, parts); }, limit);
}

View packed(const float* data, int height, int width, int channels) {
    return View((float*)data, (ptrdiff_t)height * width * channels, (ptrdiff_t)width * channels, channels);
}

// q, k and v as the three thirds of one channels-last map; q at every stride-th pixel.
void read_packed(const Problem& p, const View& qkv, View& q, View& k, View& v) {
    const ptrdiff_t third = qkv.pixel / 3;
    q = View(qkv.data, qkv.image, p.S * qkv.row, p.S * qkv.pixel);
    k = View(qkv.data + third, qkv.image, qkv.row, qkv.pixel);
    v = View(qkv.data + 2 * third, qkv.image, qkv.row, qkv.pixel);
}

inline void acmix_of_floats(const Problem& p, const float* qkv, const Tables& tables, float* out) {
    const View maps = packed(qkv, p.H, p.W, 3 * p.C), out_map = packed(out, p.Ho, p.Wo, p.C);
    choose_window(p, [&](auto L, auto S) {
        over_units(p, acmix_cut(p), [&](const Unit& u) {
            auto nothing = [](auto...) {};
            const Band band = band_of(p, rows_of(maps, u.b), rows_of(out_map, u.b), &nothing, &nothing);
            acmix_unit<decltype(L)::value, decltype(S)::value>(p, convolution_of(p), tables, band, u);
        });
    });
}

// The caller has reserved block_rows rows of outputs of half_rows.
template <class T> NarrowedRows<T> narrowed_rows(const Problem& p, const Unit& u, T* out) {
    const size_t row = (size_t)p.Wo * p.C;
    return {half_rows.take(block_rows * row), out + (size_t)u.b * p.Ho * row, row, p.C, u.n_begin * p.d, u.n_end * p.d};
}

}  // namespace
