// --- convolution: windows as rows of a matrix, and back; pooling. All gather: no two threads write to one place ---

// columns[g, (b, i, j), (u, v, c)] = x[b, i sh + u - ph, j sw + v - pw, g Cg + c], or 0 outside    x (B, H, W, G Cg)
KERNEL im2col(real* columns, const real* x, int n, int B, int H, int W, int G, int Cg, int Ho, int Wo, int kh, int kw,
              int sh, int sw, int ph, int pw) {
    int index = THREAD, rest = index;
    if (index >= n) return;
    int c = rest % Cg; rest /= Cg;
    int v = rest % kw; rest /= kw;
    int u = rest % kh; rest /= kh;
    int j = rest % Wo; rest /= Wo;
    int i = rest % Ho; rest /= Ho;
    int b = rest % B, g = rest / B;
    int row = i * sh + u - ph, column = j * sw + v - pw;
    bool inside = row >= 0 && row < H && column >= 0 && column < W;
    columns[index] = inside ? x[((b * H + row) * W + column) * G * Cg + g * Cg + c] : 0;
}

// x[b, row, column, g Cg + c] = sum of columns[g, (b, i, j), (u, v, c)] over all (i, j, u, v) that read this pixel
KERNEL col2im(real* x, const real* columns, int n, int B, int H, int W, int G, int Cg, int Ho, int Wo, int kh, int kw,
              int sh, int sw, int ph, int pw) {
    int index = THREAD, rest = index;
    if (index >= n) return;
    int c = rest % Cg; rest /= Cg;
    int g = rest % G; rest /= G;
    int column = rest % W; rest /= W;
    int row = rest % H, b = rest / H;
    real sum = 0;
    for (int u = 0; u < kh; u++) {
        int i = row + ph - u;
        if (i < 0 || i % sh || i / sh >= Ho) continue;
        for (int v = 0; v < kw; v++) {
            int j = column + pw - v;
            if (j < 0 || j % sw || j / sw >= Wo) continue;
            sum += columns[((((g * B + b) * Ho + i / sh) * Wo + j / sw) * kh * kw + u * kw + v) * Cg + c];
        }
    }
    x[index] = sum;
}

// y[b, i, j, c] = the largest of x[b, i sh + u - ph, j sw + v - pw, c] over u, v, and best = u kw + v of the first such
// x (B, H, W, C), y and best (B, Ho, Wo, C), n numbers; what lies outside never wins, NaN always does
KERNEL max_pool(real* y, unsigned char* best, const real* x, int n, int H, int W, int C, int Ho, int Wo, int kh, int kw,
                int sh, int sw, int ph, int pw) {
    int index = THREAD, rest = index;
    if (index >= n) return;
    int c = rest % C; rest /= C;
    int j = rest % Wo; rest /= Wo;
    int i = rest % Ho, b = rest / Ho;
    real top = -INFINITY;
    int where = 0;
    for (int u = 0; u < kh; u++) {
        for (int v = 0; v < kw; v++) {
            int row = i * sh + u - ph, column = j * sw + v - pw;
            if (row < 0 || row >= H || column < 0 || column >= W) continue;
            real value = x[((b * H + row) * W + column) * C + c];
            if (value > top || (value != value && top == top)) top = value, where = u * kw + v;
        }
    }
    y[index] = top, best[index] = where;
}

// dx[b, row, column, c] = sum of dy[b, i, j, c] over the windows whose best this pixel is    n numbers of dx
KERNEL max_pool_dx(real* dx, const real* dy, const unsigned char* best, int n, int H, int W, int C, int Ho, int Wo,
                   int kh, int kw, int sh, int sw, int ph, int pw) {
    int index = THREAD, rest = index;
    if (index >= n) return;
    int c = rest % C; rest /= C;
    int column = rest % W; rest /= W;
    int row = rest % H, b = rest / H;
    real sum = 0;
    for (int u = 0; u < kh; u++) {
        int i = row + ph - u;
        if (i < 0 || i % sh || i / sh >= Ho) continue;
        for (int v = 0; v < kw; v++) {
            int j = column + pw - v;
            if (j < 0 || j % sw || j / sw >= Wo) continue;
            int at = ((b * Ho + i / sh) * Wo + j / sw) * C + c;
            if (best[at] == u * kw + v) sum += dy[at];
        }
    }
    dx[index] = sum;
}
