//! Renders a [`Template`]: statements and expressions, scopes, calls and macros. Everything that it makes or repeats is
//! counted by the [`Meter`], and its own depth is bounded, so that no template can end the process.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use super::access::{attribute, item, slice};
use super::arguments::Given;
use super::ast::{Args, Const, Expr, Name, Stmt, StmtKind, Suffix, Target, Template};
use super::checks::{check, compare};
use super::clock::Clock;
use super::filters;
use super::limits::{CALL_DEPTH, Fallible, Fault, Meter, fault};
use super::math::math;
use super::parser::SPECIAL;
use super::value::{LoopState, Namespace, Value, depth_over, write};

/// Global functions.
const FUNCTIONS: [&str; 8] = ["range", "dict", "namespace", "cycler", "joiner", "lipsum", "raise_exception", "strftime_now"];
/// Renders `template` with these variables.
pub(super) fn render(template: &Template, variables: &[(&str, Value)], now: Clock, meter: &Meter) -> Fallible<String> {
    let mut base = Scope { variables: Vec::new(), outer: None, kept: true };
    for (name, value) in variables {
        if let Some(at) = template.names.iter().position(|n| **n == **name) {
            base.set(at as Name, value.clone());
        }
    }
    let [varargs, kwargs, caller] = SPECIAL;
    let known = [varargs, kwargs, caller, "loop"].map(|name| template.names.iter().position(|n| **n == *name).map(|at| at as Name));
    let mut run =
        Run { template, meter, now, scopes: vec![base], scope: 0, out: String::new(), line: 1, depth: 0, namespaces: Vec::new(), known };
    // What is set at the top hides what was given.
    let result = run.inside(|run| run.body(&template.body));
    // Namespaces may hold each other: emptied one by one, none is dropped from within another.
    let attributes: Vec<_> = run.namespaces.iter().map(|namespace| namespace.attributes.take()).collect();
    drop(attributes);
    match result {
        Ok(_) => Ok(run.out),
        Err(fault) => Err(Fault { line: if fault.line == 0 { run.line } else { fault.line }, ..fault }),
    }
}

/// Variables of a block, a loop's turn or a macro's call.
struct Scope {
    variables: Vec<(Name, Value)>,
    outer: Option<usize>,
    /// Whether a macro or a recursive loop may still name it.
    kept: bool,
}

impl Scope {
    pub(super) fn set(&mut self, name: Name, value: Value) {
        match self.variables.iter_mut().find(|(n, _)| *n == name) {
            Some((_, old)) => *old = value,
            None => self.variables.push((name, value)),
        }
    }
}

/// What a statement leads to.
#[derive(PartialEq)]
pub(super) enum Flow {
    Next,
    Break,
    Continue,
}

pub(super) struct Run<'t> {
    pub(super) template: &'t Template,
    pub(super) meter: &'t Meter,
    pub(super) now: Clock,
    scopes: Vec<Scope>,
    pub(super) scope: usize,
    out: String,
    line: u32,
    depth: u32,
    pub(super) namespaces: Vec<Rc<Namespace>>,
    /// The names `varargs`, `kwargs`, `caller` and `loop`, where the template has them.
    pub(super) known: [Option<Name>; 4],
}

impl<'t> Run<'t> {
    /// Runs `part` one level deeper.
    pub(super) fn deeper<T>(&mut self, part: impl FnOnce(&mut Self) -> Fallible<T>) -> Fallible<T> {
        self.meter.step(1)?;
        self.depth += 1;
        if self.depth > CALL_DEPTH {
            return fault("it calls itself without end, or nests too deeply");
        }
        let result = part(self);
        self.depth -= 1;
        result
    }

    /// Runs `part` in a scope of its own inside scope `outer`.
    pub(super) fn scoped<T>(&mut self, outer: usize, part: impl FnOnce(&mut Self) -> Fallible<T>) -> Fallible<T> {
        self.meter.make(size_of::<Scope>())?;
        let before = self.scope;
        self.scope = self.scopes.len();
        self.scopes.push(Scope { variables: Vec::new(), outer: Some(outer), kept: false });
        let result = part(self);
        if self.scope + 1 == self.scopes.len() && !self.scopes[self.scope].kept {
            self.scopes.pop();
        }
        self.scope = before;
        result
    }

    fn inside<T>(&mut self, part: impl FnOnce(&mut Self) -> Fallible<T>) -> Fallible<T> {
        self.scoped(self.scope, part)
    }

    /// What `part` writes, as a text.
    pub(super) fn captured(&mut self, part: impl FnOnce(&mut Self) -> Fallible<()>) -> Fallible<Value> {
        let before = std::mem::take(&mut self.out);
        let result = part(self);
        let text = std::mem::replace(&mut self.out, before);
        result?;
        Value::text(text, self.meter)
    }

    pub(super) fn set(&mut self, name: Name, value: Value) -> Fallible<()> {
        self.meter.make(size_of::<(Name, Value)>())?;
        self.scopes[self.scope].set(name, value);
        Ok(())
    }

    fn lookup(&self, name: Name) -> Fallible<Option<Value>> {
        let mut scope = Some(self.scope);
        while let Some(at) = scope {
            let Scope { variables, outer, .. } = &self.scopes[at];
            self.meter.step(1 + variables.len() / 16)?;
            if let Some((_, value)) = variables.iter().find(|(n, _)| *n == name) {
                return Ok(Some(value.clone()));
            }
            scope = *outer;
        }
        Ok(None)
    }

    fn variable(&self, name: Name) -> Fallible<Value> {
        if let Some(value) = self.lookup(name)? {
            return Ok(value);
        }
        let text = &self.template.names[name as usize];
        Ok(match FUNCTIONS.iter().find(|function| ***function == **text) {
            Some(function) => Value::Function(function),
            None => Value::undefined(format!("'{text}' is undefined")),
        })
    }

    // Statements.

    pub(super) fn body(&mut self, body: &'t [Stmt]) -> Fallible<Flow> {
        self.deeper(|run| {
            for statement in body {
                run.line = statement.line;
                let flow = run.statement(&statement.kind)?;
                if flow != Flow::Next {
                    return Ok(flow);
                }
            }
            Ok(Flow::Next)
        })
    }

    fn statement(&mut self, kind: &'t StmtKind) -> Fallible<Flow> {
        match kind {
            StmtKind::Text(text) => write(&mut self.out, text, self.meter)?,
            StmtKind::Print(value) => {
                let value = self.eval(value)?;
                value.print(&mut self.out, self.meter)?;
            }
            StmtKind::For(at) => {
                let items = self.eval(&self.template.loops[*at].items)?;
                self.for_loop(*at, &items, 0)?;
            }
            StmtKind::If { branches, otherwise } => {
                for (test, body) in branches {
                    self.meter.step(1)?;
                    if self.eval(test)?.truthy() {
                        return self.body(body);
                    }
                }
                return self.body(otherwise);
            }
            StmtKind::Set(target, value) => {
                let value = self.eval(value)?;
                self.assign(target, value)?;
            }
            StmtKind::SetBlock { target, filters, body } => {
                let text = self.filtered(filters, body)?;
                self.assign(target, text)?;
            }
            StmtKind::FilterBlock { filters, body } => {
                let text = self.filtered(filters, body)?;
                text.print(&mut self.out, self.meter)?;
            }
            StmtKind::With { bindings, body } => {
                let values = bindings.iter().map(|(_, value)| self.eval(value)).collect::<Fallible<Vec<_>>>()?;
                return self.inside(|run| {
                    for ((target, _), value) in bindings.iter().zip(values) {
                        run.assign(target, value)?;
                    }
                    run.body(body)
                });
            }
            StmtKind::Macro(at) => {
                let Some(name) = self.template.macros[*at].name else { return fault("a macro has no name") };
                self.scopes[self.scope].kept = true;
                self.set(name, Value::Macro(*at, self.scope))?;
            }
            StmtKind::CallBlock(at, call) => {
                self.scopes[self.scope].kept = true;
                let caller = Value::Macro(*at, self.scope);
                let value = self.chain(call, Some(caller))?;
                value.print(&mut self.out, self.meter)?;
            }
            StmtKind::Scope(body) => return self.inside(|run| run.body(body)),
            StmtKind::Break => return Ok(Flow::Break),
            StmtKind::Continue => return Ok(Flow::Continue),
            StmtKind::Loads(tag) => return fault(format!("'{tag}' needs another template, and a chat template has none")),
        }
        Ok(Flow::Next)
    }

    fn filtered(&mut self, filters: &'t [Suffix], body: &'t [Stmt]) -> Fallible<Value> {
        let mut text = self.captured(|run| run.inside(|run| run.body(body).map(|_| ())))?;
        for filter in filters {
            text = self.suffix(text, filter, None)?;
        }
        Ok(text)
    }

    fn assign(&mut self, target: &'t Target, value: Value) -> Fallible<()> {
        match target {
            Target::Name(name) => self.set(*name, value),
            Target::Attribute(name, attribute) => {
                let Some(Value::Namespace(namespace)) = self.lookup(*name)? else {
                    return fault("cannot assign attribute on non-namespace object");
                };
                self.put(&namespace, attribute.clone(), value)
            }
            Target::Tuple(targets) => {
                let values = value.iterate(self.meter)?;
                if values.len() != targets.len() {
                    let problem = if values.len() > targets.len() { "too many" } else { "not enough" };
                    return fault(format!("{problem} values to unpack (expected {}, got {})", targets.len(), values.len()));
                }
                targets.iter().zip(values).try_for_each(|(target, value)| self.assign(target, value))
            }
        }
    }

    pub(super) fn put(&mut self, namespace: &Namespace, name: Arc<str>, value: Value) -> Fallible<()> {
        if name.starts_with('_') {
            return fault(format!("Chat templates cannot store underscore-prefixed attributes on a namespace, but got '{name}'"));
        }
        let mut attributes = namespace.attributes.borrow_mut();
        self.meter.step(attributes.len())?;
        match attributes.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => {
                let old = std::mem::replace(old, value);
                drop(attributes);
                drop(old);
            }
            None => {
                self.meter.make(size_of::<(Arc<str>, Value)>())?;
                attributes.push((name, value));
            }
        }
        Ok(())
    }

    pub(super) fn for_loop(&mut self, at: usize, over: &Value, level: u32) -> Fallible<()> {
        let of = &self.template.loops[at];
        let mut items = over.iterate(self.meter)?;
        if let Some(test) = &of.test {
            let mut kept = Vec::new();
            for item in items {
                let good = self.inside(|run| {
                    run.assign(&of.target, item.clone())?;
                    run.eval(test)
                })?;
                if good.truthy() {
                    kept.push(item);
                }
            }
            items = kept;
        }
        self.scopes[self.scope].kept |= of.recursive;
        let depth = depth_over(&items)?;
        let recursive = of.recursive.then_some((at, self.scope));
        let count = items.len();
        let state = LoopState { items, at: Cell::new(0), level, recursive, last_seen: RefCell::new(None), depth };
        let state = Rc::new(state);
        let mut whole_turns = 0;
        for turn in 0..count {
            state.at.set(turn);
            let flow = self.inside(|run| {
                if let Some(name) = run.known[3] {
                    run.set(name, Value::Loop(state.clone()))?;
                }
                run.assign(&of.target, state.items[turn].clone())?;
                run.body(&of.body)
            })?;
            match flow {
                Flow::Break => break,
                Flow::Continue => {}
                Flow::Next => whole_turns += 1,
            }
        }
        // Jinja2 marks a loop as run at the end of a turn: one that only broke off or went on runs its `else` too.
        if whole_turns == 0 && !of.otherwise.is_empty() {
            self.inside(|run| run.body(&of.otherwise))?;
        }
        Ok(())
    }

    // Expressions.

    pub(super) fn eval(&mut self, expr: &'t Expr) -> Fallible<Value> {
        match expr {
            Expr::Const(constant) => {
                self.meter.step(1)?;
                return Ok(match constant {
                    Const::None => Value::None,
                    Const::Bool(value) => Value::Bool(*value),
                    Const::Int(number) => Value::Int(*number),
                    Const::Float(number) => Value::Float(*number),
                    Const::Str(text) => Value::Str(text.clone()),
                });
            }
            Expr::Name(name) => return self.variable(*name),
            _ => {}
        }
        self.deeper(|run| run.deep(expr))
    }

    fn deep(&mut self, expr: &'t Expr) -> Fallible<Value> {
        match expr {
            Expr::Const(_) | Expr::Name(_) => self.eval(expr),
            Expr::Tuple(items) => Value::tuple(self.all(items)?, self.meter),
            Expr::List(items) => Value::list(self.all(items)?, self.meter),
            Expr::Dict(pairs) => {
                let mut evaluated = Vec::with_capacity(pairs.len());
                for (key, value) in pairs {
                    evaluated.push((self.eval(key)?, self.eval(value)?));
                }
                Value::dict(evaluated, self.meter)
            }
            Expr::Not(value) => Ok((!self.eval(value)?.truthy()).into()),
            Expr::Sign(minus, value) => match (self.eval(value)?, minus) {
                (Value::Undefined(why), _) => fault(&*why),
                (Value::Float(number), true) => Ok(Value::Float(-number)),
                (Value::Float(number), false) => Ok(Value::Float(number)),
                (value, minus) => match value.as_int().map(|n| if *minus { n.checked_neg() } else { Some(n) }) {
                    Some(Some(number)) => Ok(Value::Int(number)),
                    _ => fault(format!("bad operand type for unary {}: '{}'", if *minus { "-" } else { "+" }, value.type_name())),
                },
            },
            Expr::And(parts) => self.until(parts, false),
            Expr::Or(parts) => self.until(parts, true),
            Expr::Concat(parts) => {
                let mut out = String::new();
                for part in parts {
                    self.eval(part)?.print(&mut out, self.meter)?;
                }
                Value::text(out, self.meter)
            }
            Expr::Math(first, rest) => {
                let mut value = self.eval(first)?;
                for (op, line, operand) in rest {
                    let operand = self.eval(operand)?;
                    self.line = *line;
                    self.meter.step(1)?;
                    value = math(*op, &value, &operand, self.meter)?;
                }
                Ok(value)
            }
            Expr::Compare(first, rest) => {
                let mut left = self.eval(first)?;
                for (op, line, right) in rest {
                    let right = self.eval(right)?;
                    self.line = *line;
                    if !compare(*op, &left, &right, self.meter)? {
                        return Ok(false.into());
                    }
                    left = right;
                }
                Ok(true.into())
            }
            Expr::Cond(branches, otherwise) => {
                for (test, value) in branches {
                    if self.eval(test)?.truthy() {
                        return self.eval(value);
                    }
                }
                match otherwise {
                    Some(value) => self.eval(value),
                    None => Ok(Value::undefined("the inline if-expression evaluated to false and no else section was defined.")),
                }
            }
            Expr::Chain(..) => self.chain(expr, None),
        }
    }

    fn all(&mut self, items: &'t [Expr]) -> Fallible<Vec<Value>> {
        items.iter().map(|item| self.eval(item)).collect()
    }

    /// The first of `parts` that is as true as `end`, or the last.
    fn until(&mut self, parts: &'t [Expr], end: bool) -> Fallible<Value> {
        let mut value = Value::None;
        for part in parts {
            value = self.eval(part)?;
            if value.truthy() == end {
                break;
            }
        }
        Ok(value)
    }

    /// A value and what is done to it; the last call gets `caller`.
    fn chain(&mut self, expr: &'t Expr, caller: Option<Value>) -> Fallible<Value> {
        let Expr::Chain(first, suffixes) = expr else { return self.eval(expr) };
        let mut value = self.eval(first)?;
        for (i, (line, suffix)) in suffixes.iter().enumerate() {
            self.line = *line;
            self.meter.step(1)?;
            value = self.suffix(value, suffix, caller.as_ref().filter(|_| i + 1 == suffixes.len()))?;
        }
        Ok(value)
    }

    fn suffix(&mut self, value: Value, suffix: &'t Suffix, caller: Option<&Value>) -> Fallible<Value> {
        let line = self.line;
        match suffix {
            Suffix::Attribute(name) => attribute(&value, name, self.meter),
            Suffix::Item(key) => {
                let key = self.eval(key)?;
                self.line = line;
                item(&value, &key, self.meter)
            }
            Suffix::Slice(parts) => {
                let mut evaluated = [None, None, None];
                for (slot, part) in evaluated.iter_mut().zip(parts.iter()) {
                    *slot = part.as_ref().map(|part| self.eval(part)).transpose()?;
                }
                self.line = line;
                slice(&value, evaluated, self.meter)
            }
            Suffix::Call(args) => {
                let mut given = self.given(args)?;
                if let Some(caller) = caller {
                    given.by_name.push(("caller".into(), caller.clone()));
                }
                self.line = line;
                self.call(&value, given)
            }
            Suffix::Filter(name, args) => {
                let given = self.given(args)?;
                self.line = line;
                filters::apply(name, &value, given, 0, self.meter)
            }
            Suffix::Test { name, args, negated } => {
                let given = self.given(args)?;
                self.line = line;
                Ok((check(name, &value, given, self.meter)? != *negated).into())
            }
        }
    }

    fn given(&mut self, args: &'t Args) -> Fallible<Given> {
        let mut given = Given { by_place: self.all(&args.by_place)?, by_name: Vec::new() };
        self.meter.make((args.by_place.len() + args.by_name.len()) * size_of::<Value>())?;
        for (name, value) in &args.by_name {
            given.by_name.push((name.clone(), self.eval(value)?));
        }
        if let Some(more) = &args.spread {
            given.by_place.extend(self.eval(more)?.iterate(self.meter)?);
        }
        if let Some(more) = &args.spread_names {
            let more = self.eval(more)?;
            let Value::Dict(dict) = &more else { return fault(format!("argument after ** must be a mapping, not {}", more.type_name())) };
            for (key, value) in &dict.pairs {
                self.meter.make(size_of::<(Arc<str>, Value)>())?;
                let Value::Str(name) = key else { return fault("keywords must be strings") };
                given.by_name.push((name.clone(), value.clone()));
            }
        }
        Ok(given)
    }
}
