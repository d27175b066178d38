//! Matrix products: another tensor, another order of rows, transposed, scaled, single elements, biases.

use super::label;
use super::weight::stored_as;
use crate::debug::doctor::Cause;
use crate::debug::doctor::case::{Case, Hypothesis};
use crate::debug::doctor::numbers::{CLOSE, dot, ratio, snap};
use crate::debug::weight_source::WeightSource;
use crate::error::Result;
use crate::model::{Mixer, WeightRole};
use crate::plan::edit::weight::{Change, Half};
use crate::plan::edit::{ConfigEdit, Edit, Slot};
use crate::plan::{Op, WeightId};

/// Most rows of a matrix whose order is looked for: every row is held against every other.
const MOST_ROWS: usize = 8192;

/// A product with what the reference has of it.
pub(super) struct Product {
    weight: WeightId,
    bias: Option<WeightId>,
    divisor: f64,
    /// [T, columns]; what is not finite in the weights counts as 0.
    x: Vec<f32>,
    matrix: Vec<f32>,
    biases: Vec<f32>,
    pub rows: usize,
    pub columns: usize,
    tokens: usize,
    /// Rows of the weight before `matrix`, which is all of it but where experts lie one after the other.
    first_row: usize,
    /// By output, what the reference has of all tokens, times the divisor.
    wanted: Vec<Vec<f64>>,
    /// Likewise, what these weights give.
    found: Vec<Vec<f64>>,
    /// Root mean square of what is wanted.
    pub size: f64,
}

/// The weights of a product.
pub(super) struct Weights {
    pub id: WeightId,
    pub bias: Option<WeightId>,
    /// [rows, columns].
    pub matrix: Vec<f32>,
    /// [rows].
    pub biases: Vec<f32>,
    /// Rows of the weight before `matrix`.
    pub first_row: usize,
}

impl Product {
    async fn read<S: WeightSource>(case: &Case<'_, S>) -> Result<Option<Self>> {
        let node = case.node();
        let Op::Linear { weight, bias, divisor } = node.op else { return Ok(None) };
        let (Some(x), Some(y)) = (case.input(case.id, 0)?, case.value(node.at)?) else { return Ok(None) };
        let biases = match bias {
            Some(bias) => case.weight(bias).await?,
            None => vec![0.0; node.width],
        };
        let weights = Weights { id: weight, bias, matrix: case.weight(weight).await?, biases, first_row: 0 };
        Ok(Some(Self::new(weights, x.data, &y.data, divisor)))
    }
    /// Of inputs [T, columns] and outputs [T, rows].
    pub fn new(weights: Weights, x: Vec<f32>, y: &[f32], divisor: f64) -> Self {
        let Weights { id: weight, bias, mut matrix, biases, first_row } = weights;
        let rows = biases.len();
        let columns = matrix.len() / rows.max(1);
        let tokens = (x.len() / columns.max(1)).min(y.len() / rows.max(1));
        matrix.iter_mut().filter(|w| !w.is_finite()).for_each(|w| *w = 0.0);
        let wanted: Vec<Vec<f64>> = (0..rows).map(|j| (0..tokens).map(|t| f64::from(y[t * rows + j]) * divisor).collect()).collect();
        let size = (wanted.iter().flatten().map(|y| y * y).sum::<f64>() / (rows * tokens).max(1) as f64).sqrt();
        let mut product =
            Self { weight, bias, divisor, x, matrix, biases, rows, columns, tokens, first_row, wanted, found: Vec::new(), size };
        product.found =
            (0..rows).map(|j| product.output(&product.matrix[j * columns..][..columns], f64::from(product.biases[j]))).collect();
        product
    }
    /// Whether a matrix [rows, columns], with these biases, gives what the reference has.
    pub fn fits(&self, values: &[f32], biases: &[f32]) -> bool {
        let row = |j: usize| self.output(&values[j * self.columns..][..self.columns], f64::from(biases[j]));
        // A few outputs tell most tensors apart.
        biases.len() == self.rows && (0..self.rows.min(3)).chain(0..self.rows).all(|j| self.is(j, &row(j)))
    }
    /// One output of all tokens under a row of weights.
    fn output(&self, row: &[f32], bias: f64) -> Vec<f64> {
        self.x.chunks_exact(self.columns).take(self.tokens).map(|x| dot(x, row) + bias).collect()
    }
    /// Whether these are the values of output `j` that the reference has.
    fn is(&self, j: usize, values: &[f64]) -> bool {
        let apart: f64 = self.wanted[j].iter().zip(values).map(|(a, b)| (a - b).powi(2)).sum();
        apart.sqrt() <= CLOSE * self.scale(j) && apart.is_finite()
    }
    /// How large output `j` is over all tokens.
    fn scale(&self, j: usize) -> f64 {
        self.wanted[j].iter().map(|y| y * y).sum::<f64>().sqrt().max(self.size * (self.tokens as f64).sqrt() * 0.3)
    }
    /// Outputs that are wrong.
    pub fn wrong(&self) -> Vec<usize> {
        (0..self.rows).filter(|j| !self.is(*j, &self.found[*j])).collect()
    }
    /// Outputs of all tokens without biases: what these weights give, and what the reference has.
    pub fn without_biases(&self) -> Vec<(f64, f64)> {
        let of = |j: usize| {
            let bias = f64::from(self.biases[j]);
            self.found[j].iter().zip(&self.wanted[j]).map(move |(found, wanted)| (found - bias, wanted - bias)).collect::<Vec<_>>()
        };
        (0..self.rows).flat_map(of).collect()
    }
    /// What is missing in each output of each token, and the bias there.
    pub fn gap_and_bias(&self) -> Vec<(f64, f64)> {
        (0..self.rows).flat_map(|j| self.gap(j).into_iter().map(move |gap| (gap, f64::from(self.biases[j])))).collect()
    }
    /// What is missing in output `j`, by token.
    fn gap(&self, j: usize) -> Vec<f64> {
        self.wanted[j].iter().zip(&self.found[j]).map(|(a, b)| a - b).collect()
    }
}

/// Hypotheses for the product of `case`.
pub async fn hypotheses<S: WeightSource>(case: &Case<'_, S>) -> Result<Vec<Hypothesis>> {
    let Some(product) = Product::read(case).await? else { return Ok(Vec::new()) };
    let (slot, wrong) = (Slot::of(case.plan, product.weight), product.wrong());
    let mut found = Vec::new();
    if wrong.is_empty() {
        return Ok(found);
    }
    if slot.role == WeightRole::Head || slot.role == WeightRole::Embed {
        let why = "the logits are those of another head";
        found.push(Hypothesis::new(Cause::TiedHead, vec![Edit::Config(ConfigEdit::Tied(!case.config.tie_word_embeddings))], why));
    }
    found.extend(scaled(&product, slot));
    found.extend(scaled_alone(&product, slot));
    found.extend(biased(case, &product, &wrong).await?);
    if found.iter().any(|h| h.cause != Cause::TiedHead) {
        return Ok(found);
    }
    found.extend(other_tensors(case, &product, slot).await?);
    found.extend(other_type(case, &product, slot).await?);
    if transposed(&product) {
        let edits = vec![Edit::Weight(slot, Change::Transposed)];
        found.push(Hypothesis::of_weight(
            Cause::TransposedWeight,
            slot,
            edits,
            "the outputs are those of the matrix read column by column",
        ));
    }
    found.extend(reordered(case, &product, slot, &wrong).await?);
    if found.iter().all(|h| h.cause == Cause::TiedHead) {
        found.extend(corrupt(&product, slot, &wrong));
    }
    Ok(found)
}

/// Every output times one number.
fn scaled(product: &Product, slot: Slot) -> Option<Hypothesis> {
    let all = |of: &'static str| {
        let values = if of == "wanted" { &product.wanted } else { &product.found };
        values.iter().flatten().copied()
    };
    let (factor, off) = ratio(all("found"), all("wanted"));
    if off > CLOSE || (factor - 1.0).abs() < CLOSE || factor <= 0.0 {
        return None;
    }
    if slot.role == WeightRole::Head || (slot.role == WeightRole::Embed && slot.layer.is_none()) {
        let divisor = snap(product.divisor / factor, 1e-6);
        let why = format!("the reference's logits are ours times {factor:.6}: they are divided by {divisor}, and not {}", product.divisor);
        return Some(Hypothesis::new(Cause::LogitsScale, vec![Edit::Config(ConfigEdit::LogitsScaling(divisor))], why));
    }
    let why = format!("every output of the reference is ours times {factor:.6}");
    // Rounded to less than the weights are, and no further: the floor is near.
    let mut edits = vec![Edit::Weight(slot, Change::Scale(snap(factor, 1e-8)))];
    edits.extend(product.bias.map(|_| Edit::Weight(Slot { bias: true, ..slot }, Change::Scale(snap(factor, 1e-8)))));
    Some(Hypothesis::of_weight(Cause::CorruptWeight, slot, edits, why).rank(2))
}

/// The matrix times one number, and the bias as it is.
fn scaled_alone(product: &Product, slot: Slot) -> Option<Hypothesis> {
    product.bias?;
    let without = |values: &'_ [Vec<f64>]| -> Vec<f64> {
        let of = values.iter().zip(&product.biases);
        of.flat_map(|(values, bias)| values.iter().map(|y| y - f64::from(*bias))).collect()
    };
    let (found, wanted) = (without(&product.found), without(&product.wanted));
    let (factor, off) = ratio(found.iter().copied(), wanted.iter().copied());
    if off > CLOSE || (factor - 1.0).abs() < CLOSE || factor <= 0.0 {
        return None;
    }
    let why = format!("every output of the reference, without the bias, is ours times {factor:.6}");
    Some(Hypothesis::of_weight(Cause::CorruptWeight, slot, vec![Edit::Weight(slot, Change::Scale(snap(factor, 1e-8)))], why).rank(2))
}

/// A number is missing that is the same for all tokens.
async fn biased<S: WeightSource>(case: &Case<'_, S>, product: &Product, wrong: &[usize]) -> Result<Vec<Hypothesis>> {
    let constant = |j: usize| {
        let gap = product.gap(j);
        let mean = gap.iter().sum::<f64>() / gap.len() as f64;
        let apart = gap.iter().map(|g| (g - mean).powi(2)).sum::<f64>().sqrt();
        (product.tokens > 2 && apart <= CLOSE * product.scale(j)).then_some(mean)
    };
    let Some(missing) = wrong.iter().map(|j| Some((*j, constant(*j)?))).collect::<Option<Vec<(usize, f64)>>>() else {
        return Ok(Vec::new());
    };
    let slot = Slot { bias: true, ..Slot::of(case.plan, product.weight) };
    let Some(bias) = product.bias else {
        let why = format!("{} outputs lack the same number for all tokens: a bias, which the config says there is none of", missing.len());
        return Ok(vec![Hypothesis::shown(Cause::MissingBias, why)]);
    };
    let meant = |(j, by): &(usize, f64)| (*j, stored_as(f64::from(product.biases[*j]) + by, CLOSE * product.size));
    let elements: Vec<(usize, f32)> = missing.iter().map(meant).collect();
    let mut found = Vec::new();
    for other in case.alike(bias) {
        let values = case.weight(other).await?;
        let right = |(j, by): &(usize, f64)| {
            (f64::from(values[*j]) - f64::from(product.biases[*j]) - by).abs() <= CLOSE * product.size.max(by.abs())
        };
        if missing.iter().all(right) && (0..product.rows).all(|j| wrong.contains(&j) || values[j] == product.biases[j]) {
            let other = Slot::of(case.plan, other);
            let cause = if other.role == slot.role { Cause::SwappedLayers } else { Cause::SwappedTensors };
            let edits = vec![Edit::Weight(slot, Change::From(other)), Edit::Weight(other, Change::From(slot))];
            found.push(Hypothesis::of_weight(cause, slot, edits, format!("the bias that is meant lies under {}", label(other))));
        }
    }
    if found.is_empty() {
        let absent = product.biases.iter().all(|b| *b == 0.0);
        let cause = if absent { Cause::MissingBias } else { Cause::CorruptWeight };
        let why = match absent {
            true => format!("the bias is 0 in the file, and {} outputs lack the same number for all tokens", missing.len()),
            false => format!("{} outputs are off by the same number for all tokens", missing.len()),
        };
        found.push(Hypothesis::of_weight(cause, slot, vec![Edit::Weight(slot, Change::Elements(elements))], why));
    }
    Ok(found)
}

/// Another tensor's matrix in place of this one.
async fn other_tensors<S: WeightSource>(case: &Case<'_, S>, product: &Product, slot: Slot) -> Result<Vec<Hypothesis>> {
    let mut found = Vec::new();
    let own = Slot { bias: true, ..slot };
    for other in case.alike(product.weight) {
        let values = case.weight(other).await?;
        let of_other = Slot { bias: true, ..Slot::of(case.plan, other) };
        // Its bias may lie there too.
        let moved = match of_other.find(case.plan).filter(|_| product.bias.is_some()) {
            Some(bias) => case.weight(bias).await?,
            None => Vec::new(),
        };
        let with_bias = !product.fits(&values, &product.biases);
        if with_bias && !product.fits(&values, &moved) {
            continue;
        }
        let other = Slot::of(case.plan, other);
        let cause = exchange(slot, other);
        let mut edits = vec![Edit::Weight(slot, Change::From(other)), Edit::Weight(other, Change::From(slot))];
        if with_bias {
            edits.extend([Edit::Weight(own, Change::From(of_other)), Edit::Weight(of_other, Change::From(own))]);
        }
        found.push(Hypothesis::of_weight(cause, slot, edits, format!("the matrix that is meant lies under {}", label(other))));
    }
    Ok(found)
}

/// What it is where one weight lies under the name of another.
pub(super) fn exchange(slot: Slot, other: Slot) -> Cause {
    use WeightRole::{Embed, ExpertGate, ExpertUp, GateProj, Head, UpProj};
    match (slot.role, other.role) {
        (a, b) if a == b => Cause::SwappedLayers,
        (GateProj, UpProj) | (UpProj, GateProj) | (ExpertGate, ExpertUp) | (ExpertUp, ExpertGate) if other.layer == slot.layer => {
            Cause::GateUpSwapped
        }
        (Head, Embed) | (Embed, Head) => Cause::TiedHead,
        _ => Cause::SwappedTensors,
    }
}

/// The bits of the matrix, read as the other type of 16 bits.
async fn other_type<S: WeightSource>(case: &Case<'_, S>, product: &Product, slot: Slot) -> Result<Option<Hypothesis>> {
    let stored = case.weight(product.weight).await?;
    let fits = |half: &Half| {
        let values: Option<Vec<f32>> = stored.iter().map(|x| half.read(*x)).collect();
        values.is_some_and(|values| product.fits(&values, &product.biases))
    };
    let (meant, name, other) = match [Half::F16, Half::Bf16].into_iter().find(fits) {
        Some(Half::F16) => (Half::F16, "f16", "bf16"),
        Some(Half::Bf16) => (Half::Bf16, "bf16", "f16"),
        None => return Ok(None),
    };
    let why = format!("the outputs are those of the same bits read as {name}: the file calls them {other}");
    Ok(Some(Hypothesis::of_weight(Cause::CorruptWeight, slot, vec![Edit::Weight(slot, Change::ReadAs(meant))], why)))
}

fn transposed(product: &Product) -> bool {
    let (rows, columns) = (product.rows, product.columns);
    let row = |j: usize| -> Vec<f32> { (0..columns).map(|i| product.matrix[i * rows + j]).collect() };
    (0..rows).all(|j| product.is(j, &product.output(&row(j), f64::from(product.biases[j]))))
}

/// The right rows in another order, or partly under the other of gate and up, or of a layer's projections.
async fn reordered<S: WeightSource>(case: &Case<'_, S>, product: &Product, slot: Slot, wrong: &[usize]) -> Result<Vec<Hypothesis>> {
    if product.rows > MOST_ROWS || product.tokens < 3 {
        return Ok(Vec::new());
    }
    // Tensors of one layer that read the same value.
    let groups: [&[WeightRole]; 2] =
        [&[WeightRole::GateProj, WeightRole::UpProj], &[WeightRole::QProj, WeightRole::KProj, WeightRole::VProj, WeightRole::AttnGate]];
    let roles = groups.into_iter().find(|group| group.contains(&slot.role)).unwrap_or(&[]);
    let mut outputs: Vec<(Slot, usize, Vec<f64>)> =
        product.found.iter().enumerate().map(|(j, y)| (slot, j, y.iter().map(|y| y - f64::from(product.biases[j])).collect())).collect();
    for role in roles.iter().filter(|role| **role != slot.role) {
        let other = Slot { role: *role, ..slot };
        let Some(id) = other.find(case.plan) else { continue };
        let values = case.weight(id).await?;
        outputs.extend(values.chunks_exact(product.columns).enumerate().map(|(j, row)| (other, j, product.output(row, 0.0))));
    }
    let mut rows: Vec<(Slot, usize)> = (0..product.rows).map(|j| (slot, j)).collect();
    // With biases, those of the rows may have moved along or stayed.
    for moved in [false, true] {
        let mut complete = true;
        for j in wrong {
            let fits = |(of, k, y): &&(Slot, usize, Vec<f64>)| {
                let bias = if moved && *of == slot { product.biases[*k] } else { product.biases[*j] };
                product.is(*j, &y.iter().map(|y| y + f64::from(bias)).collect::<Vec<f64>>())
            };
            match outputs.iter().find(fits) {
                Some((of, k, _)) => rows[*j] = (*of, *k),
                None => {
                    complete = false;
                    break;
                }
            }
        }
        if complete {
            let mut edits = vec![Edit::Weight(slot, Change::Rows(rows.clone()))];
            if moved && product.bias.is_some() {
                let bias = Slot { bias: true, ..slot };
                edits.push(Edit::Weight(bias, Change::Rows(rows.iter().map(|(_, k)| (bias, *k)).collect())));
            }
            let (cause, order) = order(case, slot, &rows);
            let why = format!("every output is there, {order}: {} of {} rows are elsewhere", wrong.len(), product.rows);
            let found = Hypothesis::of_weight(cause, slot, edits, why);
            // That all rows are as far from their places says more than any other tensor that would do.
            return Ok(vec![if cause == Cause::IndexMisaligned { found.rank(0) } else { found }]);
        }
        if product.bias.is_none() {
            break;
        }
    }
    Ok(Vec::new())
}

/// Whether every row stands as many rows later, the last ones first.
fn shifted(rows: &[(Slot, usize)]) -> bool {
    let by = |(row, (_, from)): (usize, &(Slot, usize))| (row + rows.len() - from) % rows.len();
    let mut all = rows.iter().enumerate().map(by);
    all.next().is_some_and(|first| first != 0 && all.all(|by| by == first))
}

/// Width of a head of what a delta rule gives.
fn delta_width<S: WeightSource>(case: &Case<'_, S>, slot: Slot) -> usize {
    match slot.layer.and_then(|layer| case.config.layers.get(layer)).map(|layer| &layer.mixer) {
        Some(Mixer::GatedDelta(of)) => of.heads.value_dim.max(1),
        _ => 1,
    }
}

/// What an order of rows means.
fn order<S: WeightSource>(case: &Case<'_, S>, slot: Slot, rows: &[(Slot, usize)]) -> (Cause, &'static str) {
    let of_layer = slot.layer.and_then(|layer| case.config.layers.get(layer)?.attention());
    let width = of_layer.or(case.config.attentions().next()).map_or(1, |a| a.head_dim.max(1));
    let inside = |row: usize, k: usize| row / width == k / width;
    let own = rows.iter().all(|(of, _)| *of == slot);
    match slot.role {
        WeightRole::GateProj | WeightRole::UpProj if !own => {
            let all = rows.iter().enumerate().all(|(j, (of, k))| of.role != slot.role && *k == j);
            if all { (Cause::GateUpSwapped, "under the other of gate and up") } else { (Cause::GateLayout, "mixed between gate and up") }
        }
        WeightRole::QProj | WeightRole::AttnGate
            if rows.iter().any(|(of, _)| of.role != slot.role)
                && rows.iter().all(|(of, _)| matches!(of.role, WeightRole::QProj | WeightRole::AttnGate)) =>
        {
            (Cause::GateLayout, "mixed between queries and their gate")
        }
        WeightRole::QProj | WeightRole::KProj | WeightRole::VProj if own => {
            let within = rows.iter().enumerate().all(|(j, (_, k))| inside(j, *k));
            let whole = rows.iter().enumerate().all(|(j, (_, k))| j % width == k % width);
            match (within, whole) {
                (true, _) => (Cause::PermutedQk, "in another order within each head"),
                (false, true) => (Cause::GqaMapping, "under another head"),
                _ => (Cause::SwappedTensors, "in another order"),
            }
        }
        WeightRole::DeltaZ
            if own && {
                let width = delta_width(case, slot);
                rows.iter().enumerate().all(|(j, (_, k))| j % width == k % width)
            } =>
        {
            (Cause::GqaMapping, "under another head")
        }
        _ if own && shifted(rows) => (Cause::IndexMisaligned, "each as many rows from its place"),
        _ if own => (Cause::CorruptWeight, "in another order"),
        _ => (Cause::SwappedTensors, "partly under another tensor"),
    }
}

/// Values of the matrix themselves. Where a row differs in one element it is found; where it differs in more, only the row.
pub(super) fn corrupt(product: &Product, slot: Slot, wrong: &[usize]) -> Vec<Hypothesis> {
    let mut elements = Vec::new();
    for j in wrong {
        let Some((i, by)) = one_element(product, *j) else { break };
        let at = j * product.columns + i;
        // Known as exactly as the output is, however large the damage.
        let meant = f64::from(product.matrix[at]) + by;
        elements.push((product.first_row * product.columns + at, stored_as(meant, CLOSE * meant.abs())));
    }
    if elements.len() == wrong.len() {
        let first = elements.first().map_or(0, |(at, _)| *at);
        let why = format!(
            "{} outputs are off by a multiple of one input: the element in row {}, column {} and its like are others",
            wrong.len(),
            first / product.columns,
            first % product.columns
        );
        return vec![Hypothesis::of_weight(Cause::CorruptWeight, slot, vec![Edit::Weight(slot, Change::Elements(elements))], why).rank(3)];
    }
    let zero = wrong.iter().filter(|j| product.matrix[**j * product.columns..][..product.columns].iter().all(|w| *w == 0.0)).count();
    let (lost, all) = (wrong.len(), product.rows);
    let drift = {
        let (gap, size) = wrong.iter().fold((0.0, 0.0), |(gap, size), j| {
            (gap + product.gap(*j).iter().map(|g| g * g).sum::<f64>(), size + product.wanted[*j].iter().map(|y| y * y).sum::<f64>())
        });
        (gap / size.max(f64::MIN_POSITIVE)).sqrt()
    };
    if lost * 2 > all && drift < 0.15 {
        let why = format!(
            "{lost} of {all} outputs are off by {:.2} % of their size, each by something else: the weights are near those of the reference, and not the same",
            100.0 * drift
        );
        return vec![Hypothesis { slot: Some(slot), ..Hypothesis::shown(Cause::QuantDrift, why) }.rank(5)];
    }
    let zeros = if zero > 0 { format!(", {zero} of which are 0 in the file") } else { String::new() };
    let why = format!(
        "{lost} of {all} outputs are wrong, and the others are right: an output depends on the inputs, which are the reference's, and on its row of the matrix. Rows from {} on{zeros}",
        product.first_row + wrong.first().copied().unwrap_or(0)
    );
    let partly = lost < all;
    let why = match partly {
        true => why,
        false => format!("all {all} outputs are wrong, and no factor, bias, other tensor or order of rows explains them"),
    };
    // That all are wrong does not show what of it is.
    vec![Hypothesis { slot: Some(slot), proved: partly, ..Hypothesis::shown(Cause::CorruptWeight, why) }.rank(5)]
}

/// The one column whose input explains what output `j` lacks, and how much its weight lacks.
fn one_element(product: &Product, j: usize) -> Option<(usize, f64)> {
    let gap = product.gap(j);
    if gap.len() < 3 || gap.iter().any(|g| !g.is_finite()) {
        return None;
    }
    let explains = |i: usize| {
        let inputs = (0..product.tokens).map(|t| f64::from(product.x[t * product.columns + i]));
        let (factor, off) = ratio(inputs, gap.iter().copied());
        // What is missing is known no better than the output.
        let exact = off * gap.iter().map(|g| g * g).sum::<f64>().sqrt();
        (exact <= CLOSE * product.scale(j)).then_some((i, factor, off))
    };
    let best = (0..product.columns).filter_map(explains).min_by(|a, b| a.2.total_cmp(&b.2));
    best.map(|(i, factor, _)| (i, factor))
}
