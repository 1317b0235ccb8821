// Threads: those of PyTorch's own OpenMP, whatever compiler this is. A second OpenMP, or a pool of ours, would have its
// threads wait in a spin on the processors that PyTorch's next operation wants.

#include <stdint.h>

// Does the tasks from begin to end (there may be none), which are group number `group`.
typedef void work_fn(void *context, long begin, long end, long group);

typedef struct {
    work_fn *work;
    void *context;
    long tasks, groups, next;
} job;

// GOMP_parallel(function, argument, threads, flags): calls the function on each thread of a team. NULL: no threads.
static void (*team)(void (*)(void *), void *, unsigned, unsigned);

void layers_use_team(void *gomp_parallel) { *(void **)&team = gomp_parallel; }

static void take_groups(void *argument) {
    job *j = argument;
    for (long g; (g = __atomic_fetch_add(&j->next, 1, __ATOMIC_RELAXED)) < j->groups;)
        j->work(j->context, j->tasks * g / j->groups, j->tasks * (g + 1) / j->groups, g);
}

// Groups for work that sums: few, since each has sums of its own, but more than there are threads, so that one that is
// held up loses little to the others. What is summed within a group, and the order in which the groups are added, does
// not depend on who does what: results repeat bit for bit.
static long sum_groups(int threads) { return threads > 1 ? 4 * threads : 1; }

// Does all tasks, in `groups` groups (0: as many as are good for balance), on `threads` threads; returns when all is
// done.
static void parallel(work_fn *work, void *context, long tasks, long groups, int threads) {
    if (!groups) groups = threads > 1 && tasks > 1 ? (tasks < 16 * threads ? tasks : 16 * threads) : 1;
    job j = {work, context, tasks, groups, 0};
    if (team && threads > 1 && groups > 1)
        team(take_groups, &j, threads, 0);
    else
        take_groups(&j);
}
