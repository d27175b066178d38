// The RMS norm of a whole row by a workgroup of WG threads, which take eight elements at a time:
// x / sqrt(mean(x²) + eps) · (weight + offset). The kernel declares x and norm_weight as array<vec4<f32>>; `p` has k (elements of
// a row), eps, offset. Rows and weights are padded to eights; what is in the padding of x does not count.
#include "reduce"
// Rows of more than 2·WG eights, or with a part of one. The text for them slows down those that have none.
override LONG: bool = false;

struct Row8 { a: vec4<f32>, b: vec4<f32> }

// Elements 8·i … of the row that begins at eight `first`; zeros after its end.
fn row8(first: u32, i: u32) -> Row8 {
    let zero = vec4<f32>(0.0);
    if (8u * i >= p.k) { return Row8(zero, zero); }
    let a = x[2u * (first + i)];
    let b = x[2u * (first + i) + 1u];
    if (!LONG || 8u * i + 8u <= p.k) { return Row8(a, b); }
    let e = vec4<u32>(8u * i) + vec4<u32>(0u, 1u, 2u, 3u);
    return Row8(select(zero, a, e < vec4<u32>(p.k)), select(zero, b, e + vec4<u32>(4u) < vec4<u32>(p.k)));
}
fn squares8(v: Row8) -> f32 {
    return dot(v.a, v.a) + dot(v.b, v.b);
}
// Weights 8·i … of the norm; zeros after the row's end.
fn norm_weight8(i: u32) -> Row8 {
    if (8u * i >= p.k) { return Row8(vec4<f32>(0.0), vec4<f32>(0.0)); }
    return Row8(norm_weight[2u * i], norm_weight[2u * i + 1u]);
}
fn normed(v: Row8, weight: Row8, scale: f32) -> Row8 {
    let offset = vec4<f32>(p.offset);
    return Row8(v.a * scale * (weight.a + offset), v.b * scale * (weight.b + offset));
}

// The scale of a row, and the first two eights of a thread with their weights, which were read on the way.
struct RowScale { scale: f32, a: Row8, b: Row8, of_a: Row8, of_b: Row8 }

fn row_scale(first: u32) -> RowScale {
    let a = row8(first, thread);
    let b = row8(first, thread + WG);
    let of_a = norm_weight8(thread);
    let of_b = norm_weight8(thread + WG);
    var squares = squares8(a) + squares8(b);
    if (LONG) {
        for (var i = thread + 2u * WG; 8u * i < p.k; i += 2u * WG) {
            let c = row8(first, i);
            let d = row8(first, i + WG);
            squares += squares8(c) + squares8(d);
        }
    }
    let scale = 1.0 / sqrt(workgroup_sum(squares) / f32(p.k) + p.eps);
    return RowScale(scale, a, b, of_a, of_b);
}

// The thread's eights of the normalised row that begins at eight `first`, by their number: thread, thread + WG, …
fn normed8(first: u32, i: u32, row: RowScale) -> Row8 {
    if (i < WG) { return normed(row.a, row.of_a, row.scale); }
    if (!LONG || i < 2u * WG) { return normed(row.b, row.of_b, row.scale); }
    return normed(row8(first, i), norm_weight8(i), row.scale);
}
