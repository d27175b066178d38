// What changes from step to step, and ids of workgroups that may be spread over two dimensions.
struct StepUniform {
    tokens: u32,       // T: tokens of this step
    position: u32,     // position of the first of them
    serial: u32,       // step counter, echoed with results
    head_first: u32,   // first row for which logits are computed
    head_rows: u32,    // rows of logits in this batch
    long_rope: u32,    // 1: the long list of longrope
    batch: u32,        // number of this batch of logits
}
@group(0) @binding(1) var<uniform> step: StepUniform;

fn linear_id(id: vec3<u32>, count: vec3<u32>) -> u32 {
    return id.x + id.y * count.x;
}
