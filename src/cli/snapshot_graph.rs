//! The picture of what builds on what, beside a list of snapshots, the newest first.

use crate::daemon::snapshot_resource::Snapshot;

/// One line for each snapshot: a star in its column, bars where other lines of descent go by.
///
/// A column stands for a snapshot that something above builds on and that is still to come. Two columns that wait for the
/// same one become one there.
pub(super) fn graph(snapshots: &[Snapshot]) -> Vec<String> {
    let mut waited_for: Vec<Option<String>> = Vec::new();
    snapshots.iter().map(|snapshot| line(snapshot, &mut waited_for)).collect()
}

fn line(snapshot: &Snapshot, waited_for: &mut Vec<Option<String>>) -> String {
    let is_here = |column: &Option<String>| column.as_ref() == Some(&snapshot.reference);
    let free = || waited_for.iter().position(Option::is_none).unwrap_or(waited_for.len());
    let own = waited_for.iter().position(is_here).unwrap_or_else(free);
    if own == waited_for.len() {
        waited_for.push(None);
    }
    let sign = |(index, column): (usize, &Option<String>)| match column {
        _ if index == own => "*",
        // It ends here, in the star.
        Some(waited) if *waited == snapshot.reference => "/",
        Some(_) => "|",
        None => " ",
    };
    let signs: Vec<&str> = waited_for.iter().enumerate().map(sign).collect();
    let line = signs.join(" ").trim_end().to_owned();
    for column in waited_for.iter_mut().filter(|column| is_here(column)) {
        *column = None;
    }
    waited_for[own] = snapshot.parents.first().cloned();
    while waited_for.last() == Some(&None) {
        waited_for.pop();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::snapshot_resource::SnapshotState;
    use std::collections::BTreeMap;

    fn snapshot((number, parent): (u64, u64)) -> Snapshot {
        Snapshot {
            reference: format!("vol1@{number}"),
            uuid: uuid::Uuid::nil(),
            volume_uuid: uuid::Uuid::nil(),
            number,
            tags: Vec::new(),
            state: SnapshotState::Sealed,
            parents: (parent > 0).then(|| format!("vol1@{parent}")).into_iter().collect(),
            time: String::new(),
            created_at: String::new(),
            created_by: String::new(),
            message: String::new(),
            labels: BTreeMap::new(),
            meta_files: Vec::new(),
            size_bytes: 0,
            allocated_bytes: 0,
            changed_bytes: 0,
            unique_bytes: None,
            holds: Vec::new(),
            expires_at: None,
            trashed_at: None,
            delete_at: None,
        }
    }

    fn drawn(parents: &[(u64, u64)]) -> Vec<String> {
        graph(&parents.iter().copied().map(snapshot).collect::<Vec<_>>())
    }

    #[test]
    fn a_row_of_snapshots_is_one_column() {
        assert_eq!(drawn(&[(3, 2), (2, 1), (1, 0)]), ["*", "*", "*"]);
    }

    #[test]
    fn what_was_rolled_back_stays_a_column_until_both_meet() {
        // 3 was kept when the volume went back to 1; 4 and 5 build on 1 again.
        assert_eq!(drawn(&[(5, 4), (4, 1), (3, 2), (2, 1), (1, 0)]), ["*", "*", "| *", "| *", "* /"]);
    }

    #[test]
    fn a_column_that_has_ended_is_used_again() {
        // 3 and 1 begin anew: what they built on is gone.
        assert_eq!(drawn(&[(4, 2), (3, 0), (2, 0), (1, 0)]), ["*", "| *", "*", "*"]);
    }

    #[test]
    fn nothing_is_drawn_of_nothing() {
        assert!(drawn(&[]).is_empty());
    }
}
