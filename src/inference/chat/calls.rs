//! Calls: global functions, macros, methods, and loops that call themselves.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::arguments::Given;
use super::ast::Macro;
use super::eval::Run;
use super::limits::{Fallible, fault};
use super::methods;
use super::value::{Namespace, Value, depth_over, range_len};

/// Numbers that a `range` has at most, as in the sandbox of Jinja2.
const RANGE: usize = 100_000;

impl<'t> Run<'t> {
    pub(super) fn call(&mut self, function: &Value, given: Given) -> Fallible<Value> {
        match function {
            Value::Macro(at, scope) => self.macro_call(*at, *scope, given),
            Value::Method(method) => {
                let (value, name) = &**method;
                methods::call(value, name, given, self.meter)
            }
            Value::Function(name) => self.function(name, given),
            Value::Loop(state) => {
                let [items] = given.bind("loop", ["iterable"], 1)?;
                let Some((at, scope)) = state.recursive else {
                    return fault("The loop must have the 'recursive' marker to be called recursively.");
                };
                let (items, level) = (items.unwrap_or(Value::None), state.level + 1);
                self.deeper(|run| {
                    let before = std::mem::replace(&mut run.scope, scope);
                    let text = run.captured(|run| run.for_loop(at, &items, level));
                    run.scope = before;
                    text
                })
            }
            Value::Joiner(joiner) => {
                given.bind("joiner", [], 0)?;
                Ok(if joiner.1.replace(true) { joiner.0.clone() } else { Value::Str("".into()) })
            }
            Value::Undefined(why) => fault(&**why),
            other => fault(format!("'{}' object is not callable", other.type_name())),
        }
    }

    fn function(&mut self, name: &str, given: Given) -> Fallible<Value> {
        match name {
            "range" => {
                let [start, stop, step] = given.bind(name, ["start", "stop", "step"], 1)?;
                let whole = |value: Option<Value>, default: i64| match value {
                    None => Ok(default),
                    Some(Value::Undefined(why)) => fault(&*why),
                    Some(value) => match value.as_int().map(i64::try_from) {
                        Some(Ok(number)) => Ok(number),
                        Some(Err(_)) => fault("range: a number is too large"),
                        None => fault(format!("'{}' object cannot be interpreted as an integer", value.type_name())),
                    },
                };
                let (start, stop) = if stop.is_none() { (None, start) } else { (start, stop) };
                let range = [whole(start, 0)?, whole(stop, 0)?, whole(step, 1)?];
                if range[2] == 0 {
                    return fault("range() arg 3 must not be zero");
                }
                if range_len(range) > RANGE {
                    return fault(format!("Range too big. The sandbox blocks ranges larger than MAX_RANGE ({RANGE})."));
                }
                Ok(Value::Range(range))
            }
            "dict" => Value::dict(self.pairs(given)?, self.meter),
            "namespace" => {
                let namespace = Rc::new(Namespace { attributes: RefCell::default() });
                self.meter.make(size_of::<Namespace>() + 64)?;
                self.namespaces.push(namespace.clone());
                for (name, value) in self.pairs(given)? {
                    let Some(name) = name.as_str() else { return fault("namespace: names must be texts") };
                    self.put(&namespace, name.into(), value)?;
                }
                Ok(Value::Namespace(namespace))
            }
            "cycler" => {
                if given.by_place.is_empty() || !given.by_name.is_empty() {
                    return fault("at least one item has to be provided");
                }
                depth_over(&given.by_place)?;
                Ok(Value::Cycler(Rc::new((given.by_place, Cell::new(0)))))
            }
            "joiner" => {
                let [separator] = given.bind(name, ["sep"], 0)?;
                let separator = separator.unwrap_or(Value::Str(", ".into()));
                depth_over([&separator])?;
                Ok(Value::Joiner(Rc::new((separator, Cell::new(false)))))
            }
            "raise_exception" => {
                let [message] = given.bind(name, ["message"], 1)?;
                fault(&*message.unwrap_or(Value::None).to_text(self.meter)?)
            }
            "strftime_now" => {
                let [format] = given.bind(name, ["format"], 1)?;
                let format = format.unwrap_or(Value::None);
                let Some(format) = format.as_str() else { return fault("strftime_now: the format must be a text") };
                // A directive of two bytes becomes 24 at most.
                self.meter.make(format.len().saturating_mul(12))?;
                Value::text(self.now.strftime(format), self.meter)
            }
            _ => fault(format!("the function '{name}' is not supported")),
        }
    }

    /// The pairs that `dict(…)` makes of its arguments.
    fn pairs(&mut self, given: Given) -> Fallible<Vec<(Value, Value)>> {
        let mut pairs = Vec::new();
        match &*given.by_place {
            [] => {}
            [Value::Dict(dict)] => {
                self.meter.make(dict.pairs.len() * size_of::<(Value, Value)>())?;
                pairs.extend(dict.pairs.iter().cloned());
            }
            [other] => {
                for pair in other.iterate(self.meter)? {
                    match <[Value; 2]>::try_from(pair.iterate(self.meter)?) {
                        Ok([key, value]) => pairs.push((key, value)),
                        Err(found) => {
                            return fault(format!("dictionary update sequence element has length {}; 2 is required", found.len()));
                        }
                    }
                }
            }
            _ => return fault("dict expected at most 1 argument"),
        }
        pairs.extend(given.by_name.into_iter().map(|(name, value)| (Value::Str(name), value)));
        Ok(pairs)
    }

    fn macro_call(&mut self, at: usize, scope: usize, given: Given) -> Fallible<Value> {
        let of = &self.template.macros[at];
        self.deeper(|run| {
            run.scoped(scope, |run| {
                run.arguments(of, given)?;
                run.captured(|run| run.body(&of.body).map(|_| ()))
            })
        })
    }

    /// Sets a macro's parameters in the scope of its call.
    fn arguments(&mut self, of: &'t Macro, mut given: Given) -> Fallible<()> {
        let names = &self.template.names;
        let title = of.name.map_or("caller", |name| &names[name as usize]);
        let mut places = given.by_place.into_iter();
        let mut missing = Vec::new();
        for (i, parameter) in of.parameters.iter().enumerate() {
            let name = &names[*parameter as usize];
            self.meter.step(given.by_name.len())?;
            let value = places.next().or_else(|| {
                let at = given.by_name.iter().position(|(n, _)| n == name)?;
                Some(given.by_name.remove(at).1)
            });
            match value {
                Some(value) => self.set(*parameter, value)?,
                None => missing.push((i, *parameter)),
            }
        }
        let rest: Vec<Value> = places.collect();
        let takes = |special: usize| self.known[special].filter(|_| of.takes[special]);
        let [varargs, kwargs, caller] = [0, 1, 2].map(takes);
        if let Some(name) = caller {
            let value = match given.by_name.iter().position(|(n, _)| &**n == "caller") {
                Some(at) => given.by_name.remove(at).1,
                None => Value::undefined("No caller defined"),
            };
            self.set(name, value)?;
        }
        if let Some(name) = kwargs {
            let pairs = given.by_name.drain(..).map(|(name, value)| (Value::Str(name), value));
            let pairs = Value::dict(pairs, self.meter)?;
            self.set(name, pairs)?;
        }
        if let Some(name) = varargs {
            let values = Value::tuple(rest.clone(), self.meter)?;
            self.set(name, values)?;
        }
        if let Some((name, _)) = given.by_name.first() {
            return fault(format!("macro '{title}' takes no keyword argument '{name}'"));
        }
        if !rest.is_empty() && !of.takes[0] {
            return fault(format!("macro '{title}' takes not more than {} argument(s)", of.parameters.len()));
        }
        for (i, parameter) in missing {
            let value = match (i + of.defaults.len()).checked_sub(of.parameters.len()) {
                Some(default) => self.eval(&of.defaults[default])?,
                None => Value::undefined(format!("parameter '{}' was not provided", names[parameter as usize])),
            };
            self.set(parameter, value)?;
        }
        Ok(())
    }
}
