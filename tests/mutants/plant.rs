//! All mutants of a file in one source, each behind a question whether it is the chosen one.
//!
//! So that they are compiled once, not each for itself. An operator becomes
//! `(if is(7) { a - b } else if is(8) { a * b } else { a + b })`, and a function begins with `if is(9) { return 0; }`.
//! What cannot be written so (constants, conditions that bind names, functions that hide the type of their result) is set apart.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::list::{Genre, Mutant};
use crate::source::{Source, Whole};
use crate::{Context as _, Result};

/// What stands in the output for a mutant or for several.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// Of the output.
    pub range: Range<usize>,
    /// By their numbers.
    pub mutants: Vec<usize>,
    /// It is the mutant's own text; else what is around it.
    pub is_own: bool,
}

/// A file with mutants.
#[derive(Debug, Default)]
pub(crate) struct Planted {
    pub text: String,
    /// The inner ones behind those that they are in.
    pub places: Vec<Place>,
    /// Which cannot be planted.
    pub apart: Vec<usize>,
}

#[derive(Debug)]
enum Edit {
    /// Text before a place, for these mutants.
    Insert { text: String, mutants: Vec<usize>, is_own: bool },
    /// An expression, or what stands for it with each mutant.
    Choose { end: usize, alternatives: Vec<(usize, String)> },
}

/// Plants the mutants of one file, which have the numbers that stand beside them.
///
/// # Errors
/// If the list is of another state of the file.
pub(crate) fn plant(source: &Source, mutants: &[(usize, &Mutant)]) -> Result<Planted> {
    let mut writer = Writer { source, edits: BTreeMap::new(), planted: Planted::default() };
    for &(number, mutant) in mutants {
        let at = source.byte_of(mutant.span.start)?;
        if !(mutant.is_in_function && writer.add(number, mutant, at)?) {
            writer.planted.apart.push(number);
        }
    }
    let edits: Vec<(usize, Edit)> =
        std::mem::take(&mut writer.edits).into_iter().map(|((start, ..), edit)| (start, edit)).collect();
    writer.write(0..source.text.len(), &edits);
    Ok(writer.planted)
}

struct Writer<'a> {
    source: &'a Source,
    /// By where they begin; there the inserts come first, and then what reaches furthest.
    edits: BTreeMap<(usize, u8, usize), Edit>,
    planted: Planted,
}

impl Writer<'_> {
    /// Whether there is a place for it.
    fn add(&mut self, number: usize, mutant: &Mutant, at: usize) -> Result<bool> {
        let end = self.source.byte_of(mutant.span.end)?;
        match mutant.genre {
            // The result has one type for the whole function, which is not this one's.
            Genre::FnValue if mutant.returns_some_type => Ok(false),
            Genre::FnValue => {
                self.insert(
                    at,
                    format!("if crate::mutant::is({number}) {{ return {}; }} ", mutant.replacement),
                    number,
                    true,
                );
                Ok(true)
            }
            Genre::BinaryOperator | Genre::UnaryOperator => {
                let whole = self.source.operators.get(&at);
                Ok(self.choose(whole, at..end, &mutant.replacement, number))
            }
            Genre::StructField => {
                let whole = self.source.fields.get(&at);
                // The comma behind it too.
                let rest = self.source.text[end..].trim_start();
                let end = if rest.starts_with(',') { self.source.text.len() - rest.len() + 1 } else { end };
                Ok(self.choose(whole, at..end, "", number))
            }
            Genre::MatchArmGuard => {
                let whole = self.source.guards.get(&at);
                Ok(self.choose(whole, at..end, &mutant.replacement, number))
            }
            Genre::MatchArm => {
                let arm = self.source.arms.get(&at).context(&mutant.name)?;
                match &arm.guard {
                    None => self.insert(arm.pattern_end, format!(" if !crate::mutant::is({number})"), number, false),
                    Some(guard) => {
                        if self.source.guards.get(&guard.start).is_none_or(|whole| whole.has_let) {
                            return Ok(false);
                        }
                        self.insert(guard.start, format!("!crate::mutant::is({number}) && ("), number, false);
                        self.insert(guard.end, ")".to_owned(), number, false);
                    }
                }
                Ok(true)
            }
        }
    }

    fn insert(&mut self, at: usize, text: String, number: usize, is_own: bool) {
        self.edits.insert((at, 0, number), Edit::Insert { text, mutants: vec![number], is_own });
    }

    fn choose(&mut self, whole: Option<&Whole>, replaced: Range<usize>, replacement: &str, number: usize) -> bool {
        let Some(Whole { range, has_let: false }) = whole else { return false };
        let text = &self.source.text;
        let alternative =
            format!("{}{replacement}{}", &text[range.start..replaced.start], &text[replaced.end..range.end]);
        let edit = self
            .edits
            .entry((range.start, 1, usize::MAX - range.end))
            .or_insert_with(|| Edit::Choose { end: range.end, alternatives: Vec::new() });
        if let Edit::Choose { alternatives, .. } = edit {
            alternatives.push((number, alternative));
        }
        true
    }

    /// Writes a part of the source, with the edits in it.
    fn write(&mut self, range: Range<usize>, edits: &[(usize, Edit)]) {
        let mut at = range.start;
        let mut rest = edits;
        while let Some(((start, edit), behind)) = rest.split_first() {
            self.copy(at..*start);
            at = *start;
            rest = behind;
            match edit {
                Edit::Insert { text, mutants, is_own } => {
                    let begin = self.planted.text.len();
                    self.planted.text.push_str(text);
                    self.note(begin, mutants.clone(), *is_own);
                }
                Edit::Choose { end, alternatives } => {
                    let (inner, outer) = rest.split_at(rest.partition_point(|(start, _)| start < end));
                    rest = outer;
                    at = *end;
                    self.write_choice(*start..*end, alternatives, inner);
                }
            }
        }
        self.copy(at..range.end);
    }

    fn write_choice(&mut self, range: Range<usize>, alternatives: &[(usize, String)], inner: &[(usize, Edit)]) {
        let begin = self.planted.text.len();
        let place = self.planted.places.len();
        self.note(begin, alternatives.iter().map(|(number, _)| *number).collect(), false);
        self.planted.text.push('(');
        for (number, alternative) in alternatives {
            self.planted.text.push_str(&format!("if crate::mutant::is({number}) {{ "));
            let begin = self.planted.text.len();
            self.planted.text.push_str(alternative);
            self.note(begin, vec![*number], true);
            self.planted.text.push_str(" } else ");
        }
        self.planted.text.push_str("{ ");
        self.write(range, inner);
        self.planted.text.push_str(" })");
        self.planted.places[place].range.end = self.planted.text.len();
    }

    fn copy(&mut self, range: Range<usize>) {
        self.planted.text.push_str(&self.source.text[range]);
    }

    fn note(&mut self, begin: usize, mutants: Vec<usize>, is_own: bool) {
        let range = begin..self.planted.text.len();
        self.planted.places.push(Place { range, mutants, is_own });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::list::{Group, Position, Span};

    const TEXT: &str = "const fn f(a: u8, b: u8) -> u8 {\n    a + b * 2\n}\n";

    fn mutant(genre: Genre, (line, column): (usize, usize), length: usize, replacement: &str) -> Mutant {
        Mutant {
            key: String::new(),
            name: String::new(),
            file: String::new(),
            genre,
            replacement: replacement.to_owned(),
            span: Span { start: Position { line, column }, end: Position { line, column: column + length } },
            is_in_function: true,
            returns_some_type: false,
            group: Group::Rest,
        }
    }

    fn planted(text: &str, mutants: &[Mutant]) -> Planted {
        let source = Source::new(text.to_owned()).expect("it is there");
        let numbered: Vec<(usize, &Mutant)> = mutants.iter().enumerate().collect();
        plant(&source, &numbered).expect("it is there")
    }

    #[test]
    fn inner_operators_are_within_the_outer_ones_and_the_value_comes_first() {
        let mutants = [
            mutant(Genre::BinaryOperator, (2, 7), 1, "-"),
            mutant(Genre::BinaryOperator, (2, 11), 1, "/"),
            mutant(Genre::FnValue, (2, 5), 9, "1"),
        ];
        let planted = planted(TEXT, &mutants);
        assert_eq!(
            planted.text,
            "const fn f(a: u8, b: u8) -> u8 {\n    if crate::mutant::is(2) { return 1; } \
             (if crate::mutant::is(0) { a - b * 2 } else { a + (if crate::mutant::is(1) { b / 2 } else { b * 2 }) })\n}\n"
        );
        assert!(planted.apart.is_empty());
        // An error in the text of the inner one is the inner one's.
        let at = planted.text.find("b / 2").expect("it is there");
        let place = planted.places.iter().rfind(|place| place.range.contains(&at)).expect("it is there");
        assert_eq!((&place.mutants[..], place.is_own), (&[1][..], true));
    }

    #[test]
    fn what_is_in_no_function_is_set_apart() {
        let text = "const N: u8 = 1 + 2;\n";
        let sum = Mutant { is_in_function: false, ..mutant(Genre::BinaryOperator, (1, 17), 1, "-") };
        let planted = planted(text, &[sum]);
        assert_eq!((planted.text.as_str(), &planted.apart[..]), (text, &[0][..]));
    }

    #[test]
    fn lengths_are_set_apart_since_the_compiler_evaluates_them() {
        let text = "fn f() -> [u8; 1 + 2] {\n    [0; 1 + 2]\n}\n";
        let mutants = [(1, 18), (2, 11)].map(|place| mutant(Genre::BinaryOperator, place, 1, "-"));
        let planted = planted(text, &mutants);
        assert_eq!((planted.text.as_str(), &planted.apart[..]), (text, &[0, 1][..]));
    }

    #[test]
    fn arms_are_passed_by_their_guards() {
        let text = "fn f(a: u8) -> u8 {\n    match a {\n        1 => 2,\n        3 if a > 2 => 4,\n        _ => 5,\n    }\n}\n";
        let mutants = [
            mutant(Genre::MatchArm, (3, 9), 7, ""),
            mutant(Genre::MatchArm, (4, 9), 16, ""),
            mutant(Genre::MatchArmGuard, (4, 14), 5, "true"),
        ];
        let planted = planted(text, &mutants);
        assert!(planted.text.contains("1 if !crate::mutant::is(0) => 2,"), "{}", planted.text);
        assert!(
            planted
                .text
                .contains("3 if !crate::mutant::is(1) && ((if crate::mutant::is(2) { true } else { a > 2 })) => 4,"),
            "{}",
            planted.text
        );
    }

    #[test]
    fn conditions_that_bind_names_are_set_apart() {
        let text = "fn f(a: Option<u8>) -> bool {\n    if let Some(b) = a && b == 1 { true } else { false }\n}\n";
        let mutants =
            [mutant(Genre::BinaryOperator, (2, 24), 2, "||"), mutant(Genre::BinaryOperator, (2, 29), 2, "!=")];
        let planted = planted(text, &mutants);
        assert_eq!(planted.apart, [0]);
        assert!(planted.text.contains("&& (if crate::mutant::is(1) { b != 1 } else { b == 1 })"), "{}", planted.text);
    }

    #[test]
    fn a_field_is_left_to_the_base() {
        let text = "fn f(a: S) -> S {\n    S { b: 1, ..a }\n}\n";
        let planted = planted(text, &[mutant(Genre::StructField, (2, 9), 4, "")]);
        assert!(
            planted.text.contains("(if crate::mutant::is(0) { S {  ..a } } else { S { b: 1, ..a } })"),
            "{}",
            planted.text
        );
    }
}
