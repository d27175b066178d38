// The RMS norm of a whole row by a workgroup of WG threads, which take eight elements at a time:
// x / sqrt(mean(x²) + eps) · (weight + offset). The kernel declares x and norm_weight as array<vec4<f32>>; `p` has k (elements of
// a row), eps, offset. Rows and weights are padded to eights; what is in the padding of x does not count.
#include "reduce"

struct Row8 { a: vec4<f32>, b: vec4<f32> }

// Elements 8·i … of the row that begins at eight `first`; zeros behind its end.
fn row8(first: u32, i: u32) -> Row8 {
    let zero = vec4<f32>(0.0);
    if (8u * i >= p.k) { return Row8(zero, zero); }
    let a = x[2u * (first + i)];
    let b = x[2u * (first + i) + 1u];
    if (8u * i + 8u <= p.k) { return Row8(a, b); }
    let e = vec4<u32>(8u * i) + vec4<u32>(0u, 1u, 2u, 3u);
    return Row8(select(zero, a, e < vec4<u32>(p.k)), select(zero, b, e + vec4<u32>(4u) < vec4<u32>(p.k)));
}
fn squares8(v: Row8) -> f32 {
    return dot(v.a, v.a) + dot(v.b, v.b);
}

fn row_scale(first: u32) -> f32 {
    var squares = 0.0;
    // four eights in flight
    for (var i = thread; 8u * i < p.k; i += 4u * WG) {
        let a = row8(first, i);
        let b = row8(first, i + WG);
        let c = row8(first, i + 2u * WG);
        let d = row8(first, i + 3u * WG);
        squares += (squares8(a) + squares8(b)) + (squares8(c) + squares8(d));
    }
    return 1.0 / sqrt(workgroup_sum(squares) / f32(p.k) + p.eps);
}

fn normed8(first: u32, i: u32, scale: f32) -> Row8 {
    let v = row8(first, i);
    let offset = vec4<f32>(p.offset);
    return Row8(v.a * scale * (norm_weight[2u * i] + offset), v.b * scale * (norm_weight[2u * i + 1u] + offset));
}
