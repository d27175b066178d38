//! Kernel calls as data, and the pipelines and bind groups made from them, each variant compiled once.

use super::compiled::{Compiled, STEP_BYTES, VariantKey, uniform};
use super::device::Gpu;
use super::kernels::{SHARED, kernel};
use super::wgsl::preprocess;
use crate::error::{Error, Result};
use crate::geometry::{MOST_RUNS, ORIGINS_BYTES, RUN_POSITIONS, STEP_SLOT, expert_tiles};
use std::cell::RefCell;
use std::collections::HashMap;
#[cfg(not(target_arch = "wasm32"))]
use std::sync::{Mutex, PoisonError};

/// A value of a kernel parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Param {
    U(u32),
    F(f32),
}

impl From<usize> for Param {
    fn from(value: usize) -> Self {
        // Sizes above u32 are refused when buffers are made, long before they come here.
        Param::U(u32::try_from(value).unwrap_or(u32::MAX))
    }
}
impl From<u32> for Param {
    fn from(value: u32) -> Self {
        Param::U(value)
    }
}
impl From<f64> for Param {
    fn from(value: f64) -> Self {
        Param::F(value as f32)
    }
}

/// Number of rows that a dispatch covers: known only when a step is recorded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RowCount {
    Tokens,
    /// So many for each token.
    Chosen(usize),
    HeadRows,
    /// One, whatever the step.
    One,
    /// Rows of logits from which a token is picked.
    Picks,
}

/// Workgroups of a dispatch, as a function of the step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Grid {
    /// ⌈rows · per_row / per_group⌉ in one line, folded over two dimensions where too long.
    Items { rows: RowCount, per_row: usize, per_group: usize },
    /// `groups` along x (folded into z), one slice in y per row.
    Rows { rows: RowCount, groups: usize },
    /// `groups` along y (folded into z); along x, blocks of so many rows.
    Blocks { rows: RowCount, groups: usize, block: usize },
    /// Tiles of [tokens, n].
    Tiles { n: usize, tile: [u32; 2] },
    /// Likewise of the rows of `chosen` experts of each token, a tile's all of one expert: as many as there may be.
    ExpertTiles { n: usize, tile: [u32; 2], chosen: usize, experts: usize },
    /// One item per cell of [heads, tokens, positions], 64 to a group.
    Cells { heads: usize },
    /// For each of `parts` equal parts of values, as many as share their elements; along y the `values`. Of `heads`,
    /// values with a cell for each position.
    Shares { rows: RowCount, width: usize, heads: usize, parts: usize, groups: usize, values: usize },
    /// The runs of positions that a token sees, along y `per_token` for each token. A window of 0 is none.
    Runs { per_token: usize, window: usize },
    /// Always as many, along x and y.
    Fixed([u32; 2]),
}

/// Elements for which another workgroup is worth its barriers when statistics are taken.
pub const SHARE: usize = 1024;

/// Workgroups, of at most `groups`, that share `elements` there, as stats.wgsl counts them too.
pub fn sharing(elements: usize, groups: usize) -> usize {
    (elements / SHARE).clamp(1, groups.max(1))
}

/// What of a step decides the size of dispatches.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    pub tokens: usize,
    pub position: usize,
    /// Positions of the sequence that has the most, the step's tokens included.
    pub last: usize,
    pub head_rows: usize,
    pub picks: usize,
}

impl Extent {
    /// Of `tokens` tokens of one sequence from `position` on, of which nothing is picked.
    pub fn of(tokens: usize, position: usize, head_rows: usize) -> Self {
        Self { tokens, position, last: position + tokens, head_rows, picks: 0 }
    }
}

impl Grid {
    /// Workgroup counts, none above `limit`.
    pub fn size(self, e: Extent, limit: u32) -> Result<[u32; 3]> {
        let count = |rows| match rows {
            RowCount::Tokens => e.tokens,
            RowCount::Chosen(count) => e.tokens * count,
            RowCount::HeadRows => e.head_rows,
            RowCount::One => 1,
            RowCount::Picks => e.picks,
        };
        let line = |items: usize| {
            let limit = limit as usize;
            if items <= limit { [items, 1, 1] } else { [limit, items.div_ceil(limit), 1] }
        };
        let size = match self {
            Grid::Items { rows, per_row, per_group } => line((count(rows) * per_row).div_ceil(per_group)),
            Grid::Rows { rows, groups } => {
                let x = groups.min(limit as usize);
                [x, count(rows), groups.div_ceil(x.max(1))]
            }
            Grid::Blocks { rows, groups, block } => {
                let y = groups.min(limit as usize);
                [count(rows).div_ceil(block), y, groups.div_ceil(y.max(1))]
            }
            Grid::Tiles { n, tile: [tokens, columns] } => [n.div_ceil(columns as usize), e.tokens.div_ceil(tokens as usize), 1],
            Grid::ExpertTiles { n, tile: [rows, columns], chosen, experts } => {
                [n.div_ceil(columns as usize), expert_tiles(e.tokens * chosen, experts, rows as usize), 1]
            }
            Grid::Cells { heads } => line((heads * e.tokens * (e.position + e.tokens)).div_ceil(64)),
            Grid::Shares { rows, width, heads, parts, groups, values } => {
                let elements = (count(rows) * width).max(heads * e.tokens * (e.position + e.tokens));
                [parts * sharing(elements, groups), values, 1]
            }
            Grid::Runs { per_token, window } => {
                let visible = if window > 0 { e.last.min(window) } else { e.last };
                [visible.div_ceil(RUN_POSITIONS).min(MOST_RUNS), e.tokens * per_token, 1]
            }
            Grid::Fixed([x, y]) => [x as usize, y as usize, 1],
        };
        if size.iter().any(|n| *n > limit as usize) {
            return Err(Error::device(format!("a dispatch of {size:?} workgroups is above the device's limit of {limit}")));
        }
        Ok(size.map(|n| n as u32))
    }
}

/// A buffer in a call and whether it is written, or nothing at a binding that the variant does not have.
#[derive(Debug, Clone)]
pub struct Bind(Option<(wgpu::Buffer, bool)>);

/// Reads `buffer`.
pub fn read(buffer: &wgpu::Buffer) -> Bind {
    Bind(Some((buffer.clone(), false)))
}

/// Writes `buffer`.
pub fn write(buffer: &wgpu::Buffer) -> Bind {
    Bind(Some((buffer.clone(), true)))
}

/// Nothing.
pub fn none() -> Bind {
    Bind(None)
}

/// A kernel call: everything but the step.
#[derive(Debug, Clone)]
pub struct Call {
    pub kernel: &'static str,
    pub defines: Vec<&'static str>,
    pub constants: Vec<(&'static str, f64)>,
    pub params: Vec<(&'static str, Param)>,
    pub buffers: Vec<Bind>,
    pub grid: Grid,
}

impl Call {
    /// What its pipeline depends on.
    fn variant(&self) -> VariantKey {
        let constants = self.constants.iter().map(|(name, value)| (*name, value.to_bits())).collect();
        let writes = self.buffers.iter().map(|bind| bind.0.as_ref().map(|(_, write)| *write)).collect();
        (self.kernel, self.defines.clone(), constants, writes)
    }
    /// The buffers that it writes.
    pub fn written(&self) -> impl Iterator<Item = &wgpu::Buffer> {
        self.buffers.iter().filter_map(|bind| bind.0.as_ref().filter(|(_, write)| *write)).map(|(buffer, _)| buffer)
    }
}

/// A call made ready to record.
#[derive(Debug, Clone)]
pub struct Dispatch {
    pub kernel: &'static str,
    pub pipeline: wgpu::ComputePipeline,
    pub bind_group: wgpu::BindGroup,
    pub grid: Grid,
}

/// What an executor uses of the compiled variants, and its parameters.
#[derive(Debug, Default)]
pub struct Pipelines {
    used: RefCell<HashMap<VariantKey, Compiled>>,
    /// A buffer for parameters, and its slots that are taken. It lives as long as a dispatch that reads it.
    params: RefCell<Option<(wgpu::Buffer, u64)>>,
}

/// Distance from slot to slot of a buffer of parameters, and slots of one.
const PARAM_SLOT: u64 = 256;
const PARAM_SLOTS: u64 = 256;

/// What all dispatches of a part of a step share: group 0, the step and where its tokens are from.
#[derive(Debug, Clone)]
pub struct Shared {
    group: wgpu::BindGroup,
}

impl Shared {
    /// Binds slot `slot` of the step uniform and `part` of the origins.
    pub fn bind(&self, pass: &mut wgpu::ComputePass<'_>, slot: usize, part: usize) {
        pass.set_bind_group(0, &self.group, &[(slot * STEP_SLOT) as u32, part as u32 * ORIGINS_BYTES as u32]);
    }
}

/// WGSL of a kernel with `defines`, from `gpu`'s replacements where they have it.
pub fn source(name: &str, defines: &[&str], replacements: &[(String, String)]) -> Result<String> {
    let row = kernel(name).ok_or_else(|| Error::plan(format!("there is no kernel `{name}`")))?;
    let replaced = |n: &str| replacements.iter().find(|(k, _)| k == n).map(|(_, text)| text.clone());
    let text = replaced(name).unwrap_or_else(|| row.source.to_string());
    let include = |file: &str| replaced(file).or_else(|| SHARED.iter().find(|(n, _)| *n == file).map(|(_, t)| t.to_string()));
    preprocess(name, &text, defines, &include)
}

impl Pipelines {
    /// The name, defines and constants of everything used, but for the sizes of workgroup memory and the numbers of an activation.
    pub fn variants(&self) -> std::collections::BTreeSet<String> {
        let name = |(kernel, defines, constants, _): &VariantKey| {
            let constants = constants
                .iter()
                .filter(|(name, _)| !["HELD", "ALPHA", "LIMIT"].contains(name))
                .map(|(name, bits)| format!("{name}={}", f64::from_bits(*bits)));
            let parts = std::iter::once(kernel.to_string()).chain(defines.iter().map(|d| d.to_string())).chain(constants);
            parts.collect::<Vec<_>>().join(" ")
        };
        self.used.borrow().keys().map(name).collect()
    }
    /// Lets go of everything, what the device keeps too.
    pub fn clear(&self, gpu: &Gpu) {
        self.used.borrow_mut().clear();
        self.params.take();
        gpu.kept.clear();
    }
    /// Binds the uniform buffers of steps and of origins.
    pub fn share(&self, gpu: &Gpu, step: &wgpu::Buffer, origins: &wgpu::Buffer) -> Shared {
        let slot =
            |buffer, size| wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset: 0, size: std::num::NonZeroU64::new(size) });
        let entries = [
            wgpu::BindGroupEntry { binding: 0, resource: slot(step, STEP_BYTES) },
            wgpu::BindGroupEntry { binding: 1, resource: slot(origins, ORIGINS_BYTES) },
        ];
        let layout = gpu.kept.shared(&gpu.device);
        Shared { group: gpu.device.create_bind_group(&wgpu::BindGroupDescriptor { label: Some("step"), layout, entries: &entries }) }
    }
    /// Compiles what is new and binds buffers and parameters.
    pub fn dispatch(&self, gpu: &Gpu, call: Call) -> Result<Dispatch> {
        let row = kernel(call.kernel).ok_or_else(|| Error::plan(format!("there is no kernel `{}`", call.kernel)))?;
        let names: Vec<&str> = call.params.iter().map(|(n, _)| *n).collect();
        if names != row.params {
            return Err(Error::plan(format!("kernel {}: call passes {names:?}, its parameters are {:?}", row.name, row.params)));
        }
        let (pipeline, layout) = self.compile(gpu, &call)?;
        let mut bytes: Vec<u8> = call
            .params
            .iter()
            .flat_map(|(_, p)| match p {
                Param::U(u) => u.to_le_bytes(),
                Param::F(f) => f.to_le_bytes(),
            })
            .collect();
        bytes.resize(bytes.len().next_multiple_of(16), 0);
        let (params, offset) = self.param_slot(gpu);
        gpu.queue.write_buffer(&params, offset, &bytes);
        let mut bound = Vec::new();
        let binding = wgpu::BufferBinding { buffer: &params, offset, size: std::num::NonZeroU64::new(bytes.len() as u64) };
        let mut entries = vec![wgpu::BindGroupEntry { binding: 0, resource: wgpu::BindingResource::Buffer(binding) }];
        for (i, bind) in call.buffers.iter().enumerate() {
            let entry = |(buffer, _): &'_ (wgpu::Buffer, bool)| (2 + i as u32, buffer.clone());
            bound.extend(bind.0.as_ref().map(entry));
        }
        entries
            .extend(bound.iter().map(|(binding, buffer)| wgpu::BindGroupEntry { binding: *binding, resource: buffer.as_entire_binding() }));
        let bind_group =
            gpu.device.create_bind_group(&wgpu::BindGroupDescriptor { label: Some(call.kernel), layout: &layout, entries: &entries });
        Ok(Dispatch { kernel: call.kernel, pipeline, bind_group, grid: call.grid })
    }

    /// The next place for parameters. Many lie in one buffer: what a step costs the host grows with its buffers.
    fn param_slot(&self, gpu: &Gpu) -> (wgpu::Buffer, u64) {
        let mut params = self.params.borrow_mut();
        let (buffer, used) = match params.take() {
            Some((buffer, used)) if used < PARAM_SLOTS => (buffer, used),
            _ => {
                let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
                let size = PARAM_SLOT * PARAM_SLOTS;
                let descriptor = wgpu::BufferDescriptor { label: Some("parameters"), size, usage, mapped_at_creation: false };
                (gpu.device.create_buffer(&descriptor), 0)
            }
        };
        *params = Some((buffer.clone(), used + 1));
        (buffer, used * PARAM_SLOT)
    }

    /// Compiles what is new of `calls` by several threads, so that it need not be done one after the other as it is needed. What
    /// fails is left to `dispatch`, whose error says which kernel it is. In browsers nothing is to be done: pipelines are made
    /// there while the host goes on.
    #[cfg_attr(target_arch = "wasm32", expect(unused_variables, reason = "browsers have one thread"))]
    pub fn compile_all<'c>(&self, gpu: &Gpu, calls: impl Iterator<Item = &'c Call>) {
        #[cfg(not(target_arch = "wasm32"))]
        {
            let mut new: HashMap<VariantKey, &Call> = calls.map(|call| (call.variant(), call)).collect();
            new.retain(|key, _| gpu.kept.get(key).is_none());
            let made = Mutex::new(Vec::with_capacity(new.len()));
            let work = |(): &mut (), (key, call): (VariantKey, &Call)| {
                let compiled = compile(gpu, call)?;
                made.lock().unwrap_or_else(PoisonError::into_inner).push((key, compiled));
                Ok(())
            };
            let all = crate::threads::each(new.into_iter(), || (), work).and_then(|()| gpu.check());
            if all.is_ok() {
                gpu.kept.put(made.into_inner().unwrap_or_else(PoisonError::into_inner));
            }
        }
    }

    fn compile(&self, gpu: &Gpu, call: &Call) -> Result<Compiled> {
        let key = call.variant();
        if let Some(found) = self.used.borrow().get(&key) {
            return Ok(found.clone());
        }
        let made = match gpu.kept.get(&key) {
            Some(kept) => kept,
            None => {
                let made = compile(gpu, call)?;
                gpu.check().map_err(|e| e.within(format!("kernel {} {:?}", call.kernel, call.defines)))?;
                gpu.kept.put([(key.clone(), made.clone())]);
                made
            }
        };
        self.used.borrow_mut().insert(key, made.clone());
        Ok(made)
    }
}

/// The pipeline of a call. What the device says of it comes later.
fn compile(gpu: &Gpu, call: &Call) -> Result<Compiled> {
    let mut text = source(call.kernel, &call.defines, &gpu.kernels)?;
    if cfg!(target_arch = "wasm32") && call.defines.contains(&"SUBGROUPS") {
        // Browsers require this line; naga does not know it.
        text.insert_str(0, "enable subgroups;\n");
    }
    let descriptor = wgpu::ShaderModuleDescriptor { label: Some(call.kernel), source: wgpu::ShaderSource::Wgsl(text.into()) };
    let own = gpu.kernels.iter().any(|(n, _)| n == call.kernel || SHARED.iter().any(|(s, _)| s == n));
    let module = if own {
        gpu.device.create_shader_module(descriptor)
    } else {
        // SAFETY: the project's own kernels index within bounds that lowering computes from the same shapes as
        // the buffers, and their loops end; the suite runs them with checks on as well (replacement kernels).
        unsafe { gpu.device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) }
    };
    let param_bytes = ((call.params.len() * 4) as u64).next_multiple_of(16);
    let mut entries = vec![uniform(0, false, param_bytes)];
    for (i, bind) in call.buffers.iter().enumerate() {
        let Some((_, write)) = &bind.0 else { continue };
        let ty = wgpu::BufferBindingType::Storage { read_only: !write };
        let ty = wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None };
        entries.push(wgpu::BindGroupLayoutEntry { binding: 2 + i as u32, visibility: wgpu::ShaderStages::COMPUTE, ty, count: None });
    }
    let layout = gpu.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(call.kernel), entries: &entries });
    let pipeline_layout = gpu.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: Some(call.kernel),
        bind_group_layouts: &[Some(gpu.kept.shared(&gpu.device)), Some(&layout)],
        immediate_size: 0,
    });
    let pipeline = gpu.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(call.kernel),
        layout: Some(&pipeline_layout),
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions { constants: &call.constants, zero_initialize_workgroup_memory: false },
        cache: None,
    });
    Ok((pipeline, layout))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_fold_above_the_limit_and_cover_everything() {
        let e = Extent::of(7, 3, 1);
        let items = Grid::Items { rows: RowCount::Tokens, per_row: 100_000, per_group: 1 };
        let [x, y, _] = items.size(e, 65_535).expect("fits");
        assert!(x <= 65_535 && x as usize * y as usize >= 700_000);
        let [x, y, z] = Grid::Rows { rows: RowCount::HeadRows, groups: 100_000 }.size(e, 65_535).expect("fits");
        assert!(y == 1 && x as usize * z as usize >= 100_000);
        let [x, y, z] = Grid::Blocks { rows: RowCount::Tokens, groups: 100_000, block: 4 }.size(e, 65_535).expect("fits");
        assert!(x == 2 && y as usize * z as usize >= 100_000);
        assert!(Grid::Rows { rows: RowCount::Tokens, groups: 1 }.size(Extent { tokens: 70_000, ..e }, 65_535).is_err());
    }
}
