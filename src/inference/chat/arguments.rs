//! Arguments of calls, filters and tests, and what they must be.

use std::sync::Arc;

use super::limits::{Fallible, fault};
use super::value::Value;

/// Evaluated arguments.
#[derive(Default, Clone)]
pub(super) struct Given {
    pub by_place: Vec<Value>,
    pub by_name: Vec<(Arc<str>, Value)>,
}

impl Given {
    /// The arguments in the order of `names`, of which the first `needed` must be there.
    pub fn bind<const N: usize>(self, function: &str, names: [&str; N], needed: usize) -> Fallible<[Option<Value>; N]> {
        let mut bound = [const { None }; N];
        if self.by_place.len() > N {
            return fault(format!("{function}() takes at most {N} arguments ({} given)", self.by_place.len()));
        }
        for (slot, value) in bound.iter_mut().zip(self.by_place) {
            *slot = Some(value);
        }
        for (name, value) in self.by_name {
            let Some(at) = names.iter().position(|n| **n == *name) else {
                return fault(format!("{function}() got an unexpected keyword argument '{name}'"));
            };
            if bound[at].replace(value).is_some() {
                return fault(format!("{function}() got multiple values for argument '{name}'"));
            }
        }
        match bound.iter().take(needed).position(Option::is_none) {
            Some(missing) => fault(format!("{function}() missing required argument '{}'", names[missing])),
            None => Ok(bound),
        }
    }
}

/// A value that is not undefined.
pub(super) fn defined(value: &Value) -> Fallible<&Value> {
    if let Value::Undefined(why) = value { fault(&**why) } else { Ok(value) }
}

/// A whole number; `name` is what it is given to, for the error.
pub(super) fn number(value: Option<&Value>, name: &str) -> Fallible<i128> {
    match value.and_then(Value::as_int) {
        Some(number) => Ok(number),
        None => fault(format!("{name}: '{}' object cannot be interpreted as an integer", value.map_or("missing", Value::type_name))),
    }
}
