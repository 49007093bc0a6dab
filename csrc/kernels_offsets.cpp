// Entry points of correlate, aggregate and scatter over any set of offsets.
#include "offset_bands.h"
#include "pixel_rows.h"

namespace {

// Functions of one row, which the compiler finds registers for.
NOINLINE void correlate_row(const PixelRows& keys, const Queries& queries, const ptrdiff_t* distance, const Upcoming& upcoming,
                            float* memory, float* logits, size_t plane) {
    constexpr int L = native_lanes;
    for (int x = 0; x < queries.valid; x += L) {
        const int valid = smaller(L, queries.valid - x);
        correlate_pixels(queries, x, keys, distance, upcoming, memory, [&](int m, Vec<L> sum) UNROLLED {
            float* target = logits + m * plane + x;
            if (valid == L) store<L>(target, sum);
            else store_first<L>(target, sum, valid);
        });
    }
}
NOINLINE void aggregate_row(const Terms& terms, int pixels, const float* weights, size_t plane, float* out, int64_t step,
                            int channels) {
    aggregate_pixels<true, false>(
        terms, pixels, [&](int m, int i) UNROLLED { return weights[m * plane + i]; },
        [&](int i, int c, Vec<native_lanes> sum) UNROLLED { store_channels(out + i * step, c, channels, sum); });
}

template <int L>
NOINLINE void aggregate_row_of_two_heads(const Terms& terms, int pixels, const float* first, const float* second, size_t plane,
                                         float* out, int64_t step) {
    constexpr int half = L / 2;
    for (int x = 0; x < pixels; x += half) {
        const int valid = smaller(half, pixels - x);
        const Terms here = {terms.value + x * terms.step, terms.step, terms.distance, nullptr, terms.depth, terms.taps};
        auto aggregate = [&](auto read) UNROLLED {
            aggregate_two_heads<L>(here, valid, first + x, second + x, plane, out + x * step, step, read);
        };
        if (valid == half) aggregate([](const float* p) UNROLLED { return load<half>(p); });
        else aggregate([=](const float* p) UNROLLED { return load_first<half>(p, valid); });
    }
}

void correlate_rows_of_pixels(const Geometry& g, const ConvattnMap& q, const ConvattnMap& k, float* logits) {
    over_shares(g, [&](int b, int n, int y0, int y1) {
        if (!scratch.reserve(PixelRows::floats(g) + distance_floats(g) + correlate_floats(g))) return;
        PixelRows keys(g, k, b, n * g.d, g.d);
        ptrdiff_t* distance = scratch.take_array<ptrdiff_t>(g.taps);
        float* memory = scratch.take(correlate_floats(g));
        const size_t plane = (size_t)g.Ho * g.Wo;
        for (int y = y0; y < y1; y++) {
            keys.read(y);
            keys.distances(y, distance);
            const Queries queries = {q.data + b * q.image + n * g.d + y * q.row, q.column, g.d, g.Wo, g.taps};
            Upcoming upcoming;
            upcoming.add(queries.data + q.row, q.column);
            keys.add_to(upcoming);
            float* target = logits + ((size_t)b * g.N + n) * g.taps * plane + (size_t)y * g.Wo;
            correlate_row(keys, queries, distance, upcoming, memory, target, plane);
        }
    });
}

// So many heads to a vector: 1, or 2 of half a vector.
template <int Heads>
void aggregate_rows_of_pixels(const Geometry& of_heads, const float* weights, const ConvattnMap& v, const ConvattnMap& out) {
    Geometry g = of_heads;
    g.N /= Heads, g.d *= Heads;
    over_shares(g, [&](int b, int n, int y0, int y1) {
        if (!scratch.reserve(PixelRows::floats(g) + distance_floats(g))) return;
        PixelRows values(g, v, b, n * g.d, g.d);
        ptrdiff_t* distance = scratch.take_array<ptrdiff_t>(g.taps);
        const size_t plane = (size_t)g.Ho * g.Wo;
        for (int y = y0; y < y1; y++) {
            values.read(y);
            values.distances(y, distance);
            const Terms terms = {values.at(0), values.step(), distance, nullptr, values.depth, g.taps};
            const float* first = weights + ((size_t)b * g.N + n) * Heads * g.taps * plane + (size_t)y * g.Wo;
            float* target = out.data + b * out.image + n * g.d + y * out.row;
            if constexpr (Heads == 1) aggregate_row(terms, g.Wo, first, plane, target, out.column, g.d);
            else aggregate_row_of_two_heads<native_lanes>(terms, g.Wo, first, first + g.taps * plane, plane, target, out.column);
        }
    });
}

template <int L> bool aggregate_by_channels(const Geometry& g, const float* weights, const ConvattnMap& v, const ConvattnMap& out) {
    if (v.channel != 1 || out.channel != 1) return false;
    if (g.d >= larger(L, g.Wo > 8 ? 8 : 32)) return aggregate_rows_of_pixels<1>(g, weights, v, out), true;
    if constexpr (L >= 8)
        if (2 * g.d == L && g.N % 2 == 0)
            return aggregate_rows_of_pixels<2>(g, weights, v, out), true;
    return false;
}

}  // namespace

ENTRY(convattn_correlate)(const ConvattnOffsets* s, const ConvattnMap* q, const ConvattnMap* k, float* logits) {
    const int64_t before = failures;
    const Geometry g(*s);
    // a few channels cost less with pixels on lanes, whose sums need no last steps
    if (g.d >= (native_lanes >= 16 ? 32 : 64) && q->channel == 1 && k->channel == 1) {
        correlate_rows_of_pixels(g, *q, *k, logits);
        return failures != before;
    }
    const int band = rows_of_unit(g, (size_t)g.d * (g.sy * g.row_size() + out_row_size(g)));
    choose_lanes(g, [&](auto lanes) {
        constexpr int L = decltype(lanes)::value;
        over_units(g, band, [&](int b, int n, int y0, int rows) {
            if (!scratch.reserve(padded_floats(g, g.d, rows) + out_floats(g, g.d, rows) + distance_floats(g))) return;
            const ptrdiff_t* distance = distances(g);
            const Planes keys = padded_planes(g, *k, b, n * g.d, g.d, y0, rows, scratch.take(padded_floats(g, g.d, rows)));
            const Planes queries = out_planes(g, *q, b, n * g.d, g.d, y0, rows, scratch.take(out_floats(g, g.d, rows)));
            const size_t plane = (size_t)g.Ho * g.Wo;
            float* out = logits + ((size_t)b * g.N + n) * g.taps * plane;
            for (int r = 0; r < rows; r++)
                for (int x = 0; x < g.Wo; x += L) {
                    float* target = out + (size_t)(y0 + r) * g.Wo + x;
                    const int valid = smaller(L, g.Wo - x);
                    correlate_all<L, false>(queries.at(0, r) + x, queries.channel_step(), keys.at(0, g.sy * r) + x, keys.channel_step(),
                                            distance, nullptr, g.d, g.taps, [&](int m, Vec<L> sum) UNROLLED {
                                                if (valid == L) store<L>(target + m * plane, sum);
                                                else store_first<L>(target + m * plane, sum, valid);
                                            });
                }
        });
    });
    return failures != before;
}

ENTRY(convattn_aggregate)(const ConvattnOffsets* s, const float* weights, const ConvattnMap* v, const ConvattnMap* out) {
    const int64_t before = failures;
    const Geometry g(*s);
    if (aggregate_by_channels<native_lanes>(g, weights, *v, *out)) return failures != before;
    const int band = rows_of_unit(g, (size_t)g.d * (g.sy * g.row_size() + out_row_size(g)));
    choose_lanes(g, [&](auto lanes) {
        constexpr int L = decltype(lanes)::value;
        over_units(g, band, [&](int b, int n, int y0, int rows) {
            if (!scratch.reserve(padded_floats(g, g.d, rows) + out_floats(g, g.d, rows) + distance_floats(g))) return;
            const ptrdiff_t* distance = distances(g);
            const Planes values = padded_planes(g, *v, b, n * g.d, g.d, y0, rows, scratch.take(padded_floats(g, g.d, rows)));
            const Planes result = {scratch.take(out_floats(g, g.d, rows)), rows, out_row_size(g)};
            const size_t plane = (size_t)g.Ho * g.Wo;
            const float* w = weights + ((size_t)b * g.N + n) * g.taps * plane;
            for (int r = 0; r < rows; r++)
                for (int x = 0; x < g.Wo; x += L) {
                    const float* at = w + (size_t)(y0 + r) * g.Wo + x;
                    const int valid = smaller(L, g.Wo - x);
                    const float* value = values.at(0, g.sy * r) + x;
                    // too many streams for the processor to foresee
                    for (int m = 0; m < g.taps; m++) __builtin_prefetch(at + m * plane + weights_ahead, 0, 2);
                    auto store_sum = [&](int c, Vec<L> sum) UNROLLED { store<L>(result.at(c, r) + x, sum); };
                    if (valid == L)
                        aggregate_all<L>(value, values.channel_step(), distance, nullptr, g.d, g.taps,
                                         [&](int m) UNROLLED { return load<L>(at + m * plane); }, store_sum);
                    else
                        aggregate_all<L>(value, values.channel_step(), distance, nullptr, g.d, g.taps,
                                         [&](int m) UNROLLED { return load_first<L>(at + m * plane, valid); }, store_sum);
                }
            store_planes(result, *out, b, n * g.d, g.d, y0, rows, g.Wo);
        });
    });
    return failures != before;
}

// `out` is added to.
ENTRY(convattn_scatter)(const ConvattnOffsets* s, const float* weights, const ConvattnMap* u, const ConvattnMap* out) {
    const int64_t before = failures;
    const Geometry g(*s);
    const int band = rows_of_band(g, (size_t)g.d * (g.sy * g.row_size() + out_row_size(g)) + (size_t)g.taps * g.Wo);
    // Bands of a head share target rows, so they run one after the other; where heads are few, channels are shared out.
    const int64_t heads = (int64_t)g.B * g.N;
    const int parts = heads >= g.threads ? 1 : smaller(g.threads, ceil_div(g.d, group));
    const int part = round_up(ceil_div(g.d, parts), group);
    choose_lanes(g, [&](auto lanes) {
        constexpr int L = decltype(lanes)::value;
#pragma omp parallel for schedule(dynamic, 1) num_threads(g.threads) if (g.threads > 1)
        for (int64_t unit = 0; unit < heads * parts; unit++) {
            const int b = (int)(unit / parts / g.N), n = (int)(unit / parts % g.N);
            const int first = (int)(unit % parts) * part, channels = smaller(part, g.d - first);
            const size_t plane = (size_t)g.Ho * g.Wo;
            for (int y0 = 0; channels > 0 && y0 < g.Ho; y0 += band) {
                const int rows = smaller(band, g.Ho - y0), c0 = n * g.d + first;
                if (!scratch.reserve(ZeroPadded::floats(g, g.taps + channels, rows) + padded_floats(g, channels, rows) + out_floats(g, channels, rows)))
                    break;
                const ZeroPadded w(g, g.taps, rows), source(g, channels, rows);
                for (int m = 0; m < g.taps; m++)
                    for (int r = 0; r < rows; r++)
                        memcpy(w.at(m, r), weights + (((size_t)b * g.N + n) * g.taps + m) * plane + (size_t)(y0 + r) * g.Wo, g.Wo * 4);
                const Planes maps = out_planes(g, *u, b, c0, channels, y0, rows, scratch.take(out_floats(g, channels, rows)));
                for (int c = 0; c < channels; c++)
                    for (int r = 0; r < rows; r++) memcpy(source.at(c, r), maps.at(c, r), g.Wo * 4);
                const Planes target = {scratch.take(padded_floats(g, channels, rows)), g.padded_rows(rows), g.row_size()};
                scatter_band<L>(g, w, source, channels, rows, target);
                fold_planes(g, target, channels, y0, *out, b, c0);
            }
        }
    });
    return failures != before;
}
