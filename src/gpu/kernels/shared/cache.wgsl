// Cached keys and values, four at a time: [capacity, width].
#ifdef CACHE_F16
alias Four = vec2<u32>;
fn four(v: Four) -> vec4<f32> { return unpack4(v); }
#else
alias Four = vec4<f32>;
fn four(v: Four) -> vec4<f32> { return v; }
#endif

// The slot that holds a position: the cache is a ring. All arithmetic from position to slot is here.
fn slot(position: u32) -> u32 {
    return position % p.capacity;
}
