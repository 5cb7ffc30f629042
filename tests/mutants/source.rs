//! Where expressions of a source file begin and end.

use std::collections::HashMap;
use std::ops::Range;

use proc_macro2::LineColumn;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use crate::list::Position;
use crate::{Context as _, Result};

/// An expression that an operator, a field or a guard belongs to.
#[derive(Clone, Debug)]
pub(crate) struct Whole {
    pub range: Range<usize>,
    /// It binds names by `let`, and must stay part of the condition that it is in.
    pub has_let: bool,
}

/// An arm of a `match`.
#[derive(Clone, Debug)]
pub(crate) struct Arm {
    pub pattern_end: usize,
    pub guard: Option<Range<usize>>,
}

/// A source file and its parts, by the byte at which what names them begins: the operator, the field, the arm, the guard.
pub(crate) struct Source {
    pub text: String,
    /// Of the text without its tests.
    pub hash: String,
    line_starts: Vec<usize>,
    pub operators: HashMap<usize, Whole>,
    pub fields: HashMap<usize, Whole>,
    pub arms: HashMap<usize, Arm>,
    pub guards: HashMap<usize, Whole>,
    /// In how many constants the visit is: what is in one is evaluated by the compiler.
    constant_depth: usize,
}

impl Source {
    /// Parses a file.
    ///
    /// # Errors
    /// If it is not Rust.
    pub(crate) fn new(text: String) -> Result<Self> {
        let file = syn::parse_file(&text).context("parse")?;
        let line_starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        let program = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or(&text);
        let program = program.strip_suffix("\n#[cfg(test)]\nmod tests;\n").unwrap_or(program);
        let hash = blake3::hash(program.as_bytes()).to_hex()[..8].to_owned();
        let mut source = Self {
            text,
            hash,
            line_starts,
            operators: HashMap::new(),
            fields: HashMap::new(),
            arms: HashMap::new(),
            guards: HashMap::new(),
            constant_depth: 0,
        };
        source.visit_file(&file);
        Ok(source)
    }

    /// The byte of a place.
    ///
    /// # Errors
    /// If the file has no such line.
    pub(crate) fn byte_of(&self, position: Position) -> Result<usize> {
        let start = *position
            .line
            .checked_sub(1)
            .and_then(|line| self.line_starts.get(line))
            .context(format!("line {}", position.line))?;
        let before = self.text[start..].chars().take(position.column.saturating_sub(1));
        Ok(start + before.map(char::len_utf8).sum::<usize>())
    }

    fn byte(&self, place: LineColumn) -> usize {
        let start = self.line_starts[place.line - 1];
        start + self.text[start..].chars().take(place.column).map(char::len_utf8).sum::<usize>()
    }

    fn range_of(&self, node: &impl Spanned) -> Range<usize> {
        self.byte(node.span().start())..self.byte(node.span().end())
    }

    fn whole_of(&self, expression: &(impl Spanned + HasLet)) -> Whole {
        Whole { range: self.range_of(expression), has_let: expression.has_let() }
    }

    fn add_operator(&mut self, operator: &impl Spanned, expression: &(impl Spanned + HasLet)) {
        if self.constant_depth == 0 {
            let whole = self.whole_of(expression);
            self.operators.insert(self.range_of(operator).start, whole);
        }
    }

    fn in_constant(&mut self, visit: impl FnOnce(&mut Self)) {
        self.constant_depth += 1;
        visit(self);
        self.constant_depth -= 1;
    }
}

/// Whether a condition binds names.
trait HasLet {
    fn has_let(&self) -> bool;
}

impl HasLet for syn::Expr {
    fn has_let(&self) -> bool {
        match self {
            Self::Let(_) => true,
            Self::Binary(binary) => binary.has_let(),
            _ => false,
        }
    }
}

impl HasLet for syn::ExprBinary {
    fn has_let(&self) -> bool {
        self.left.has_let() || self.right.has_let()
    }
}

impl HasLet for syn::ExprUnary {
    fn has_let(&self) -> bool {
        false
    }
}

impl HasLet for syn::ExprStruct {
    fn has_let(&self) -> bool {
        false
    }
}

impl<'a> Visit<'a> for Source {
    fn visit_expr_binary(&mut self, node: &'a syn::ExprBinary) {
        self.add_operator(&node.op, node);
        visit::visit_expr_binary(self, node);
    }

    fn visit_expr_unary(&mut self, node: &'a syn::ExprUnary) {
        self.add_operator(&node.op, node);
        visit::visit_expr_unary(self, node);
    }

    fn visit_expr_struct(&mut self, node: &'a syn::ExprStruct) {
        let whole = self.whole_of(node);
        for field in &node.fields {
            self.fields.insert(self.range_of(field).start, whole.clone());
        }
        visit::visit_expr_struct(self, node);
    }

    fn visit_arm(&mut self, node: &'a syn::Arm) {
        let guard = node.guard.as_ref().map(|(_, guard)| self.whole_of(&**guard));
        if let Some(whole) = &guard {
            self.guards.insert(whole.range.start, whole.clone());
        }
        let arm = Arm { pattern_end: self.range_of(&node.pat).end, guard: guard.map(|whole| whole.range) };
        self.arms.insert(self.range_of(node).start, arm);
        visit::visit_arm(self, node);
    }

    fn visit_type_array(&mut self, node: &'a syn::TypeArray) {
        self.in_constant(|source| visit::visit_type_array(source, node));
    }

    fn visit_expr_repeat(&mut self, node: &'a syn::ExprRepeat) {
        self.visit_expr(&node.expr);
        self.in_constant(|source| source.visit_expr(&node.len));
    }

    fn visit_generic_argument(&mut self, node: &'a syn::GenericArgument) {
        self.in_constant(|source| visit::visit_generic_argument(source, node));
    }

    fn visit_expr_const(&mut self, node: &'a syn::ExprConst) {
        self.in_constant(|source| visit::visit_expr_const(source, node));
    }

    fn visit_item_const(&mut self, node: &'a syn::ItemConst) {
        self.in_constant(|source| visit::visit_item_const(source, node));
    }

    fn visit_item_static(&mut self, node: &'a syn::ItemStatic) {
        self.in_constant(|source| visit::visit_item_static(source, node));
    }
}
