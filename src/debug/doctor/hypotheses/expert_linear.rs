//! Products with experts: each expert's matrix is examined by itself, with the tokens that chose it.

use super::label;
use super::linear::{Product, Weights, corrupt, exchange};
use crate::debug::doctor::Cause;
use crate::debug::doctor::case::{Case, Hypothesis};
use crate::debug::doctor::numbers::{CLOSE, ratio, snap};
use crate::debug::weight_source::WeightSource;
use crate::error::Result;
use crate::plan::edit::weight::{Change, Half};
use crate::plan::edit::{Edit, Slot};
use crate::plan::{Op, WeightId};

/// An expert's product.
struct Expert {
    number: usize,
    product: Product,
}

/// What the op of `case` has of the reference.
struct Experts {
    weight: WeightId,
    /// How many there are.
    count: usize,
    /// All that some token chose.
    chosen: Vec<Expert>,
    /// All matrices, [experts · rows, columns].
    matrices: Vec<f32>,
    /// All biases, [experts · rows]; 0 where there are none.
    biases: Vec<f32>,
}

impl Experts {
    async fn read<S: WeightSource>(case: &Case<'_, S>) -> Result<Option<Self>> {
        let node = case.node();
        let Op::ExpertLinear { weight, bias, experts: count, chosen } = node.op else { return Ok(None) };
        let (x, numbers) = (case.input(case.id, 0)?, case.input(case.id, 1)?);
        let (Some(x), Some(numbers), Some(y)) = (x, numbers, case.value(node.at)?) else { return Ok(None) };
        let rows = node.width / chosen.max(1);
        let matrices = case.weight(weight).await?;
        let biases = match bias {
            Some(bias) => case.weight(bias).await?,
            None => vec![0.0; count * rows],
        };
        let columns = matrices.len() / (count * rows).max(1);
        // One row of x for each choice, or one for all of a token.
        let share = [1, chosen].into_iter().find(|share| x.data.len() * share == numbers.data.len() * columns);
        let Some(share) = share.filter(|_| rows * columns > 0 && y.data.len() == numbers.data.len() * rows) else {
            return Ok(None);
        };
        let mut all = Vec::new();
        for number in 0..count {
            let slots: Vec<usize> = (0..numbers.data.len()).filter(|slot| numbers.data[*slot] == number as f32).collect();
            if slots.is_empty() {
                continue;
            }
            let inputs = slots.iter().flat_map(|slot| &x.data[slot / share * columns..][..columns]).copied().collect();
            let outputs: Vec<f32> = slots.iter().flat_map(|slot| &y.data[slot * rows..][..rows]).copied().collect();
            let weights = Weights {
                id: weight,
                bias,
                matrix: matrices[number * rows * columns..][..rows * columns].to_vec(),
                biases: biases[number * rows..][..rows].to_vec(),
                first_row: number * rows,
            };
            all.push(Expert { number, product: Product::new(weights, inputs, &outputs, 1.0) });
        }
        Ok(Some(Self { weight, count, chosen: all, matrices, biases }))
    }
    /// The number of the expert among `matrices` whose matrix gives what the reference has of `expert`; its own number first.
    fn source(&self, expert: &Expert, matrices: &[f32], own: bool) -> Option<usize> {
        let Product { rows, columns, .. } = expert.product;
        let numbers = std::iter::once(expert.number).chain((0..self.count).filter(|n| *n != expert.number));
        let biases = |n: usize| &self.biases[n * rows..][..rows];
        let fits = |n: &usize| {
            let matrix = &matrices[n * rows * columns..][..rows * columns];
            // A bias may have moved along, or stayed.
            expert.product.fits(matrix, biases(expert.number)) || expert.product.fits(matrix, biases(*n))
        };
        numbers.filter(|n| !(own && *n == expert.number)).find(fits)
    }
}

/// Hypotheses for the product of `case`.
///
/// # Errors
/// Those of reading the reference and the weights.
pub async fn hypotheses<S: WeightSource>(case: &Case<'_, S>) -> Result<Vec<Hypothesis>> {
    let Some(experts) = Experts::read(case).await? else { return Ok(Vec::new()) };
    let wrong: Vec<&Expert> = experts.chosen.iter().filter(|expert| !expert.product.wrong().is_empty()).collect();
    if wrong.is_empty() {
        return Ok(Vec::new());
    }
    let slot = Slot::of(case.plan, experts.weight);
    if let Some(found) = exchanged(&experts, &wrong, slot) {
        return Ok(vec![found]);
    }
    let mut found = Vec::new();
    for other in case.alike(experts.weight) {
        let matrices = case.weight(other).await?;
        found.extend(elsewhere(&experts, &wrong, slot, Slot::of(case.plan, other), &matrices));
    }
    if found.is_empty() {
        found.extend(scaled_biases(case, &experts, &wrong));
    }
    if found.is_empty() {
        found.extend(transposed(&experts, &wrong, slot));
        found.extend(scaled(&experts, &wrong, slot));
        found.extend(other_type(&experts, &wrong, slot));
    }
    if found.is_empty()
        && let [expert] = wrong[..]
    {
        let of_one = |h: Hypothesis| Hypothesis { why: format!("expert {}: {}", expert.number, h.why), ..h };
        // Of few tokens, that all outputs are a little off shows neither packing nor a factor.
        let said = corrupt(&expert.product, slot, &expert.product.wrong()).into_iter().filter(|h| h.cause != Cause::QuantDrift);
        found.extend(said.map(of_one));
    }
    Ok(found)
}

/// The biases of all experts times one number.
fn scaled_biases<S: WeightSource>(case: &Case<'_, S>, experts: &Experts, wrong: &[&Expert]) -> Option<Hypothesis> {
    let slot = Slot { bias: true, ..Slot::of(case.plan, experts.weight) };
    slot.find(case.plan)?;
    let gaps = || wrong.iter().flat_map(|expert| expert.product.gap_and_bias());
    let (less, off) = ratio(gaps().map(|(_, bias)| bias), gaps().map(|(gap, _)| gap));
    // What is missing is known no better than the outputs are.
    let coarse = wrong.iter().map(|expert| expert.product.size).fold(0.0, f64::max);
    let size = (gaps().map(|(gap, _)| gap * gap).sum::<f64>() / gaps().count().max(1) as f64).sqrt();
    let factor = snap(1.0 + less, 1e-8);
    if off.is_nan() || off * size > CLOSE * coarse || factor == 1.0 {
        return None;
    }
    let why = format!("the biases of {} experts are {factor} times as large in the reference", wrong.len());
    Some(Hypothesis::of_weight(Cause::CorruptWeight, slot, vec![Edit::Weight(slot, Change::Scale(factor))], why).rank(2))
}

/// The bits of the matrices of the experts that are wrong, read as the other type of 16 bits.
fn other_type(experts: &Experts, wrong: &[&Expert], slot: Slot) -> Option<Hypothesis> {
    let read = |half: Half| {
        let mut elements = Vec::new();
        for expert in wrong {
            let Product { rows, columns, .. } = expert.product;
            let first = expert.number * rows * columns;
            let values = experts.matrices[first..][..rows * columns].iter().map(|x| half.read(*x)).collect::<Option<Vec<f32>>>()?;
            if !expert.product.fits(&values, &experts.biases[expert.number * rows..][..rows]) {
                return None;
            }
            elements.extend(values.into_iter().enumerate().map(|(i, x)| (first + i, x)));
        }
        Some(elements)
    };
    let (elements, name) = read(Half::F16).map(|all| (all, "f16")).or_else(|| read(Half::Bf16).map(|all| (all, "bf16")))?;
    let why = format!("the outputs of {} experts are those of the same bits read as {name}", wrong.len());
    Some(Hypothesis::of_weight(Cause::CorruptWeight, slot, vec![Edit::Weight(slot, Change::Elements(elements))], why))
}

/// The matrices of the experts that are wrong, times one number.
fn scaled(experts: &Experts, wrong: &[&Expert], slot: Slot) -> Option<Hypothesis> {
    let pairs = || wrong.iter().flat_map(|expert| expert.product.without_biases());
    let (factor, off) = ratio(pairs().map(|(found, _)| found), pairs().map(|(_, wanted)| wanted));
    let factor = snap(factor, 1e-8);
    if off.is_nan() || off > CLOSE || (factor - 1.0).abs() < CLOSE || factor <= 0.0 {
        return None;
    }
    let of_expert = |expert: &&Expert| {
        let size = expert.product.rows * expert.product.columns;
        expert.number * size..(expert.number + 1) * size
    };
    let times = |at: usize| (at, (f64::from(experts.matrices[at]) * factor) as f32);
    let elements = wrong.iter().flat_map(of_expert).map(times).collect();
    let why = format!("every output of {} experts is {factor:.6} times as large in the reference", wrong.len());
    Some(Hypothesis::of_weight(Cause::CorruptWeight, slot, vec![Edit::Weight(slot, Change::Elements(elements))], why).rank(2))
}

/// The matrix of one expert, or of all, as its elements lie, read column by column.
fn transposed(experts: &Experts, wrong: &[&Expert], slot: Slot) -> Option<Hypothesis> {
    let mut elements = Vec::new();
    for expert in wrong {
        let Product { rows, columns, .. } = expert.product;
        let first = expert.number * rows * columns;
        let matrix = &experts.matrices[first..][..rows * columns];
        let turned: Vec<f32> = (0..rows * columns).map(|i| matrix[(i % columns) * rows + i / columns]).collect();
        if !expert.product.fits(&turned, &experts.biases[expert.number * rows..][..rows]) {
            return None;
        }
        elements.extend(turned.into_iter().enumerate().map(|(i, x)| (first + i, x)));
    }
    let why = format!("the outputs of {} experts are those of the matrix read column by column", wrong.len());
    Some(Hypothesis::of_weight(Cause::TransposedWeight, slot, vec![Edit::Weight(slot, Change::Elements(elements))], why))
}

/// The matrices that are meant lie under other experts of the same tensor.
fn exchanged(experts: &Experts, wrong: &[&Expert], slot: Slot) -> Option<Hypothesis> {
    let source = |expert: &&Expert| Some((expert.number, experts.source(expert, &experts.matrices, true)?));
    let sources: Vec<(usize, usize)> = wrong.iter().map(source).collect::<Option<_>>()?;
    let mut order: Vec<usize> = (0..experts.count).collect();
    for (number, from) in &sources {
        order[*number] = *from;
        // An expert that no token chose gets what its place lost.
        if experts.chosen.iter().all(|expert| expert.number != *from) {
            order[*from] = *number;
        }
    }
    let rows = wrong.first()?.product.rows;
    let places: Vec<(Slot, usize)> = order.iter().flat_map(|n| (0..rows).map(move |row| (slot, n * rows + row))).collect();
    let pairs: Vec<String> = sources.iter().map(|(number, from)| format!("{number} under {from}")).collect();
    let why = format!("the matrices that are meant lie under other experts: that of expert {}", pairs.join(", that of expert "));
    Some(Hypothesis::of_weight(Cause::SwappedTensors, slot, vec![Edit::Weight(slot, Change::Rows(places))], why))
}

/// They lie in the tensor `other`: all of it is meant, or single experts of it.
fn elsewhere(experts: &Experts, wrong: &[&Expert], slot: Slot, other: Slot, matrices: &[f32]) -> Option<Hypothesis> {
    let sources: Option<Vec<usize>> = wrong.iter().map(|expert| experts.source(expert, matrices, false)).collect();
    let sources = sources?;
    let cause = exchange(slot, other);
    let same = wrong.iter().zip(&sources).all(|(expert, n)| expert.number == *n);
    if same && wrong.len() == experts.chosen.len() {
        let edits = vec![Edit::Weight(slot, Change::From(other)), Edit::Weight(other, Change::From(slot))];
        return Some(Hypothesis::of_weight(cause, slot, edits, format!("the matrices that are meant lie under {}", label(other))));
    }
    let rows = wrong.first()?.product.rows;
    let all = experts.count * rows;
    let (mut here, mut there): (Vec<_>, Vec<_>) = ((0..all).map(|row| (slot, row)).collect(), (0..all).map(|row| (other, row)).collect());
    for (expert, n) in wrong.iter().zip(&sources) {
        for row in 0..rows {
            here[expert.number * rows + row] = (other, n * rows + row);
            there[n * rows + row] = (slot, expert.number * rows + row);
        }
    }
    let edits = vec![Edit::Weight(slot, Change::Rows(here)), Edit::Weight(other, Change::Rows(there))];
    let numbers: Vec<String> = wrong.iter().map(|expert| expert.number.to_string()).collect();
    let why = format!("the matrices of experts {} lie under {}", numbers.join(", "), label(other));
    Some(Hypothesis::of_weight(cause, slot, edits, why))
}
