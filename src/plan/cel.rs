//! CEL expressions that can neither bring the process down nor run away.
//!
//! The interpreter has no budget of its own, and its parser overflowed stacks and panicked on odd input
//! before (cel-rust issues 191, 212, 305). So, all in this file: an expression is parsed on a thread of
//! its own with a large stack, where a panic is an error; what it may hold is limited, so that depth,
//! time and memory of an evaluation are bounded by the size of its variables; and a panic of an
//! evaluation is an error too.

use std::collections::{BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock};
use std::thread;

use cel::common::ast::{EntryExpr, Expr, LiteralValue};
use cel::extractors::This;
use cel::{Context, Env, ExecutionError, IdedExpr, Program, Value};
use regex::{Regex, RegexBuilder};
use serde_json::Value as Json;

/// Longest expression, in bytes.
pub const LONGEST: usize = 1024;
/// Deepest nesting of an expression's syntax tree.
const DEEPEST: usize = 32;
/// Loops (`all`, `exists`, `map`, ...) within loops, their ranges included.
const MOST_LOOPS: usize = 2;
/// Operations that make a value larger than its parts: `+`, and computed elements of lists and maps.
/// Without a limit a chain of `map(x, x + x)` doubles a string with every link.
const MOST_GROWTH: usize = 16;
/// For the parser, which recurses a dozen levels per bracket.
const STACK: usize = 32 << 20;
/// For a compiled regular expression.
const REGEX_SIZE: usize = 1 << 20;
/// Longest message of the compiler that is passed on.
const LONGEST_MESSAGE: usize = 300;

/// What may be called besides operators and macros.
const FUNCTIONS: [&str; 9] = [
    "contains",
    "endsWith",
    "int",
    "lowerAscii",
    "matches",
    "size",
    "split",
    "startsWith",
    "string",
];

/// The standard library, and functions on strings.
static LIBRARY: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut library = Env::stdlib();
    library.add_extension(cel::extensions::strings).expect("no name is declared twice");
    Arc::new(library)
});

/// Why an expression can't be used, or has no value, in the compiler's words.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct CelError(String);

impl CelError {
    fn new(message: impl Into<String>) -> Self {
        let message: String = message.into();
        let end = message.char_indices().nth(LONGEST_MESSAGE).map_or(message.len(), |(at, _)| at);
        Self(message[..end].replace('\n', " "))
    }
}

/// A compiled expression.
#[derive(Debug)]
pub struct Expression {
    program: Program,
    /// The variables and fields that it reads, such as `identity.commonName`.
    pub reads: BTreeSet<String>,
    has_loops: bool,
}

/// The regular expressions of a set of expressions, by their text.
pub type Patterns = HashMap<String, Regex>;

impl Expression {
    /// Compiles an expression over the variables of `sample`, an object: a field that it lacks is an
    /// error, unless it stands in an empty object, where any may be. The pattern of each `matches` is
    /// compiled into `patterns`.
    pub fn compile(source: &str, sample: &Json, patterns: &mut Patterns) -> Result<Self, CelError> {
        if source.len() > LONGEST {
            return Err(CelError::new(format!("it is longer than {LONGEST} bytes")));
        }
        let broken = || CelError::new("the CEL compiler can't cope with it");
        thread::scope(|scope| {
            let work = || Self::compile_here(source, sample, patterns);
            let thread = thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work);
            let thread = thread.map_err(|error| CelError::new(error.to_string()))?;
            thread.join().unwrap_or_else(|_| Err(broken()))
        })
    }

    fn compile_here(
        source: &str,
        sample: &Json,
        patterns: &mut Patterns,
    ) -> Result<Self, CelError> {
        let program = LIBRARY.compile(source).map_err(|errors| match errors.errors.first() {
            Some(error) => CelError::new(format!("{}:{}: {}", error.pos.0, error.pos.1, error.msg)),
            None => CelError::new("it is not CEL"),
        })?;
        let mut walk = Walk {
            sample,
            patterns,
            reads: BTreeSet::new(),
            bound: vec![],
            loops: 0,
            has_loops: false,
            growth: 0,
        };
        walk.visit(program.expression(), 0)?;
        let expression = Self { reads: walk.reads, has_loops: walk.has_loops, program };
        // What has the wrong type with any values has it with those of the sample. Errors about the values
        // themselves, such as a label that is missing, are of the sample's making.
        match expression.value(&Scope::new(sample, Arc::new(patterns.clone()))) {
            Ok(Value::Bool(_))
            | Err(Failure::Cel(
                ExecutionError::NoSuchKey(_)
                | ExecutionError::IndexOutOfBounds(_)
                | ExecutionError::DuplicateKey(_)
                | ExecutionError::DivisionByZero(_)
                | ExecutionError::RemainderByZero(_)
                | ExecutionError::Overflow(..)
                | ExecutionError::FunctionError { .. },
            )) => Ok(expression),
            other => Err(expression.trouble(other)),
        }
    }

    /// Is it true? What has no value, or another one than true or false, is an error.
    pub fn is_true(&self, scope: &Scope) -> Result<bool, CelError> {
        match self.value(scope) {
            Ok(Value::Bool(value)) => Ok(value),
            other => Err(self.trouble(other)),
        }
    }

    fn value(&self, scope: &Scope) -> Result<Value, Failure> {
        // Nothing that outlives the call is changed by it.
        let evaluate = AssertUnwindSafe(|| self.program.execute(&scope.0));
        catch_unwind(evaluate).map_err(|_| Failure::Panic)?.map_err(Failure::Cel)
    }

    /// The words for a failure are the same each time, or conditions would be written again and again:
    /// maps have no order, so that a loop fails at one entry or another, and a map is printed one way or
    /// another.
    fn trouble(&self, value: Result<Value, Failure>) -> CelError {
        let error = match value {
            Ok(_) => return CelError::new("its value is neither true nor false"),
            Err(Failure::Panic) => return CelError::new("the CEL interpreter can't cope with it"),
            Err(Failure::Cel(error)) => error,
        };
        let (kind, detail) = match &error {
            ExecutionError::NoSuchKey(key) => ("no such key", key.to_string()),
            ExecutionError::IndexOutOfBounds(_) => ("index out of bounds", String::new()),
            ExecutionError::DuplicateKey(_) => ("a key of a map is repeated", String::new()),
            ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => {
                ("division by zero", String::new())
            }
            ExecutionError::Overflow(..) => ("a number is too large", String::new()),
            ExecutionError::FunctionError { function, message } => {
                ("a function failed", format!("{function}: {message}"))
            }
            ExecutionError::UndeclaredReference(name) => ("there is no", name.to_string()),
            ExecutionError::NoSuchOverload(error) => ("types don't fit", error.to_string()),
            ExecutionError::UnexpectedType { got, want } => {
                ("types don't fit", format!("{got} instead of {want}"))
            }
            ExecutionError::UnsupportedBinaryOperator(operator, ..) => {
                ("types don't fit", format!("operator {operator}"))
            }
            _ => ("types don't fit", String::new()),
        };
        CelError::new(if detail.is_empty() || self.has_loops {
            kind.to_owned()
        } else {
            format!("{kind}: {detail}")
        })
    }
}

enum Failure {
    Cel(ExecutionError),
    Panic,
}

/// The variables of an evaluation.
pub struct Scope(Context<'static, 'static>);

impl Scope {
    /// Each field of the object `variables` is a variable.
    pub fn new(variables: &Json, patterns: Arc<Patterns>) -> Self {
        let mut context = Context::with_env(LIBRARY.clone());
        let matches = move |This(text): This<Arc<String>>, pattern: Arc<String>| {
            let known = patterns.get(pattern.as_str());
            known.map(|regex| regex.is_match(&text)).ok_or_else(|| {
                ExecutionError::function_error("matches", "its pattern is not known")
            })
        };
        context.add_function("matches", matches).expect("the library is built without it");
        for (name, value) in variables.as_object().into_iter().flatten() {
            let value = cel::to_value(value).unwrap_or(Value::Null);
            context.add_variable_from_value(name.as_str(), value);
        }
        Self(context)
    }
}

/// Checks the syntax tree before anything is evaluated.
struct Walk<'a> {
    sample: &'a Json,
    patterns: &'a mut Patterns,
    reads: BTreeSet<String>,
    /// Variables of loops.
    bound: Vec<String>,
    loops: usize,
    has_loops: bool,
    growth: usize,
}

impl Walk<'_> {
    fn visit(&mut self, node: &IdedExpr, depth: usize) -> Result<(), CelError> {
        let selected = path(node);
        if depth + selected.as_ref().map_or(0, Vec::len) > DEEPEST {
            return Err(CelError::new(format!("it is nested deeper than {DEEPEST} levels")));
        }
        if let Some(path) = selected {
            return self.read(&path).map(drop);
        }
        let depth = depth + 1;
        match &node.expr {
            Expr::Literal(_) => Ok(()),
            Expr::Select(select) => self.visit(&select.operand, depth),
            Expr::Call(call) => {
                let name = call.func_name.as_str();
                self.call(name, call.args.last())?;
                call.target.iter().try_for_each(|target| self.visit(target, depth))?;
                call.args.iter().try_for_each(|argument| self.visit(argument, depth))
            }
            Expr::List(list) => list.elements.iter().try_for_each(|e| self.element(e, depth)),
            Expr::Map(map) => map.entries.iter().try_for_each(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) => {
                    self.element(&entry.key, depth)?;
                    self.element(&entry.value, depth)
                }
                EntryExpr::StructField(_) => Err(CelError::new("it makes an object")),
            }),
            Expr::Comprehension(each) => {
                self.has_loops = true;
                self.loops += 1;
                if self.loops > MOST_LOOPS {
                    let message = format!("it has loops within loops, more than {MOST_LOOPS} deep");
                    return Err(CelError::new(message));
                }
                self.visit(&each.iter_range, depth)?;
                self.visit(&each.accu_init, depth)?;
                if matches!(each.accu_init.expr, Expr::List(_))
                    && let Some(path) = path(&each.iter_range)
                    && self.read(&path)?.is_some_and(Json::is_object)
                {
                    let message = "labels and annotations have no order: use all or exists";
                    return Err(CelError::new(message));
                }
                let outside = self.bound.len();
                self.bound.extend([each.iter_var.clone(), each.accu_var.clone()]);
                self.bound.extend(each.iter_var2.clone());
                self.visit(&each.loop_cond, depth)?;
                self.visit(&each.loop_step, depth)?;
                self.visit(&each.result, depth)?;
                self.bound.truncate(outside);
                self.loops -= 1;
                Ok(())
            }
            Expr::Struct(_) | Expr::Ident(_) | Expr::Unspecified => {
                Err(CelError::new("it makes an object"))
            }
        }
    }

    fn element(&mut self, node: &IdedExpr, depth: usize) -> Result<(), CelError> {
        if !matches!(node.expr, Expr::Literal(_)) {
            self.grow()?;
        }
        self.visit(node, depth)
    }

    fn grow(&mut self) -> Result<(), CelError> {
        self.growth += 1;
        if self.growth <= MOST_GROWTH {
            return Ok(());
        }
        let message = format!("it has more than {MOST_GROWTH} additions and computed elements");
        Err(CelError::new(message))
    }

    fn call(&mut self, name: &str, last: Option<&IdedExpr>) -> Result<(), CelError> {
        // The names of operators, such as `_==_`, are no identifiers.
        let is_function = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if is_function && !FUNCTIONS.contains(&name) {
            let known = FUNCTIONS.join(", ");
            return Err(CelError::new(format!("there is no function {name}; there are {known}")));
        }
        if name == "_+_" {
            self.grow()?;
        }
        if name == "matches" {
            let Some(Expr::Literal(LiteralValue::String(pattern))) = last.map(|node| &node.expr)
            else {
                return Err(CelError::new("the pattern of matches() must be a string literal"));
            };
            let pattern = pattern.inner();
            if !self.patterns.contains_key(pattern) {
                let regex = RegexBuilder::new(pattern).size_limit(REGEX_SIZE).build();
                let regex = regex.map_err(|error| CelError::new(format!("matches(): {error}")))?;
                self.patterns.insert(pattern.to_owned(), regex);
            }
        }
        Ok(())
    }

    /// A variable, with the fields that are selected of it; what the sample has there.
    fn read(&mut self, path: &[&str]) -> Result<Option<&Json>, CelError> {
        if self.bound.iter().any(|name| name == path[0]) {
            return Ok(None);
        }
        let mut value = self.sample;
        for (index, name) in path.iter().enumerate() {
            let holder = path[..index].join(".");
            let Some(fields) = value.as_object() else {
                let message = format!("{holder} has no fields, so there is no {holder}.{name}");
                return Err(CelError::new(message));
            };
            match fields.get(*name) {
                Some(field) => value = field,
                // Labels and annotations: any name may be there.
                None if fields.is_empty() => {
                    value = &Json::Null;
                    break;
                }
                None => {
                    let known: Vec<&str> = fields.keys().map(String::as_str).collect();
                    let known = known.join(", ");
                    return Err(CelError::new(if holder.is_empty() {
                        format!("there is no variable {name}; there are {known}")
                    } else {
                        format!("{holder} has no field {name}; it has {known}")
                    }));
                }
            }
        }
        self.reads.insert(path.join("."));
        Ok(Some(value))
    }
}

/// `a.b.c` as its parts.
fn path(node: &IdedExpr) -> Option<Vec<&str>> {
    let (mut node, mut parts) = (node, Vec::new());
    loop {
        match &node.expr {
            Expr::Ident(name) => {
                parts.push(name.as_str());
                parts.reverse();
                return Some(parts);
            }
            Expr::Select(select) => {
                parts.push(select.field.as_str());
                node = &select.operand;
            }
            _ => return None,
        }
    }
}
