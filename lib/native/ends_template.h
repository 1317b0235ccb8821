// The two ends of the network: images into patches, and the mean over places.
//
// A template: layers.c includes it once an element type and arithmetic. The includer must define
//   T               the type of a stored activation: float or bf16
//   FN(name)        `name` with the suffix of this inclusion
//   LOAD, STORE     a vector of floats from and to activations
//   ELEMENT(value)  a float as an activation

typedef struct {
    int64_t batch, channels, height, width, patch, dim, threads;  // height, width: of the grid of patches
    int64_t stride[4];  // of the images, in floats: batch, channel, row, column
    const float *images;
    void *patches;  // (batch, height, width, dim): channels x patch x patch values, then zeros up to dim
} FN(cut);

static void FN(cut_work)(void *context, long begin, long end, long group) {
    const FN(cut) *a = context;
    (void)group;
    for (long task = begin; task < end; task++) {  // a row of patches
        long b = task / a->height, h = task % a->height, p = a->patch;
        T *to = (T *)a->patches + task * a->width * a->dim;
        memset(to, 0, a->width * a->dim * sizeof(T));
        for (long w = 0; w < a->width; w++, to += a->dim) {
            const float *from = a->images + b * a->stride[0] + h * p * a->stride[2] + w * p * a->stride[3];
            long at = 0;
            for (long c = 0; c < a->channels; c++)
                for (long i = 0; i < p; i++)
                    for (long j = 0; j < p; j++)
                        to[at++] = ELEMENT(from[c * a->stride[1] + i * a->stride[2] + j * a->stride[3]]);
        }
    }
}

void FN(layers_cut)(FN(cut) *a) { parallel(FN(cut_work), a, a->batch * a->height, 0, (int)a->threads); }

typedef struct {
    int64_t batch, pixels, dim, threads;
    void *x;      // (batch, pixels, dim)
    float *mean;  // (batch, dim); its gradient on the way back
} FN(places);

static void FN(mean_work)(void *context, long begin, long end, long group) {
    const FN(places) *a = context;
    (void)group;
    for (long b = begin; b < end; b++) {
        const T *x = (const T *)a->x + b * a->pixels * a->dim;
        float *mean = a->mean + b * a->dim;
        memset(mean, 0, a->dim * sizeof(float));
        for (long p = 0; p < a->pixels; p++)
            for (long c = 0; c < a->dim; c += LANES) store_f32(mean + c, load_f32(mean + c) + LOAD(x + p * a->dim + c));
        for (long c = 0; c < a->dim; c++) mean[c] /= (float)a->pixels;
    }
}

static void FN(spread_work)(void *context, long begin, long end, long group) {
    const FN(places) *a = context;
    (void)group;
    for (long b = begin; b < end; b++) {
        T *x = (T *)a->x + b * a->pixels * a->dim;
        for (long c = 0; c < a->dim; c += LANES)
            STORE(x + c, load_f32(a->mean + b * a->dim + c) * splat(1 / (float)a->pixels));
        for (long p = 1; p < a->pixels; p++) memcpy(x + p * a->dim, x, a->dim * sizeof(T));
    }
}

void FN(layers_mean)(FN(places) *a) { parallel(FN(mean_work), a, a->batch, 0, (int)a->threads); }
void FN(layers_spread)(FN(places) *a) { parallel(FN(spread_work), a, a->batch, 0, (int)a->threads); }
