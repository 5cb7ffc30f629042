//! A view of the metadata store that is there only as long as somebody wants what is made of it.

use crate::meta::{KeyValue, MetaError, MetaRead, Table};

/// Fails each scan when nobody wants it any more: a check scans whole tables, page by page.
pub(super) struct WantedView<'a> {
    pub(super) view: &'a dyn MetaRead,
    pub(super) is_wanted: &'a (dyn Fn() -> bool + Sync),
}

impl MetaRead for WantedView<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, MetaError> {
        self.view.get(table, key)
    }

    fn seek(&self, table: Table, prefix: &[u8], from: &[u8]) -> Result<Option<KeyValue>, MetaError> {
        self.view.seek(table, prefix, from)
    }

    fn seek_first(
        &self,
        table: Table,
        places: &mut dyn Iterator<Item = (Vec<u8>, Vec<u8>)>,
    ) -> Result<Option<KeyValue>, MetaError> {
        self.view.seek_first(table, places)
    }

    fn walk(
        &self,
        table: Table,
        prefix: &[u8],
        from: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), MetaError> {
        self.view.walk(table, prefix, from, visit)
    }

    fn scan(&self, table: Table, from: &[u8], end: &[u8], limit: usize) -> Result<Vec<KeyValue>, MetaError> {
        if !(self.is_wanted)() {
            let message = "nobody wants to know any more".to_owned();
            return Err(MetaError { message, is_out_of_space: false, is_damaged: false });
        }
        self.view.scan(table, from, end, limit)
    }
}
