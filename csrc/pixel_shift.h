// Pixel-shift attention, forward: every output from its neighbours by any set of offsets.
//   out[p][c] = sum_t weight[t][c] * (softmax_scale * sum_{c' of c's head} q[p][c'] * k[s*p + offset t][c'] + bias[t][head])
//               * v[s*p + offset t][c]
// Lanes are channels. A neighbour beyond a border of zeros counts for nothing, but for the bias where there is no v.
#pragma once
#include "border.h"
#include "convattn.h"
#include "vectors.h"

namespace {

template <int L, int Step = L / 2> INLINE float folded_lanes(Vec<L> v) {
    if constexpr (Step == 0) return v[0];
    else return folded_lanes<L, Step / 2>(v + lanes_from<L, Step>(v, v));
}

// The neighbours of one output that count.
struct Neighbours {
    int n;
    const float **key, **value, **weight;  // value is not set where there is no v
    int* tap;
};

struct PixelShift {
    static constexpr int L = native_lanes;
    const ConvattnOffsets& s;
    const ConvattnMap &q, &k, &v, &out;
    const float *weight, *bias;

    // f(c, lanes) for every vector of a head's channels.
    template <class F> static INLINE void over_head(int d, F f) {
        int c = 0;
        for (; c + L <= d; c += L) f(c, [](const float* p) UNROLLED { return load<L>(p); }, L);
        if (c < d) f(c, [=](const float* p) UNROLLED { return load_first<L>(p, d - c); }, d - c);
    }

    static INLINE void write(float* target, Vec<L> sum, int lanes) {
        if (lanes == L) store<L>(target, sum);
        else store_first<L>(target, sum, lanes);
    }

    Neighbours neighbours(int b, int y, int x, const float* zeros, Neighbours found) const {
        found.n = 0;
        for (int t = 0; t < s.taps; t++) {
            const int row = border_source(y * s.stride_y + s.offsets[2 * t], s.height, s.border);
            const int column = border_source(x * s.stride_x + s.offsets[2 * t + 1], s.width, s.border);
            const bool outside = row < 0 || column < 0;
            if (outside && (v.data || !bias)) continue;
            found.key[found.n] = outside ? zeros : k.data + b * k.image + row * k.row + column * k.column;
            if (v.data) found.value[found.n] = v.data + b * v.image + row * v.row + column * v.column;
            found.weight[found.n] = weight + (size_t)t * s.channels;
            found.tap[found.n++] = t;
        }
        return found;
    }

    // A head of several channels: the similarities first.
    template <bool Value> void head(const Neighbours& near, int n, int d, const float* query, float* target, float* similarity) const {
        const int c0 = n * d;
        for (int i = 0; i < near.n; i++) {
            Vec<L> sum = {};
            const float* key = near.key[i] + c0;
            over_head(d, [&](int c, auto read, int) UNROLLED { sum += read(query + c0 + c) * read(key + c); });
            similarity[i] = s.softmax_scale * folded_lanes<L>(sum) + (bias ? bias[(size_t)near.tap[i] * s.heads + n] : 0.f);
        }
        over_head(d, [&](int c, auto read, int lanes) UNROLLED {
            Vec<L> sum = {};
            for (int i = 0; i < near.n; i++) {
                Vec<L> term = similarity[i] * read(near.weight[i] + c0 + c);
                if constexpr (Value) term *= read(near.value[i] + c0 + c);
                sum += term;
            }
            write(target + c0 + c, sum, lanes);
        });
    }

    // Heads of one channel: element by element.
    template <bool Value> void elements(const Neighbours& near, const float* query, float* target) const {
        over_head(s.channels, [&](int c, auto read, int lanes) UNROLLED {
            const Vec<L> scaled = read(query + c) * s.softmax_scale;
            Vec<L> sum = {};
            for (int i = 0; i < near.n; i++) {
                Vec<L> term = scaled * read(near.key[i] + c);
                if (bias) term += read(bias + (size_t)near.tap[i] * s.heads + c);
                term *= read(near.weight[i] + c);
                if constexpr (Value) term *= read(near.value[i] + c);
                sum += term;
            }
            write(target + c, sum, lanes);
        });
    }

    template <bool Value> void row(int b, int y) const {
        if (!scratch.reserve((size_t)s.channels + 8 * (size_t)s.taps)) return;
        float* zeros = scratch.take(s.channels);
        memset(zeros, 0, (size_t)s.channels * sizeof(float));
        float* similarity = scratch.take(s.taps);
        Neighbours room = {0, scratch.take_array<const float*>(s.taps), scratch.take_array<const float*>(s.taps),
                           scratch.take_array<const float*>(s.taps), scratch.take_ints(s.taps)};
        for (int x = 0; x < s.out_width; x++) {
            const Neighbours near = neighbours(b, y, x, zeros, room);
            const float* query = q.data + b * q.image + y * q.row + x * q.column;
            float* target = out.data + b * out.image + y * out.row + x * out.column;
            if (s.heads == s.channels) elements<Value>(near, query, target);
            else
                for (int n = 0; n < s.heads; n++) head<Value>(near, n, s.channels / s.heads, query, target, similarity);
        }
    }

    void run() const {
#pragma omp parallel for schedule(dynamic, 1) num_threads(s.threads) if (s.threads > 1)
        for (int64_t u = 0; u < (int64_t)s.batch * s.out_height; u++) {
            const int b = (int)(u / s.out_height), y = (int)(u % s.out_height);
            if (v.data) row<true>(b, y);
            else row<false>(b, y);
        }
    }
};

}  // namespace
