// Cached keys and values, four at a time: [capacity, width] with position q in slot q mod capacity.
#ifdef CACHE_F16
alias Four = vec2<u32>;
fn four(v: Four) -> vec4<f32> { return unpack4(v); }
#else
alias Four = vec4<f32>;
fn four(v: Four) -> vec4<f32> { return v; }
#endif

// First position that the query at position q sees.
fn first_visible(q: u32) -> u32 {
    if (p.window == 0u || q + 1u <= p.window) { return 0u; }
    return q + 1u - p.window;
}
