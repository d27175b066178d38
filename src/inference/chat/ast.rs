//! What a template is after parsing: plain data, no deeper than [`super::limits::NESTING`]. Chains (`a + b + c`, `a.b.c`,
//! `x | f | g`, `if … elif …`) are lists, so their length costs no stack.

use std::sync::Arc;

/// A variable's name: its place in [`Template::names`].
pub(super) type Name = u32;

/// A parsed template. Loops and macros stand in tables, so that a value can name them.
#[derive(Debug, Default)]
pub(super) struct Template {
    pub names: Vec<Arc<str>>,
    pub loops: Vec<For>,
    pub macros: Vec<Macro>,
    pub body: Vec<Stmt>,
}

/// A statement and the line that it begins on.
#[derive(Debug)]
pub(super) struct Stmt {
    pub line: u32,
    pub kind: StmtKind,
}

#[derive(Debug)]
pub(super) enum StmtKind {
    Text(Arc<str>),
    Print(Expr),
    /// Place in [`Template::loops`].
    For(usize),
    If {
        branches: Vec<(Expr, Vec<Stmt>)>,
        otherwise: Vec<Stmt>,
    },
    Set(Target, Expr),
    SetBlock {
        target: Target,
        filters: Vec<Suffix>,
        body: Vec<Stmt>,
    },
    With {
        bindings: Vec<(Target, Expr)>,
        body: Vec<Stmt>,
    },
    /// Place in [`Template::macros`].
    Macro(usize),
    /// The macro that is the caller, and the call.
    CallBlock(usize, Expr),
    FilterBlock {
        filters: Vec<Suffix>,
        body: Vec<Stmt>,
    },
    /// A scope of its own: `generation` and `block`.
    Scope(Vec<Stmt>),
    Break,
    Continue,
    /// A tag that needs other templates: an error when it is reached, as in Python, where there is no loader.
    Loads(Arc<str>),
}

#[derive(Debug)]
pub(super) struct For {
    pub target: Target,
    pub items: Expr,
    pub test: Option<Expr>,
    pub recursive: bool,
    pub body: Vec<Stmt>,
    pub otherwise: Vec<Stmt>,
}

#[derive(Debug, Default)]
pub(super) struct Macro {
    /// `None` for the body of a `call` block.
    pub name: Option<Name>,
    pub parameters: Vec<Name>,
    /// Defaults of the last parameters.
    pub defaults: Vec<Expr>,
    /// Whether the body reads `varargs`, `kwargs` and `caller`.
    pub takes: [bool; 3],
    pub body: Vec<Stmt>,
}

/// What can be assigned to.
#[derive(Debug)]
pub(super) enum Target {
    Name(Name),
    Attribute(Name, Arc<str>),
    Tuple(Vec<Target>),
}

#[derive(Debug, Clone)]
pub(super) enum Const {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Arc<str>),
}

#[derive(Debug)]
pub(super) enum Expr {
    Const(Const),
    Name(Name),
    Tuple(Vec<Expr>),
    List(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Not(Box<Expr>),
    /// A sign: minus if true.
    Sign(bool, Box<Expr>),
    And(Vec<Expr>),
    Or(Vec<Expr>),
    Concat(Vec<Expr>),
    /// Operators of one precedence, from left to right, with their lines.
    Math(Box<Expr>, Vec<(MathOp, u32, Expr)>),
    Compare(Box<Expr>, Vec<(CompareOp, u32, Expr)>),
    /// `value if test else value if test else value`, tests and values in this order.
    Cond(Vec<(Expr, Expr)>, Option<Box<Expr>>),
    /// A value and what is done to it, with lines.
    Chain(Box<Expr>, Vec<(u32, Suffix)>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MathOp {
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Mod,
    Pow,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CompareOp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    NotIn,
}

#[derive(Debug)]
pub(super) enum Suffix {
    Attribute(Arc<str>),
    Item(Box<Expr>),
    Slice(Box<[Option<Expr>; 3]>),
    Call(Args),
    Filter(Arc<str>, Args),
    Test { name: Arc<str>, args: Args, negated: bool },
}

/// Arguments of a call, a filter or a test.
#[derive(Debug, Default)]
pub(super) struct Args {
    pub by_place: Vec<Expr>,
    pub by_name: Vec<(Arc<str>, Expr)>,
    pub spread: Option<Box<Expr>>,
    pub spread_names: Option<Box<Expr>>,
}
