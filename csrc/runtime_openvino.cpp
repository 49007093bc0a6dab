// The operators for OpenVINO, called by convattn/export/openvino_extension.py for each node of a network. They run on
// OpenVINO's threads, those of oneTBB.
#include "runtime_operators.h"
#include "runtime_threads.h"
#include "tbb_abi.h"

#include <string.h>

namespace {

// Those of the arena that this thread is in.
struct ArenaThreads : Threads {
    const tbb12::Library& tbb;
    explicit ArenaThreads(const tbb12::Library& tbb) : tbb(tbb) {}

    struct Member final : tbb12::Task {
        const tbb12::Library* tbb;
        tbb12::Wait* wait;
        void (*member)(void*, size_t);
        size_t number;
        void* data;

        Task* execute(void*) override {
            member(data, number);
            return cancel(nullptr);
        }
        Task* cancel(void*) override {
            const auto notify = tbb->notify_waiters;
            const uintptr_t waiting = (uintptr_t)wait;
            if (wait->left.fetch_sub(1) == 1) notify(waiting);  // from here on the task may be gone
            return nullptr;
        }
    };

    unsigned members(unsigned wanted) const override {
        const int most = tbb.complete ? tbb.max_concurrency(nullptr) : 1;
        return most < (int)wanted ? (unsigned)most : wanted;
    }
    bool run(void (*member)(void*, size_t), unsigned members, void* data) const override {
        tbb12::Context context;
        tbb12::Wait wait;
        wait.left = members;
        std::vector<Member> tasks(members);
        for (unsigned number = 0; number < members; number++) {
            Member& task = tasks[number];
            task.tbb = &tbb, task.wait = &wait, task.member = member, task.number = number, task.data = data;
        }
        tbb.initialize(context);
        for (unsigned number = 1; number < members; number++) tbb.spawn(tasks[number], context);
        tbb.execute_and_wait(tasks[0], context, wait, context);
        tbb.destroy(context);
        return true;
    }
};

// As ctypes lays it out in openvino_extension.py.
struct GivenAttributes {
    const int64_t *offsets, *stride;
    int64_t offset_count, strides, border, heads, relu;
    float scale;

    Attributes checked() const {
        return Attributes({offsets, offsets + offset_count}, {stride, stride + strides}, border, heads, relu, scale);
    }
};

// Of each tensor its address, how many sizes it has, and these; the output comes first.
std::vector<Tensor> tensors(const int64_t* told, size_t count) {
    std::vector<Tensor> found(count);
    for (Tensor& tensor : found) {
        tensor.data = (float*)told[0];
        tensor.shape.assign(told + 2, told + 2 + told[1]);
        told += 2 + told[1];
    }
    return found;
}

template <class Kind> struct NodeCall : Call {
    const std::vector<Tensor> given;
    explicit NodeCall(const std::vector<Tensor>& given) : given(given) {}

    // A node has no inputs without a tensor: an empty one says that there is none.
    Tensor input(size_t number) const override {
        const bool there = number + 1 < given.size();
        expect(there || !Kind::needs(number), "fewer inputs than it needs");
        return there && (Kind::needs(number) || given[number + 1].count()) ? given[number + 1] : Tensor{};
    }
    Tensor output(const std::vector<int64_t>& shape) const override {
        expect(given[0].shape == shape, "an output of another shape");
        return given[0];
    }
};

}  // namespace

// An Outcome::Code; the reason is written to `why`.
extern "C" __attribute__((visibility("default"))) int convattn_openvino_compute(const char* name, const GivenAttributes* attributes,
                                                                                 const int64_t* told, size_t inputs, char* why,
                                                                                 size_t room) {
    static const tbb12::Library tbb;
    const ArenaThreads threads(tbb);
    const RunOn here(threads);
    Outcome came = {Outcome::refused, "convattn has no operator of this name"};
    each_operator([&](auto kind) {
        typedef decltype(kind) Kind;
        if (strcmp(name, Kind::name)) return;
        came = outcome<Kind>([&] { return Kind::run(attributes->checked(), NodeCall<Kind>(tensors(told, 1 + inputs))); });
    });
    strncpy(why, came.why.c_str(), room - 1);
    why[room - 1] = 0;
    return came.code;
}
