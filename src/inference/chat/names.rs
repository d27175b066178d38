//! The names of Jinja2's filters and tests, and of the methods of Python's values.

use super::value::Value;

/// All filters that Jinja2 has.
const FILTERS: &str = " abs attr batch capitalize center count d default dictsort e escape filesizeformat first float forceescape \
    format groupby indent int join last length list lower items map min max pprint random reject rejectattr replace reverse round safe \
    select selectattr slice sort string striptags sum title trim truncate unique upper urlencode urlize wordcount wordwrap xmlattr \
    tojson ";

/// All tests' names.
const TESTS: &str = " odd even divisibleby defined undefined filter test none boolean false true integer float lower upper string \
    mapping number sequence iterable callable sameas escaped in == eq equalto != ne > gt greaterthan ge >= < lt lessthan <= le ";

/// Methods of texts.
const TEXT: &str = " capitalize casefold center count endswith expandtabs find format format_map index isalnum isalpha isascii isdecimal \
    isdigit isidentifier islower isnumeric isprintable isspace istitle isupper join ljust lower lstrip partition removeprefix \
    removesuffix replace rfind rindex rjust rpartition rsplit rstrip split splitlines startswith strip swapcase title upper zfill ";
/// Methods that Python's values have and templates must not call, or that are not supported here.
const REFUSED: &str = " append clear extend insert pop popitem remove reverse setdefault sort update encode maketrans translate fromkeys \
    add discard ";

/// Whether `value` has a method `name`; `Err` if it has one that templates cannot call.
pub(super) fn has_method(value: &Value, name: &str) -> Result<bool, ()> {
    let among = |names: &str| names.contains(&format!(" {name} "));
    let (has, refused) = match value {
        Value::Str(_) | Value::Markup(_) => (among(TEXT), matches!(name, "encode" | "maketrans" | "translate")),
        Value::List(_) => (matches!(name, "count" | "index" | "copy"), among(" append clear extend insert pop remove reverse sort ")),
        Value::Tuple(_) => (matches!(name, "count" | "index"), false),
        Value::Dict(_) => {
            (matches!(name, "get" | "items" | "keys" | "values" | "copy"), among(" clear fromkeys pop popitem setdefault update "))
        }
        Value::Range(_) => (matches!(name, "count" | "index"), false),
        Value::Float(_) => (name == "is_integer", false),
        Value::Int(_) => (matches!(name, "bit_length" | "is_integer"), false),
        Value::Loop(_) => (matches!(name, "cycle" | "changed"), false),
        Value::Cycler(_) => (matches!(name, "next" | "reset"), false),
        Value::Function("dict") => (name == "fromkeys", false),
        _ => (false, false),
    };
    debug_assert!(!refused || among(REFUSED));
    if refused { Err(()) } else { Ok(has) }
}

/// Whether Jinja2 has the filter `name`.
pub(super) fn filter_exists(name: &str) -> bool {
    FILTERS.contains(&format!(" {name} "))
}

/// Whether Jinja2 has the test `name`.
pub(super) fn test_exists(name: &str) -> bool {
    TESTS.contains(&format!(" {name} "))
}
