//! Guards the layout of the source: the layers, the names, the limits and the documents that go with them.
//!
//! Each rule is a function from files to violations. A test runs it over the tree and wants none; a second
//! one gives it a sample that breaks the rule, so that a rule that has gone blind is noticed.

#[path = "tidy/documents.rs"]
mod documents;
#[path = "tidy/files.rs"]
mod files;
#[path = "tidy/layers.rs"]
mod layers;
#[path = "tidy/tokens.rs"]
mod tokens;
#[path = "tidy/tree.rs"]
mod tree;
