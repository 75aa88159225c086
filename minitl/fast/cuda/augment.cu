// --- augmentation of uint8 images (B, HEIGHT, WIDTH, CHANNELS), equal to minitl/data bit for bit: a block for each ---

enum { IDENTITY, CROP, AFFINE, BRIGHTNESS, CONTRAST, COLOR, SHARPNESS, POSTERIZE, SOLARIZE, AUTOCONTRAST, EQUALIZE,
       INVERT };

// base + factor (v - base), clipped to 0 ... 255 and truncated. __fmul_rn prevents a fused multiply-add, which
// would round only once
__device__ int blend(int base, int v, float factor) {
    float mixed = __fmul_rn(v - base, factor) + base;
    return mixed < 0 ? 0 : mixed < 255 ? (int)mixed : 255;
}

// The luma of a pixel
__device__ int gray(const unsigned char* pixel) {
    return CHANNELS == 1 ? pixel[0] : (19595 * pixel[0] + 38470 * pixel[1] + 7471 * pixel[2] + 32768) >> 16;
}

// The mean of the 3 x 3 neighborhood of a value, with itself counted five times; at the border, the value itself
__device__ int smooth(const unsigned char* x, int row, int column, int c) {
    x += (row * WIDTH + column) * CHANNELS + c;
    if (row == 0 || row == HEIGHT - 1 || column == 0 || column == WIDTH - 1) return *x;
    int sum = 4 * *x;
    for (int i = -1; i <= 1; i++) {
        for (int j = -1; j <= 1; j++) sum += x[(i * WIDTH + j) * CHANNELS];
    }
    return (sum + 6) / 13;
}

// The index of row or column i, which is reflected if it lies outside
__device__ int reflected(int i, int size) { return size - 1 - abs(size - 1 - abs(i)); }

// x rounded to the 53 binary digits of a double, ties to even
__device__ u64 as_double(u64 x) {
    int surplus = 11 - __clzll(x);
    if (surplus <= 0) return x;
    return (x + (1ull << surplus - 1) - 1 + (x >> surplus & 1)) >> surplus << surplus;
}

// v s - low s, truncated, with s = 255 / range. Each step is rounded to a double, as in NumPy: exact arithmetic would
// sometimes give one more. In integers, because doubles are slow on many GPUs
__device__ int stretched(int v, int low, int range) {
    u64 ratio = as_double((255ull << 55) / range | 1); // in units of 2⁻⁵⁵; the last bit stands for the remainder
    int zeros = 11 - __clzll(ratio);
    u64 scale = ratio >> zeros; // 53 digits, so that a product with v has at most 61
    return as_double(as_double(v * scale) - as_double(low * scale)) >> 55 - zeros;
}

// The new value of v in a channel where count[u] pixels have the value u; for contrast, count is that of the luma
__device__ int changed(int v, const int* count, int operation, float factor) {
    int low = 0, high = 255, below = 0;
    u64 pixels = HEIGHT * WIDTH, sum = 0;
    while (count[low] == 0) low++;
    while (count[high] == 0) high--;
    for (int u = 0; u < 256; u++) below += u < v ? count[u] : 0, sum += u * count[u];
    int step = (HEIGHT * WIDTH - count[high]) / 255;
    if (operation == CONTRAST) return blend((2 * sum + pixels) / (2 * pixels), v, factor); // halves are rounded up
    if (operation == AUTOCONTRAST) return low < high ? stretched(v, low, high - low) : v;
    return step ? min((below + step / 2) / step, 255) : v;
}

// y[b] = the operation chosen[b, 0] on x[b] with the numbers chosen[b, 1:7]; amounts are the bits of floats
KERNEL augment(unsigned char* y, const unsigned char* x, const int* chosen) {
    __shared__ int count[3][256]; // atomic additions of integers give the same sum in any order
    __shared__ unsigned char table[3][256];
    int operation = chosen[7 * blockIdx.x];
    const int* number = chosen + 7 * blockIdx.x + 1;
    float amount = __uint_as_float(number[0]);
    x += blockIdx.x * HEIGHT * WIDTH * CHANNELS, y += blockIdx.x * HEIGHT * WIDTH * CHANNELS;
    if (operation == CONTRAST || operation == AUTOCONTRAST || operation == EQUALIZE) {
        for (int c = 0; c < 3; c++) count[c][threadIdx.x] = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < HEIGHT * WIDTH * CHANNELS; i += blockDim.x) {
            if (operation != CONTRAST) atomicAdd(&count[i % CHANNELS][x[i]], 1);
            else if (i % CHANNELS == 0) atomicAdd(&count[0][gray(x + i)], 1);
        }
        __syncthreads();
        for (int c = 0; c < CHANNELS; c++)
            table[c][threadIdx.x] = changed(threadIdx.x, count[operation == CONTRAST ? 0 : c], operation, amount);
        __syncthreads();
    }
    for (int i = threadIdx.x; i < HEIGHT * WIDTH * CHANNELS; i += blockDim.x) {
        int c = i % CHANNELS, column = i / CHANNELS % WIDTH, row = i / (CHANNELS * WIDTH), v = x[i];
        switch (operation) {
        case CROP: {
            int from = reflected(row + number[0], HEIGHT), at = reflected(column + number[1], WIDTH);
            v = x[(from * WIDTH + (number[2] ? WIDTH - 1 - at : at)) * CHANNELS + c];
            break;
        }
        case AFFINE: { // in units of 2⁻¹⁶ pixel
            long long at = (long long)number[0] * column + (long long)number[1] * row + number[2] >> 16;
            long long from = (long long)number[3] * column + (long long)number[4] * row + number[5] >> 16;
            v = from >= 0 && from < HEIGHT && at >= 0 && at < WIDTH ? x[(from * WIDTH + at) * CHANNELS + c] : 0;
            break;
        }
        case BRIGHTNESS: v = blend(0, v, amount); break;
        case COLOR: v = blend(gray(x + i - c), v, amount); break;
        case SHARPNESS: v = blend(smooth(x, row, column, c), v, amount); break;
        case POSTERIZE: v = v >> 8 - (int)amount << 8 - (int)amount; break;
        case SOLARIZE: v = v >= amount ? 255 - v : v; break;
        case INVERT: v = 255 - v; break;
        case CONTRAST: case AUTOCONTRAST: case EQUALIZE: v = table[c][v];
        }
        y[i] = v;
    }
}
