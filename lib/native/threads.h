// Threads that help with a job and never hold it up.
//
// An OpenMP team ends every loop by waiting, in a spin of milliseconds, for each of its threads, also for one that has
// not been given a processor and has nothing left to do. Data workers want the same processors, so that happens all
// the time. Here the caller does the work, helpers take groups of it when they get to run, the caller waits only for
// groups that a helper has begun, and whoever waits soon sleeps.

#include <pthread.h>
#include <stdint.h>
#include <unistd.h>

// Does the tasks from begin to end (there may be none), which are group number `group`.
typedef void work_fn(void *context, long begin, long end, long group);

typedef struct {
    work_fn *work;
    void *context;
    long tasks, groups, next;
    int places, inside;  // helpers that may still come in, and that are in
} job;

static struct {
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    job *current;
    unsigned jobs;  // how many there have been
    int helpers;
    pthread_once_t once;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .work = PTHREAD_COND_INITIALIZER, .done = PTHREAD_COND_INITIALIZER,
          .once = PTHREAD_ONCE_INIT};

enum { SPINS = 10000 };  // some 200 microseconds: longer than PyTorch needs between two layers

static inline void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void take_groups(job *j) {
    for (long g; (g = __atomic_fetch_add(&j->next, 1, __ATOMIC_RELAXED)) < j->groups;)
        j->work(j->context, j->tasks * g / j->groups, j->tasks * (g + 1) / j->groups, g);
}

static void *help(void *unused) {
    (void)unused;
    pthread_mutex_lock(&pool.lock);
    for (unsigned seen = pool.jobs - 1;;) {
        job *j = pool.current;
        if (pool.jobs != seen && j && j->places > 0) {
            j->places--;
            __atomic_fetch_add(&j->inside, 1, __ATOMIC_RELAXED);
            pthread_mutex_unlock(&pool.lock);
            take_groups(j);
            pthread_mutex_lock(&pool.lock);
            if (__atomic_sub_fetch(&j->inside, 1, __ATOMIC_RELAXED) == 0) pthread_cond_signal(&pool.done);
        }
        seen = pool.jobs;
        pthread_mutex_unlock(&pool.lock);
        for (int i = 0; i < SPINS && __atomic_load_n(&pool.jobs, __ATOMIC_RELAXED) == seen; i++) pause_briefly();
        pthread_mutex_lock(&pool.lock);
        while (pool.jobs == seen) pthread_cond_wait(&pool.work, &pool.lock);
    }
    return NULL;
}

// A forked child (a data worker) has none of its parent's helpers.
static void forget_helpers(void) {
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.work, NULL);
    pthread_cond_init(&pool.done, NULL);
    pool.current = NULL;
    pool.helpers = 0;
}

static void watch_forks(void) { pthread_atfork(NULL, NULL, forget_helpers); }

// Groups for work that sums: few, since each has sums of its own, but more than there are threads, so that one that is
// held up loses little to the others. What is summed within a group, and the order in which the groups are added, does
// not depend on who does what: results repeat bit for bit.
static long sum_groups(int threads) { return threads > 1 ? 4 * threads : 1; }

// Does all tasks, in `groups` groups (0: as many as are good for balance), on `threads` threads; returns when all is
// done.
static void parallel(work_fn *work, void *context, long tasks, long groups, int threads) {
    if (!groups) groups = threads > 1 && tasks > 1 ? (tasks < 16 * threads ? tasks : 16 * threads) : 1;
    job j = {work, context, tasks, groups, 0, threads - 1, 0};
    pthread_once(&pool.once, watch_forks);
    pthread_mutex_lock(&pool.lock);
    if (threads == 1 || groups == 1 || pool.current) {  // another thread's job is on: this one goes alone
        pthread_mutex_unlock(&pool.lock);
        take_groups(&j);
        return;
    }
    for (pthread_t helper; pool.helpers < threads - 1 && !pthread_create(&helper, NULL, help, NULL); pool.helpers++)
        pthread_detach(helper);
    pool.current = &j;
    __atomic_store_n(&pool.jobs, pool.jobs + 1, __ATOMIC_RELAXED);
    pthread_cond_broadcast(&pool.work);
    pthread_mutex_unlock(&pool.lock);
    take_groups(&j);
    for (int i = 0; i < SPINS && __atomic_load_n(&j.inside, __ATOMIC_RELAXED); i++) pause_briefly();
    pthread_mutex_lock(&pool.lock);
    pool.current = NULL;
    while (j.inside) pthread_cond_wait(&pool.done, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
}

// PyTorch's own loops (the loss, the optimiser) leave libgomp's threads spinning for about 3 ms each, on processors
// that the helpers want. libgomp cuts that to microseconds once it has more threads than processors, so it is given a
// second team that sleeps for good. `run` is its GOMP_parallel.
typedef struct {
    void (*run)(void (*)(void *), void *, unsigned, unsigned);
    unsigned threads;
} crowd;

static void nothing(void *unused) { (void)unused; }

static void *stand_by(void *argument) {
    crowd c = *(crowd *)argument;
    c.run(nothing, NULL, c.threads, 0);
    for (;;) pause();
    return NULL;
}

void layers_calm_openmp(void *run, int64_t processors) {
    static crowd c;
    pthread_t leader;
    c = (crowd){(void (*)(void (*)(void *), void *, unsigned, unsigned))run, (unsigned)processors + 1};
    if (!pthread_create(&leader, NULL, stand_by, &c)) pthread_detach(leader);
}
