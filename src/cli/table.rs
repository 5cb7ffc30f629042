//! Rows of text, for people (aligned) and for scripts (tab-separated).

use comfy_table::{CellAlignment, ContentArrangement, presets};

/// A table whose rows are about one thing each.
#[derive(Debug)]
pub(super) struct Table {
    header: Vec<&'static str>,
    right_columns: Vec<usize>,
    rows: Vec<Vec<String>>,
    references: Vec<String>,
}

impl Table {
    /// With these columns. Those in `right_columns` (0-based) hold numbers.
    pub(super) fn new(header: &[&'static str], right_columns: &[usize]) -> Self {
        Self {
            header: header.to_vec(),
            right_columns: right_columns.to_vec(),
            rows: Vec::new(),
            references: Vec::new(),
        }
    }

    /// Of one thing: a row for each of its fields, without a header.
    pub(super) fn of_fields(reference: &str, fields: Vec<(&'static str, String)>) -> Self {
        let rows = fields.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
        Self { header: Vec::new(), right_columns: Vec::new(), rows, references: vec![reference.to_owned()] }
    }

    /// Adds a row about `reference`. Rows about the same thing follow each other.
    pub(super) fn row(&mut self, reference: &str, cells: Vec<String>) {
        if self.references.last().is_none_or(|last| last != reference) {
            self.references.push(reference.to_owned());
        }
        self.rows.push(cells);
    }

    /// The things, one a line.
    pub(super) fn references(&self) -> String {
        lines(&self.references)
    }

    /// Fields separated by tabs, without a header.
    pub(super) fn plain(&self) -> String {
        let rows: Vec<String> = self.rows.iter().map(|cells| cells.join("\t")).collect();
        lines(&rows)
    }

    /// Aligned columns.
    pub(super) fn aligned(&self, has_header: bool) -> String {
        let mut table = comfy_table::Table::new();
        table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        if has_header && !self.header.is_empty() {
            table.set_header(&self.header);
        }
        table.add_rows(&self.rows);
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        for index in &self.right_columns {
            if let Some(column) = table.column_mut(*index) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let rows: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
        if self.rows.is_empty() && !has_header { String::new() } else { lines(&rows) }
    }
}

fn lines(rows: &[String]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table {
        let mut table = Table::new(&["NAME", "SIZE"], &[1]);
        table.row("vol1", vec!["vol1".to_owned(), "10.0 GiB".to_owned()]);
        table.row("v", vec!["v".to_owned(), "4 B".to_owned()]);
        table
    }

    #[test]
    fn people_get_aligned_columns() {
        assert_eq!(sample().aligned(true), "NAME      SIZE\nvol1  10.0 GiB\nv          4 B\n");
    }

    #[test]
    fn the_header_can_be_left_out() {
        assert_eq!(sample().aligned(false), "vol1  10.0 GiB\nv          4 B\n");
    }

    #[test]
    fn scripts_get_tabs() {
        assert_eq!(sample().plain(), "vol1\t10.0 GiB\nv\t4 B\n");
    }

    #[test]
    fn quiet_names_each_thing_once() {
        let mut table = sample();
        table.row("v", vec!["v".to_owned(), "again".to_owned()]);

        assert_eq!(table.references(), "vol1\nv\n");
    }

    #[test]
    fn an_empty_table_without_header_is_empty() {
        assert_eq!(Table::new(&["NAME"], &[]).aligned(false), "");
        assert_eq!(Table::new(&["NAME"], &[]).aligned(true), "NAME\n");
    }
}
