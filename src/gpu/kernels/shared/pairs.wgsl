// The two elements of a head that RoPE rotates together, of the pair `i`.
fn pair_of(i: u32, half_dim: u32) -> vec2<u32> {
#ifdef NEIGHBOURS
    return vec2<u32>(2u * i, 2u * i + 1u);
#else
    return vec2<u32>(i, half_dim + i);
#endif
}
