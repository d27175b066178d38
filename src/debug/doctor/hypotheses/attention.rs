//! Attention: factor, soft-cap, window, which heads belong together, sinks.

use super::weight::stored_as;
use crate::debug::doctor::Cause;
use crate::debug::doctor::case::{Case, Hypothesis};
use crate::debug::doctor::numbers::{CLOSE, ratio, root, snap};
use crate::debug::weight_source::WeightSource;
use crate::error::Result;
use crate::plan::edit::{ConfigEdit, Edit, Slot, weight::Change};
use crate::plan::{Attention, Op, ValueId};
use crate::tensor::Tensor;

/// Scores [heads, T, positions] of the reference, and q·k of the same places.
struct Scores {
    op: Attention,
    wanted: Tensor,
    products: Vec<f64>,
    tokens: usize,
}

impl Scores {
    fn read<S: WeightSource>(case: &Case<'_, S>, id: ValueId) -> Result<Option<Self>> {
        let node = case.plan.node(id);
        let Op::AttnScores(op) = &node.op else { return Ok(None) };
        let (Some(q), Some(k), Some(wanted)) = (case.input(id, 0)?, case.input(id, 1)?, case.value(node.at)?) else { return Ok(None) };
        let tokens = q.rows();
        if wanted.shape != [op.heads, tokens, tokens] || k.rows() != tokens {
            return Ok(None);
        }
        let group = op.heads / op.kv_heads;
        let products = products(op, &q, &k, |head| head / group);
        Ok(Some(Self { op: op.clone(), wanted, products, tokens }))
    }
    /// Position of the first key that token `t` attends to.
    fn first(&self, t: usize) -> Option<usize> {
        let seen = |s: usize| (0..self.op.heads).any(|head| self.wanted.data[(head * self.tokens + t) * self.tokens + s] != 0.0);
        (0..self.tokens).find(|s| seen(*s))
    }
    /// The window that the reference has; `Err` where its mask is no window's.
    fn window(&self) -> Result<Option<usize>, ()> {
        let starts: Vec<usize> = (0..self.tokens).map(|t| self.first(t).ok_or(())).collect::<Result<_, ()>>()?;
        let ahead = (0..self.op.heads * self.tokens)
            .any(|row| (row % self.tokens + 1..self.tokens).any(|s| self.wanted.data[row * self.tokens + s] != 0.0));
        let width = starts.iter().enumerate().filter(|(_, start)| **start > 0).map(|(t, start)| t + 1 - start).max();
        let fits = starts.iter().enumerate().all(|(t, start)| *start == width.map_or(0, |w| (t + 1).saturating_sub(w)));
        if fits && !ahead { Ok(width) } else { Err(()) }
    }
    /// Places that both attend to: q·k, and the score of the reference.
    fn pairs(&self) -> impl Iterator<Item = (f64, f64)> + Clone {
        let seen = move |place: &usize| {
            let (t, s) = (place / self.tokens % self.tokens, place % self.tokens);
            s <= t && self.op.window.is_none_or(|w| t < s + w) && self.wanted.data[*place] != 0.0
        };
        (0..self.products.len()).filter(seen).map(|place| (self.products[place], f64::from(self.wanted.data[place])))
    }
}

fn products(op: &Attention, q: &Tensor, k: &Tensor, key_head: impl Fn(usize) -> usize) -> Vec<f64> {
    let (tokens, dim) = (q.rows(), op.head_dim);
    let mut products = vec![0.0; op.heads * tokens * tokens];
    for (row, products) in products.chunks_exact_mut(tokens).enumerate() {
        let (head, t) = (row / tokens, row % tokens);
        let q = &q.row(t)[head * dim..][..dim];
        for (s, product) in products.iter_mut().enumerate().take(t + 1) {
            *product = crate::debug::doctor::numbers::dot(q, &k.row(s)[key_head(head) * dim..][..dim]);
        }
    }
    products
}

/// Hypotheses for the scores of `case`.
pub async fn scores<S: WeightSource>(case: &Case<'_, S>) -> Result<Vec<Hypothesis>> {
    let Some(scores) = Scores::read(case, case.id)? else { return Ok(Vec::new()) };
    let mut found = windows(case, &scores)?;
    let (scale, cap) = (scores.op.scale, scores.op.softcap);
    let plain = |of: &Scores| ratio(of.pairs().map(|p| p.0 * of.op.scale), of.pairs().map(|p| p.1));
    match cap {
        None => {
            let (factor, off) = plain(&scores);
            if off < CLOSE && (factor - 1.0).abs() > CLOSE {
                found.extend(scaled(case, scale * factor, scale));
            }
        }
        Some(cap) => {
            // What the cap leaves of large scores says little: those within half of it are used.
            let small = || scores.pairs().filter(|p| p.1.abs() < 0.7 * cap);
            let (factor, off) = ratio(small().map(|p| p.0), small().map(|p| cap * libm::atanh(p.1 / cap)));
            if off < CLOSE && (factor / scale - 1.0).abs() > CLOSE {
                found.extend(scaled(case, factor, scale));
            }
        }
    }
    found.extend(capped(&scores));
    if found.is_empty() {
        found.extend(mapping(case, &scores)?);
    }
    Ok(found)
}

fn scaled<S: WeightSource>(case: &Case<'_, S>, factor: f64, ours: f64) -> Vec<Hypothesis> {
    // Files hold s^-1/2 of a number s, or the factor.
    let scalar = snap(1.0 / (factor * factor), 4e-6);
    let root = 1.0 / scalar.sqrt();
    let direct = snap(factor, 2e-6);
    let short = |x: f64| format!("{x}").len();
    let factor = if short(direct) <= short(scalar) { direct } else { root };
    let why = format!("the scores are q·k times {factor} ({scalar}^-1/2), and not {ours}");
    let scores = case.nodes(|node| matches!(node.op, Op::AttnScores(_)));
    let few = scores.iter().any(|id| !case.is_wrong(*id));
    let all = Hypothesis::new(Cause::AttnScale, vec![Edit::Config(ConfigEdit::AttentionScale(factor))], why.clone());
    // The config has one number for all layers.
    let alone = few.then(|| Hypothesis::shown(Cause::AttnScale, format!("{why}; other layers are right")).rank(2));
    std::iter::once(all).chain(alone).collect()
}

/// Another cap, one more, or none.
fn capped(scores: &Scores) -> Option<Hypothesis> {
    let cap = cap(scores.pairs().map(|(product, score)| (product * scores.op.scale, score)))?;
    if cap == scores.op.softcap {
        return None;
    }
    let text = |cap: Option<f64>| cap.map_or("no cap".to_string(), |cap| format!("a cap of {cap}"));
    let why = format!("the scores have {}, and not {}", text(cap), text(scores.op.softcap));
    Some(Hypothesis::new(Cause::AttnSoftcap, vec![Edit::Config(ConfigEdit::AttnSoftcap(cap))], why))
}

/// The cap with which `x` become `y`: `Some(None)` is none, `None` that no cap does it.
pub fn cap(pairs: impl Iterator<Item = (f64, f64)> + Clone) -> Option<Option<f64>> {
    let (factor, off) = ratio(pairs.clone().map(|p| p.0), pairs.clone().map(|p| p.1));
    if off < CLOSE && (factor - 1.0).abs() < CLOSE {
        return Some(None);
    }
    let capped = |cap: f64, x: f64| cap * libm::tanh(x / cap);
    let largest = pairs.clone().max_by(|a, b| a.0.abs().total_cmp(&b.0.abs()))?;
    let rough = root(largest.1.abs().max(1e-6), 1e6, |cap| capped(cap, largest.0.abs()) - largest.1.abs())?;
    // Where the largest is far beyond the cap, it alone does not fix it; all pairs together do.
    let off = |cap: f64| pairs.clone().map(|(x, y)| (capped(cap, x) - y).powi(2)).sum::<f64>();
    let best = crate::debug::doctor::numbers::least(rough * 0.9, rough * 1.1, off);
    let size: f64 = pairs.clone().map(|(_, y)| y * y).sum();
    if (off(best) / size).sqrt() > CLOSE {
        return None;
    }
    let limit = 2.0 * off(best) + 1e-13 * size;
    let short = [1e-2, 1e-3, 1e-4, 1e-5, 1e-6].into_iter().map(|tolerance| snap(best, tolerance)).find(|x| off(*x) <= limit);
    Some(Some(short.unwrap_or(best)))
}

/// Other windows, on every layer that shows it.
fn windows<S: WeightSource>(case: &Case<'_, S>, scores: &Scores) -> Result<Vec<Hypothesis>> {
    let own = scores.op.window;
    let theirs = match scores.window() {
        Ok(theirs) => theirs,
        Err(()) => {
            return Ok(vec![
                Hypothesis::shown(Cause::AttentionMask, "the reference attends to positions that no window and no causal mask gives")
                    .rank(5),
            ]);
        }
    };
    let same = |ours: Option<usize>, theirs: Option<usize>, tokens: usize| ours.filter(|w| *w < tokens) == theirs;
    if same(own, theirs, scores.tokens) {
        return Ok(Vec::new());
    }
    let mut changed = Vec::new();
    for id in case.nodes(|node| matches!(node.op, Op::AttnScores(_))) {
        let Some(of) = Scores::read(case, id)? else { continue };
        if let (Ok(theirs), Some(layer)) = (of.window(), case.plan.node(id).at.layer)
            && !same(of.op.window, theirs, of.tokens)
        {
            changed.push((layer, theirs));
        }
    }
    let (cause, why) = match (own, theirs) {
        (Some(a), Some(b)) if a.abs_diff(b) == 1 => {
            (Cause::WindowOffByOne, format!("a token attends to {b} positions in the reference, to {a} here"))
        }
        (Some(a), Some(b)) => (Cause::WindowPattern, format!("the window is {b} positions in the reference, {a} here")),
        (Some(a), None) => (Cause::WindowPattern, format!("the reference attends to all {} positions, here to {a}", scores.tokens)),
        (None, Some(b)) => (Cause::WindowPattern, format!("the reference attends to {b} positions, here to all")),
        (None, None) => return Ok(Vec::new()),
    };
    let layers: Vec<usize> = changed.iter().map(|(layer, _)| *layer).collect();
    let why = format!("{why}; layers {layers:?}");
    Ok(vec![Hypothesis::new(cause, vec![Edit::Config(ConfigEdit::Windows(changed))], why)])
}

/// Query heads that read another key head than theirs.
fn mapping<S: WeightSource>(case: &Case<'_, S>, scores: &Scores) -> Result<Option<Hypothesis>> {
    let (Some(q), Some(k)) = (case.input(case.id, 0)?, case.input(case.id, 1)?) else { return Ok(None) };
    let op = &scores.op;
    let size = op.heads * scores.tokens * scores.tokens;
    let mut heads = Vec::new();
    for head in 0..op.heads {
        let range = head * size / op.heads..(head + 1) * size / op.heads;
        let fits = |key_head: &usize| {
            let products = products(op, &q, &k, |_| *key_head);
            let scaled = products[range.clone()].iter().map(|p| p * op.scale);
            let capped = scaled.map(|x| op.softcap.map_or(x, |cap| cap * libm::tanh(x / cap)));
            let wanted = &scores.wanted.data[range.clone()];
            let apart: f64 = capped.zip(wanted).filter(|(_, w)| **w != 0.0).map(|(x, w)| (x - f64::from(*w)).powi(2)).sum();
            apart <= CLOSE * CLOSE * wanted.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>()
        };
        let Some(key_head) = (0..op.kv_heads).find(fits) else { return Ok(None) };
        heads.push(key_head);
    }
    let why = format!("query heads read the key heads {heads:?} in the reference; here each {} in turn share one", op.heads / op.kv_heads);
    Ok(Some(Hypothesis::shown(Cause::GqaMapping, why)))
}

/// Hypotheses for probabilities that are wrong on right scores: one more logit in the sum.
pub async fn probabilities<S: WeightSource>(case: &Case<'_, S>) -> Result<Vec<Hypothesis>> {
    let node = case.node();
    let (Some(scores), Some(probs)) = (case.input(case.id, 0)?, case.value(node.at)?) else { return Ok(Vec::new()) };
    let [heads, tokens, positions] = probs.shape[..] else { return Ok(Vec::new()) };
    let mut sinks = Vec::with_capacity(heads);
    for head in 0..heads {
        let of_token = |t: usize| {
            let place = (head * tokens + t) * positions;
            let seen: Vec<usize> = (0..positions).filter(|s| probs.data[place + s] != 0.0).collect();
            let total: f64 = seen.iter().map(|s| f64::from(probs.data[place + s])).sum();
            let highest = seen.iter().map(|s| f64::from(scores.data[place + s])).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = seen.iter().map(|s| libm::exp(f64::from(scores.data[place + s]) - highest)).sum();
            (highest + libm::log(sum * (1.0 / total - 1.0)), 1.0 - total)
        };
        let all: Vec<(f64, f64)> = (0..tokens).map(of_token).collect();
        // The more the sink takes, the better it is known: sums of f32 are right within some 1e-7, whatever is left of 1.
        let (weighted, weights) =
            all.iter().fold((0.0, 0.0), |(sum, weights), (sink, part)| (sum + sink * part * part, weights + part * part));
        let mean = weighted / weights;
        if !mean.is_finite() || all.iter().any(|(sink, part)| (sink - mean).abs() > 1e-5 + 1e-6 / part.max(1e-9)) {
            return Ok(Vec::new());
        }
        sinks.push(mean);
    }
    let told: Vec<f64> = sinks.iter().map(|sink| snap(*sink, 1e-4)).collect();
    let Some(weight) = node.op.attention().and_then(|attention| attention.sinks) else {
        return Ok(vec![Hypothesis::shown(
            Cause::AttnSinks,
            format!("each head has one more logit in its sum, the same for all tokens: {told:?}"),
        )]);
    };
    let stored = case.weight(weight).await?;
    let others: Vec<(usize, f64)> = sinks
        .iter()
        .zip(&stored)
        .enumerate()
        .filter(|(_, (sink, own))| (*sink - f64::from(**own)).abs() > 1e-3)
        .map(|(i, (sink, _))| (i, *sink))
        .collect();
    if others.is_empty() {
        return Ok(Vec::new());
    }
    let heads: Vec<usize> = others.iter().map(|(head, _)| *head).collect();
    let why = format!("the sinks of heads {heads:?} are others in the reference: {told:?}, and not {stored:?}");
    let elements = others.iter().map(|(head, sink)| (*head, stored_as(*sink, 4e-4))).collect();
    let slot = Slot::of(case.plan, weight);
    Ok(vec![Hypothesis::of_weight(Cause::AttnSinks, slot, vec![Edit::Weight(slot, Change::Elements(elements))], why)])
}
