// Local attention, forward: one head of one image, a block of query rows at a time, from the top down.
#pragma once
#include "window.h"

namespace {

// What differs between floats and pairs (window_pairs.h): how the position enters and what the softmax writes.
template <class E, int L, int S> struct Logits;

template <int L, int S> struct Logits<Floats, L, S> : FromZero<L> {
    static size_t floats(const Problem&) { return 0; }
    explicit Logits(const Problem&) {}
    void key_row(int, int) const {}
    void tile(int, int, const float*) const {}
    static float query_factor(float to_base_2) { return to_base_2; }
    static void softmax(float* logits, float, float* inverse) { ::softmax<L>(logits, window_taps, inverse); }
};

template <int L, int S, class E = Floats> struct ForwardAttention {
    static constexpr int key_span = S * (block_rows - 1) + K;

    // What the heads of a thread share: they take turns.
    struct Buffers {
        float *q, *logits, *inverse;
        ptrdiff_t* offsets;  // of every padded column in a row of values
        const float **key_rows, **value_rows;
        Logits<E, L, S> begin;
        static int columns(const Problem& p) { return S * (p.Wo + 2 * L) + K; }
        static size_t floats(const Problem& p) {
            return (size_t)block_rows * (p.d + window_taps) * L + L + 2 * (size_t)columns(p) + 4 * key_span + Logits<E, L, S>::floats(p);
        }
        explicit Buffers(const Problem& p)
            : q(scratch.take((size_t)block_rows * p.d * L)), logits(scratch.take((size_t)block_rows * window_taps * L)),
              inverse(scratch.take(L)), offsets(scratch.take_array<ptrdiff_t>(columns(p))),
              key_rows(scratch.take_array<const float*>(key_span)), value_rows(scratch.take_array<const float*>(key_span)), begin(p) {
            // pairs of columns lie in padded order, as far as a query reads them
            const int last = S * (p.Wo - 1) + K - E::each;
            for (int k = 0; k < columns(p); k++) offsets[k] = E::each == 1 ? p.column[k] * p.v.pixel : (ptrdiff_t)smaller(k, last) * p.C;
        }
    };

    // finish(Index<V>, output, channel, sum) for head n and query rows y to y+rows-1 of image b
    template <class Finish>
    static void block(const Problem& p, const Buffers& m, PlanarRows<L, E>& keys, const Rows& queries, const Rows& values, const View& out,
                      int b, int n, int y, int rows, Finish finish) {
        const int span = S * (rows - 1) + K, channels = p.d / E::each;
        keys.load_until(smaller(p.H - 1, larger(reach, S * (y + rows - 1) + reach)));
        for (int r = 0; r < span; r++) {
            const int key_y = reflect(S * y + r - reach, p.H);
            m.key_rows[r] = keys.row(key_y);
            m.value_rows[r] = values.at(key_y) + n * p.d;
            m.begin.key_row(r, key_y);
        }
        const float to_base_2 = 1.4426950408889634f * p.softmax_scale;
        const int tile = tile_width(p.Wo, L);
        for (int x0 = 0; x0 < p.Wo; x0 += tile) {
            const int valid = smaller(tile, p.Wo - x0);
            const ptrdiff_t* offset = m.offsets + S * x0;
            const float factor = Logits<E, L, S>::query_factor(to_base_2);
            planar_queries<L, E>(queries.from_channel(n * channels), p.q.pixel, y, rows, x0, p.Wo - 1, factor, channels, m.q);
            m.begin.tile(rows, x0, m.q);
            similarity_of_rows<L, S, E>(rows, m.q, m.key_rows, x0, keys.plane, channels, m.logits, m.begin);
            for (int i = 0; i < rows; i++) {
                float* weights = m.logits + (size_t)i * window_taps * L;
                Logits<E, L, S>::softmax(weights, to_base_2, m.inverse);
                const float* const* value_row = m.value_rows + S * i;
                float* out_row = out.at(b, y + i, x0) + n * p.d;
                weighted_sums<L, S, E>(
                    p, weights, valid,
                    [&](auto v, int c0, int dy, int k) UNROLLED { return load<v.value>(value_row[dy] + offset[k] + c0); },
                    [&](auto v, int c0, int x, auto sum) UNROLLED {
                        finish(v, out_row + x * out.pixel + c0, n * p.d + c0, sum * m.inverse[x]);
                    });
            }
        }
    }
};

// f(Index<L>, Index<S>) with the specialisation for p; maps of at most 8 columns use half vectors under the papers' window.
template <class F> void choose_window(const Problem& p, F f) {
    constexpr int L = native_lanes, half = L > 8 && K == 7 ? 8 : L;
    const bool narrow = p.Wo <= 8;
    if (p.S == 1) narrow ? f(Index<half>{}, Index<1>{}) : f(Index<L>{}, Index<1>{});
    else narrow ? f(Index<half>{}, Index<2>{}) : f(Index<L>{}, Index<2>{});
}

// A unit of work: some rows of outputs and some heads of one image.
struct Unit {
    int b, y_begin, y_end, n_begin, n_end;
    int heads() const { return n_end - n_begin; }
};

// How images are cut into units: between rows, and where these are too few between heads. Heads read nothing twice; but of
// what they read, which the projection has just written, more lies in the caches of other cores.
struct Cut {
    int heads = 1, bands = 1;  // parts of the heads, and of the rows of outputs

    // allowed(i): whether the heads may be cut into i parts. No band has more rows than `limit`.
    template <class Allowed> Cut(const Problem& p, Allowed allowed, int limit = 0x7fffffff) {
        const int parts = parts_of_image(p.B, p.threads);
        int64_t least = INT64_MAX;
        for (int h = 1; h <= smaller(p.N, parts); h++) {
            if (h > 1 && (p.N % h || !allowed(h))) continue;
            const int b = smaller(p.Ho, larger(ceil_div(parts, h), (p.Ho - 1) / limit + 1)), rows = ceil_div(p.Ho, b);
            // what the busiest thread computes: rows of one head, and for every block of them the keys that it begins with,
            // which take as long as a row; heads have to be a fifth better
            const int64_t busiest = ceil_div((int64_t)p.B * h * b, (int64_t)p.threads) * (rows + ceil_div(rows, block_rows)) * (p.N / h);
            const int64_t cost = busiest * (h > 1 ? 5 : 4);
            if (cost <= least) heads = h, bands = b, least = cost;
        }
    }
};

// Both paths of ACmix. Output n*d + i, of head n, is of the convolution's group (n*d + i) / N: where heads are cut, groups are.
inline Cut acmix_cut(const Problem& p) {
    return Cut(p, [&](int parts) { return whole_vectors(p.d, parts); });
}

// The first and the last row of q, k and v that some output rows read.
int first_row_read(const Problem& p, int first_output) { return larger(0, p.S * first_output - reach); }
int last_row_read(const Problem& p, int last_output) { return smaller(p.H - 1, larger(reach, p.S * last_output + reach)); }

// Calls f(unit) in parallel.
template <class F> void over_units(const Problem& p, const Cut& cut, F f) {
    const int parts = cut.heads * cut.bands;
#pragma omp parallel for schedule(dynamic, 1) num_threads(p.threads) if (p.threads > 1)
    for (int64_t u = 0; u < (int64_t)p.B * parts; u++) {
        const int part = (int)(u % parts), band = part / cut.heads, h = part % cut.heads, of_part = p.N / cut.heads;
        f(Unit{(int)(u / parts), first_of_part(p.Ho, band, cut.bands), first_of_part(p.Ho, band + 1, cut.bands), h * of_part, (h + 1) * of_part});
    }
}

// The keys of the unit's heads.
template <int L, class E> PlanarRows<L, E>* key_rings(const Problem& p, const Rows& rows, const Unit& u) {
    PlanarRows<L, E>* keys = scratch.take_array<PlanarRows<L, E>>(u.heads());
    for (int i = 0; i < u.heads(); i++)
        new (keys + i) PlanarRows<L, E>(p, rows, p.k.pixel, u.n_begin + i, E::each == 1, first_row_read(p, u.y_begin));
    return keys;
}
template <int L, class E> size_t key_ring_floats(const Problem& p, int heads) {
    return heads * (PlanarRows<L, E>::floats(p) + 16 + sizeof(PlanarRows<L, E>) / 4 + 1);
}

}  // namespace
