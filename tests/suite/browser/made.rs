//! Files that no disk holds: random models, of 180 MB and of 6 MB, one whose tensors lie behind 4 GiB, and GGUF files in two
//! parts or with a long header. And the built-in model with a manifest, in a folder.

use crate::convert::convert;
use doppler::convert::Target;
use doppler::formats::InMemory;
use doppler::formats::gguf::{Tensor, read_header};
use doppler::formats::manifest::{ALIGNMENT, FILE, Hashed, Manifest};
use doppler::formats::sharded::sha256_of;
use serde_json::{Map, Value, json};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A file: some parts as they are, and between them bytes that repeat.
pub struct Made {
    pub size: u64,
    /// First byte and bytes, ascending.
    parts: Vec<(u64, Vec<u8>)>,
    /// What the rest is made of.
    filler: Vec<u8>,
}

/// Bytes of the tensor that nobody needs in `/huge/`: beyond 4 GiB.
pub const PADDING: u64 = 5 << 30;
/// A random model: layers, width, heads of 128 and a fourth as many for keys and values, inner width.
struct Shape {
    layers: usize,
    hidden: u64,
    inner: u64,
}
const BIG: Shape = Shape { layers: 2, hidden: 2048, inner: 5632 };
const SMALL: Shape = Shape { layers: 2, hidden: 512, inner: 512 };

impl Made {
    pub fn whole(bytes: Vec<u8>) -> Self {
        Self { size: bytes.len() as u64, parts: vec![(0, bytes)], filler: vec![0] }
    }
    pub fn read(&self, range: Range<u64>) -> Vec<u8> {
        let mut out = Vec::with_capacity((range.end - range.start) as usize);
        let mut at = range.start;
        while at < range.end {
            let here = self.parts.iter().find(|(start, bytes)| (*start..start + bytes.len() as u64).contains(&at));
            if let Some((start, bytes)) = here {
                let stop = range.end.min(start + bytes.len() as u64);
                out.extend_from_slice(&bytes[(at - start) as usize..(stop - start) as usize]);
                at = stop;
                continue;
            }
            let next = self.parts.iter().map(|(start, _)| *start).find(|start| *start > at).unwrap_or(range.end);
            let offset = (at % self.filler.len() as u64) as usize;
            let stop = range.end.min(next).min(at + (self.filler.len() - offset) as u64);
            out.extend_from_slice(&self.filler[offset..offset + (stop - at) as usize]);
            at = stop;
        }
        out
    }
}

/// The file at `path`, if it is one of those; `read` reads files of the site's folders.
pub fn file(path: &str, read: impl Fn(&str) -> Option<Vec<u8>>) -> Option<Made> {
    match path {
        "/big/config.json" => Some(Made::whole(BIG.config().into_bytes())),
        "/big/model.safetensors" => Some(BIG.weights()),
        "/small/config.json" => Some(Made::whole(SMALL.config().into_bytes())),
        "/small/model.safetensors" => Some(SMALL.weights()),
        "/gguf/split/tiny-00001-of-00002.gguf" => gguf(&read("/gguf/gemma.f16.gguf")?, Some(0), 0),
        "/gguf/split/tiny-00002-of-00002.gguf" => gguf(&read("/gguf/gemma.f16.gguf")?, Some(1), 0),
        "/gguf/wide.gguf" => gguf(&read("/gguf/gemma.f16.gguf")?, None, WIDE),
        "/huge/model.safetensors" => huge(&read("/golden/gemma2/model.safetensors")?),
        _ => read(&format!("/golden/gemma2/{}", path.strip_prefix("/huge/")?)).map(Made::whole),
    }
}

/// Bytes that the header of `/gguf/wide.gguf` has in addition: as much as a real vocabulary.
pub const WIDE: usize = 3 << 20;

/// The GGUF file in `bytes` again, with `padding` bytes more of metadata; of two `part`s, one.
fn gguf(bytes: &[u8], part: Option<usize>, padding: usize) -> Option<Made> {
    let header = pollster::block_on(read_header(&InMemory::new("made.gguf", bytes.to_vec()))).ok()?;
    let row = |tensor: &Tensor, offset: u64| {
        let sizes: Vec<u8> = tensor.shape.iter().rev().flat_map(|size| (*size as u64).to_le_bytes()).collect();
        [&text(&tensor.name)[..], &(tensor.shape.len() as u32).to_le_bytes(), &sizes, &tensor.kind.id.to_le_bytes(), &offset.to_le_bytes()]
            .concat()
    };
    let table: usize = header.tensors.iter().map(|tensor| row(tensor, 0).len()).sum();
    let metadata = &bytes[24..header.header_bytes as usize - table];
    let mut values = if part == Some(1) { Vec::new() } else { metadata.to_vec() };
    let mut count = if part == Some(1) { 0 } else { u64::from_le_bytes(bytes[16..24].try_into().ok()?) };
    let mut value = |key: &str, kind: u32, bytes: &[u8]| {
        values.extend([&text(key)[..], &kind.to_le_bytes(), bytes].concat());
        count += 1;
    };
    if padding > 0 {
        value("general.description", 8, &text(&"x".repeat(padding)));
    }
    let half = header.tensors.len() / 2;
    let tensors = match part {
        None => &header.tensors[..],
        Some(part) => {
            value("split.no", 2, &(part as u16).to_le_bytes());
            value("split.count", 2, &2u16.to_le_bytes());
            value("split.tensors.count", 5, &(header.tensors.len() as i32).to_le_bytes());
            if part == 0 { &header.tensors[..half] } else { &header.tensors[half..] }
        }
    };
    let (mut rows, mut data) = (Vec::new(), Vec::new());
    for tensor in tensors {
        rows.extend(row(tensor, data.len() as u64));
        data.extend_from_slice(&bytes[tensor.range.start as usize..tensor.range.end as usize]);
        data.resize(data.len().next_multiple_of(32), 0);
    }
    let mut all = [&bytes[..8], &(tensors.len() as u64).to_le_bytes(), &count.to_le_bytes(), &values, &rows].concat();
    all.resize(all.len().next_multiple_of(32), 0);
    all.extend(data);
    Some(Made::whole(all))
}

/// A text as GGUF has it.
fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// Bytes of the two files of `/small/`.
pub fn small_bytes() -> u64 {
    SMALL.config().len() as u64 + SMALL.weights().size
}

impl Shape {
    fn config(&self) -> String {
        let heads = self.hidden / 128;
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "hidden_act": "silu",
            "hidden_size": self.hidden, "intermediate_size": self.inner, "num_hidden_layers": self.layers,
            "num_attention_heads": heads, "num_key_value_heads": heads / 4, "head_dim": 128, "vocab_size": 512,
            "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "attention_bias": false,
            "mlp_bias": false, "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2,
        });
        config.to_string()
    }
    fn weights(&self) -> Made {
        let (hidden, inner, keys) = (self.hidden, self.inner, self.hidden / 4);
        let mut tensors: Vec<(String, Vec<u64>)> = vec![("model.embed_tokens.weight".into(), vec![512, hidden])];
        for layer in 0..self.layers {
            let shapes: [(&str, &[u64]); 9] = [
                ("input_layernorm", &[hidden]),
                ("mlp.down_proj", &[hidden, inner]),
                ("mlp.gate_proj", &[inner, hidden]),
                ("mlp.up_proj", &[inner, hidden]),
                ("post_attention_layernorm", &[hidden]),
                ("self_attn.k_proj", &[keys, hidden]),
                ("self_attn.o_proj", &[hidden, hidden]),
                ("self_attn.q_proj", &[hidden, hidden]),
                ("self_attn.v_proj", &[keys, hidden]),
            ];
            tensors.extend(shapes.map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape.to_vec())));
        }
        tensors.push(("model.norm.weight".into(), vec![hidden]));
        random(tensors)
    }
}

/// A safetensors file with random `tensors`.
fn random(tensors: Vec<(String, Vec<u64>)>) -> Made {
    let (mut header, mut at) = (Map::new(), 0);
    for (name, shape) in tensors {
        let bytes = 2 * shape.iter().product::<u64>();
        header.insert(name, json!({ "dtype": "BF16", "shape": shape, "data_offsets": [at, at + bytes] }));
        at += bytes;
    }
    let header = headed(&Value::Object(header));
    // bf16 of magnitude 2^-7 to 2^-6 and either sign, from a multiplicative generator.
    let word = |i: u64| {
        let random = i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
        (0x3c00 | (random & 0x807f) as u16).to_le_bytes()
    };
    Made { size: header.len() as u64 + at, parts: vec![(0, header)], filler: (0..1 << 17).flat_map(word).collect() }
}

/// The header's length and the header, padded to eight bytes.
fn headed(header: &Value) -> Vec<u8> {
    let mut text = header.to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    [&(text.len() as u64).to_le_bytes()[..], &text].concat()
}

/// A safetensors file with a tensor of 5 GiB, which no plan needs, before its others.
fn huge(small: &[u8]) -> Option<Made> {
    let length = u64::from_le_bytes(small.get(..8)?.try_into().ok()?) as usize;
    let mut header: Map<String, Value> = serde_json::from_slice(small.get(8..8 + length)?).ok()?;
    for (name, entry) in &mut header {
        if name != "__metadata__" {
            let moved = |i: usize| entry["data_offsets"][i].as_u64().map(|offset| offset + PADDING);
            entry["data_offsets"] = json!([moved(0), moved(1)]);
        }
    }
    let padding = json!({ "dtype": "U8", "shape": [PADDING >> 20, 1 << 20], "data_offsets": [0, PADDING] });
    header.insert("padding.rotary_emb.inv_freq".into(), padding);
    let (header, data) = (headed(&Value::Object(header)), small[8 + length..].to_vec());
    let start = header.len() as u64 + PADDING;
    Some(Made { size: start + data.len() as u64, parts: vec![(0, header), (start, data)], filler: vec![0] })
}

/// A folder with a manifest, converted from the built-in model, with its weights in three shards: the second begins within a
/// tensor, the third with one.
pub fn manifest() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("browser-manifest");
    let _ = std::fs::remove_dir_all(&folder);
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    convert(&demo, &folder, Target::Manifest, "bf16").expect("a manifest");
    let text = std::fs::read_to_string(folder.join(FILE)).expect("a manifest");
    let mut manifest = Manifest::parse(FILE, &text).expect("a manifest");
    let whole = folder.join(&manifest.shards[0].name);
    let bytes = std::fs::read(&whole).expect("a shard");
    std::fs::remove_file(whole).expect("its removal");

    let (third, table) = (bytes.len() as u64 / 3, &manifest.tensors);
    let wide = table.iter().find(|tensor| tensor.shape.len() == 2 && tensor.offset + tensor.bytes > third).expect("a matrix");
    let row = wide.bytes / wide.shape[0] as u64;
    let inside = (1..).map(|rows| wide.offset + rows * row).find(|at| *at >= third && at.is_multiple_of(ALIGNMENT)).expect("a row");
    assert!(inside < wide.offset + wide.bytes, "the tensor goes on in the second shard");
    let start = table.iter().map(|tensor| tensor.offset).find(|at| *at >= 2 * third).expect("a tensor");
    let ends = [0, inside, start, bytes.len() as u64];
    for tensor in &mut manifest.tensors {
        tensor.shard = ends.iter().rposition(|end| *end <= tensor.offset).expect("a shard");
        tensor.offset -= ends[tensor.shard];
    }
    let shard = |(number, ends): (usize, &[u64])| {
        let (name, part) = (format!("part-{number}.bin"), &bytes[ends[0] as usize..ends[1] as usize]);
        std::fs::write(folder.join(&name), part).expect("a shard");
        Hashed { name, bytes: part.len() as u64, sha256: sha256_of(part) }
    };
    manifest.shards = ends.windows(2).enumerate().map(shard).collect();
    std::fs::write(folder.join(FILE), serde_json::to_string(&manifest).expect("JSON")).expect("a manifest");
    folder
}
