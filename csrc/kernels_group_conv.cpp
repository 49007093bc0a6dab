// Entry points of the group convolution.
#include "group_conv.h"

ENTRY(convattn_group_conv_forward)(const ConvattnGroupConv* s, const ConvattnMap* in, const float* weight, const float* bias,
                                   const ConvattnMap* out) {
    const int64_t before = failures;
    const GroupConv whole(s->height, s->width, s->stride, s->inputs, s->outputs, s->groups);
    const View from(*in), to(*out);
    const ConvCut cut(whole, parts_of_image(s->batch, s->threads));
#pragma omp parallel for schedule(dynamic, 1) num_threads(s->threads) if (s->threads > 1)
    for (int64_t i = 0; i < (int64_t)s->batch * cut.parts(); i++) {
        const ConvUnit u(whole, cut, i);
        const GroupConv conv = whole.of_groups(u.groups);
        const size_t input = (size_t)conv.T * conv.d, row_floats = (size_t)conv.Wo * conv.outputs();
        if (!scratch.reserve(row_floats + input)) continue;
        float* row = scratch.take(row_floats);
        float* zeros = scratch.take(input);
        memset(zeros, 0, input * sizeof(float));
        const int first_output = u.group * conv.N;
        conv_forward_rows(conv, rows_of(from.from_channel(u.group), u.b), from.pixel, weight + u.group,
                          bias ? bias + first_output : nullptr, zeros, row, to.from_channel(first_output), u.b, u.y_begin, u.y_end);
    }
    return failures != before;
}

// Which thread adds to which copy of dweight is fixed, so results repeat exactly.
ENTRY(convattn_group_conv_backward)(const ConvattnGroupConv* s, const ConvattnMap* in, const float* weight, const ConvattnMap* dout,
                                    const ConvattnMap* din, double* dweight) {
    const int64_t before = failures;
    const GroupConv conv(s->height, s->width, s->stride, s->inputs, s->outputs, s->groups);
    const ConvCut cut(conv, parts_of_image(s->batch, s->threads));
    const View from(*in), grad(*dout), to(*din);
#pragma omp parallel for schedule(static, 1) num_threads(s->threads) if (s->threads > 1)
    for (int slice = 0; slice < s->threads; slice++)
        for (int64_t u = slice; u < (int64_t)s->batch * cut.parts(); u += s->threads)
            conv_backward_unit(conv, cut, u, from, weight, grad, to, dweight + slice * conv.weights());
    return failures != before;
}
