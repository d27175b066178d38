// Cached keys and values, four at a time: [slots, width].
#ifdef CACHE_F16
alias Four = vec2<u32>;
fn four(v: Four) -> vec4<f32> { return unpack4(v); }
#else
alias Four = vec4<f32>;
fn four(v: Four) -> vec4<f32> { return v; }
#endif
#include "ring"
