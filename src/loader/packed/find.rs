//! The tensors of packed matrices, found by name and held against the config by their headers.

use super::bytes::{Bytes, Scaled};
use super::compressed::{Compressed, Zeros};
use super::{Codes, Layout, Matrix, Shape, awq, bnb, compressed, gptq, mlx};
use crate::error::{Misfit, TensorProblem};
use crate::formats::{TensorEntry, TensorIndex};
use crate::loader::places::Place;
use crate::model::{PackedLayout, Packing};
use crate::quant::Format;

/// Ends of the names of tensors that go with packed weights and are not read: scales of activations and caches, and the layout
/// of bytes that a library had on a device.
const UNUSED: [&str; 13] = [
    ".input_scale",
    ".input_scale_ub",
    ".input_zero_point",
    ".input_global_scale",
    ".output_scale",
    ".output_zero_point",
    ".q_scale",
    ".k_scale",
    ".v_scale",
    ".k_zero_point",
    ".v_zero_point",
    ".weight_format",
    ".activation_scale",
];

/// Numbers of scales.
const FLOATS: &[&str] = &["f32", "f16", "bf16"];

/// What there is of a weight.
pub(in crate::loader) enum Found {
    /// No packed tensors: it is plain, or missing.
    Plain,
    /// A matrix; the tensor of its codes; why it is decoded, where it is.
    Matrix { matrix: Box<Matrix>, tensor: usize, why: Option<String> },
    /// What does not fit.
    Wrong(Vec<Misfit>),
}

/// Looks for packed matrices.
pub(in crate::loader) struct Finder<'a> {
    packing: &'a Packing,
    index: &'a TensorIndex,
}

/// A matrix that is looked for.
struct Search<'a> {
    finder: &'a Finder<'a>,
    stem: &'a str,
    shape: Shape,
    parts: Vec<usize>,
    misfits: Vec<Misfit>,
}

/// What a layout found: codes, their bits, whether scales have 16 bits, columns of a group (`None`: they are not in order).
struct Kind {
    layout: Layout,
    codes: Codes,
    bits: u32,
    exact: bool,
    group: Option<usize>,
}

impl<'a> Finder<'a> {
    pub fn new(packing: &'a Packing, index: &'a TensorIndex) -> Self {
        Self { packing, index }
    }
    /// A tensor that goes with packed weights and is not read.
    pub fn unused(name: &str) -> bool {
        UNUSED.iter().any(|end| name.ends_with(end))
    }
    /// The matrix of the weight `name` at `place`.
    pub fn find(&self, name: &str, place: &Place) -> Found {
        let ([rows, columns], Some(stem)) = (&place.shape[..], name.strip_suffix(".weight")) else { return Found::Plain };
        let shape = Shape { rows: *rows, columns: *columns };
        let mut search = Search { finder: self, stem, shape, parts: Vec::new(), misfits: Vec::new() };
        let kind = match &self.packing.layout {
            PackedLayout::Gptq { ordered, zeros } => search.gptq(*ordered, *zeros),
            PackedLayout::Awq => search.awq(),
            PackedLayout::Compressed { block } => search.compressed(*block),
            PackedLayout::Fp8 { block } => search.bytes(*block),
            PackedLayout::Bitsandbytes => search.bitsandbytes(),
            PackedLayout::Mlx => search.mlx(),
            PackedLayout::MlxMxfp4 => search.mxfp4(),
            PackedLayout::Mxfp4 => None,
        };
        if !search.misfits.is_empty() {
            return Found::Wrong(search.misfits);
        }
        let (Some(kind), Some(tensor)) = (kind, search.parts.first().copied()) else { return Found::Plain };
        let (format, why) = if kind.layout == Layout::Mxfp4 {
            (Format::Mxfp4, None)
        } else {
            let format = kind.group.map_or(Format::F32, |group| kind.codes.format(kind.bits, kind.exact, shape.columns, group));
            let cause = || match kind.group {
                None => "the groups of their columns are in no order (g_idx)".to_string(),
                Some(group) if group >= shape.columns => format!("rows of {columns} columns are no whole blocks"),
                Some(group) => format!("rows of {columns} columns in groups of {group} are no whole blocks"),
            };
            (format, (format == Format::F32).then(cause))
        };
        let matrix =
            Matrix { parts: search.parts, format, layout: kind.layout, shape, first: place.rows.start, order: place.order, expert: None };
        Found::Matrix { matrix: Box::new(matrix), tensor, why }
    }
    /// The matrices of all experts in the same tensors, `name` being what a plain one would be called; that of the first of them.
    pub fn find_experts(&self, name: &str, place: &Place) -> Found {
        let (PackedLayout::Mxfp4, [experts, rows, columns]) = (&self.packing.layout, &place.shape[..]) else { return Found::Plain };
        let (experts, shape) = (*experts, Shape { rows: *rows, columns: *columns });
        let mut search = Search { finder: self, stem: name, shape, parts: Vec::new(), misfits: Vec::new() };
        if !search.has_codes("_blocks", &["_scales"]) && search.misfits.is_empty() {
            return Found::Plain;
        }
        if !shape.columns.is_multiple_of(32) {
            search.wrong("_blocks", TensorProblem::Shape, "blocks of 32 columns".to_string(), format!("{columns} columns"));
        }
        search.part("_blocks", &[experts, shape.rows, shape.columns / 32, 16], &["U8"]);
        search.part("_scales", &[experts, shape.rows, shape.columns / 32], &["U8"]);
        let Some(tensor) = search.parts.first().copied().filter(|_| search.misfits.is_empty()) else { return Found::Wrong(search.misfits) };
        let (first, order) = (place.rows.start, place.order);
        let matrix = Matrix { parts: search.parts, format: Format::Mxfp4, layout: Layout::Mxfp4, shape, first, order, expert: None };
        Found::Matrix { matrix: Box::new(matrix), tensor, why: None }
    }
}

impl Search<'_> {
    fn entry(&self, end: &str) -> Option<(usize, &TensorEntry)> {
        let at = self.finder.index.find(&format!("{}{end}", self.stem))?;
        Some((at, &self.finder.index.entries()[at]))
    }
    fn has(&self, end: &str) -> bool {
        self.entry(end).is_some()
    }
    /// Whether there are codes, called `end`. Where only `others` are, which go with them, they are missing.
    fn has_codes(&mut self, end: &str, others: &[&str]) -> bool {
        let found = self.has(end);
        if !found && others.iter().any(|other| self.has(other)) {
            self.wrong(end, TensorProblem::Missing, "the codes of a packed matrix".to_string(), None);
        }
        found
    }
    fn wrong(&mut self, end: &str, problem: TensorProblem, expected: impl Into<Option<String>>, found: impl Into<Option<String>>) {
        self.misfits.push(Misfit { tensor: format!("{}{end}", self.stem), problem, expected: expected.into(), found: found.into() });
    }
    /// The tensor called so, whose sizes are `shape` but for ones, and whose type is one of `types`. It becomes the next part.
    fn part(&mut self, end: &str, shape: &[usize], types: &[&str]) -> Option<usize> {
        let ones = |shape: &[usize]| shape.iter().copied().filter(|size| *size != 1).collect::<Vec<_>>();
        let Some((at, entry)) = self.entry(end) else {
            self.wrong(end, TensorProblem::Missing, format!("{shape:?}"), None);
            return None;
        };
        let (found, dtype) = (entry.shape.clone(), entry.dtype.to_string());
        // Of two sizes, [2, 1] is another grid than [1, 2].
        let fits = found.as_slice() == shape || (ones(&found) == ones(shape) && found.len() <= 2 && found.len() != shape.len());
        if !fits {
            self.wrong(end, TensorProblem::Shape, format!("{shape:?}"), format!("{found:?}"));
        }
        if !types.iter().any(|name| name.eq_ignore_ascii_case(&dtype)) {
            self.wrong(end, TensorProblem::Type, types.join(" or "), dtype);
        }
        self.parts.push(at);
        Some(self.parts.len() - 1)
    }
    /// Bits of codes of which `sizes` times 32 are the bits of all columns or rows.
    fn bits(&mut self, end: &str, words: usize, elements: usize, known: &[u32]) -> Option<u32> {
        let bits = words.checked_mul(32).filter(|all| elements > 0 && all.is_multiple_of(elements)).map(|all| all / elements);
        let bits = bits.and_then(|bits| u32::try_from(bits).ok());
        let stated = &self.finder.packing.bits;
        let fits = bits.filter(|bits| known.contains(bits) && (stated.is_empty() || stated.contains(bits)));
        if fits.is_none() {
            let all = if stated.is_empty() { known } else { stated };
            let all: Vec<String> = all.iter().map(u32::to_string).collect();
            let found = format!("{words} words for {elements} elements");
            self.wrong(end, TensorProblem::Shape, format!("codes of {} bits", all.join(" or ")), found);
        }
        fits
    }
    /// Columns of a group, where there are `groups` of them: what the config states, or what divides the columns.
    fn group(&mut self, end: &str, groups: usize) -> Option<usize> {
        let columns = self.shape.columns;
        let stated = self.finder.packing.groups.iter().map(|group| if *group == 0 { columns } else { *group });
        let found = stated.clone().find(|group| columns.div_ceil(*group.max(&1)) == groups);
        let divides = || (groups > 0 && columns.is_multiple_of(groups)).then(|| columns / groups);
        let found = if self.finder.packing.groups.is_empty() { divides() } else { found };
        if found.is_none() {
            let all: Vec<String> = stated.map(|group| group.to_string()).collect();
            let expected = if all.is_empty() {
                format!("groups that divide {columns} columns")
            } else {
                format!("groups of {} columns", all.join(" or "))
            };
            self.wrong(end, TensorProblem::Shape, expected, format!("{groups} groups for {columns} columns"));
        }
        found
    }
    /// Whether the scales in part `at` have 16 bits.
    fn exact(&self, at: Option<usize>) -> bool {
        let entry = at.and_then(|at| self.parts.get(at)).map(|part| &self.finder.index.entries()[*part]);
        entry.is_some_and(|entry| ["f16", "bf16"].contains(&entry.dtype.to_string().as_str()))
    }
    fn first_size(&self, end: &str) -> usize {
        self.entry(end).and_then(|(_, entry)| entry.shape.first().copied()).unwrap_or(0)
    }
    /// The last size of a matrix, 1 of anything else.
    fn last_size(&self, end: &str) -> usize {
        self.entry(end).filter(|(_, entry)| entry.shape.len() > 1).and_then(|(_, entry)| entry.shape.last().copied()).unwrap_or(1)
    }

    fn gptq(&mut self, ordered: bool, zeros: crate::model::GptqZeros) -> Option<Kind> {
        let [qweight, qzeros, scales, g_idx] = gptq::PARTS;
        if !self.has_codes(qweight, &[qzeros, scales, g_idx]) {
            return None;
        }
        let Shape { rows, columns } = self.shape;
        let words = self.first_size(qweight);
        let bits = self.bits(qweight, words, columns, &[2, 3, 4, 8])?;
        let groups = self.first_size(scales);
        self.part(qweight, &[words, rows], &["i32"]);
        if !(rows * bits as usize).is_multiple_of(32) {
            self.wrong(qzeros, TensorProblem::Shape, "rows that fill whole words".to_string(), format!("{rows} rows of {bits} bits"));
        }
        self.part(qzeros, &[groups, rows * bits as usize / 32], &["i32"]);
        let at = self.part(scales, &[groups, rows], FLOATS);
        if !ordered || self.has(g_idx) {
            self.part(g_idx, &[columns], &["i32"]);
        }
        let group = self.group(scales, groups)?;
        let layout = Layout::Gptq(gptq::Gptq { bits, group, groups, ordered, zeros });
        Some(Kind { layout, codes: Codes::Zeros, bits, exact: self.exact(at), group: ordered.then_some(group) })
    }

    fn awq(&mut self) -> Option<Kind> {
        if !self.has_codes(".qweight", &[".qzeros", ".scales"]) {
            return None;
        }
        let Shape { rows, columns } = self.shape;
        let words = self.last_size(".qweight");
        let bits = self.bits(".qweight", words, rows, &[4])?;
        let groups = self.first_size(".scales");
        self.part(".qweight", &[columns, words], &["i32"]);
        self.part(".qzeros", &[groups, words], &["i32"]);
        let at = self.part(".scales", &[groups, rows], FLOATS);
        let group = self.group(".scales", groups)?;
        Some(Kind { layout: Layout::Awq(awq::Awq { group, groups }), codes: Codes::Zeros, bits, exact: self.exact(at), group: Some(group) })
    }

    fn compressed(&mut self, block: Option<[usize; 2]>) -> Option<Kind> {
        let Shape { rows, columns } = self.shape;
        let packed = self.has(".weight_packed");
        if !packed && !self.has(".weight_zero_point") && (self.has(".weight") || !self.has(".weight_shape")) {
            return self.bytes(block);
        }
        // Only what is in words says its shape.
        let codes = if self.has(".weight_shape") && !self.has(".weight") { ".weight_packed" } else { ".weight" };
        if !packed && !self.has_codes(codes, &[".weight_zero_point", ".weight_shape"]) {
            return None;
        }
        let (bits, dense) = if packed {
            let (end, words) = (".weight_packed", self.last_size(".weight_packed"));
            let stated = self.finder.packing.bits.clone();
            let fits = |bits: u32| {
                let known = (2..=8).contains(&bits);
                let dense = [true, false].into_iter().find(|dense| known && compressed::words(bits, *dense, columns) == words);
                dense.map(|dense| (bits, dense))
            };
            let Some(found) = if stated.is_empty() { vec![4, 8] } else { stated }.into_iter().find_map(fits) else {
                self.wrong(end, TensorProblem::Shape, format!("codes of {columns} columns in words"), format!("{words} words in a row"));
                return None;
            };
            self.part(end, &[rows, words], &["i32"]);
            found
        } else {
            self.part(".weight", &[rows, columns], &["I8"]);
            (8, true)
        };
        let groups = self.last_size(".weight_scale");
        let one_row = self.entry(".weight_scale").is_some_and(|(_, entry)| entry.shape.iter().product::<usize>() == 1);
        let of_scales: &[usize] = if one_row { &[1] } else { &[rows, groups] };
        let at = self.part(".weight_scale", of_scales, FLOATS);
        let group = self.group(".weight_scale", groups)?;
        let zeros = self.entry(".weight_zero_point").map(|(_, entry)| entry.dtype.to_string() == "i32");
        let zeros = zeros.and_then(|words| {
            let lines = if words { compressed::words(bits, dense, rows) } else { rows };
            let shape: &[usize] = if one_row && !words { &[1] } else { &[lines, groups] };
            let part = self.part(".weight_zero_point", shape, &["i32", "I8"])?;
            Some(Zeros { part, packed: words })
        });
        let shape = if self.has(".weight_shape") { self.part(".weight_shape", &[2], &["I64", "i32"]) } else { None };
        let listed = if self.has(".weight_g_idx") { self.part(".weight_g_idx", &[columns], &["i32"]) } else { None };
        let layout = Layout::Compressed(Compressed { bits, packed, dense, group, groups, one_row, zeros, listed, shape });
        Some(Kind { layout, codes: Codes::Zeros, bits, exact: self.exact(at), group: listed.is_none().then_some(group) })
    }

    /// One byte for each element, with a grid of scales.
    fn bytes(&mut self, block: Option<[usize; 2]>) -> Option<Kind> {
        let end = [".weight_scale_inv", ".weight_scale"].into_iter().find(|end| self.has(end));
        if !self.has_codes(".weight", end.as_slice()) {
            return None;
        }
        let dtype = self.entry(".weight").map(|(_, entry)| entry.dtype.to_string());
        let kind = match (dtype.as_deref(), end) {
            (Some("f8_e4m3"), _) => Bytes::E4m3,
            (Some("I8"), _) => Bytes::Signed,
            _ => return None,
        };
        self.scaled(kind, end.unwrap_or(".weight_scale"), block)
    }

    fn scaled(&mut self, kind: Bytes, end: &str, block: Option<[usize; 2]>) -> Option<Kind> {
        let Shape { rows, columns } = self.shape;
        self.part(".weight", &[rows, columns], &["f8_e4m3", "I8"]);
        let found = self.entry(end).map(|(_, entry)| entry.shape.clone()).unwrap_or_default();
        // Blocks are what the config states; where it states other strategies too, those may be meant by another shape.
        let others = self.finder.packing.groups.contains(&0);
        let block = block.filter(|[down, across]| {
            !others || found.iter().product::<usize>() == rows.div_ceil(*down).saturating_mul(columns.div_ceil(*across))
        });
        // One for all, one for each row, one for each group of a row, or one for each block.
        let block = match (found.as_slice(), block) {
            (_, Some(block)) => block,
            ([] | [1] | [1, 1], None) if self.has(end) => [rows.max(1), columns.max(1)],
            ([n] | [n, 1], None) if *n == rows => [1, columns.max(1)],
            ([n, groups], None) if *n == rows => [1, self.group(end, *groups)?],
            _ => [1, columns.max(1)],
        };
        let (down, across) = (rows.div_ceil(block[0]), columns.div_ceil(block[1]));
        self.part(end, &[down, across], &[FLOATS, &["F8_E8M0"]].concat());
        let scaled = Scaled { kind, block, across };
        let codes = scaled.codes();
        Some(Kind { layout: Layout::Bytes(scaled), codes, bits: 8, exact: false, group: Some(block[1]) })
    }

    fn bitsandbytes(&mut self) -> Option<Kind> {
        let kinds = [(".weight.quant_state.bitsandbytes__nf4", true), (".weight.quant_state.bitsandbytes__fp4", false)];
        let Some((state, nf4)) = kinds.into_iter().find(|(end, _)| self.has(end)) else {
            // The scales of eight bits stand under the module's name.
            return if self.has(".SCB") && self.has_codes(".weight", &[".SCB"]) { self.scaled(Bytes::Of127, ".SCB", None) } else { None };
        };
        let Shape { rows, columns } = self.shape;
        let elements = rows.checked_mul(columns)?;
        // Some files call the bytes by a wider type.
        if let Some((at, entry)) = self.entry(".weight") {
            let found = entry.bytes();
            self.parts.push(at);
            if found != elements.div_ceil(2) as u64 {
                self.wrong(".weight", TensorProblem::Shape, format!("{} bytes", elements.div_ceil(2)), format!("{found} bytes"));
            }
        } else {
            self.wrong(".weight", TensorProblem::Missing, format!("{} bytes", elements.div_ceil(2)), None);
        }
        let count = self.first_size(".weight.absmax");
        let block = (4..=14).map(|n| 1usize << n).find(|block| elements.div_ceil(*block) == count);
        let nested = self.has(".weight.nested_absmax");
        self.part(".weight.absmax", &[count], if nested { &["U8"] } else { &["f32"] });
        let Some(block) = block else {
            self.wrong(
                ".weight.absmax",
                TensorProblem::Shape,
                "blocks of 16 to 16384".to_string(),
                format!("{count} for {elements} elements"),
            );
            return None;
        };
        let bytes = self.first_size(state);
        debug_assert_eq!(self.parts.len(), bnb::STATE);
        self.part(state, &[bytes], &["U8"]);
        debug_assert_eq!(self.parts.len(), bnb::MAP);
        self.part(".weight.quant_map", &[16], &["f32"]);
        let nested = nested.then(|| {
            let blocks = self.first_size(".weight.nested_absmax");
            self.part(".weight.nested_absmax", &[blocks], &["f32"]);
            self.part(".weight.nested_quant_map", &[256], &["f32"]);
            blocks
        });
        let layout = Layout::FourBit(bnb::FourBit { nf4, block, count, nested });
        let codes = if nf4 { Codes::Nf4 } else { Codes::Fp4 };
        // Blocks run on from row to row: where a row is no whole number of them, a smaller run has one scale.
        let shared = if columns.is_multiple_of(block) { block } else { 1 << columns.trailing_zeros().min(block.trailing_zeros()) };
        Some(Kind { layout, codes, bits: 4, exact: false, group: Some(shared) })
    }

    fn mlx(&mut self) -> Option<Kind> {
        if !self.has(".scales") || !self.has_codes(".weight", &[".scales"]) {
            return None;
        }
        let Shape { rows, columns } = self.shape;
        let words = self.last_size(".weight");
        let bits = self.bits(".weight", words, columns, &[2, 3, 4, 5, 6, 8])?;
        let groups = self.last_size(".scales");
        self.part(".weight", &[rows, words], &["U32"]);
        self.part(".scales", &[rows, groups], FLOATS);
        self.part(".biases", &[rows, groups], FLOATS);
        let group = self.group(".scales", groups)?;
        Some(Kind { layout: Layout::Mlx(mlx::Mlx { bits, group, groups }), codes: Codes::Offsets, bits, exact: false, group: Some(group) })
    }

    fn mxfp4(&mut self) -> Option<Kind> {
        if !self.has(".scales") || !self.has_codes(".weight", &[".scales"]) {
            return None;
        }
        let Shape { rows, columns } = self.shape;
        if !columns.is_multiple_of(32) {
            self.wrong(".weight", TensorProblem::Shape, "blocks of 32 columns".to_string(), format!("{columns} columns"));
            return None;
        }
        self.part(".weight", &[rows, columns / 8], &["U32"]);
        self.part(".scales", &[rows, columns / 32], &["U8"]);
        Some(Kind { layout: Layout::Mxfp4, codes: Codes::Fp4, bits: 4, exact: false, group: Some(32) })
    }
}
