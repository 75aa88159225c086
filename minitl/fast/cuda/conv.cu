// --- convolution: windows as rows of a matrix, and back; pooling. each thread writes one number ---
//
// Sizes are compiled in, so that divisions become multiplications and loops over a window are unrolled: images of
// IN_H x IN_W pixels with GROUPS x CHANNELS channels, windows of KERNEL_H x KERNEL_W, strides and padding in both
// directions, and OUT_H x OUT_W windows per image.

// columns[g, (b, i, j), (u, v, c)] = x[b, row, column, g, c], or 0 outside    n numbers of each group g = blockIdx.y
// row = i STRIDE_H + u - PAD_H,  column = j STRIDE_W + v - PAD_W
KERNEL im2col(stored* columns, const stored* x, int n) {
    int index = THREAD, rest = index, g = blockIdx.y;
    if (index >= n) return;
    int c = rest % CHANNELS; rest /= CHANNELS;
    int v = rest % KERNEL_W; rest /= KERNEL_W;
    int u = rest % KERNEL_H; rest /= KERNEL_H;
    int j = rest % OUT_W; rest /= OUT_W;
    int i = rest % OUT_H, b = rest / OUT_H;
    int row = i * STRIDE_H + u - PAD_H, column = j * STRIDE_W + v - PAD_W;
    bool inside = row >= 0 && row < IN_H && column >= 0 && column < IN_W;
    stored& place = columns[g * n + index];
    if (inside) place = x[(((b * IN_H + row) * IN_W + column) * GROUPS + g) * CHANNELS + c];
    else place = 0;
}

// The window that has this pixel at `offset`, along one axis, or -1 if there is none
__device__ int window_of(int pixel, int offset, int stride, int pad, int windows) {
    int first = pixel + pad - offset;
    return first >= 0 && first % stride == 0 && first / stride < windows ? first / stride : -1;
}

// x[b, row, column, g, c] = sum of columns[g, (b, i, j), (u, v, c)] over all (i, j, u, v) that read this pixel
KERNEL col2im(stored* x, const stored* columns, int n, int B) {
    int index = THREAD, rest = index;
    if (index >= n) return;
    int c = rest % CHANNELS; rest /= CHANNELS;
    int g = rest % GROUPS; rest /= GROUPS;
    int column = rest % IN_W; rest /= IN_W;
    int row = rest % IN_H, b = rest / IN_H;
    real sum = 0;
    for (int u = 0; u < KERNEL_H; u++) {
        for (int v = 0; v < KERNEL_W; v++) {
            int i = window_of(row, u, STRIDE_H, PAD_H, OUT_H), j = window_of(column, v, STRIDE_W, PAD_W, OUT_W);
            if (i < 0 || j < 0) continue;
            int window = ((g * B + b) * OUT_H + i) * OUT_W + j;
            sum += columns[((window * KERNEL_H + u) * KERNEL_W + v) * CHANNELS + c];
        }
    }
    x[index] = sum;
}

// y[b, i, j, c] = max of x[b, row, column, c] over u, v;  best = u KERNEL_W + v of the first maximum    n numbers
// Padding is never the largest; NaN always is
KERNEL max_pool(stored* y, unsigned char* best, const stored* x, int n) {
    int index = THREAD, rest = index;
    if (index >= n) return;
    int c = rest % CHANNELS; rest /= CHANNELS;
    int j = rest % OUT_W; rest /= OUT_W;
    int i = rest % OUT_H, b = rest / OUT_H;
    real top = -INFINITY;
    int where = 0;
    for (int u = 0; u < KERNEL_H; u++) {
        for (int v = 0; v < KERNEL_W; v++) {
            int row = i * STRIDE_H + u - PAD_H, column = j * STRIDE_W + v - PAD_W;
            if (row < 0 || row >= IN_H || column < 0 || column >= IN_W) continue;
            real value = x[((b * IN_H + row) * IN_W + column) * CHANNELS + c];
            if (value > top || (value != value && top == top)) top = value, where = u * KERNEL_W + v;
        }
    }
    y[index] = top, best[index] = where;
}

// dx[b, row, column, c] = sum of dy[b, i, j, c] over the windows in which this pixel is the largest    n numbers of dx
KERNEL max_pool_dx(stored* dx, const stored* dy, const unsigned char* best, int n) {
    int index = THREAD, rest = index;
    if (index >= n) return;
    int c = rest % CHANNELS; rest /= CHANNELS;
    int column = rest % IN_W; rest /= IN_W;
    int row = rest % IN_H, b = rest / IN_H;
    real sum = 0;
    for (int u = 0; u < KERNEL_H; u++) {
        for (int v = 0; v < KERNEL_W; v++) {
            int i = window_of(row, u, STRIDE_H, PAD_H, OUT_H), j = window_of(column, v, STRIDE_W, PAD_W, OUT_W);
            if (i < 0 || j < 0) continue;
            int at = ((b * OUT_H + i) * OUT_W + j) * CHANNELS + c;
            if (best[at] == u * KERNEL_W + v) sum += dy[at];
        }
    }
    dx[index] = sum;
}
