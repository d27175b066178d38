//! Faults of kernels, as replacements of their WGSL (`--kernels`): a line of the text becomes another one.

use crate::faults::draw::Draw;

/// Class, variant, kernel, what stands in its text, and what is put in its place. The first place only; a kernel that has none
/// was changed since, and that is an error.
pub type KernelPlant = (&'static str, &'static str, &'static str, &'static str, fn(&mut Draw) -> String);

/// A number as WGSL has it.
fn number(x: f64) -> String {
    format!("{x:.7}")
}

pub const KERNEL_PLANTS: &[KernelPlant] = &[
    ("wrong_kernel", "add", "add", "a[i] + p.multiplier * b[i]", |d| {
        format!("a[i] + p.multiplier * b[i] * {}", number(d.factor(1.02, 3.0)))
    }),
    ("wrong_kernel", "embed", "embed", "out[at] = v.a * p.scale;", |d| {
        format!("out[at] = v.a * p.scale * {};", number(d.factor(1.02, 3.0)))
    }),
    ("wrong_kernel", "soft_cap", "soft_cap", "soft_cap(x[i], p.cap)", |d| {
        format!("soft_cap(x[i], p.cap * {})", number(d.factor(1.05, 3.0)))
    }),
    ("wrong_kernel", "eps", "norm_row", "f32(p.k) + p.eps", |d| format!("f32(p.k) + p.eps + {}", number(d.between(0.002, 0.1)))),
    ("wrong_kernel", "tanh", "activation", "0.044715", |d| number(d.between(0.06, 0.2))),
    ("wrong_kernel", "sigmoid", "activation", "exp_f32(-x))", |d| format!("exp_f32(-x * {}))", number(d.factor(1.1, 2.0)))),
    ("wrong_kernel", "tiles", "linear_tiled", "out[to] = sum / p.divisor;", |d| {
        format!("out[to] = sum / p.divisor * {};", number(d.factor(1.02, 2.0)))
    }),
    ("wrong_kernel", "decode", "linear", "var sum = vec4<f32>(0.0);", |d| {
        format!("var sum = vec4<f32>({});", number(d.between(0.01, 0.5)))
    }),
    ("wrong_kernel", "ending", "ending", "return sum / p.divisor;", |d| {
        format!("return sum / p.divisor * {};", number(d.factor(1.02, 2.0)))
    }),
    ("wrong_kernel", "merge", "attention_merge", "sum /= total;", |d| format!("sum /= total * {};", number(d.factor(1.02, 2.0)))),
    ("wrong_kernel", "runs scale", "attention_runs", "score *= p.scale;", |d| {
        format!("score *= p.scale * {};", number(d.factor(1.2, 3.0)))
    }),
    ("wrong_kernel", "prompt scale", "attention", "* p.scale;", |d| format!("* p.scale * {};", number(d.factor(1.2, 3.0)))),
    ("wrong_kernel", "angle", "rope", "let s = table[angle + p.positions * p.half_dim];", |d| {
        format!("let s = table[angle + p.positions * p.half_dim] * {};", number(d.factor(1.05, 2.0)))
    }),
    ("attention_mask", "scores", "attn_scores", "position <= at &&", |_| "position <= at + 1u &&".into()),
    ("attention_mask", "prompt query", "attention", "let at = position_of(token);", |_| "let at = position_of(token) + 1u;".into()),
    ("attention_mask", "decode query", "attention_runs", "let at = position_of(token);", |_| {
        "let at = position_of(token) - min(position_of(token), 1u);".into()
    }),
    ("window_off_by_one", "wider", "visible", "return q + 1u - p.window;", |_| "return q - p.window;".into()),
    ("window_off_by_one", "narrower", "visible", "return q + 1u - p.window;", |_| "return q + 2u - p.window;".into()),
    ("window_pattern", "none", "visible", "return q + 1u - p.window;", |_| "return 0u;".into()),
    ("kv_position", "write", "kv_write", "position_of(token)) * pairs", |d| format!("position_of(token) + {}u) * pairs", 1 + d.of(2))),
    ("kv_position", "heads", "heads", "slot(slab_of(token), position_of(token))", |d| {
        format!("slot(slab_of(token), position_of(token) + {}u)", 1 + d.of(2))
    }),
    ("kv_corruption", "write", "kv_write", "vec2<f32>(x[at], x[at + 1u]);", |d| {
        format!("vec2<f32>(x[at], x[at + 1u]) * select(1.0, {}, position_of(token) % {}u == 1u);", number(d.factor(1.1, 3.0)), 3 + d.of(4))
    }),
    ("kv_corruption", "heads", "heads", "vec2<f32>(turned[2u * i], turned[2u * i + 1u]);", |d| {
        format!(
            "vec2<f32>(turned[2u * i], turned[2u * i + 1u]) * select(1.0, {}, position_of(token) % {}u == 1u);",
            number(d.factor(1.1, 3.0)),
            3 + d.of(4)
        )
    }),
    ("rope_position", "rope", "rope", "position_of(token) * p.half_dim", |d| {
        format!("(position_of(token) + {}u) * p.half_dim", 1 + d.of(6))
    }),
    ("rope_position", "heads", "heads", "position_of(token) * p.half_dim", |d| {
        format!("(position_of(token) + {}u) * p.half_dim", 1 + d.of(6))
    }),
    ("wrong_kernel", "beyond", "rope", "position_of(token) * p.half_dim", |d| {
        let (from, by) = (5 + d.of(5), 1 + d.of(6));
        format!("(position_of(token) + select(0u, {by}u, position_of(token) >= {from}u)) * p.half_dim")
    }),
    ("wrong_kernel", "beyond", "heads", "position_of(token) * p.half_dim", |d| {
        let (from, by) = (5 + d.of(5), 1 + d.of(6));
        format!("(position_of(token) + select(0u, {by}u, position_of(token) >= {from}u)) * p.half_dim")
    }),
    ("wrong_kernel", "no decay", "gated_delta", "let decay = exp_f32(taken[at + rate + p.values]);", |_| "let decay = 1.0;".into()),
    ("wrong_kernel", "decay", "gated_delta", "exp_f32(taken[at + rate + p.values])", |d| {
        format!("exp_f32(taken[at + rate + p.values] * {})", number(d.factor(1.1, 3.0)))
    }),
    ("wrong_kernel", "correction", "gated_delta", "correction = taken[at + rate] *", |d| {
        format!("correction = taken[at + rate] * {} *", number(d.factor(1.05, 2.0)))
    }),
    ("wrong_kernel", "query", "gated_delta", "along.x * (p.scale /", |d| format!("along.x * (p.scale * {} /", number(d.factor(1.05, 2.0)))),
    ("wrong_kernel", "mean", "delta_in", "1.0 / sqrt(workgroup_sum(squares) + p.eps)", |_| {
        "1.0 / sqrt(workgroup_sum(squares) / f32(p.key_dim) + p.eps)".into()
    }),
    ("wrong_kernel", "rate", "delta_in", "1.0 / (1.0 + exp_f32(-rate[token * p.gate_stride + h]))", |_| {
        "rate[token * p.gate_stride + h]".into()
    }),
    // As where it is computed in 16 bits, whose largest number ends it earlier.
    ("wrong_kernel", "softplus", "delta_in", "return max(x, 0.0) +", |d| {
        format!("return select(0.0, (x - x) / (x - x), x > {}) + max(x, 0.0) +", number(d.between(0.1, 0.5)))
    }),
    ("wrong_kernel", "step", "delta_in", "+ time_step[p.step_first + h])", |_| "+ 0.0 * time_step[p.step_first + h])".into()),
    ("gqa_mapping", "delta rule", "gated_delta", "let key = (head / share) * p.key_dim;", |_| {
        "let key = ((head + 0u * share) % p.keys) * p.key_dim;".into()
    }),
    ("wrong_kernel", "matrices lost", "gated_delta", "if (inside && base > 0u) {", |_| "if (inside && base > 1000u) {".into()),
    ("wrong_kernel", "gate", "sigmoid_scale", "out[i] = x[i] * (1.0 / (1.0 + vec4", |d| {
        format!("out[i] = x[i] * ({} / (1.0 + vec4", number(d.factor(1.05, 2.0)))
    }),
    ("wrong_kernel", "factor", "scale", "out[i] = x[i] * (p.factor *", |d| {
        format!("out[i] = x[i] * ({} * p.factor *", number(d.factor(1.05, 2.0)))
    }),
    ("wrong_kernel", "half of the keys", "attention", "let count = min(WG, at + 1u - tile);", |_| {
        "let count = min(WG / 2u, at + 1u - tile);".into()
    }),
    ("gqa_mapping", "prompt", "attention", "head / (p.heads / p.kv_heads)", |_| "head % p.kv_heads".into()),
    ("gqa_mapping", "scores", "attn_scores", "head / (p.heads / p.kv_heads)", |_| "(head % p.kv_heads)".into()),
    ("softmax_nan", "probs", "attn_probs", "- highest) / total", |_| "- highest) / sqrt(-total)".into()),
    ("softmax_nan", "prompt", "attention", "sum /= total;", |_| "sum /= sqrt(-total);".into()),
    ("softmax_nan", "merge", "attention_merge", "sum /= total;", |_| "sum /= sqrt(-total);".into()),
    ("dispatch_size", "activation", "gated_act", "let g = gate[token", |d| {
        format!("if (i + {}u >= pairs) {{ return; }}\n    let g = gate[token", 1 + d.of(4))
    }),
    ("dispatch_size", "tiles", "linear_tiled", "is_computed(tile, n)", |d| format!("is_computed(tile, n + {}u)", 1 + d.of(7))),
    ("dispatch_size", "last row", "embed", "if (token >= step.tokens)", |_| "if (token + 1u >= step.tokens)".into()),
    ("sampler_order", "next", "top_k", "out[((step.pick_at + row) * chunks + chunk) * p.k + rank] = winner;", |d| {
        format!(
            "winner.id = min(winner.id + {}u, p.valid - 1u); out[((step.pick_at + row) * chunks + chunk) * p.k + rank] = winner;",
            1 + d.of(3)
        )
    }),
    ("sampler_order", "lowest", "top_k", "~bits,", |_| "bits,".into()),
    ("uninitialised_memory", "tile", "attention", "let count = min(WG, at + 1u - tile);", |_| "let count = WG;".into()),
    ("uninitialised_memory", "mix", "attn_mix", "for (; i <= at; i += parts)", |_| {
        "for (; i < step.position + step.tokens + 2u; i += parts)".into()
    }),
    ("subgroup_size", "sum", "reduce", "i < WG / lanes; i++) { total", |_| "i < WG / lanes / 2u; i++) { total".into()),
];

/// The text of a kernel, from the engine's own folder, with the fault in it.
pub fn planted(plant: &KernelPlant, folder: &std::path::Path, draw: &mut Draw) -> crate::Result<String> {
    let (_, variant, kernel, from, to) = plant;
    let path = [folder.join(format!("{kernel}.wgsl")), folder.join(format!("shared/{kernel}.wgsl"))];
    let path = path.iter().find(|path| path.is_file()).ok_or_else(|| format!("there is no kernel {kernel}"))?;
    let text = std::fs::read_to_string(path)?;
    if !text.contains(from) {
        return Err(format!("{kernel}.wgsl has no `{from}` any more: plant {variant} anew").into());
    }
    Ok(text.replacen(from, &to(draw), 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_still_has_the_place_where_its_fault_goes() {
        let folder = crate::root().join("src/gpu/kernels");
        for plant in KERNEL_PLANTS {
            let text = planted(plant, &folder, &mut Draw::new(1)).unwrap_or_else(|e| panic!("{e}"));
            assert!(!text.is_empty());
        }
    }
}
