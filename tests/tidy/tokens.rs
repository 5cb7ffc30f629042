//! Rust source as tokens: comments and strings are out of the way, and each token knows whether it is test code.

use crate::tree::SourceFile;
use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};

/// No path of the project has more parts.
const SEGMENTS_MAX: usize = 32;

/// A token, in the order of the file. Brackets are tokens of their own.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    /// The word, the literal, `::`, or one sign.
    pub(crate) text: String,
    /// Line, from 1.
    pub(crate) line: usize,
    /// Within an item under `#[cfg(test)]` or `#[test]`.
    pub(crate) is_test: bool,
    /// How many `mod name { }` it is in.
    pub(crate) module_depth: usize,
}

/// A path as it is written, with each branch of `use a::{b, c}` on its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NamedPath {
    /// Its parts.
    pub(crate) segments: Vec<String>,
    /// Line of its last part.
    pub(crate) line: usize,
    /// See [`Token::is_test`].
    pub(crate) is_test: bool,
    /// See [`Token::module_depth`].
    pub(crate) module_depth: usize,
    /// Followed by `!`.
    pub(crate) is_macro: bool,
}

impl NamedPath {
    /// Whether these parts are in it, one after the other.
    pub(crate) fn has(&self, parts: &[&str]) -> bool {
        self.segments.windows(parts.len()).any(|window| window.iter().zip(parts).all(|(left, right)| left == right))
    }
}

/// The tokens of a Rust file.
///
/// # Panics
/// If it is not Rust.
pub(crate) fn tokens_of(file: &SourceFile) -> Vec<Token> {
    let stream: TokenStream = file.text.parse().unwrap_or_else(|error| panic!("{}: {error}", file.path));
    let mut tokens = Vec::new();
    flatten(stream, file.is_test_code(), 0, &mut tokens);
    tokens
}

fn flatten(stream: TokenStream, is_test: bool, module_depth: usize, tokens: &mut Vec<Token>) {
    let trees: Vec<TokenTree> = stream.into_iter().collect();
    // From the attribute to the end of the item it is on.
    let mut is_test_item = false;
    for (index, tree) in trees.iter().enumerate() {
        let line = tree.span().start().line;
        let mut push = |text: String, line: usize, is_test: bool| {
            tokens.push(Token { text, line, is_test, module_depth });
        };
        match tree {
            TokenTree::Ident(word) => push(word.to_string(), line, is_test || is_test_item),
            TokenTree::Literal(literal) => push(literal.to_string(), line, is_test || is_test_item),
            TokenTree::Punct(sign) if is_second_colon(&trees, index) => debug_assert_eq!(sign.as_char(), ':'),
            TokenTree::Punct(sign) => {
                let is_double = is_second_colon(&trees, index + 1);
                push(if is_double { "::".to_owned() } else { sign.to_string() }, line, is_test || is_test_item);
                if sign.as_char() == ';' {
                    is_test_item = false;
                }
            }
            TokenTree::Group(group) => {
                is_test_item |= is_test_attribute(&trees, index);
                let (open, close) = brackets(group.delimiter());
                push(open.to_owned(), line, is_test || is_test_item);
                let is_module = group.delimiter() == Delimiter::Brace && is_module_body(&trees, index);
                flatten(group.stream(), is_test || is_test_item, module_depth + usize::from(is_module), tokens);
                tokens.push(Token {
                    text: close.to_owned(),
                    line: group.span_close().start().line,
                    is_test: is_test || is_test_item,
                    module_depth,
                });
                if group.delimiter() == Delimiter::Brace {
                    is_test_item = false;
                }
            }
        }
    }
}

/// Whether the sign at `index` is the second half of `::`.
fn is_second_colon(trees: &[TokenTree], index: usize) -> bool {
    let colon = |at: usize| match trees.get(at) {
        Some(TokenTree::Punct(sign)) if sign.as_char() == ':' => Some(sign.spacing()),
        _ => None,
    };
    index > 0 && colon(index).is_some() && colon(index - 1) == Some(Spacing::Joint)
}

fn is_test_attribute(trees: &[TokenTree], index: usize) -> bool {
    let is_after_hash = index > 0 && matches!(&trees[index - 1], TokenTree::Punct(sign) if sign.as_char() == '#');
    let text: String = trees[index].to_string().split_whitespace().collect();
    is_after_hash && (text == "[test]" || text.starts_with("[cfg(test)") || text.starts_with("[cfg(all(test,"))
}

fn is_module_body(trees: &[TokenTree], index: usize) -> bool {
    index >= 2 && matches!(&trees[index - 2], TokenTree::Ident(word) if word == "mod")
}

fn brackets(delimiter: Delimiter) -> (&'static str, &'static str) {
    match delimiter {
        Delimiter::Parenthesis => ("(", ")"),
        Delimiter::Brace => ("{", "}"),
        Delimiter::Bracket => ("[", "]"),
        Delimiter::None => ("", ""),
    }
}

/// Every path among the tokens, single words included.
pub(crate) fn paths_of(tokens: &[Token]) -> Vec<NamedPath> {
    let mut paths = Vec::new();
    let mut index = 0;
    while index < tokens.len() {
        index = if is_word(&tokens[index]) { read_path(tokens, index, &[], &mut paths) } else { index + 1 };
    }
    paths
}

/// Reads the path, or the tree of paths, that begins at `index`; returns the index behind it.
fn read_path(tokens: &[Token], mut index: usize, prefix: &[String], paths: &mut Vec<NamedPath>) -> usize {
    let mut segments = prefix.to_vec();
    assert!(segments.len() < SEGMENTS_MAX, "a path at line {} has too many parts", tokens[index].line);
    loop {
        let token = &tokens[index];
        segments.push(token.text.clone());
        let text_at = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
        if text_at(index + 1) == "::" && tokens.get(index + 2).is_some_and(is_word) {
            index += 2;
            continue;
        }
        if text_at(index + 1) == "::" && text_at(index + 2) == "{" {
            return read_branches(tokens, index + 3, &segments, paths);
        }
        paths.push(NamedPath {
            segments,
            line: token.line,
            is_test: token.is_test,
            module_depth: token.module_depth,
            is_macro: text_at(index + 1) == "!",
        });
        return index + 1;
    }
}

/// Reads the branches up to the closing brace; returns the index behind it.
fn read_branches(tokens: &[Token], mut index: usize, prefix: &[String], paths: &mut Vec<NamedPath>) -> usize {
    while index < tokens.len() && tokens[index].text != "}" {
        index = match &tokens[index] {
            // The new name is no part of a path.
            token if token.text == "as" => index + 2,
            token if is_word(token) => read_path(tokens, index, prefix, paths),
            _ => index + 1,
        };
    }
    index + 1
}

fn is_word(token: &Token) -> bool {
    token.text.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(text: &str) -> Vec<String> {
        let tokens = tokens_of(&SourceFile::sample("src/map/leaf.rs", text));
        paths_of(&tokens).iter().map(|path| path.segments.join("::")).filter(|path| path.contains("::")).collect()
    }

    #[test]
    fn branches_of_use_become_paths() {
        let found = paths("use std::{fs::File, net::{TcpStream as T, self}};\nfn f() { a::b::<u8>(c::d) }");
        assert_eq!(found, ["std::fs::File", "std::net::TcpStream", "std::net::self", "a::b", "c::d"]);
    }

    #[test]
    fn comments_and_strings_are_no_paths() {
        assert_eq!(paths("//! a::b\n/* c::d */ const X: &str = \"e::f\"; // g::h"), [""; 0]);
    }

    #[test]
    fn test_items_are_marked_up_to_their_end() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\nfn c() {}\n\
                    #[test]\nfn d() {}\n#[cfg(test)] mod e;\nfn g() {}";
        let tokens = tokens_of(&SourceFile::sample("src/map/leaf.rs", text));
        let is_test = |name: &str| tokens.iter().find(|token| token.text == name).map(|token| token.is_test);
        assert_eq!(["a", "b", "c", "d", "e", "g"].map(is_test), [false, true, false, true, true, false].map(Some));
    }

    #[test]
    fn modules_within_a_file_count_as_depth() {
        let tokens = tokens_of(&SourceFile::sample("src/map/leaf.rs", "mod a { mod b { x } } y"));
        let depth = |name: &str| tokens.iter().find(|token| token.text == name).map(|token| token.module_depth);
        assert_eq!((depth("x"), depth("y")), (Some(2), Some(0)));
    }
}
