//! Small files made here: what is read, and that each broken one is an error that names the place.

use super::*;
use crate::error::Kind;
use crate::formats::InMemory;

/// A file in the making.
#[derive(Clone, Default)]
struct Made {
    values: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    data: usize,
}

fn text(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text].concat()
}

impl Made {
    fn value(mut self, key: &str, kind: u32, bytes: &[u8]) -> Self {
        self.values.push([&text(key.as_bytes())[..], &kind.to_le_bytes(), bytes].concat());
        self
    }
    fn tensor(mut self, name: &str, kind: u32, sizes: &[u64], offset: u64) -> Self {
        let sizes: Vec<u8> = sizes.iter().flat_map(|size| size.to_le_bytes()).collect();
        let dims = (sizes.len() as u32 / 8).to_le_bytes();
        self.tensors.push([&text(name.as_bytes())[..], &dims, &sizes, &kind.to_le_bytes(), &offset.to_le_bytes()].concat());
        self
    }
    fn data(mut self, bytes: usize) -> Self {
        self.data = bytes;
        self
    }
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.values.len() as u64).to_le_bytes());
        bytes.extend(self.values.iter().chain(&self.tensors).flatten());
        if self.data > 0 {
            bytes.resize(bytes.len().next_multiple_of(32) + self.data, 0);
        }
        bytes
    }
}

fn read(bytes: Vec<u8>) -> Result<Header> {
    pollster::block_on(read_header(&InMemory::new("t.gguf", bytes)))
}

fn refused(made: &Made, part: &str) {
    let error = read(made.bytes()).unwrap_err();
    assert!(error.kind == Kind::Format && error.message.starts_with("t.gguf: ") && error.message.contains(part), "{error}");
}

fn good() -> Made {
    let texts = [&8u32.to_le_bytes()[..], &2u64.to_le_bytes(), &text(b"a"), &text("é".as_bytes())].concat();
    let floats = [&6u32.to_le_bytes()[..], &1u64.to_le_bytes(), &0.1f32.to_le_bytes()].concat();
    let nested = [&9u32.to_le_bytes()[..], &1u64.to_le_bytes(), &floats].concat();
    Made::default()
        .value("general.architecture", 8, &text(b"x"))
        .value("x.eps", 6, &1e-6f32.to_le_bytes())
        .value("x.count", 4, &7u32.to_le_bytes())
        .value("x.negative", 1, &[0xff])
        .value("x.flag", 7, &[1])
        .value("x.texts", 9, &texts)
        .value("x.floats", 9, &floats)
        .value("x.nested", 9, &nested)
        .tensor("a", 8, &[64, 2], 0)
        .tensor("b", 0, &[3], 160)
        .data(172)
}

#[test]
fn what_the_format_has_is_read() {
    let header = read(good().bytes()).unwrap();
    let m = &header.metadata;
    assert_eq!(m.text("general.architecture").unwrap(), Some("x"));
    assert_eq!(m.get("x.eps").unwrap().number(), Some(1e-6));
    assert_eq!((m.unsigned("x.count").unwrap(), m.flag("x.flag").unwrap()), (Some(7), Some(true)));
    assert_eq!(m.get("x.negative"), Some(&Value::Signed(-1)));
    assert_eq!(m.texts("x.texts").unwrap().unwrap(), ["a", "é"]);
    assert!(m.texts("x.count").unwrap_err().message.contains("`x.count`: expected an array of texts, found 7"));
    assert!(m.unsigned("x.negative").is_err() && m.unsigned("none").unwrap().is_none());
    let json = serde_json::Value::from(m.to_json()).to_string();
    let expected = r#""x.count":7,"x.eps":1e-6,"x.flag":true,"x.floats":[0.1],"x.negative":-1}"#;
    assert!(json.ends_with(expected), "{json}");
    let [a, b] = &header.tensors[..] else { panic!("two tensors") };
    assert_eq!((a.shape.as_slice(), a.kind.name, a.range.end - a.range.start), ([2, 64].as_slice(), "q8_0", 136));
    assert_eq!(b.range, a.range.start + 160..a.range.start + 172);
    let index = header.index().unwrap();
    assert_eq!((index.get("b").unwrap().dtype.to_string(), index.get("a").unwrap().dtype.to_string()), ("f32".into(), "q8_0".into()));
}

#[test]
fn every_cut_is_an_error() {
    let bytes = good().bytes();
    for end in 0..bytes.len() {
        let error = read(bytes[..end].to_vec()).unwrap_err();
        assert_eq!(error.kind, Kind::Format, "{end}");
    }
}

#[test]
fn what_breaks_the_format_is_named() {
    let number = |n: u64| n.to_le_bytes();
    refused(&good().tensor("a", 0, &[1], 192).data(256), "tensor `a` is there twice");
    refused(&good().tensor("c", 0, &[1], 128).data(256), "tensors `a` and `c` overlap by 8 bytes");
    refused(&good().tensor("c", 0, &[1], 190).data(256), "tensor `c`: offset 190 is no multiple of the alignment, 32");
    refused(&good().tensor("c", 0, &[1 << 20], 192).data(256), "tensor `c` ends at byte");
    refused(&good().tensor("c", 0, &[1 << 40, 1 << 40], 192).data(256), "too large to be true");
    refused(&good().tensor("c", 0, &[u64::MAX, 0], 192).data(256), "too large to be true");
    refused(&good().tensor("c", 0, &[1], u64::MAX - 31).data(256), "ends at the end of numbers");
    refused(&good().tensor("c", 12, &[255], 192).data(256), "rows of 255 elements are no whole blocks of 256 (q4_k)");
    refused(&good().tensor("c", 99, &[1], 192).data(256), "type 99 of ggml");
    refused(&good().tensor("c", 0, &[1; 5], 192).data(256), "5 sizes are more than 4");
    refused(&good().value("x.count", 4, &[0; 4]), "`x.count` is there twice");
    refused(&good().value("y", 13, &[]), "metadata `y`: type 13");
    refused(&good().value("y", 7, &[2]), "expected 0 or 1");
    refused(&good().value("y", 8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff]), "metadata `y`: the text at byte");
    refused(&good().value("y", 8, &number(1 << 60)), "1152921504606846976 bytes should follow");
    refused(&good().value("y", 9, &[&6u32.to_le_bytes()[..], &number(1 << 60)].concat()), "values of an array should follow");
    refused(&good().value("y", 9, &[&8u32.to_le_bytes()[..], &number(u64::MAX)].concat()), "texts of an array should follow");
    let deep = (0..6).fold(Vec::new(), |inner, _| [&9u32.to_le_bytes()[..], &number(1), &inner].concat());
    refused(&good().value("y", 9, &deep), "nested deeper than 4");
    for bad in [0u32, 3, 1 << 21] {
        refused(&good().value("general.alignment", 4, &bad.to_le_bytes()), "`general.alignment`: expected a power of two");
    }
    let start = |start: &[u8]| {
        let mut bytes = good().bytes();
        bytes[..start.len()].copy_from_slice(start);
        read(bytes).unwrap_err().message
    };
    assert!(start(b"GGUF\0\0\0\x03").contains("big-endian") && start(b"FUGG").contains("big-endian"));
    assert!(start(b"GGUF\x01").contains("version 1") && start(b"GGUF\x09").contains("version 9"));
    assert!(start(b"<!doctype").contains("a web page") && start(b"version https").contains("Git LFS"));
    for count in [8, 16] {
        let mut bytes = good().bytes();
        bytes[count..count + 8].fill(0xff);
        assert!(read(bytes).unwrap_err().message.contains("18446744073709551615"));
    }
}

/// Counts what is read of a large file.
struct Counting {
    inner: InMemory,
    len: u64,
    read: std::cell::Cell<u64>,
}

impl ByteSource for Counting {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn len(&self) -> u64 {
        self.len
    }
    async fn read(&self, range: std::ops::Range<u64>) -> Result<::bytes::Bytes> {
        assert!(range.start == self.read.get(), "every byte is read once");
        self.read.set(range.end);
        let mut bytes = self.inner.slice(range.start.min(self.inner.len())..range.end.min(self.inner.len()))?.to_vec();
        bytes.resize((range.end - range.start) as usize, 0);
        Ok(bytes.into())
    }
}

#[test]
fn only_the_header_is_read() {
    let big = [&0u32.to_le_bytes()[..], &(5u64 << 20).to_le_bytes(), &vec![1; 5 << 20]].concat();
    for (made, most) in [(good(), 1 << 20), (good().value("big", 9, &big), 8 << 20)] {
        let made = made.tensor("huge", 0, &[1 << 30], 192).data(192);
        let source = Counting { inner: InMemory::new("t", made.bytes()), len: 5 << 30, read: 0.into() };
        let header = pollster::block_on(read_header(&source)).unwrap();
        assert_eq!(header.tensors.len(), 3);
        assert!(source.read.get() <= most && header.header_bytes <= source.read.get());
    }
    // A text that a large file has room for, but no header.
    let made = good().value("y", 8, &(1u64 << 30).to_le_bytes());
    let source = Counting { inner: InMemory::new("t", made.bytes()), len: 5 << 30, read: 0.into() };
    assert!(pollster::block_on(read_header(&source)).unwrap_err().message.contains("its header would have"));
    assert!(source.read.get() <= 1 << 20);
}

#[test]
fn files_of_a_split_model_are_joined() {
    let names = split_files("m-00002-of-00003.gguf").unwrap();
    assert_eq!(names, ["m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"]);
    for whole in ["m.gguf", "m-00004-of-00003.gguf", "m-00000-of-00003.gguf", "m-1-of-2.gguf", "m-00001-of-99999.gguf"] {
        assert_eq!(split_files(whole), None, "{whole}");
    }
    let part = |number: u64, count: u64, name: &str| {
        let made = Made::default().value("split.no", 10, &number.to_le_bytes()).value("split.count", 10, &count.to_le_bytes());
        read(made.value("split.tensors.count", 5, &2i32.to_le_bytes()).tensor(name, 0, &[1], 0).data(32).bytes()).unwrap()
    };
    let joined = join(vec![part(0, 2, "a"), part(1, 2, "b")], &["1", "2"]).unwrap();
    assert_eq!(joined.tensors.iter().map(|t| (t.name.as_str(), t.file)).collect::<Vec<_>>(), [("a", 0), ("b", 1)]);
    let error = |headers, part: &str| {
        let error = join(headers, &["1", "2", "3"]).unwrap_err().message;
        assert!(error.contains(part), "{error}");
    };
    error(vec![part(0, 2, "a"), part(1, 2, "a")], "2: tensor `a` is in 1 too");
    error(vec![part(1, 2, "a"), part(0, 2, "b")], "1: it should be file 1 of 2, but says that it is file 2");
    error(vec![part(0, 2, "a")], "1: it is file 1 of 2, but 1 were given");
    error(vec![part(0, 3, "a"), part(1, 3, "b"), part(2, 3, "c")], "all files should have 2 tensors, but they have 3");
    error(vec![part(u64::MAX, 2, "a")], &format!("1: it is file {} of 2, but 1 were given", u64::MAX));
    error(vec![part(u64::MAX, 1, "a")], &format!("1: it should be file 1 of 1, but says that it is file {}", u64::MAX));
    error(Vec::new(), "at least one file");
    assert_eq!(join(vec![read(good().bytes()).unwrap()], &["t"]).unwrap().tensors.len(), 2);
}

#[test]
fn names_follow_the_tensors_that_there_are() {
    let fused = |name: &str| name == "blk.0.attn_qkv.weight" || name == "blk.0.ffn_up.weight";
    assert_eq!(names::template("k_proj", fused), Some(("blk.{layer}.attn_qkv", &["q_proj", "k_proj", "v_proj"][..])));
    assert_eq!(names::template("gate_proj", fused).unwrap().0, "blk.{layer}.ffn_up");
    assert_eq!(names::template("up_proj", |_| true), Some(("blk.{layer}.ffn_up", &[][..])));
    assert_eq!(names::template("head", fused).unwrap().0, "output");
    assert!(names::template("none", fused).is_none());
}

/// Mutated headers: never a panic, and nothing is allocated beyond the size of the file, as counts are checked first.
#[test]
fn mutated_headers_are_read_or_refused() {
    let original = good().bytes();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut read_well = 0;
    let start = std::time::Instant::now();
    const ROUNDS: u32 = 100_000;
    for _ in 0..ROUNDS {
        let mut bytes = original.clone();
        for _ in 0..1 + next() % 4 {
            let at = (next() % bytes.len() as u64) as usize;
            match next() % 6 {
                0 => bytes[at] = next() as u8,
                1 => bytes[at] ^= 1 << (next() % 8),
                2 => bytes.truncate(at.max(1)),
                3 => {
                    let end = (at + 8).min(bytes.len());
                    bytes[at..end].fill(0xff);
                }
                4 => drop(bytes.drain(at..(at + 4).min(bytes.len()))),
                _ => {
                    let copied = bytes[at..(at + 16).min(bytes.len())].to_vec();
                    bytes.splice(at..at, copied);
                }
            }
            if bytes.is_empty() {
                bytes.push(0);
            }
        }
        match read(bytes) {
            Ok(header) => {
                read_well += 1;
                let _ = (header.index(), header.metadata.to_json());
            }
            Err(error) => assert!(matches!(error.kind, Kind::Format), "{error}"),
        }
    }
    assert!(read_well > 100 && read_well < ROUNDS / 2, "{read_well} of {ROUNDS} were read");
    assert!(start.elapsed().as_secs_f64() * 1000.0 < f64::from(ROUNDS), "{:?}", start.elapsed());
}
