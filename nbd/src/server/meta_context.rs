//! Metadata contexts: what LIST_META_CONTEXT and SET_META_CONTEXT ask for, and what an export answers.

use super::export::{Export, Exports};
use crate::limits;
use crate::wire::fields::Fields;
use crate::wire::option::OptionError;

/// A metadata context that a client chose: BLOCK_STATUS reports it under its id.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SelectedContext {
    /// The number by which replies name it; never 0.
    pub id: u32,
    /// Its name, with its namespace, like `base:allocation`.
    pub name: String,
}

/// Parsed data of LIST_META_CONTEXT or SET_META_CONTEXT.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct MetaRequest<'a> {
    pub(super) export_name: &'a str,
    queries: Vec<&'a str>,
}

impl<'a> MetaRequest<'a> {
    /// The request in `data`.
    ///
    /// # Errors
    /// The error to answer with, and a sentence for the client.
    pub(super) fn parse(data: &'a [u8]) -> Result<Self, (OptionError, &'static str)> {
        const TOO_SHORT: (OptionError, &str) = (OptionError::Invalid, "The option ends before its fields do");
        const BAD_STRING: (OptionError, &str) = (
            OptionError::Invalid,
            "A string is not UTF-8 without NUL of at most 4096 bytes, or longer than the option",
        );
        let mut fields = Fields::new(data);
        let string = |fields: &mut Fields<'a>| {
            let size = usize::try_from(fields.u32().ok_or(TOO_SHORT)?).map_err(|_| BAD_STRING)?;
            fields.string(size).ok_or(BAD_STRING)
        };
        let export_name = string(&mut fields)?;
        let query_count = fields.u32().ok_or(TOO_SHORT)?;
        if query_count > limits::META_QUERY_COUNT_MAX {
            return Err((OptionError::TooBig, "The option has too many queries"));
        }
        let mut queries = Vec::new();
        for _ in 0..query_count {
            let query = string(&mut fields)?;
            if !query.contains(':') {
                return Err((OptionError::Invalid, "A query has no namespace: it needs a colon"));
            }
            queries.push(query);
        }
        if !fields.rest().is_empty() {
            return Err((OptionError::Invalid, "The option's length does not match its number of queries"));
        }
        Ok(Self { export_name, queries })
    }

    /// What LIST answers: everything without a query, else what a query names, or what begins with one that ends with
    /// a colon. Each once.
    pub(super) fn listed(&self, export: &Export, exports: &dyn Exports) -> Vec<String> {
        if self.queries.is_empty() {
            return export.contexts.clone();
        }
        let mut found = Vec::new();
        for query in &self.queries {
            if query.ends_with(':') {
                found.extend(export.contexts.iter().filter(|name| name.starts_with(query)).cloned());
            } else if exports.has_context(export, query) {
                found.push((*query).to_owned());
            }
        }
        distinct(found)
    }

    /// What SET chooses: what the queries name exactly, each once. A namespace alone chooses nothing, as the
    /// specification wants it for `base:`.
    pub(super) fn selected(&self, export: &Export, exports: &dyn Exports) -> Vec<SelectedContext> {
        let named = self.queries.iter().filter(|query| !query.ends_with(':') && exports.has_context(export, query));
        let names = distinct(named.map(|query| (*query).to_owned()).collect());
        (1..).zip(names).map(|(id, name)| SelectedContext { id, name }).collect()
    }
}

/// Without repetitions, in the order of the first ones. The list is short.
fn distinct(names: Vec<String>) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for name in names {
        if !found.contains(&name) {
            found.push(name);
        }
    }
    found
}
