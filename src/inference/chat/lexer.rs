//! A template's text as tokens, as Jinja2's lexer makes them with `trim_blocks` and `lstrip_blocks`: one pass, linear in
//! the text.

use std::sync::Arc;

use super::limits::{Fallible, Fault};
use super::value::is_space;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    Data(Arc<str>),
    BlockBegin,
    BlockEnd,
    PrintBegin,
    PrintEnd,
    Name(Arc<str>),
    Str(Arc<str>),
    Int(i128),
    Float(f64),
    Op(&'static str),
    End,
}

/// Longest first.
const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<", "=", ".", ":", "|", ",", ";",
];

/// The tokens of a template with their lines. Line breaks of any kind become `\n`, and one at the end is dropped.
pub(super) fn tokens(source: &str) -> Fallible<Vec<(Token, u32)>> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let source = source.strip_suffix('\n').unwrap_or(&source);
    let mut lexer = Lexer { source, at: 0, line: 1, out: Vec::new(), line_starts: true };
    lexer.root()?;
    lexer.push(Token::End);
    Ok(lexer.out)
}

struct Lexer<'a> {
    source: &'a str,
    at: usize,
    line: u32,
    out: Vec<(Token, u32)>,
    /// Whether what was read last ended with a line break.
    line_starts: bool,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn push(&mut self, token: Token) {
        self.out.push((token, self.line));
    }

    fn fail<T>(&self, message: impl Into<String>) -> Fallible<T> {
        Err(Fault { message: message.into(), line: self.line })
    }

    /// Goes on by `bytes`.
    fn skip(&mut self, bytes: usize) {
        let passed = &self.rest()[..bytes];
        self.line += passed.bytes().filter(|b| *b == b'\n').count() as u32;
        self.line_starts = passed.ends_with('\n');
        self.at += bytes;
    }

    fn skip_spaces(&mut self) {
        let rest = self.rest();
        self.skip(rest.len() - rest.trim_start_matches(is_space).len());
    }

    /// Text outside tags, and the tags in it.
    fn root(&mut self) -> Fallible<()> {
        loop {
            let rest = self.rest();
            let open = rest.match_indices('{').map(|(at, _)| at);
            let open = open.into_iter().find(|at| matches!(rest.as_bytes().get(at + 1), Some(b'%' | b'#' | b'{')));
            let Some(open) = open else {
                if !rest.is_empty() {
                    self.push(Token::Data(rest.into()));
                    self.skip(rest.len());
                }
                return Ok(());
            };
            let kind = rest.as_bytes()[open + 1];
            let sign = rest.as_bytes().get(open + 2).copied().filter(|b| matches!(b, b'-' | b'+'));
            self.data(open, sign, kind != b'{');
            self.skip(2 + usize::from(sign.is_some()));
            match kind {
                b'#' => self.comment()?,
                b'{' => self.tag(Token::PrintBegin)?,
                _ => match raw_tag(self.rest(), "raw") {
                    Some((length, end)) => {
                        self.skip(length);
                        self.after(end, false);
                        self.raw()?;
                    }
                    None => self.tag(Token::BlockBegin)?,
                },
            }
        }
    }

    /// The `length` bytes before a tag, without the spaces that the tag takes away.
    fn data(&mut self, length: usize, sign: Option<u8>, block: bool) {
        let text = &self.rest()[..length];
        let line = text.rfind('\n').map_or(0, |at| at + 1);
        let kept = match sign {
            Some(b'-') => text.trim_end_matches(is_space),
            None if block && (line > 0 || self.line_starts) && text[line..].chars().all(is_space) => &text[..line],
            _ => text,
        };
        if !kept.is_empty() {
            self.push(Token::Data(kept.into()));
        }
        self.skip(length);
    }

    /// What follows the end of a tag: `-` takes all spaces, a block's end without a sign one line break.
    fn after(&mut self, sign: Option<u8>, trims: bool) {
        match sign {
            Some(b'-') => self.skip_spaces_if_any(),
            None if trims && self.rest().starts_with('\n') => self.skip(1),
            _ => {}
        }
    }

    /// As [`Self::skip_spaces`]; whether a line starts stays as it is if there are none.
    fn skip_spaces_if_any(&mut self) {
        if self.rest().starts_with(is_space) {
            self.skip_spaces();
        }
    }

    fn comment(&mut self) -> Fallible<()> {
        let Some(end) = self.rest().find("#}") else { return self.fail("a comment has no end (`#}`)") };
        let sign = self.rest()[..end].bytes().last().filter(|b| matches!(b, b'-' | b'+'));
        self.skip(end + 2);
        self.after(sign, true);
        Ok(())
    }

    fn raw(&mut self) -> Fallible<()> {
        let rest = self.rest();
        for (open, _) in rest.match_indices("{%") {
            let sign = rest.as_bytes().get(open + 2).copied().filter(|b| matches!(b, b'-' | b'+'));
            let inside = open + 2 + usize::from(sign.is_some());
            if let Some((length, end)) = raw_tag(&rest[inside..], "endraw") {
                self.data(open, sign, true);
                self.skip(inside - open + length);
                self.after(end, true);
                return Ok(());
            }
        }
        if rest.is_empty() { Ok(()) } else { self.fail("a `raw` block has no end (`{% endraw %}`)") }
    }

    /// The tokens of a tag, to its end.
    fn tag(&mut self, begin: Token) -> Fallible<()> {
        let block = begin == Token::BlockBegin;
        self.push(begin);
        let mut open: Vec<&str> = Vec::new();
        loop {
            self.skip_spaces();
            let rest = self.rest();
            let Some(first) = rest.chars().next() else { return Ok(()) };
            if open.is_empty() && self.tag_end(block) {
                return Ok(());
            }
            if first.is_ascii_digit() {
                self.number()?;
            } else if first == '_' || first.is_alphanumeric() {
                let end = rest.find(|c: char| !(c == '_' || c.is_alphanumeric())).unwrap_or(rest.len());
                self.push(Token::Name(rest[..end].into()));
                self.skip(end);
            } else if first == '\'' || first == '"' {
                self.string(first)?;
            } else if let Some(operator) = OPERATORS.iter().find(|op| rest.starts_with(**op)) {
                match *operator {
                    "{" => open.push("}"),
                    "(" => open.push(")"),
                    "[" => open.push("]"),
                    "}" | ")" | "]" => match open.pop() {
                        None => return self.fail(format!("unexpected `{operator}`")),
                        Some(expected) if expected != *operator => {
                            return self.fail(format!("unexpected `{operator}`, expected `{expected}`"));
                        }
                        _ => {}
                    },
                    _ => {}
                }
                self.push(Token::Op(operator));
                self.skip(operator.len());
            } else {
                return self.fail(format!("unexpected character {first:?}"));
            }
        }
    }

    /// Whether the tag ends here; then it is passed.
    fn tag_end(&mut self, block: bool) -> bool {
        let (end, token) = if block { ("%}", Token::BlockEnd) } else { ("}}", Token::PrintEnd) };
        let rest = self.rest();
        let sign = rest.bytes().next().filter(|b| *b == b'-' || (block && *b == b'+'));
        let sign = sign.filter(|_| rest[1..].starts_with(end));
        if sign.is_none() && !rest.starts_with(end) {
            return false;
        }
        self.push(token);
        self.skip(end.len() + usize::from(sign.is_some()));
        self.after(sign, block);
        true
    }

    fn number(&mut self) -> Fallible<()> {
        let rest = self.rest();
        let after_dot = self.source[..self.at].ends_with('.');
        let length = if after_dot { None } else { float_length(rest) };
        if let Some(length) = length {
            let Ok(value) = rest[..length].replace('_', "").parse() else { return self.fail("invalid number") };
            self.push(Token::Float(value));
            self.skip(length);
            return Ok(());
        }
        let radix = match rest.get(..2).map(str::to_ascii_lowercase).as_deref() {
            Some("0x") => 16,
            Some("0o") => 8,
            Some("0b") => 2,
            _ => 10,
        };
        let prefix = if radix == 10 { 0 } else { 2 };
        let digit = |c: char| c == '_' || (if radix == 10 { c.is_ascii_digit() } else { c.is_digit(radix) });
        let length = prefix + rest[prefix..].find(|c| !digit(c)).unwrap_or(rest.len() - prefix);
        match i128::from_str_radix(&rest[prefix..length].replace('_', ""), radix) {
            Ok(value) => self.push(Token::Int(value)),
            Err(_) => return self.fail("a whole number beyond 128 bits is not supported"),
        }
        self.skip(length);
        Ok(())
    }

    fn string(&mut self, quote: char) -> Fallible<()> {
        let rest = self.rest();
        let mut end = None;
        let mut escaped = false;
        for (at, c) in rest.char_indices().skip(1) {
            if escaped {
                escaped = false;
            } else if c == '\\' {
                escaped = true;
            } else if c == quote {
                end = Some(at);
                break;
            }
        }
        let Some(end) = end else { return self.fail("a text has no closing quote") };
        match unescaped(&rest[1..end]) {
            Ok(text) => self.push(Token::Str(text.into())),
            Err(message) => return self.fail(message),
        }
        self.skip(end + 1);
        Ok(())
    }
}

/// If `rest`, which follows `{%` and its sign, is the tag `word`: its length, and the sign at its end.
fn raw_tag(rest: &str, word: &str) -> Option<(usize, Option<u8>)> {
    let inside = rest.trim_start_matches(is_space).strip_prefix(word)?.trim_start_matches(is_space);
    let sign = inside.bytes().next().filter(|b| *b == b'-' || (*b == b'+' && word == "endraw"));
    let after = inside[usize::from(sign.is_some())..].strip_prefix("%}")?;
    Some((rest.len() - after.len(), sign))
}

/// Length of the float at the start of `text`: digits with a fraction, an exponent, or both.
fn float_length(text: &str) -> Option<usize> {
    let digits = |from: usize| {
        let bytes = &text.as_bytes()[from..];
        let ok = |i: usize| bytes[i].is_ascii_digit() || (bytes[i] == b'_' && i > 0 && bytes.get(i + 1).is_some_and(u8::is_ascii_digit));
        (0..bytes.len()).take_while(|i| ok(*i)).count()
    };
    let whole = digits(0);
    let mut end = whole;
    if text.as_bytes().get(end) == Some(&b'.') && digits(end + 1) > 0 {
        end += 1 + digits(end + 1);
    }
    if matches!(text.as_bytes().get(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(text.as_bytes().get(end + 1), Some(b'+' | b'-')));
        let exponent = if text.len() > end + 1 + sign { digits(end + 1 + sign) } else { 0 };
        if exponent > 0 {
            end += 1 + sign + exponent;
        }
    }
    (whole > 0 && end > whole).then_some(end)
}

/// Python's escapes in a text between quotes.
fn unescaped(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((plain, escape)) = rest.split_once('\\') {
        out.push_str(plain);
        let Some(kind) = escape.chars().next() else { return Err("a text ends with `\\`".into()) };
        let (radix, start, most) = match kind {
            'x' => (16, 1, 2),
            'u' => (16, 1, 4),
            'U' => (16, 1, 8),
            '0'..='7' => (8, 0, 3),
            'N' => return Err("`\\N{…}` in a text is not supported".into()),
            _ => {
                match kind {
                    '\n' => {}
                    '\\' | '\'' | '"' => out.push(kind),
                    'a' => out.push('\u{7}'),
                    'b' => out.push('\u{8}'),
                    'f' => out.push('\u{c}'),
                    'n' => out.push('\n'),
                    'r' => out.push('\r'),
                    't' => out.push('\t'),
                    'v' => out.push('\u{b}'),
                    _ => out.extend(['\\', kind]),
                }
                rest = &escape[kind.len_utf8()..];
                continue;
            }
        };
        let digits = escape[start..].bytes().take(most).take_while(|b| (*b as char).is_digit(radix)).count();
        let code = &escape[start..start + digits];
        let short = radix == 16 && digits < most;
        let character = u32::from_str_radix(code, radix).ok().filter(|_| !short).and_then(char::from_u32);
        out.push(character.ok_or_else(|| format!("a text has an invalid escape: `\\{}`", &escape[..start + digits]))?);
        rest = &escape[start + digits..];
    }
    out.push_str(rest);
    Ok(out)
}
