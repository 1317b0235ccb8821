// What both element types share: vectors of floats, loads and stores, GELU, scratch memory, threads.
// Only GCC's and Clang's vector extensions, so the same text serves AVX-512, AVX2 and NEON.

#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#ifdef __AVX512F__
enum { LANES = 16 };
#else
enum { LANES = 8 };
#endif

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * LANES)));
typedef uint16_t bf16;

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

int64_t fast_lanes(void) { return LANES; }

INLINE long least(long a, long b) { return a < b ? a : b; }
INLINE long most(long a, long b) { return a > b ? a : b; }

// ---------------------------------------------------------------------------------------------- vectors

INLINE vf splat(float s) {
#ifdef __AVX512F__
    return (vf){s, s, s, s, s, s, s, s, s, s, s, s, s, s, s, s};
#else
    return (vf){s, s, s, s, s, s, s, s};
#endif
}

INLINE vf load_f32(const float *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE void store_f32(float *p, vf v) { memcpy(p, &v, sizeof v); }

INLINE vf load_bf16(const bf16 *p) {
    vh half;
    memcpy(&half, p, sizeof half);
    return (vf)(__builtin_convertvector(half, vu) << 16);
}
INLINE void store_bf16(bf16 *p, vf v) {
#ifdef __AVX512BF16__
    __m256bh half = _mm512_cvtneps_pbh((__m512)v);
#else
    vu bits = (vu)v;  // round to nearest, ties to even
    vh half = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, vh);
#endif
    memcpy(p, &half, sizeof half);
}

INLINE vf choose(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }

// ---------------------------------------------------------------------------------------------- GELU

// exp(x) for x <= 0 to 1 ulp or so: 2^n times a polynomial on [-ln2/2, ln2/2] (Cephes' coefficients).
INLINE vf exp_negative(vf x) {
    x = choose(x > splat(-87.f), x, splat(-87.f));
    const vf magic = splat(12582912.f);  // adding 1.5 * 2^23 leaves the nearest integer in the low bits
    vf n = x * splat(1.44269504f) + magic;
    vi exponent = (vi)n << 23;
    n -= magic;
    vf r = x - n * splat(0.693359375f) + n * splat(2.12194440e-4f);
    vf p = splat(1.9875691500e-4f);
    p = p * r + splat(1.3981999507e-3f);
    p = p * r + splat(8.3334519073e-3f);
    p = p * r + splat(4.1665795894e-2f);
    p = p * r + splat(1.6666665459e-1f);
    p = p * r + splat(5.0000001201e-1f);
    p = p * r * r + r + splat(1.f);
    return (vf)((vi)p + exponent);
}

// GELU(x) = x P(X <= x), X normal; its slope is P(X <= x) + x density(x).
// The tail is Abramowitz & Stegun 7.1.26, absolute error 1.5e-7 / 2.
INLINE vf gelu_and_slope(vf x, vf *slope) {
    vf size = (vf)((vi)x & 0x7fffffff);
    vf e = exp_negative(x * x * splat(-0.5f));
    vf t = splat(1.f) / (splat(1.f) + size * splat(0.3275911f * 0.70710678f));
    vf q = splat(1.061405429f / 2);
    q = q * t + splat(-1.453152027f / 2);
    q = q * t + splat(1.421413741f / 2);
    q = q * t + splat(-0.284496736f / 2);
    q = q * t + splat(0.254829592f / 2);
    q *= t * e;
    vf below = choose(x > splat(0.f), splat(1.f) - q, q);  // P(X <= x)
    *slope = below + x * e * splat(0.39894228f);
    return x * below;
}

INLINE vf gelu(vf x) {
    vf slope;
    return gelu_and_slope(x, &slope);
}

// ---------------------------------------------------------------------------------------------- memory

// A buffer that one thread keeps for its next call, by slot; nothing is mapped or zeroed in a warm loop.
static void *scratch(int slot, size_t bytes) {
    static _Thread_local struct {
        void *memory;
        size_t bytes;
    } kept[8];
    if (kept[slot].bytes < bytes) {
        free(kept[slot].memory);
        bytes = (bytes + 4095) & ~(size_t)4095;
        if (posix_memalign(&kept[slot].memory, 4096, bytes)) abort();
        kept[slot].bytes = bytes;
    }
    return kept[slot].memory;
}

// ---------------------------------------------------------------------------------------------- threads

typedef void work_fn(void *context, long begin, long end, int thread);

typedef struct {
    work_fn *work;
    void *context;
    long tasks;
    int threads, thread;
} share;

// PyTorch's own OpenMP pool, when it has been found: a second pool would spin against it.
static void (*team_run)(void (*)(void *), void *, unsigned, unsigned);
static int (*team_rank)(void), (*team_size)(void);

void fast_use_team(void *run, void *rank, void *size) {
    team_run = (void (*)(void (*)(void *), void *, unsigned, unsigned))run;
    team_rank = (int (*)(void))rank;
    team_size = (int (*)(void))size;
}

// Which tasks a thread takes depends on nothing but the number of threads: results repeat bit for bit.
static void run_share(share *s, int thread) {
    long begin = s->tasks * thread / s->threads, end = s->tasks * (thread + 1) / s->threads;
    if (begin < end) s->work(s->context, begin, end, thread);
}

static void run_in_team(void *argument) {
    share *s = argument;
    for (int thread = team_rank(); thread < s->threads; thread += team_size()) run_share(s, thread);
}

static void *run_in_thread(void *argument) {
    share *s = argument;
    run_share(s, s->thread);
    return NULL;
}

static void parallel(work_fn *work, void *context, long tasks, int threads) {
    share all = {work, context, tasks, threads, 0};
    if (threads <= 1) {
        run_share(&all, 0);
    } else if (team_run) {
        team_run(run_in_team, &all, (unsigned)threads, 0);
    } else {
        pthread_t others[threads];
        share shares[threads];
        int started[threads];
        for (int i = 1; i < threads; i++) {
            shares[i] = all;
            shares[i].thread = i;
            started[i] = !pthread_create(&others[i], NULL, run_in_thread, &shares[i]);
        }
        run_share(&all, 0);
        for (int i = 1; i < threads; i++) {
            if (started[i]) pthread_join(others[i], NULL);
            else run_share(&all, i);
        }
    }
}
