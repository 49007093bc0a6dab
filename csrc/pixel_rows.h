// Maps as rows of pixels, for any set of offsets: the channels of a head padded to whole vectors, columns and rows extended
// on all sides under the border rule. Every offset is then one constant distance, and lanes are channels.
//
// For heads of many channels whose maps are channels-last: no map is transposed, and what a row of outputs reads of a
// neighbour lies in one piece. planar.h has heads of few channels.
#pragma once
#include "geometry.h"

namespace {

constexpr int together = 4;  // queries whose products are added up together
constexpr int row_block = native_lanes >= 8 ? native_lanes / 2 : together;  // rows are padded to so many pixels
constexpr ptrdiff_t partial_step = native_lanes * native_lanes / together;  // sums of one tap, before the last steps
// pixels whose sums fit the registers, where each has four of them
constexpr int block = vector_registers == 32 ? 4 : 2;
constexpr int taps_together = vector_registers == 32 ? 6 : 2;  // whose products with `together` queries fit the registers

// f(b, n, y0, y1): output rows y0 to y1-1 of one head of one image, as many to every thread.
template <class F> void over_shares(const Geometry& g, F f) {
    const int64_t heads = (int64_t)g.B * g.N;
    int64_t common = g.threads, rest = heads;
    while (rest) {
        const int64_t next = common % rest;
        common = rest, rest = next;
    }
    // where heads are many, a share more or less matters less than rows that two shares read
    const int64_t parts = heads >= 8 * (int64_t)g.threads ? 1 : smaller((int64_t)g.Ho, g.threads / common);
#pragma omp parallel for schedule(dynamic, 1) num_threads(g.threads) if (g.threads > 1)
    for (int64_t u = 0; u < heads * parts; u++) {
        const int64_t part = u % parts;
        f((int)(u / parts / g.N), (int)(u / parts % g.N), first_of_part(g.Ho, part, parts), first_of_part(g.Ho, part + 1, parts));
    }
}

// A pixel's channels as whole vectors, zeros in what is left of the last.
INLINE void copy_pixel(const float* pixel, int channels, float* target) {
    constexpr int L = native_lanes;
    int c = 0;
    for (; c + L <= channels; c += L) store<L>(target + c, load<L>(pixel + c));
    if (c < channels) store<L>(target + c, load_first<L>(pixel + c, channels - c));
}

// Rows of pixels that the next row of outputs reads first, fetched a few lines at a time between products: many at once
// would hold back the loads after them.
struct Upcoming {
    static constexpr int line = 16;
    const float* row[3];  // channel 0 of pixel 0
    int64_t column[3];
    int rows = 0;

    void add(const float* first, int64_t step) {
        row[rows] = first, column[rows++] = step;
    }
    // Channels c to end-1 of some pixels from x on.
    INLINE void fetch(int x, int pixels, int c, int end) const {
        for (; c < end; c += line)
            for (int r = 0; r < rows; r++)
                for (int i = 0; i < pixels; i++) __builtin_prefetch(row[r] + (x + i) * column[r] + c, 0, 3);
    }
};

// The rows of a map that one row of outputs reads, each widened once: the next row takes the place of the one that no
// output reads any more.
struct PixelRows {
    const Geometry& g;
    const float* head;  // channel 0 of pixel (0, 0) in the map
    int64_t row, column;
    int channels, depth, width, slots;
    float* data;
    int64_t end = 0;  // rows of the padded map up to here have been read

    static int depth_of(int channels) { return round_up(channels, native_lanes); }
    static int width_of(const Geometry& g) { return g.sx * (round_up(g.Wo, row_block) - 1) + g.left + g.right + 1; }
    static size_t floats(const Geometry& g) { return (size_t)(g.top + g.below + 1) * width_of(g) * depth_of(g.d); }
    PixelRows(const Geometry& g, const ConvattnMap& map, int b, int c0, int channels)
        : g(g), head(map.data + b * map.image + c0), row(map.row), column(map.column), channels(channels), depth(depth_of(g.d)),
          width(width_of(g)), slots(g.top + g.below + 1), data(scratch.take((size_t)slots * width * depth)) {}

    int slot(int64_t padded_row) const { return (int)(padded_row % slots); }
    const float* at(int x) const { return data + (ptrdiff_t)g.sx * x * depth; }
    ptrdiff_t step() const { return (ptrdiff_t)g.sx * depth; }

    // Whether output row y finds a row of the map by offset m.
    bool finds_row(int y, int m) const { return border_source(g.sy * y + g.dy(m), g.H, g.border) >= 0; }
    // What output row y reads; rows are asked for from above to below. Unless `zeros`, those beyond the map stay undefined.
    void read(int y, bool zeros = true) {
        const int64_t first = (int64_t)g.sy * y;
        if (end < first) end = first;
        for (; end < first + slots; end++) {
            const int source = border_source((int)(end - g.top), g.H, g.border);
            if (source >= 0 || zeros) fill(data + (size_t)slot(end) * width * depth, source);
        }
    }
    void fill(float* target, int y) const {
        if (y < 0) {
            memset(target, 0, (size_t)width * depth * 4);
            return;
        }
        for (int i = 0; i < width; i++, target += depth) {
            const int x = border_source(i - g.left, g.W, g.border);
            if (x < 0) memset(target, 0, (size_t)depth * 4);
            else copy_pixel(head + y * row + x * column, channels, target);
        }
    }
    // Adds the row that is read next.
    void add_to(Upcoming& upcoming) const {
        const int source = border_source((int)(end - g.top), g.H, g.border);
        if (source >= 0) upcoming.add(head + source * row, column);
    }
    // From at(x) to the neighbours of output (y, x).
    void distances(int y, ptrdiff_t* distance) const {
        for (int m = 0; m < g.taps; m++)
            distance[m] = ((ptrdiff_t)slot((int64_t)g.sy * y + g.dy(m) + g.top) * width + g.dx(m) + g.left) * depth;
    }
};

// Lane i of the result: where i & Step is 0, lanes i and i+Step of a, else lanes i-Step and i of b, added up.
template <int Step, class V, int... I> INLINE V add_lanes(V a, V b, Indices<I...>) {
    constexpr int L = sizeof...(I);
    const V own = __builtin_shufflevector(a, b, ((I & Step) ? L + I : I)...);  // a blend, which costs less than a permutation
    return own + __builtin_shufflevector(a, b, ((I & Step) ? L + I - Step : I + Step)...);
}
template <int L, int Step> INLINE Vec<L> add_lanes(Vec<L> a, Vec<L> b) {
    return add_lanes<Step>(a, b, typename MakeIndices<L>::type{});
}

// Of `together` queries from q on, the products with neighbours m to m+T-1, added up until a lane holds L/together of the
// channels of one query.
template <int L, int T>
INLINE void correlate_together(const float* q, const float* key, ptrdiff_t key_step, const ptrdiff_t* distance, int depth,
                               float* partial) {
    Vec<L> sum[T][together] = {};
    const float* at[T];
    repeat<T>([&](auto t) UNROLLED { at[t] = key + distance[t]; });
    auto products = [&](int c) UNROLLED {
        repeat<together>([&](auto i) UNROLLED {
            Vec<L> query = load<L>(q + i * depth + c);
            PIN(query);
            repeat<T>([&](auto t) UNROLLED { sum[t][i] += query * load<L>(at[t] + i * key_step + c); });
        });
    };
    int c = 0;
    for (; c + 4 * L <= depth; c += 4 * L) repeat<4>([&](auto v) UNROLLED { products(c + v * L); });
    for (; c < depth; c += L) products(c);
    repeat<T>([&](auto t) UNROLLED {
        const Vec<L> even = add_lanes<L, 1>(sum[t][0], sum[t][1]), odd = add_lanes<L, 1>(sum[t][2], sum[t][3]);
        store<L>(partial + t * partial_step, add_lanes<L, 2>(even, odd));
    });
}

// A lane a query, from the partial sums of L queries.
template <int L> INLINE Vec<L> whole_sums(const float* partial) {
    if constexpr (L == 4) return load<L>(partial);
    else {
        const Vec<L> first = add_lanes<L, 4>(load<L>(partial), load<L>(partial + L));
        if constexpr (L == 8) return first;
        else return add_lanes<L, 8>(first, add_lanes<L, 4>(load<L>(partial + 2 * L), load<L>(partial + 3 * L)));
    }
}

struct Queries {
    const float* data;  // of the first
    int64_t step;
    int channels, valid, taps;

    Queries from(int x, int most) const { return {data + x * step, step, channels, smaller(most, valid - x), taps}; }
};
size_t correlate_floats(const Geometry& g) { return (size_t)g.taps * partial_step + together * PixelRows::depth_of(g.d); }
// result(m, sums) for every tap m and a vector of queries, of the row's `all` those from x on. A few queries meet all their
// neighbours before the next do, while those are in the first-level cache.
template <class Result>
INLINE void correlate_pixels(const Queries& all, int x, const PixelRows& keys, const ptrdiff_t* distance, const Upcoming& upcoming,
                             float* memory, Result result) {
    constexpr int L = native_lanes, T = taps_together;
    const Queries q = all.from(x, L);
    const int taps = q.taps, depth = keys.depth;
    const int lines = Upcoming::line * ceil_div(q.channels, Upcoming::line * larger(1, taps / T));
    float *query = memory, *partial = memory + together * depth;
    for (int i = 0; i < q.valid; i += together) {
        for (int j = 0; j < together; j++) copy_pixel(q.data + smaller(i + j, q.valid - 1) * q.step, q.channels, query + j * depth);
        const float* first = keys.at(x + i);
        float* to = partial + i / together * L;
        int m = 0, fetched = 0;
        auto correlate = [&](auto t) UNROLLED {
            upcoming.fetch(x + i, together, fetched, smaller(fetched + lines, q.channels));
            fetched += lines;
            correlate_together<L, t.value>(query, first, keys.step(), distance + m, depth, to + m * partial_step);
        };
        for (; m + T <= taps; m += T) correlate(Index<T>{});
        for (; m + 2 <= taps; m += 2) correlate(Index<2>{});
        for (; m < taps; m++) correlate(Index<1>{});
    }
    for (int m = 0; m < taps; m++) result(m, whole_sums<L>(partial + m * partial_step));
}

// What is added up over the taps: a weight for each pixel, times values where there are any, times factors
// where there are any.
struct Terms {
    const float* value;  // of the first pixel, at a distance of 0; or null
    ptrdiff_t step;      // from one pixel's to the next
    const ptrdiff_t* distance;
    const float* const* factor;  // of every tap, [depth]; or null
    int depth, taps;
};

// An address in a register, which the compiler does not take apart: loads from there differ by constants.
INLINE const float* pinned(const float* p) {
    asm("" : "+r"(p));
    return p;
}

template <int P, int V, bool Value, bool Factor, class Weight, class Result>
INLINE void aggregate_together(const Terms& terms, int first, int c, Weight weight, Result result) {
    constexpr int L = native_lanes;
    Vec<L> sum[P][V] = {};
    const ptrdiff_t step = terms.step;
    const float* first_value = Value ? terms.value + first * step + c : nullptr;
    for (int m = 0; m < terms.taps; m++) {
        const float* value[P] = {};
        if constexpr (Value) {
            value[0] = pinned(first_value + terms.distance[m]);
            repeat<P - 1>([&](auto i) UNROLLED { value[i + 1] = pinned(value[i] + step); });
        }
        Vec<L> factor[V];
        if constexpr (Factor) repeat<V>([&](auto v) UNROLLED { factor[v] = load<L>(terms.factor[m] + c + v * L); });
        repeat<P>([&](auto i) UNROLLED {
            Vec<L> w = weight(m, first + i) + Vec<L>{};
            PIN(w);
            repeat<V>([&](auto v) UNROLLED {
                Vec<L> term = w;
                if constexpr (Factor) term *= factor[v];
                if constexpr (Value) term *= load<L>(value[i] + v * L);
                sum[i][v] += term;
            });
        });
    }
    repeat<P>([&](auto i) UNROLLED { repeat<V>([&](auto v) UNROLLED { result(first + i, c + v * L, sum[i][v]); }); });
}

// result(i, c, sum) for pixels 0 to pixels-1 and vectors of channels from c on.
template <bool Value, bool Factor, class Weight, class Result>
INLINE void aggregate_pixels(const Terms& terms, int pixels, Weight weight, Result result) {
    constexpr int L = native_lanes, sums = 4 * block;
    auto channels = [&](auto V, int c) UNROLLED {
        int i = 0;
        for (; i + sums / V <= pixels; i += sums / V) aggregate_together<sums / V, V, Value, Factor>(terms, i, c, weight, result);
        if constexpr (sums / V > 4)
            for (; i + 4 <= pixels; i += 4) aggregate_together<4, V, Value, Factor>(terms, i, c, weight, result);
        for (; i < pixels; i++) aggregate_together<1, V, Value, Factor>(terms, i, c, weight, result);
    };
    int c = 0;
    for (; c + 4 * L <= terms.depth; c += 4 * L) channels(Index<4>{}, c);
    for (; c + 2 * L <= terms.depth; c += 2 * L) channels(Index<2>{}, c);
    for (; c < terms.depth; c += L) channels(Index<1>{}, c);
}

template <int L, int... I> INLINE Vec<L> joined(Vec<L / 2> a, Vec<L / 2> b, Indices<I...>) {
    return __builtin_shufflevector(a, b, I...);
}
// Lane P of the first half throughout it, and of the second.
template <int P, class V, int... I> INLINE V spread(V v, Indices<I...>) {
    constexpr int half = sizeof...(I) / 2;
    return __builtin_shufflevector(v, v, (I < half ? P : half + P)...);
}

// Two heads of half a vector of channels: terms.value has both. read(p) gives the weights of half a vector of pixels.
template <int L, class Read>
INLINE void aggregate_two_heads(const Terms& terms, int valid, const float* first, const float* second, size_t plane, float* out,
                                int64_t out_step, Read read) {
    constexpr int half = L / 2;
    const typename MakeIndices<L>::type all{};
    Vec<L> sum[half] = {};
    const ptrdiff_t step = terms.step;
    for (int m = 0; m < terms.taps; m++, first += plane, second += plane) {
        const float* value = pinned(terms.value + terms.distance[m]);
        const Vec<L> weights = joined<L>(read(first), read(second), all);
        // too many streams for the processor to foresee
        __builtin_prefetch(first + weights_ahead, 0, 2);
        __builtin_prefetch(second + weights_ahead, 0, 2);
        repeat<half>([&](auto p) UNROLLED {
            sum[p] += spread<p.value>(weights, all) * load<L>(value);
            value = pinned(value + step);
        });
    }
    repeat<half>([&](auto p) UNROLLED {
        if (p < valid) store<L>(out + p * out_step, sum[p]);
    });
}

// A vector of channels from c on of one pixel; those beyond the head are another's.
INLINE void store_channels(float* pixel, int c, int channels, Vec<native_lanes> sum) {
    if (c + native_lanes <= channels) store<native_lanes>(pixel + c, sum);
    else store_first<native_lanes>(pixel + c, sum, channels - c);
}

}  // namespace
