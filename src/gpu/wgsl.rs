//! The shader preprocessor: `#include "name"`, `#ifdef NAME`, `#else`, `#endif`, `#for FROM END TEXT` for a line of TEXT for each
//! number, which stands for `{}` (`{+2}` is two more), and `#enable NAME` for WGSL's `enable`, which must come first. Nothing
//! more; constants are WGSL `override`s and types are aliases.

use crate::error::{Error, Result};

/// Expands `source`. `defines` are the names that are set; `include` finds an included text by name.
pub fn preprocess(name: &str, source: &str, defines: &[&str], include: &dyn Fn(&str) -> Option<String>) -> Result<String> {
    let mut out = String::with_capacity(source.len());
    expand(name, source, defines, include, &mut Vec::new(), &mut out)?;
    // In the order of the text.
    let (enabled, rest): (Vec<&str>, Vec<&str>) = out.lines().partition(|line| line.starts_with(ENABLE));
    if enabled.is_empty() {
        return Ok(out);
    }
    let enabled = enabled.iter().map(|line| format!("enable {};", line.trim_start_matches(ENABLE).trim()));
    Ok(enabled.chain(rest.into_iter().map(str::to_string)).map(|line| line + "\n").collect())
}

const ENABLE: &str = "#enable ";

fn expand(
    name: &str,
    source: &str,
    defines: &[&str],
    include: &dyn Fn(&str) -> Option<String>,
    seen: &mut Vec<String>,
    out: &mut String,
) -> Result<()> {
    // One entry per open #ifdef: whether its current branch is kept.
    let mut open: Vec<bool> = Vec::new();
    for (number, line) in source.lines().enumerate() {
        let fail = |what: &str| Error::format(format!("{name}.wgsl:{}", number + 1), what);
        let text = line.trim();
        if let Some(condition) = text.strip_prefix("#ifdef ") {
            open.push(defines.contains(&condition.trim()));
        } else if text == "#else" {
            let last = open.last_mut().ok_or_else(|| fail("#else without #ifdef"))?;
            *last = !*last;
        } else if text == "#endif" {
            open.pop().ok_or_else(|| fail("#endif without #ifdef"))?;
        } else if open.contains(&false) {
            continue;
        } else if let Some(file) = text.strip_prefix("#include ") {
            let file = file.trim().trim_matches('"').to_string();
            if seen.contains(&file) {
                continue;
            }
            let body = include(&file).ok_or_else(|| fail(&format!("nothing called `{file}` to include")))?;
            seen.push(file.clone());
            expand(&file, &body, defines, include, seen, out)?;
        } else if let Some(line) = text.strip_prefix("#for ") {
            let repeated = repeated(line).ok_or_else(|| fail("expected `#for FROM END TEXT`"))?;
            out.push_str(&repeated);
        } else if text.starts_with(ENABLE) {
            out.push_str(text);
            out.push('\n');
        } else if text.starts_with('#') {
            return Err(fail(&format!("unknown directive `{text}`")));
        } else {
            out.push_str(line);
            out.push('\n');
        }
    }
    if open.is_empty() { Ok(()) } else { Err(Error::format(format!("{name}.wgsl"), "#ifdef without #endif")) }
}

/// The lines of a `#for`; `None` where it is none.
fn repeated(line: &str) -> Option<String> {
    let mut words = line.splitn(3, ' ');
    let [from, end] = [words.next()?.parse::<u32>().ok()?, words.next()?.parse::<u32>().ok()?];
    let text = words.next()?;
    // More would be a mistake.
    (from < end && end <= 1024)
        .then(|| (from..end).map(|n| text.replace("{}", &n.to_string()).replace("{+2}", &(n + 2).to_string()) + "\n").collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_and_includes() {
        let include = |name: &str| (name == "shared").then(|| "fn shared_function() {}".to_string());
        let source = "#include \"shared\"\n#include \"shared\"\n#ifdef A\na\n#ifdef B\nab\n#endif\n#else\nno a\n#endif";
        assert_eq!(preprocess("t", source, &["A"], &include).expect("valid"), "fn shared_function() {}\na\n");
        assert_eq!(preprocess("t", source, &[], &include).expect("valid"), "fn shared_function() {}\nno a\n");
        let enabled = preprocess("t", "a\n#ifdef A\n#enable f16\n#endif\n#enable g\nb", &["A"], &include);
        assert_eq!(enabled.expect("valid"), "enable f16;\nenable g;\na\nb\n");
        let repeated = preprocess("t", "#for 6 8 x{} at {+2} {", &[], &include);
        assert_eq!(repeated.expect("valid"), "x6 at 8 {\nx7 at 9 {\n");
        for broken in
            ["#for 2 1 x", "#for 0 4000000000 x", "#for a 2 x", "#for 1 2", "#endif", "#ifdef A", "#else", "#include \"x\"", "#define A"]
        {
            assert!(preprocess("t", broken, &[], &include).is_err(), "{broken}");
        }
    }
}
