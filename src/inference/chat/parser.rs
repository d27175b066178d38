//! Tokens to a [`Template`], by Jinja2's grammar with the tags of transformers: `generation`, `break` and `continue`.

use std::collections::HashMap;
use std::sync::Arc;

use super::ast::{Expr, For, Macro, Name, Stmt, StmtKind, Suffix, Target, Template};
use super::lexer::{Token, tokens};
use super::limits::{Fallible, Fault, NESTING, SOURCE, fault};

/// Parses a template's text.
pub(super) fn parse(source: &str) -> Fallible<Template> {
    if source.len() > SOURCE {
        return fault(format!("it has {} bytes; a chat template may have {SOURCE}", source.len()));
    }
    let mut parser =
        Parser { tokens: tokens(source)?, at: 0, depth: 0, names: HashMap::new(), open: Vec::new(), template: Template::default() };
    let body = parser.body(&[])?;
    if *parser.peek() != Token::End {
        return parser.unexpected("the template's end");
    }
    parser.template.body = body;
    Ok(parser.template)
}

pub(super) struct Parser {
    pub(super) tokens: Vec<(Token, u32)>,
    pub(super) at: usize,
    depth: u32,
    names: HashMap<Arc<str>, Name>,
    /// What the bodies of macros and call blocks around this place read of `varargs`, `kwargs` and `caller`.
    pub(super) open: Vec<[bool; 3]>,
    template: Template,
}

impl Parser {
    pub(super) fn peek(&self) -> &Token {
        &self.tokens[self.at].0
    }

    pub(super) fn line(&self) -> u32 {
        self.tokens[self.at].1
    }

    fn next(&mut self) -> Token {
        let token = self.tokens[self.at].0.clone();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    pub(super) fn fail<T>(&self, message: impl Into<String>) -> Fallible<T> {
        Err(Fault { message: message.into(), line: self.line() })
    }

    pub(super) fn unexpected<T>(&self, expected: &str) -> Fallible<T> {
        let found = match self.peek() {
            Token::Data(_) => "text".to_owned(),
            Token::BlockBegin => "`{%`".into(),
            Token::BlockEnd => "`%}`".into(),
            Token::PrintBegin => "`{{`".into(),
            Token::PrintEnd => "`}}`".into(),
            Token::Name(name) => format!("`{name}`"),
            Token::Str(text) => format!("the text {text:?}"),
            Token::Int(number) => number.to_string(),
            Token::Float(number) => number.to_string(),
            Token::Op(operator) => format!("`{operator}`"),
            Token::End => "the template's end".into(),
        };
        self.fail(format!("expected {expected}, found {found}"))
    }

    pub(super) fn is_op(&self, operator: &str) -> bool {
        matches!(self.peek(), Token::Op(op) if *op == operator)
    }

    pub(super) fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Token::Name(n) if **n == *name)
    }

    pub(super) fn skip_op(&mut self, operator: &str) -> bool {
        let found = self.is_op(operator);
        self.at += usize::from(found);
        found
    }

    pub(super) fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        self.at += usize::from(found);
        found
    }

    pub(super) fn expect_op(&mut self, operator: &str) -> Fallible<()> {
        if self.skip_op(operator) { Ok(()) } else { self.unexpected(&format!("`{operator}`")) }
    }

    pub(super) fn expect_name(&mut self) -> Fallible<Arc<str>> {
        match self.peek() {
            Token::Name(name) => {
                let name = name.clone();
                self.at += 1;
                Ok(name)
            }
            _ => self.unexpected("a name"),
        }
    }

    fn expect(&mut self, token: &Token, what: &str) -> Fallible<()> {
        if self.peek() == token {
            self.at += 1;
            Ok(())
        } else {
            self.unexpected(what)
        }
    }

    /// Runs `parse` one level deeper.
    pub(super) fn deeper<T>(&mut self, parse: impl FnOnce(&mut Self) -> Fallible<T>) -> Fallible<T> {
        self.depth += 1;
        if self.depth > NESTING {
            return self.fail(format!("it nests more than {NESTING} levels deep"));
        }
        let result = parse(self);
        self.depth -= 1;
        result
    }

    pub(super) fn name(&mut self, name: &Arc<str>) -> Name {
        if let Some(known) = self.names.get(name) {
            return *known;
        }
        let new = self.template.names.len() as Name;
        self.template.names.push(name.clone());
        self.names.insert(name.clone(), new);
        new
    }

    // Statements.

    /// Statements up to a tag named in `ends`, whose name is passed, or to the template's end.
    fn body(&mut self, ends: &[&str]) -> Fallible<Vec<Stmt>> {
        self.deeper(|p| {
            let mut body = Vec::new();
            loop {
                let line = p.line();
                match p.next() {
                    Token::Data(text) => body.push(Stmt { line, kind: StmtKind::Text(text) }),
                    Token::PrintBegin => {
                        let kind = StmtKind::Print(p.tuple(true, &[], false)?);
                        p.expect(&Token::PrintEnd, "`}}`")?;
                        body.push(Stmt { line, kind });
                    }
                    Token::BlockBegin if ends.iter().any(|end| p.is_name(end)) => return Ok(body),
                    Token::BlockBegin => {
                        p.statement(line, &mut body)?;
                        p.expect(&Token::BlockEnd, "`%}`")?;
                    }
                    Token::End if ends.is_empty() => return Ok(body),
                    _ => {
                        return p
                            .fail(format!("a tag is missing: {}", ends.iter().map(|e| format!("`{e}`")).collect::<Vec<_>>().join(" or ")));
                    }
                }
            }
        })
    }

    /// The statements of a block, from the end of its first tag to its last tag, which is passed but for its end.
    fn block(&mut self, ends: &[&str]) -> Fallible<Vec<Stmt>> {
        self.skip_op(":");
        self.expect(&Token::BlockEnd, "`%}`")?;
        self.body(ends)
    }

    /// As [`Self::block`] with one possible end.
    fn whole_block(&mut self, end: &str) -> Fallible<Vec<Stmt>> {
        let body = self.block(&[end])?;
        self.at += 1;
        Ok(body)
    }

    fn statement(&mut self, line: u32, body: &mut Vec<Stmt>) -> Fallible<()> {
        let tag = self.expect_name()?;
        let kind = match &*tag {
            "for" => self.for_loop()?,
            "if" => self.if_block()?,
            "set" => self.set()?,
            "with" => self.with()?,
            "macro" => {
                let name = self.expect_name()?;
                let name = self.name(&name);
                let mut parsed = Macro { name: Some(name), ..Macro::default() };
                self.signature(&mut parsed)?;
                StmtKind::Macro(self.rest_of_macro(parsed, "endmacro")?)
            }
            "call" => self.call_block()?,
            "filter" => {
                let filters = self.filters(true)?;
                StmtKind::FilterBlock { filters, body: self.whole_block("endfilter")? }
            }
            "print" => {
                while *self.peek() != Token::BlockEnd {
                    let value = self.expression()?;
                    body.push(Stmt { line, kind: StmtKind::Print(value) });
                    if *self.peek() != Token::BlockEnd {
                        self.expect_op(",")?;
                    }
                }
                return Ok(());
            }
            "generation" => StmtKind::Scope(self.whole_block("endgeneration")?),
            "block" => {
                let name = self.expect_name()?;
                self.skip_name("scoped");
                self.skip_name("required");
                let block = self.whole_block("endblock")?;
                self.skip_name(&name);
                StmtKind::Scope(block)
            }
            "break" => StmtKind::Break,
            "continue" => StmtKind::Continue,
            "include" | "import" | "from" | "extends" => {
                while !matches!(self.peek(), Token::BlockEnd | Token::End) {
                    self.at += 1;
                }
                StmtKind::Loads(tag)
            }
            _ => return Err(Fault { message: format!("the tag `{tag}` is unknown or stands where it does not belong"), line }),
        };
        body.push(Stmt { line, kind });
        Ok(())
    }

    fn for_loop(&mut self) -> Fallible<StmtKind> {
        let target = self.target(&["in"], false)?;
        if !self.skip_name("in") {
            return self.unexpected("`in`");
        }
        let items = self.tuple(false, &["recursive"], false)?;
        let test = if self.skip_name("if") { Some(self.expression()?) } else { None };
        let recursive = self.skip_name("recursive");
        let body = self.block(&["endfor", "else"])?;
        let otherwise = if &*self.expect_name()? == "else" { self.whole_block("endfor")? } else { Vec::new() };
        self.template.loops.push(For { target, items, test, recursive, body, otherwise });
        Ok(StmtKind::For(self.template.loops.len() - 1))
    }

    fn if_block(&mut self) -> Fallible<StmtKind> {
        let mut branches = Vec::new();
        loop {
            let test = self.tuple(false, &[], false)?;
            branches.push((test, self.block(&["elif", "else", "endif"])?));
            match &*self.expect_name()? {
                "elif" => {}
                "else" => return Ok(StmtKind::If { branches, otherwise: self.whole_block("endif")? }),
                _ => return Ok(StmtKind::If { branches, otherwise: Vec::new() }),
            }
        }
    }

    fn set(&mut self) -> Fallible<StmtKind> {
        let target = self.target(&[], true)?;
        if self.skip_op("=") {
            return Ok(StmtKind::Set(target, self.tuple(true, &[], false)?));
        }
        let filters = self.filters(false)?;
        Ok(StmtKind::SetBlock { target, filters, body: self.whole_block("endset")? })
    }

    fn with(&mut self) -> Fallible<StmtKind> {
        let mut bindings = Vec::new();
        while !matches!(self.peek(), Token::BlockEnd | Token::End) && !self.is_op(":") {
            if !bindings.is_empty() {
                self.expect_op(",")?;
            }
            let target = self.target(&[], false)?;
            self.expect_op("=")?;
            bindings.push((target, self.expression()?));
        }
        Ok(StmtKind::With { bindings, body: self.whole_block("endwith")? })
    }

    /// A macro's parameters.
    fn signature(&mut self, parsed: &mut Macro) -> Fallible<()> {
        self.expect_op("(")?;
        while !self.skip_op(")") {
            if !parsed.parameters.is_empty() {
                self.expect_op(",")?;
            }
            let parameter = self.expect_name()?;
            let parameter = self.name(&parameter);
            parsed.parameters.push(parameter);
            if self.skip_op("=") {
                let default = self.expression()?;
                parsed.defaults.push(default);
            } else if !parsed.defaults.is_empty() {
                return self.fail("a parameter without a default follows one with a default");
            }
        }
        Ok(())
    }

    fn rest_of_macro(&mut self, mut parsed: Macro, end: &str) -> Fallible<usize> {
        self.open.push([false; 3]);
        parsed.body = self.whole_block(end)?;
        parsed.takes = self.open.pop().unwrap_or_default();
        for (special, takes) in SPECIAL.iter().zip(&mut parsed.takes) {
            *takes &= !parsed.parameters.iter().any(|p| *self.template.names[*p as usize] == **special);
        }
        self.template.macros.push(parsed);
        Ok(self.template.macros.len() - 1)
    }

    fn call_block(&mut self) -> Fallible<StmtKind> {
        let mut parsed = Macro::default();
        if self.is_op("(") {
            self.signature(&mut parsed)?;
        }
        let call = self.expression()?;
        if !matches!(&call, Expr::Chain(_, suffixes) if matches!(suffixes.last(), Some((_, Suffix::Call(_))))) {
            return self.fail("`call` needs a call of a macro");
        }
        Ok(StmtKind::CallBlock(self.rest_of_macro(parsed, "endcall")?, call))
    }

    /// What can be assigned to, up to a name in `ends`.
    fn target(&mut self, ends: &[&str], attributes: bool) -> Fallible<Target> {
        let first = self.one_target(attributes)?;
        if !self.is_op(",") {
            return Ok(first);
        }
        let mut all = vec![first];
        while self.skip_op(",") {
            if ends.iter().any(|end| self.is_name(end)) || self.is_op("=") || matches!(self.peek(), Token::BlockEnd) {
                break;
            }
            all.push(self.one_target(attributes)?);
        }
        Ok(Target::Tuple(all))
    }

    fn one_target(&mut self, attributes: bool) -> Fallible<Target> {
        if self.skip_op("(") {
            return self.deeper(|p| {
                let mut all = Vec::new();
                let mut is_tuple = false;
                while !p.skip_op(")") {
                    all.push(p.one_target(attributes)?);
                    is_tuple |= p.is_op(",");
                    if !p.skip_op(",") && !p.is_op(")") {
                        return p.unexpected("`)`");
                    }
                }
                match all.pop() {
                    Some(one) if !is_tuple => Ok(one),
                    last => {
                        all.extend(last);
                        Ok(Target::Tuple(all))
                    }
                }
            });
        }
        let name = self.expect_name()?;
        if matches!(&*name, "true" | "false" | "none" | "True" | "False" | "None") {
            return self.fail(format!("`{name}` cannot be assigned to"));
        }
        let name = self.name(&name);
        if attributes && self.skip_op(".") {
            return Ok(Target::Attribute(name, self.expect_name()?));
        }
        Ok(Target::Name(name))
    }
}

/// Names that a macro's body may read beside its parameters.
pub(super) const SPECIAL: [&str; 3] = ["varargs", "kwargs", "caller"];
