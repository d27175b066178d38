// The RMS norm of a head in `x` by a workgroup: x / sqrt(mean(x²) + eps) · (weight + offset). The kernel declares x and
// norm_weight; `p` has k (elements of a row), eps, offset. UNIT: there is no weight.
#include "reduce"

fn norm_scale(first: u32, count: u32) -> f32 {
    var squares = 0.0;
    for (var i = thread; i < count; i += WG) { squares += x[first + i] * x[first + i]; }
    return 1.0 / sqrt(workgroup_sum(squares) / f32(count) + p.eps);
}

// Element i of the row that begins at `first`, with the weights that begin at `weights`; 0 beyond the row's end.
fn normed(first: u32, i: u32, weights: u32, scale: f32) -> f32 {
    if (i >= p.k) { return 0.0; }
#ifdef UNIT
    return x[first + i] * scale;
#else
    return x[first + i] * scale * (norm_weight[weights + i] + p.offset);
#endif
}
