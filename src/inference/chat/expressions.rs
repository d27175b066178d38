//! The expressions of Jinja2's grammar.

use super::ast::{Args, CompareOp, Const, Expr, MathOp, Suffix};
use super::lexer::Token;
use super::limits::{Fallible, NESTING};
use super::parser::{Parser, SPECIAL};
use std::sync::Arc;

impl Parser {
    /// An expression, or several with commas: a tuple.
    pub(super) fn tuple(&mut self, conditional: bool, ends: &[&str], in_brackets: bool) -> Fallible<Expr> {
        let mut items = Vec::new();
        let mut is_tuple = false;
        loop {
            let end = matches!(self.peek(), Token::PrintEnd | Token::BlockEnd) || self.is_op(")");
            if end || ends.iter().any(|end| self.is_name(end)) {
                break;
            }
            items.push(if conditional { self.expression()? } else { self.or()? });
            if !self.skip_op(",") {
                break;
            }
            is_tuple = true;
        }
        match items.pop() {
            Some(one) if !is_tuple => Ok(one),
            None if !in_brackets => self.unexpected("an expression"),
            last => {
                items.extend(last);
                Ok(Expr::Tuple(items))
            }
        }
    }

    pub(super) fn expression(&mut self) -> Fallible<Expr> {
        self.deeper(|p| {
            let mut branches = Vec::new();
            let mut value = p.or()?;
            let mut wrapped = 0;
            while p.skip_name("if") {
                let test = p.or()?;
                if p.skip_name("else") {
                    branches.push((test, value));
                    value = p.or()?;
                } else {
                    wrapped += 1;
                    if wrapped > NESTING {
                        return p.fail(format!("it nests more than {NESTING} levels deep"));
                    }
                    value = Expr::Cond(vec![(test, value)], None);
                }
            }
            Ok(if branches.is_empty() { value } else { Expr::Cond(branches, Some(Box::new(value))) })
        })
    }

    /// One or more of what `part` parses, with the name `word` between them.
    fn joined(&mut self, word: &str, part: fn(&mut Self) -> Fallible<Expr>, all: fn(Vec<Expr>) -> Expr) -> Fallible<Expr> {
        let first = part(self)?;
        if !self.is_name(word) {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.skip_name(word) {
            parts.push(part(self)?);
        }
        Ok(all(parts))
    }

    fn or(&mut self) -> Fallible<Expr> {
        self.joined("or", Self::and, Expr::Or)
    }

    fn and(&mut self) -> Fallible<Expr> {
        self.joined("and", Self::not, Expr::And)
    }

    fn not(&mut self) -> Fallible<Expr> {
        if self.skip_name("not") {
            return Ok(Expr::Not(Box::new(self.deeper(Self::not)?)));
        }
        let first = self.math(0)?;
        let mut rest = Vec::new();
        loop {
            let line = self.line();
            let operator = match self.peek() {
                Token::Op("==") => CompareOp::Eq,
                Token::Op("!=") => CompareOp::Ne,
                Token::Op("<") => CompareOp::Lt,
                Token::Op("<=") => CompareOp::Le,
                Token::Op(">") => CompareOp::Gt,
                Token::Op(">=") => CompareOp::Ge,
                Token::Name(name) if &**name == "in" => CompareOp::In,
                Token::Name(name) if &**name == "not" => match &self.tokens[(self.at + 1).min(self.tokens.len() - 1)].0 {
                    Token::Name(name) if &**name == "in" => {
                        self.at += 1;
                        CompareOp::NotIn
                    }
                    _ => break,
                },
                _ => break,
            };
            self.at += 1;
            rest.push((operator, line, self.math(0)?));
        }
        Ok(if rest.is_empty() { first } else { Expr::Compare(Box::new(first), rest) })
    }

    /// Operators by precedence: 0 is `+ -`, 1 is `~`, 2 is `* / // %`, 3 is `**`, 4 are signs and what follows.
    fn math(&mut self, level: u32) -> Fallible<Expr> {
        if level == 4 {
            return self.unary(true);
        }
        let first = self.math(level + 1)?;
        if level == 1 {
            if !self.is_op("~") {
                return Ok(first);
            }
            let mut parts = vec![first];
            while self.skip_op("~") {
                parts.push(self.math(2)?);
            }
            return Ok(Expr::Concat(parts));
        }
        let mut rest = Vec::new();
        loop {
            let line = self.line();
            let operator = match (level, self.peek()) {
                (0, Token::Op("+")) => MathOp::Add,
                (0, Token::Op("-")) => MathOp::Sub,
                (2, Token::Op("*")) => MathOp::Mul,
                (2, Token::Op("/")) => MathOp::Div,
                (2, Token::Op("//")) => MathOp::FloorDiv,
                (2, Token::Op("%")) => MathOp::Mod,
                (3, Token::Op("**")) => MathOp::Pow,
                _ => break,
            };
            self.at += 1;
            rest.push((operator, line, self.math(level + 1)?));
        }
        Ok(if rest.is_empty() { first } else { Expr::Math(Box::new(first), rest) })
    }

    fn unary(&mut self, filters: bool) -> Fallible<Expr> {
        let minus = self.is_op("-");
        let value = if minus || self.is_op("+") {
            self.at += 1;
            Expr::Sign(minus, Box::new(self.deeper(|p| p.unary(false))?))
        } else {
            self.primary()?
        };
        let mut suffixes = Vec::new();
        self.postfix(&mut suffixes)?;
        if filters {
            self.filters_and_tests(&mut suffixes)?;
        }
        Ok(if suffixes.is_empty() { value } else { Expr::Chain(Box::new(value), suffixes) })
    }

    fn primary(&mut self) -> Fallible<Expr> {
        match self.peek().clone() {
            Token::Name(name) => {
                self.at += 1;
                Ok(match &*name {
                    "true" | "True" => Expr::Const(Const::Bool(true)),
                    "false" | "False" => Expr::Const(Const::Bool(false)),
                    "none" | "None" => Expr::Const(Const::None),
                    _ => {
                        if let Some(special) = SPECIAL.iter().position(|s| **s == *name) {
                            self.open.iter_mut().for_each(|takes| takes[special] = true);
                        }
                        Expr::Name(self.name(&name))
                    }
                })
            }
            Token::Str(text) => {
                self.at += 1;
                if !matches!(self.peek(), Token::Str(_)) {
                    return Ok(Expr::Const(Const::Str(text)));
                }
                let mut joined = text.to_string();
                while let Token::Str(more) = self.peek() {
                    joined.push_str(more);
                    self.at += 1;
                }
                Ok(Expr::Const(Const::Str(joined.into())))
            }
            Token::Int(number) => {
                self.at += 1;
                Ok(Expr::Const(Const::Int(number)))
            }
            Token::Float(number) => {
                self.at += 1;
                Ok(Expr::Const(Const::Float(number)))
            }
            Token::Op("(") => {
                self.at += 1;
                let inner = self.tuple(true, &[], true)?;
                self.expect_op(")")?;
                Ok(inner)
            }
            Token::Op("[") => {
                self.at += 1;
                Ok(Expr::List(self.listed("]", Self::expression)?))
            }
            Token::Op("{") => {
                self.at += 1;
                let pair = |p: &mut Self| {
                    let key = p.expression()?;
                    p.expect_op(":")?;
                    Ok((key, p.expression()?))
                };
                Ok(Expr::Dict(self.listed("}", pair)?))
            }
            _ => self.unexpected("an expression"),
        }
    }

    /// What `part` parses, with commas between, up to `end`.
    fn listed<T>(&mut self, end: &str, part: impl Fn(&mut Self) -> Fallible<T>) -> Fallible<Vec<T>> {
        let mut items = Vec::new();
        while !self.skip_op(end) {
            if !items.is_empty() {
                self.expect_op(",")?;
                if self.skip_op(end) {
                    break;
                }
            }
            items.push(part(self)?);
        }
        Ok(items)
    }

    /// Attributes, subscripts and calls.
    fn postfix(&mut self, suffixes: &mut Vec<(u32, Suffix)>) -> Fallible<()> {
        loop {
            let line = self.line();
            let suffix = if self.skip_op(".") {
                match self.peek().clone() {
                    Token::Name(name) => {
                        self.at += 1;
                        Suffix::Attribute(name)
                    }
                    Token::Int(number) => {
                        self.at += 1;
                        Suffix::Item(Box::new(Expr::Const(Const::Int(number))))
                    }
                    _ => return self.unexpected("a name or a number"),
                }
            } else if self.skip_op("[") {
                self.subscript()?
            } else if self.is_op("(") {
                Suffix::Call(self.args()?)
            } else {
                return Ok(());
            };
            suffixes.push((line, suffix));
        }
    }

    fn subscript(&mut self) -> Fallible<Suffix> {
        let mut items = Vec::new();
        while !self.skip_op("]") {
            if !items.is_empty() {
                self.expect_op(",")?;
            }
            let start = if self.is_op(":") { None } else { Some(self.expression()?) };
            if !self.skip_op(":") {
                items.extend(start);
                continue;
            }
            let end = |p: &Self| p.is_op("]") || p.is_op(",") || p.is_op(":");
            let stop = if end(self) { None } else { Some(self.expression()?) };
            let step = if !self.skip_op(":") || end(self) { None } else { Some(self.expression()?) };
            if !items.is_empty() || !self.skip_op("]") {
                return self.fail("a slice among several subscripts is not supported");
            }
            return Ok(Suffix::Slice(Box::new([start, stop, step])));
        }
        let only = if items.len() == 1 { items.pop() } else { None };
        Ok(Suffix::Item(Box::new(only.unwrap_or(Expr::Tuple(items)))))
    }

    /// Filters, tests and calls of what they gave.
    fn filters_and_tests(&mut self, suffixes: &mut Vec<(u32, Suffix)>) -> Fallible<()> {
        loop {
            let line = self.line();
            let suffix = if self.skip_op("|") {
                self.filter()?
            } else if self.skip_name("is") {
                self.test()?
            } else if self.is_op("(") {
                Suffix::Call(self.args()?)
            } else {
                return Ok(());
            };
            suffixes.push((line, suffix));
        }
    }

    /// A filter's name, with dots, and its arguments.
    pub(super) fn filter(&mut self) -> Fallible<Suffix> {
        let name = self.dotted()?;
        let args = if self.is_op("(") { self.args()? } else { Args::default() };
        Ok(Suffix::Filter(name, args))
    }

    fn dotted(&mut self) -> Fallible<Arc<str>> {
        let mut name = self.expect_name()?;
        while self.skip_op(".") {
            name = format!("{name}.{}", self.expect_name()?).into();
        }
        Ok(name)
    }

    /// `| f | g` after a tag's name; the first without its bar if `bare`.
    pub(super) fn filters(&mut self, bare: bool) -> Fallible<Vec<Suffix>> {
        let mut filters = Vec::new();
        if bare {
            filters.push(self.filter()?);
        }
        while self.skip_op("|") {
            filters.push(self.filter()?);
        }
        Ok(filters)
    }

    fn test(&mut self) -> Fallible<Suffix> {
        let negated = self.skip_name("not");
        let name = self.dotted()?;
        let follows = match self.peek() {
            Token::Name(name) => !matches!(&**name, "else" | "or" | "and"),
            Token::Str(_) | Token::Int(_) | Token::Float(_) | Token::Op("[" | "{") => true,
            _ => false,
        };
        let args = if self.is_op("(") {
            self.args()?
        } else if follows {
            if self.is_name("is") {
                return self.fail("several tests with `is` cannot follow each other");
            }
            let value = self.primary()?;
            let mut suffixes = Vec::new();
            self.postfix(&mut suffixes)?;
            let value = if suffixes.is_empty() { value } else { Expr::Chain(Box::new(value), suffixes) };
            Args { by_place: vec![value], ..Args::default() }
        } else {
            Args::default()
        };
        Ok(Suffix::Test { name, args, negated })
    }

    fn args(&mut self) -> Fallible<Args> {
        self.expect_op("(")?;
        let mut args = Args::default();
        let mut first = true;
        while !self.skip_op(")") {
            if !std::mem::take(&mut first) {
                self.expect_op(",")?;
                if self.skip_op(")") {
                    break;
                }
            }
            let named = match (self.peek(), &self.tokens[(self.at + 1).min(self.tokens.len() - 1)].0) {
                (Token::Name(name), Token::Op("=")) => Some(name.clone()),
                _ => None,
            };
            let plain = args.by_name.is_empty() && args.spread.is_none();
            if args.spread_names.is_some() {
                return self.fail("arguments cannot follow `**`");
            } else if self.skip_op("**") {
                args.spread_names = Some(Box::new(self.expression()?));
            } else if args.spread.is_none() && self.skip_op("*") {
                args.spread = Some(Box::new(self.expression()?));
            } else if let Some(name) = named {
                self.at += 2;
                let value = self.expression()?;
                args.by_name.push((name, value));
            } else if plain {
                args.by_place.push(self.expression()?);
            } else {
                return self.fail("an argument by place follows one by name");
            }
        }
        Ok(args)
    }
}
