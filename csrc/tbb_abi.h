// The part of oneTBB's binary interface that csrc/runtime_openvino.cpp uses, declared here so that a build needs no headers
// of its own: it is the same for every libtbb.so.12.
#pragma once
#include <atomic>
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>

namespace tbb12 {

// tbb::detail::d1::task_group_context
struct Context {
    uint64_t floats = 0;
    uint32_t cancelled = 0;
    uint8_t version = 1, traits = 0, children = 0, state = 0;  // no traits: bound to no other
    void* others[14] = {};
};
static_assert(sizeof(Context) == 128, "another size than oneTBB's");

// tbb::detail::d1::wait_context
struct Wait {
    uint64_t version = 1;
    std::atomic<uint64_t> left;
};

// tbb::detail::d1::task
struct alignas(64) Task {
    virtual ~Task() = default;
    virtual Task* execute(void* where) = 0;
    virtual Task* cancel(void* where) = 0;

private:
    uint64_t traits = 0, reserved[6] = {};
};
static_assert(sizeof(Task) == 64, "another size than oneTBB's");

// The library that the process has loaded; all null without one.
struct Library {
    void* handle = dlopen("libtbb.so.12", RTLD_LAZY | RTLD_NOLOAD);
    void (*initialize)(Context&) = found("_ZN3tbb6detail2r110initializeERNS0_2d118task_group_contextE");
    void (*destroy)(Context&) = found("_ZN3tbb6detail2r17destroyERNS0_2d118task_group_contextE");
    void (*spawn)(Task&, Context&) = found("_ZN3tbb6detail2r15spawnERNS0_2d14taskERNS2_18task_group_contextE");
    void (*execute_and_wait)(Task&, Context&, Wait&, Context&) =
        found("_ZN3tbb6detail2r116execute_and_waitERNS0_2d14taskERNS2_18task_group_contextERNS2_12wait_contextES6_");
    void (*notify_waiters)(uintptr_t) = found("_ZN3tbb6detail2r114notify_waitersEm");
    int (*max_concurrency)(const void* arena) = found("_ZN3tbb6detail2r115max_concurrencyEPKNS0_2d115task_arena_baseE");
    bool complete = initialize && destroy && spawn && execute_and_wait && notify_waiters && max_concurrency;

private:
    struct Symbol {
        void* address;
        template <class Function> operator Function*() const { return (Function*)address; }
    };
    Symbol found(const char* name) const { return {handle ? dlsym(handle, name) : nullptr}; }
};

}  // namespace tbb12
