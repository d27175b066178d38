//! Variants of matrix products as data: which serve a product. The first of them is taken, unless another was measured to be
//! faster on this device (`src/tuned.rs`).

use super::device::{Caps, Gpu, KernelShape};
use super::kernels::{KERNELS, SHARED};
use super::weights::GpuWeight;
use crate::error::{Error, Result};
use crate::plan::{Op, Plan, ValueId};
use crate::quant::Format;
use crate::tuned::{Tuned, Variant, short_hash};

/// What of a product decides how it is computed. Products of one input share it, together and apart, watched or not, so that
/// their bits are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Product {
    /// Of the weights.
    pub format: Format,
    /// Of all matrices that multiply the input; of a step of many tokens, of the matrix.
    pub rows: usize,
    /// Of a matrix.
    pub columns: usize,
    /// The input is stored in f16.
    pub narrow: bool,
    /// The input is what a norm makes.
    pub normed: bool,
    /// The step has many tokens.
    pub many: bool,
}

impl std::fmt::Display for Product {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { format, rows, columns, narrow, normed, many } = self;
        let words = [(*normed && !*many, " normed"), (*many, " many")];
        write!(f, "{} {rows}x{columns} {}", format.name(), if *narrow { "f16" } else { "f32" })?;
        words.iter().filter(|(has, _)| *has).try_for_each(|(_, word)| f.write_str(word))
    }
}

/// Rows of a matrix from which on its products are computed in large tiles: there are enough of them for every processor.
const WIDE_ROWS: usize = 4096;
/// Threads that share a row, at least and at most.
const LANES: [u32; 2] = [4, 128];

impl Product {
    /// What decides how `id`, which multiplies by `weight`, is computed.
    pub(super) fn of(plan: &Plan, id: ValueId, weight: &GpuWeight, narrow: bool, many: bool) -> Self {
        let inputs = &plan.node(id).inputs;
        let normed = matches!(plan.node(inputs[0]).op, Op::RmsNorm { .. });
        let same = || plan.nodes.iter().filter(|node| node.op.is_product() && node.inputs == *inputs);
        let rows = if many { weight.shape[0] } else { same().map(|node| node.width).sum() };
        Self { format: weight.format, rows, columns: weight.shape[1], narrow, normed, many }
    }
    /// The variants that serve on a device, the one that is taken untuned first. Of many rows without matrix units there is
    /// no choice.
    pub fn variants(&self, caps: &Caps) -> Vec<Variant> {
        let (first, others) = if self.many { self.tiles(caps) } else { self.vectors(caps) };
        first.into_iter().chain(others.into_iter().filter(|other| Some(*other) != first)).collect()
    }

    fn tiles(&self, caps: &Caps) -> (Option<Variant>, Vec<Variant>) {
        let Some(side) = self.matrix_side(caps) else { return (None, Vec::new()) };
        let fits = tile_memory(side, true) <= caps.workgroup_memory;
        let all = [false, true].into_iter().filter(|wide| fits || !wide).map(|wide| Variant::Tiles { wide }).collect();
        (Some(Variant::Tiles { wide: fits && self.rows >= WIDE_ROWS }), all)
    }
    /// The side of the matrix units' tiles, if they multiply it: f16, so that weights in f32 have more.
    fn matrix_side(&self, caps: &Caps) -> Option<u32> {
        caps.matrix.filter(|side| self.narrow && self.format != Format::F32 && tile_memory(*side, false) <= caps.workgroup_memory)
    }

    fn vectors(&self, caps: &Caps) -> (Option<Variant>, Vec<Variant>) {
        // In digits f16 is exact; f32 would be rounded more than sums of it are.
        let whole = self.format.planes().is_some_and(|planes| planes.defines.contains(&"WHOLE"));
        let can = self.narrow && caps.dots && whole;
        let KernelShape { row_threads: wg, teams, .. } = caps.kernel_shape();
        if !teams {
            return (Some(Variant::Vector { lanes: 1, digits: can }), Vec::new());
        }
        // Of x as digits a workgroup holds a block for every second thread.
        let most = |digits| LANES[1].min(if digits { wg / 2 } else { wg });
        // Threads take eight plain weights at a time, or 32 packed ones.
        let parts = self.columns.div_ceil(if self.format.planes().is_some() { 32 } else { 8 });
        let first = Variant::Vector { lanes: self.lanes(parts, caps.subgroup, most(can), can), digits: can };
        let lanes = || std::iter::successors(Some(LANES[0]), |lanes| Some(lanes * 2));
        let useful =
            |digits| lanes().take_while(move |lanes| *lanes <= most(digits) && (*lanes == LANES[0] || (*lanes as usize) < 2 * parts));
        let digits = [true, false].into_iter().filter(|digits| can || !digits);
        (Some(first), digits.flat_map(|digits| useful(digits).map(move |lanes| Variant::Vector { lanes, digits })).collect())
    }
    /// Threads per row of `parts` parts that a thread takes at a time: long rows of small matrices take larger teams, up to
    /// `most`, so that enough threads read at once to keep every processor busy, as measured on an H200. The more of a
    /// workgroup's time goes into making its row ready, the more rows it should have.
    fn lanes(&self, parts: usize, subgroup: Option<u32>, most: u32, digits: bool) -> u32 {
        let subgroup = subgroup.unwrap_or(32).clamp(8, 64);
        let (mut lanes, enough) = match (digits, self.normed) {
            (true, true) => (8, 34_000),
            (true, false) => (subgroup, 32_768),
            (false, true) => (16, 65_536),
            (false, false) => (subgroup, 131_072),
        };
        while lanes < most && (lanes as usize) * 2 <= parts && self.rows / 4 * (lanes as usize) < enough {
            lanes *= 2;
        }
        lanes
    }
}

/// Bytes that a workgroup of linear_matrix.wgsl holds: two tiles of x and two of w, and a patch for each subgroup.
fn tile_memory(side: u32, wide: bool) -> u32 {
    let (rows, subgroups) = if wide { (8 * side, 8) } else { (4 * side, 4) };
    2 * 2 * rows * 80 + subgroups * side * side * 4
}

impl Gpu {
    /// The variant that computes `product`: of those that serve, the first or the one that was measured to be fastest.
    ///
    /// # Errors
    /// `Kind::Config` where the table asks for a variant that does not serve.
    pub(super) fn variant(&self, product: &Product) -> Result<Option<Variant>> {
        let serve = product.variants(&self.caps);
        let measured = self.tuned.as_ref().and_then(|tuned| tuned.products.get(&product.to_string()));
        match measured {
            None => Ok(serve.first().copied()),
            Some(variant) if serve.contains(variant) => Ok(Some(*variant)),
            Some(variant) => {
                let words: Vec<String> = serve.iter().map(Variant::to_string).collect();
                let text = format!(
                    "of the product `{product}` the table has {variant}; what serves is {}: measure again (`doppler tune`), or go without",
                    if words.is_empty() { "no choice".to_string() } else { words.join(" | ") }
                );
                Err(Error::config("runtime.inference.tuned", text))
            }
        }
    }
    /// A table of this device with these kernels, with nothing in it.
    pub fn untuned(&self) -> Tuned {
        Tuned::new(self.caps.identity(), kernels_hash(&self.kernels))
    }
    /// Takes the table that was measured here, if there is one; with none of this device, what is taken untuned.
    pub fn set_tuned(&mut self, tables: Vec<Tuned>) {
        let here = self.untuned();
        self.tuned = tables.into_iter().find(|table| table.is_of(&here.device, &here.kernels) && !table.products.is_empty());
    }
}

/// A hash of every text that kernels are made of.
fn kernels_hash(replacements: &[(String, String)]) -> String {
    let built_in = KERNELS.iter().map(|kernel| (kernel.name, kernel.source)).chain(SHARED.iter().copied());
    let text = |(name, source): (&'static str, &'static str)| {
        [name, replacements.iter().find(|(replaced, _)| replaced == name).map_or(source, |(_, text)| text)]
    };
    short_hash(built_in.flat_map(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caps() -> Caps {
        let sizes = Caps { workgroup_memory: 48 << 10, max_invocations: 1024, ..Caps::default() };
        Caps { subgroup: Some(32), matrix: Some(16), dots: true, ..sizes }
    }
    const PRODUCT: Product = Product { format: Format::Q4K, rows: 16_384, columns: 2048, narrow: true, normed: true, many: false };

    #[test]
    fn every_variant_is_listed_once_and_the_usual_one_first() {
        for (product, first, count) in [
            (PRODUCT, Variant::Vector { lanes: 16, digits: true }, 10),
            (Product { format: Format::F16, ..PRODUCT }, Variant::Vector { lanes: 16, digits: false }, 6),
            // Few rows, long: more threads a row.
            (Product { format: Format::F16, rows: 2048, columns: 8192, ..PRODUCT }, Variant::Vector { lanes: 128, digits: false }, 6),
            (Product { many: true, ..PRODUCT }, Variant::Tiles { wide: true }, 2),
            (Product { many: true, rows: 512, ..PRODUCT }, Variant::Tiles { wide: false }, 2),
        ] {
            let variants = product.variants(&caps());
            assert_eq!((variants[0], variants.len()), (first, count), "{product}: {variants:?}");
            assert!(variants.iter().enumerate().all(|(i, one)| !variants[..i].contains(one)), "{variants:?}");
        }
        let serial = Caps { serial: true, ..caps() };
        assert_eq!(PRODUCT.variants(&serial), [Variant::Vector { lanes: 1, digits: true }]);
        assert!(Product { many: true, ..PRODUCT }.variants(&Caps { matrix: None, ..caps() }).is_empty());
        assert_eq!(PRODUCT.to_string(), "q4_k 16384x2048 f16 normed");
    }

    #[test]
    fn tables_of_other_texts_have_another_hash() {
        let (plain, same) = (kernels_hash(&[]), kernels_hash(&[("no such kernel".into(), "fn main() {}".into())]));
        assert_eq!(plain, same);
        assert_ne!(plain, kernels_hash(&[("linear".into(), "fn main() {}".into())]));
    }
}
