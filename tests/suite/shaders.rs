//! Every variant of every kernel is read by the shader compiler and held against what the engine assumes of it: the
//! table's parameters, the structs it exchanges with the host, the bindings, the WebGPU floor; and against two habits that browsers punish.

use std::collections::BTreeSet;

use doppler::gpu::kernels::{KERNELS, Kernel, SHARED};
use doppler::gpu::layouts::{Origin, WIRE, WireStruct};
use doppler::gpu::wgsl::preprocess;
use doppler::quant::planes;
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Block, Expression, Function, Handle, Module, ScalarKind, Statement, StructMember, TypeInner};

/// Formats of plain weights, of which a kernel that reads weights has exactly one, or those of a packed one.
const WEIGHTS: &[&str] = &["W_F32", "W_F16", "W_BF16"];
/// Storage buffers that every WebGPU device binds.
const MAX_STORAGE_BUFFERS: usize = 8;

/// What every WebGPU device compiles; here only the packing and unpacking of f16.
const FLOOR: Capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;

/// An included text.
fn shared(name: &str) -> Option<String> {
    SHARED.iter().find(|(shared, _)| *shared == name).map(|(_, text)| (*text).to_string())
}

/// Names that `text` and what it includes test with `#ifdef`.
fn conditions(text: &str, found: &mut BTreeSet<String>) {
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("#ifdef ") {
            found.insert(name.trim().to_string());
        } else if let Some(name) = line.strip_prefix("#include ") {
            conditions(&shared(name.trim_matches('"')).unwrap_or_default(), found);
        }
    }
}

/// Every set of defines that makes sense: one format of weights where there are weights, the rest on and off.
fn variants(kernel: &Kernel) -> Vec<Vec<String>> {
    let mut names = BTreeSet::new();
    conditions(kernel.source, &mut names);
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_string()).collect::<Vec<String>>();
    let plain = WEIGHTS.iter().map(|name| vec![(*name).to_string()]).filter(|set| names.contains(&set[0]));
    let packed =
        planes::TABLE.iter().map(|planes| owned(planes.defines)).filter(|_| names.contains("NIBBLES") && kernel.name != "linear_rows");
    let mut sets: Vec<Vec<String>> = plain.chain(packed).collect();
    if sets.is_empty() {
        sets.push(Vec::new());
    }
    let reads_weights = !sets[0].is_empty();
    let of_weights: BTreeSet<&str> = planes::TABLE.iter().flat_map(|planes| planes.defines).chain(WEIGHTS).copied().collect();
    let free: Vec<String> = names.into_iter().filter(|name| !of_weights.contains(name.as_str())).collect();
    let mut options: Vec<Vec<String>> = vec![Vec::new()];
    for name in free {
        let with: Vec<Vec<String>> = options.iter().map(|set| set.iter().cloned().chain([name.clone()]).collect()).collect();
        options.extend(with);
    }
    options.retain(|set| {
        let has = |name: &&str| set.iter().any(|of_set| of_set == name);
        let wide = !has(&"D16") || has(&"D8");
        let halves = !kernel.source.contains("#include \"ending\"") || !has(&"OUT_F16") || has(&"GATED") || has(&"GATING");
        let kept = !has(&"KEPT") || has(&"GATED") || has(&"ADD");
        let normed = (!has(&"NORM_KEPT") && !has(&"VALUE_NORM")) || has(&"NORM");
        let lone = !has(&"LONE") || (has(&"ROPE") && !has(&"CACHE_F16") && !has(&"VALUE_NORM"));
        let experts = !has(&"EXPERTS") || (kernel.name == "linear" && !["NORM", "ADD", "SEVERAL", "GATING"].iter().any(has));
        let thin = kernel.name != "linear_thin" || !(has(&"GATED") || has(&"GATING"));
        let rows = kernel.name != "rms_norm" || has(&"ROW") || !(has(&"ADD") || has(&"OUT_F16"));
        let added = kernel.name != "rms_norm" || (!(has(&"ADD") && has(&"OUT_F16")) && (!has(&"SCALED") || has(&"ADD")));
        wide && halves
            && thin
            && experts
            && kept
            && normed
            && lone
            && rows
            && added
            && EXCLUSIVE.iter().filter(|name| has(name)).count() < 2
            && BLOCKS.iter().filter(|name| has(name)).count() < 2
    });
    // How weights are read does not depend on the rest: of packed ones, the simplest and the fullest variants.
    let fullest = options.iter().map(Vec::len).max().unwrap_or(0);
    let with = |set: &Vec<String>, options: &mut dyn Iterator<Item = &Vec<String>>| -> Vec<Vec<String>> {
        // Only whole codes are multiplied by digits.
        let whole = set.iter().any(|name| name == "WHOLE");
        let options = options.filter(|option| whole || !option.iter().any(|name| name == "DIGITS"));
        options.map(|option| set.iter().chain(option).cloned().collect()).collect()
    };
    let is_packed = |set: &[String]| reads_weights && !WEIGHTS.contains(&set[0].as_str());
    let of_set = |set: &Vec<String>| match is_packed(set) {
        true => with(set, &mut options.iter().filter(|option| option.len() < 2 || option.len() + 1 >= fullest)),
        false => with(set, &mut options.iter()),
    };
    sets.iter().flat_map(of_set).collect()
}

/// Ends of a matrix product, of which a variant has at most one.
const EXCLUSIVE: &[&str] = &["SEVERAL", "GATED", "GATING", "ADD"];
/// Rows of a block, of which linear_rows has one number.
const BLOCKS: &[&str] = &["BLOCK4", "BLOCK8"];

/// Parses and validates a variant, with subgroups only where it asks for them.
fn compile(kernel: &Kernel, defines: &[String]) -> Result<(Module, ModuleInfo), String> {
    let defines: Vec<&str> = defines.iter().map(String::as_str).collect();
    let text = preprocess(kernel.name, kernel.source, &defines, &shared).map_err(|e| e.to_string())?;
    let module = naga::front::wgsl::parse_str(&text).map_err(|e| e.emit_to_string(&text))?;
    let mut capabilities = FLOOR;
    let matrix = text.contains("enable wgpu_cooperative_matrix;");
    capabilities.set(Capabilities::SUBGROUP, defines.contains(&"SUBGROUPS") || matrix);
    capabilities.set(Capabilities::SHADER_FLOAT16, text.contains("enable f16;"));
    capabilities.set(Capabilities::COOPERATIVE_MATRIX, matrix);
    let info = Validator::new(ValidationFlags::all(), capabilities).validate(&module).map_err(|e| e.emit_to_string(&text))?;
    Ok((module, info))
}

/// Members as (name, offset, type), all of them scalars of four bytes.
fn members(module: &Module, members: &[StructMember]) -> Result<Vec<(String, usize, &'static str)>, String> {
    let member = |m: &StructMember| {
        let kind = match module.types[m.ty].inner {
            TypeInner::Scalar(s) if s.width == 4 && s.kind == ScalarKind::Uint => "u32",
            TypeInner::Scalar(s) if s.width == 4 && s.kind == ScalarKind::Float => "f32",
            _ => return Err(format!("{:?} is neither u32 nor f32", m.name)),
        };
        Ok((m.name.clone().unwrap_or_default(), m.offset as usize, kind))
    };
    members.iter().map(member).collect()
}

/// The struct that a binding holds, one or an array of them: its name, members and bytes.
fn bound_struct<'m>(module: &'m Module, variable: &naga::GlobalVariable) -> Option<(&'m str, &'m [StructMember], u32)> {
    let held = match module.types[variable.ty].inner {
        TypeInner::Array { base, .. } => base,
        _ => variable.ty,
    };
    let TypeInner::Struct { members, span } = &module.types[held].inner else { return None };
    Some((module.types[held].name.as_deref().unwrap_or_default(), members, *span))
}

/// Holds the structs of a kernel's bindings but `Params` against the host's; the names of those that it has.
fn check_structs(module: &Module) -> Result<BTreeSet<String>, String> {
    let mut found = BTreeSet::new();
    for (_, variable) in module.global_variables.iter() {
        let Some(binding) = variable.binding.as_ref().filter(|b| (b.group, b.binding) != (1, 0)) else { continue };
        let Some((name, fields, span)) = bound_struct(module, variable) else { continue };
        if name == "Origin" {
            // The table expresses no vectors.
            if span as usize != size_of::<Origin>() {
                return Err(format!("its Origin has {span} bytes, the host's {}", size_of::<Origin>()));
            }
            continue;
        }
        let WireStruct { size, members: expected, .. } =
            WIRE.iter().find(|s| s.name == name).ok_or(format!("binding {} holds {name}, which gpu/layouts.rs lacks", binding.binding))?;
        let fields = members(module, fields)?;
        let expected: Vec<(String, usize, &str)> = expected.iter().map(|(n, o, t)| ((*n).to_string(), *o, *t)).collect();
        if fields != expected || span as usize != *size {
            return Err(format!("its {name} is {fields:?} in {span} bytes, the host's {expected:?} in {size}"));
        }
        found.insert(name.to_string());
    }
    Ok(found)
}

/// What the engine assumes of a kernel.
fn check_interface(kernel: &Kernel, module: &Module) -> Result<(), String> {
    let at_0 =
        |v: &&naga::GlobalVariable| v.binding.as_ref().is_some_and(|b| (b.group, b.binding) == (1, 0)) && v.space == AddressSpace::Uniform;
    let (_, params) = module.global_variables.iter().find(|(_, v)| at_0(v)).ok_or("no uniform at group 1, binding 0")?;
    let (_, params, _) = bound_struct(module, params).ok_or("the uniform at group 1, binding 0 is no struct")?;
    let params: Vec<(String, usize)> = members(module, params)?.into_iter().map(|(name, offset, _)| (name, offset)).collect();
    let expected: Vec<(String, usize)> = kernel.params.iter().zip(0..).map(|(name, i)| ((*name).to_string(), 4 * i)).collect();
    if params != expected {
        return Err(format!("its Params are {params:?} (name, offset), the table says {expected:?}"));
    }
    let all = || module.global_variables.iter().filter_map(|(_, v)| v.binding.as_ref()).map(|b| (b.group, b.binding));
    let bindings: BTreeSet<(u32, u32)> = all().collect();
    if all().count() != bindings.len()
        || !bindings.is_superset(&BTreeSet::from([(0, 0), (1, 0)]))
        || bindings.iter().any(|at| *at > (0, 1) && *at < (1, 0) || *at == (1, 1) || at.0 > 1)
    {
        return Err(format!(
            "its bindings are {bindings:?} (group, binding), expected each once: the step at (0, 0), origins at (0, 1), parameters at (1, 0), buffers from (1, 2) on"
        ));
    }
    let buffers = bindings.iter().filter(|at| **at > (1, 0)).count();
    // What binds more runs only where an adapter does.
    let wide = kernel.name == "stats" && [32, 128].contains(&buffers);
    if buffers > MAX_STORAGE_BUFFERS && !wide {
        return Err(format!("it binds {buffers} storage buffers, WebGPU grants {MAX_STORAGE_BUFFERS}"));
    }
    match &module.entry_points[..] {
        [entry] if entry.name == "main" => Ok(()),
        _ => Err("expected one entry point, `main`".to_string()),
    }
}

/// Calls `visit` with the pointer of every store in `block`.
fn stores(block: &Block, visit: &mut dyn FnMut(Handle<Expression>)) {
    for statement in block {
        match statement {
            Statement::Store { pointer, .. } => visit(*pointer),
            Statement::Block(inner) => stores(inner, visit),
            Statement::If { accept, reject, .. } => [accept, reject].into_iter().for_each(|b| stores(b, visit)),
            Statement::Switch { cases, .. } => cases.iter().for_each(|c| stores(&c.body, visit)),
            Statement::Loop { body, continuing, .. } => [body, continuing].into_iter().for_each(|b| stores(b, visit)),
            _ => {}
        }
    }
}

/// WGSL lets a write to one component of a vector touch the whole vector, so threads that share one overwrite each
/// other: shared memory is written in whole vectors.
fn check_component_stores(module: &Module, function: &Function, info: &naga::valid::FunctionInfo) -> Result<(), String> {
    let mut found = Ok(());
    stores(&function.body, &mut |pointer| {
        let (Expression::Access { base, .. } | Expression::AccessIndex { base, .. }) = function.expressions[pointer] else { return };
        let vector = match info[base].ty.inner_with(&module.types) {
            TypeInner::Pointer { base, .. } => matches!(module.types[*base].inner, TypeInner::Vector { .. }),
            TypeInner::ValuePointer { size, .. } => size.is_some(),
            _ => false,
        };
        let mut root = base;
        while let Expression::Access { base, .. } | Expression::AccessIndex { base, .. } = function.expressions[root] {
            root = base;
        }
        if let (true, Expression::GlobalVariable(global)) = (vector, &function.expressions[root]) {
            let variable = &module.global_variables[*global];
            if matches!(variable.space, AddressSpace::WorkGroup | AddressSpace::Storage { .. }) {
                found = Err(format!("it writes single components of vectors of `{}`", variable.name.as_deref().unwrap_or("?")));
            }
        }
    });
    found
}

#[test]
fn every_variant_is_what_the_engine_takes_it_for() {
    let (mut failures, mut exchanged) = (Vec::new(), BTreeSet::new());
    for kernel in KERNELS {
        for defines in variants(kernel) {
            let checked = compile(kernel, &defines).and_then(|(module, info)| {
                check_interface(kernel, &module)?;
                exchanged.extend(check_structs(&module)?);
                for (handle, function) in module.functions.iter() {
                    check_component_stores(&module, function, &info[handle])?;
                }
                check_component_stores(&module, &module.entry_points[0].function, info.get_entry_point(0))
            });
            failures.extend(checked.err().map(|e| format!("{} {defines:?}: {e}", kernel.name)));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let known: BTreeSet<String> = WIRE.iter().map(|s| s.name.to_string()).collect();
    assert_eq!(exchanged, known, "structs of kernels, and of gpu/layouts.rs");
}

/// WGSL zeroes a `var` without initial value each time it is reached; Chromium 156 on SwiftShader does so once only, and
/// a sum in a loop goes on from the round before.
#[test]
fn every_local_variable_has_an_initial_value() {
    let texts = KERNELS.iter().map(|k| (k.name, k.source)).chain(SHARED.iter().copied());
    let bare = |line: &str| line.starts_with(' ') && line.trim().starts_with("var ") && !line.contains('=');
    let found: Vec<String> = texts
        .flat_map(|(name, text)| {
            text.lines().zip(1..).filter(|(line, _)| bare(line)).map(move |(line, n)| format!("{name}.wgsl:{n}: {}", line.trim()))
        })
        .collect();
    assert!(found.is_empty(), "without initial value:\n{}", found.join("\n"));
}
