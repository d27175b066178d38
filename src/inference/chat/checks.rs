//! Jinja2's tests: what `is` asks.

use std::cmp::Ordering;

use super::access::contains;
use super::arguments::Given;
use super::ast::{CompareOp, MathOp};
use super::limits::{Fallible, Meter, fault};
use super::math::math;
use super::names::{filter_exists, test_exists};
use super::value::Value;

/// A comparison's answer.
pub(super) fn compare(op: CompareOp, left: &Value, right: &Value, meter: &Meter) -> Fallible<bool> {
    let ordered = |symbol, good: fn(Ordering) -> bool| Ok(left.order(right, symbol, meter)?.is_some_and(good));
    match op {
        CompareOp::Eq => left.equals(right, meter),
        CompareOp::Ne => Ok(!left.equals(right, meter)?),
        CompareOp::Lt => ordered("<", Ordering::is_lt),
        CompareOp::Le => ordered("<=", Ordering::is_le),
        CompareOp::Gt => ordered(">", Ordering::is_gt),
        CompareOp::Ge => ordered(">=", Ordering::is_ge),
        CompareOp::In => contains(right, left, meter),
        CompareOp::NotIn => Ok(!contains(right, left, meter)?),
    }
}

/// `value is name(…)`.
pub(super) fn check(name: &str, value: &Value, given: Given, meter: &Meter) -> Fallible<bool> {
    let compared = match name {
        "==" | "eq" | "equalto" => Some(CompareOp::Eq),
        "!=" | "ne" => Some(CompareOp::Ne),
        ">" | "gt" | "greaterthan" => Some(CompareOp::Gt),
        ">=" | "ge" => Some(CompareOp::Ge),
        "<" | "lt" | "lessthan" => Some(CompareOp::Lt),
        "<=" | "le" => Some(CompareOp::Le),
        "in" => Some(CompareOp::In),
        _ => None,
    };
    if !test_exists(name) {
        return fault(format!("there is no test named '{name}'"));
    }
    if compared.is_some() || matches!(name, "sameas" | "divisibleby") {
        let [other] = given.bind(name, ["other"], 1)?;
        let other = other.unwrap_or(Value::None);
        return match (compared, name) {
            (Some(op), _) => compare(op, value, &other, meter),
            (_, "sameas") => Ok(value.same(&other)),
            _ => math(MathOp::Mod, value, &other, meter)?.equals(&Value::Int(0), meter),
        };
    }
    given.bind(name, [], 0)?;
    let rest_of_two = |rest: i128| math(MathOp::Mod, value, &Value::Int(2), meter)?.equals(&Value::Int(rest), meter);
    Ok(match name {
        "odd" => rest_of_two(1)?,
        "even" => rest_of_two(0)?,
        "defined" => !value.is_undefined(),
        "undefined" => value.is_undefined(),
        "filter" => value.as_str().is_some_and(filter_exists),
        "test" => value.as_str().is_some_and(test_exists),
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "false" => matches!(value, Value::Bool(false)),
        "true" => matches!(value, Value::Bool(true)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => matches!(value, Value::Int(_) | Value::Float(_) | Value::Bool(_)),
        "string" => value.as_str().is_some(),
        "mapping" => matches!(value, Value::Dict(_)),
        "lower" | "upper" => {
            let text = Value::Str(value.to_text(meter)?);
            super::methods::call(&text, &format!("is{name}"), Given::default(), meter)?.truthy()
        }
        "sequence" => !matches!(value, Value::View(..) | Value::Loop(_)) && value.len().is_some(),
        "iterable" => value.len().is_some() || matches!(value, Value::Stream(_)),
        "callable" => {
            matches!(
                value,
                Value::Macro(..) | Value::Function(_) | Value::Method(_) | Value::Loop(_) | Value::Joiner(_) | Value::Undefined(_)
            )
        }
        _ => matches!(value, Value::Markup(_)),
    })
}
