// The one entry point that AVX-512 BF16 has of its own: ACmix forward over bfloat16 maps and the papers' window. All others,
// and other calls of this one, are those of AVX-512 (dispatch.cpp).
#include "window_pairs.h"

namespace {

thread_local Scratch paired_weights;

// Maps of an even number of channels a head, by products of pairs.
void acmix_pairs(Problem& p, const BFloat16* qkv, Tables tables, BFloat16* out) {
    const int inputs = 3 * p.N, pairs = PairedRows::map_pairs(p);
    const size_t taps = (size_t)conv_taps * p.C, out_row = (size_t)p.Wo * p.C;
    if (!paired_weights.reserve((pairs + 1) * taps)) return;
    float *weight = paired_weights.take(pairs * taps), *zeros = paired_weights.take(taps);
    memset(zeros, 0, taps * sizeof(float));
    for (int t = 0; t < inputs; t += 2) {
        const float* first = tables.weight + t * taps;
        round_pairs(first, t + 1 < inputs ? first + taps : zeros, weight + t / 2 * taps, taps);
    }
    tables.weight = weight;
    read_packed(p, packed((const float*)qkv, p.H, p.W, 3 * p.C / 2), p.q, p.k, p.v);
    const GroupConv conv(p.H, p.W, p.S, pairs, p.N, p.d);
    choose_window(p, [&](auto L, auto S) {
        over_units(p, converting_cut(p), [&](const Unit& u) {
            if (!half_rows.reserve(PairedRows::floats(p) + block_rows * out_row)) return;
            PairedRows read(p, qkv + (size_t)u.b * p.H * p.W * 3 * p.C, first_row_read(p, u.y_begin), half_rows);
            NarrowedRows<BFloat16> written = narrowed_rows(p, u, out);
            const Rows block = {written.block, (ptrdiff_t)out_row, 1};  // every block of rows begins it anew
            const Band band = {rows_of(p.q, u.b), rows_of(p.k, u.b), read.values, read.maps, block, (ptrdiff_t)pairs * p.d, &read, &written};
            acmix_unit<decltype(L)::value, decltype(S)::value, Pairs>(p, conv, tables, band, u);
        });
    });
}

}  // namespace

extern "C" int convattn_acmix_forward_avx512(const ConvattnWindow*, const void*, const float*, const float*, const float*, const float*, void*);

ENTRY(convattn_acmix_forward)
(const ConvattnWindow* s, const void* qkv, const float* position, const float* scale, const float* weight, const float* bias, void* out) {
    if (s->type != 1 || s->size != K || s->head_dim % 2) return convattn_acmix_forward_avx512(s, qkv, position, scale, weight, bias, out);
    const int64_t before = failures;
    Problem p(*s, position);
    if (!p.fits) return 1;
    acmix_pairs(p, (const BFloat16*)qkv, {scale, weight, bias}, (BFloat16*)out);
    return failures != before;
}
