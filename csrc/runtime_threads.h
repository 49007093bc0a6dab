// On whose threads kernels run inside another runtime.
#pragma once
#include <stddef.h>

// A runtime's own threads.
struct Threads {
    // How many members a parallel region has where `wanted` would do.
    virtual unsigned members(unsigned wanted) const = 0;
    // Calls member(data, 0) to member(data, members - 1) and waits for them; false: called none.
    virtual bool run(void (*member)(void*, size_t), unsigned members, void* data) const = 0;
};

// Kernels that this thread calls run on `threads` for as long as this lives, else on this thread alone.
class RunOn {
    const Threads* outer;

public:
    explicit RunOn(const Threads& threads);
    ~RunOn();
};
