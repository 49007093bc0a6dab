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

// As ctypes lays them out in openvino_extension.py.
struct GivenTensor {
    float* data;
    const int64_t* shape;
    int64_t rank;
};
struct GivenAttributes {
    const int64_t *offsets, *stride;  // a stride of two numbers
    int64_t offset_count, border, heads, relu;
    float scale;
};

template <class Kind> struct NodeCall : Call {
    const GivenTensor *inputs, *out;
    size_t given;
    NodeCall(const GivenTensor* inputs, size_t given, const GivenTensor* out) : inputs(inputs), out(out), given(given) {}

    static Tensor tensor(const GivenTensor& of) { return {of.data, std::vector<int64_t>(of.shape, of.shape + of.rank)}; }
    Tensor input(size_t number) const override {
        const Tensor found = number < given ? tensor(inputs[number]) : Tensor{};
        // a node has no inputs without a tensor: an empty one says that there is none
        expect(!Kind::needs(number) || found.data, "fewer inputs than it needs");
        return Kind::needs(number) || (found.data && found.count()) ? found : Tensor{};
    }
    Tensor output(const std::vector<int64_t>& shape) const override {
        const Tensor found = tensor(*out);
        expect(found.shape == shape, "an output of another shape");
        return found;
    }
};

}  // namespace

// An Outcome::Code; the reason is written to `why`.
extern "C" __attribute__((visibility("default"))) int convattn_openvino_compute(const char* name, const GivenAttributes* given,
                                                                                 const GivenTensor* inputs, size_t count,
                                                                                 const GivenTensor* out, char* why, size_t room) {
    static const tbb12::Library tbb;
    const ArenaThreads threads(tbb);
    const RunOn here(threads);
    Outcome came = {Outcome::refused, "convattn has no operator of this name"};
    each_operator([&](auto kind) {
        typedef decltype(kind) Kind;
        if (strcmp(name, Kind::name)) return;
        came = outcome<Kind>([&] {
            const Attributes attributes({given->offsets, given->offsets + given->offset_count}, {given->stride, given->stride + 2},
                                        given->border, given->heads, given->relu, given->scale);
            return Kind::run(attributes, NodeCall<Kind>(inputs, count, out));
        });
    });
    strncpy(why, came.why.c_str(), room - 1);
    why[room - 1] = 0;
    return came.code;
}
