//! What every store does: one suite for all of them, and random batches to compare two.

use rand::Rng;
use rand::rngs::SmallRng;

use super::{Durability, KeyValue, MetaOp, MetaStore, Table};

/// Keys as the map's leaves have them: tree, leaf index, inverted epoch.
fn leaf_key(tree: u64, leaf: u64, epoch: u64) -> Vec<u8> {
    [tree.to_be_bytes(), leaf.to_be_bytes(), (!epoch).to_be_bytes()].concat()
}

fn put(table: Table, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> MetaOp {
    MetaOp::Put(table, key.into(), value.into())
}

fn append(table: Table, key: impl Into<Vec<u8>>, bytes: impl Into<Vec<u8>>) -> MetaOp {
    MetaOp::Append(table, key.into(), bytes.into())
}

fn delete(table: Table, key: impl Into<Vec<u8>>) -> MetaOp {
    MetaOp::Delete(table, key.into())
}

fn delete_range(table: Table, from: impl Into<Vec<u8>>, end: impl Into<Vec<u8>>) -> MetaOp {
    MetaOp::DeleteRange(table, from.into(), end.into())
}

fn commit(store: &dyn MetaStore, batch: &[MetaOp]) {
    store.commit(batch, Durability::Buffered).expect("nothing is in the way of a commit");
}

fn get(store: &dyn MetaStore, table: Table, key: &[u8]) -> Option<Vec<u8>> {
    store.get(table, key).expect("the store reads")
}

fn scan(store: &dyn MetaStore, table: Table, from: &[u8], end: &[u8], limit: usize) -> Vec<KeyValue> {
    store.scan(table, from, end, limit).expect("the store scans")
}

fn seek(store: &dyn MetaStore, table: Table, prefix: &[u8], from: &[u8]) -> Option<KeyValue> {
    store.seek(table, prefix, from).expect("the store seeks")
}

fn clear(store: &dyn MetaStore) {
    for table in Table::ALL {
        let all = scan(store, table, b"", b"", usize::MAX);
        commit(store, &all.into_iter().map(|(key, _)| delete(table, key)).collect::<Vec<_>>());
        assert_eq!(scan(store, table, b"", b"", usize::MAX), []);
    }
}

/// Runs all behaviours against an empty store and leaves it empty.
pub(super) fn check_all(store: &dyn MetaStore) {
    for table in Table::ALL {
        check_changes_of_one_key(store, table);
        clear(store);
        check_ranges(store, table);
        clear(store);
    }
    for check in [check_tables_are_apart, check_order_in_a_batch, check_seek, check_leaf_seek, check_view] {
        check(store);
        clear(store);
    }
}

fn check_view(store: &dyn MetaStore) {
    let (kept, gone) = (leaf_key(1, 2, 3), leaf_key(1, 3, 3));
    commit(store, &[put(Table::Leaves, kept.clone(), "old"), put(Table::Leaves, gone.clone(), "gone")]);
    let mut has_looked = false;
    store.view(&mut |view| {
        commit(store, &[append(Table::Leaves, kept.clone(), "+new"), delete(Table::Leaves, gone.clone())]);
        commit(store, &[put(Table::Leaves, leaf_key(1, 4, 3), "later")]);
        let wanted = [(kept.clone(), b"old".to_vec()), (gone.clone(), b"gone".to_vec())];
        assert_eq!(view.scan(Table::Leaves, b"", b"", usize::MAX).expect("the view scans"), wanted);
        assert_eq!(view.get(Table::Leaves, &gone).expect("the view reads"), Some(b"gone".to_vec()));
        let sought = view.seek(Table::Leaves, &kept[..16], &leaf_key(1, 2, 9)).expect("the view seeks");
        assert_eq!(sought, Some(wanted[0].clone()));
        has_looked = true;
    });
    assert!(has_looked);
    assert_eq!(get(store, Table::Leaves, &kept), Some(b"old+new".to_vec()));
}

fn check_changes_of_one_key(store: &dyn MetaStore, table: Table) {
    assert_eq!(get(store, table, b"key"), None);
    commit(store, &[put(table, "key", "one")]);
    assert_eq!(get(store, table, b"key"), Some(b"one".to_vec()));
    commit(store, &[put(table, "key", "two")]);
    assert_eq!(get(store, table, b"key"), Some(b"two".to_vec()));
    commit(store, &[append(table, "key", "+three"), append(table, "key", ""), append(table, "key", "+four")]);
    commit(store, &[append(table, "key", "+five")]);
    assert_eq!(get(store, table, b"key"), Some(b"two+three+four+five".to_vec()));
    commit(store, &[put(table, "key", "six")]);
    assert_eq!(get(store, table, b"key"), Some(b"six".to_vec()));
    commit(store, &[delete(table, "key"), delete(table, "no such key")]);
    assert_eq!(get(store, table, b"key"), None);
    commit(store, &[append(table, "key", "seven")]);
    assert_eq!(get(store, table, b"key"), Some(b"seven".to_vec()));
    commit(store, &[put(table, "key", "")]);
    assert_eq!(get(store, table, b"key"), Some(Vec::new()));
}

fn check_ranges(store: &dyn MetaStore, table: Table) {
    let entry = |key: &str| (key.as_bytes().to_vec(), key.to_uppercase().into_bytes());
    commit(store, &["a", "b", "ba", "c", "d"].map(|key| put(table, key, key.to_uppercase())));

    assert_eq!(scan(store, table, b"", b"", 9), ["a", "b", "ba", "c", "d"].map(entry));
    assert_eq!(scan(store, table, b"b", b"d", 9), ["b", "ba", "c"].map(entry));
    assert_eq!(scan(store, table, b"aa", b"", 2), ["b", "ba"].map(entry));
    assert_eq!(scan(store, table, b"b", b"b", 9), []);
    assert_eq!(scan(store, table, b"c", b"b", 9), []);
    assert_eq!(scan(store, table, b"e", b"", 9), []);
    assert_eq!(scan(store, table, b"", b"", 0), []);

    commit(store, &[delete_range(table, "b", "c")]);
    assert_eq!(scan(store, table, b"", b"", 9), ["a", "c", "d"].map(entry));
    commit(store, &[delete_range(table, "c", "c"), delete_range(table, "d", "a")]);
    assert_eq!(scan(store, table, b"", b"", 9), ["a", "c", "d"].map(entry));
    commit(store, &[append(table, "ba", "again")]);
    assert_eq!(get(store, table, b"ba"), Some(b"again".to_vec()));
}

fn check_tables_are_apart(store: &dyn MetaStore) {
    commit(store, &Table::ALL.map(|table| put(table, "key", format!("{table:?}"))));
    commit(store, &[delete_range(Table::Used, "a", "z"), delete(Table::Shared, "key")]);

    for table in Table::ALL {
        let is_left = !matches!(table, Table::Used | Table::Shared);
        assert_eq!(get(store, table, b"key"), is_left.then(|| format!("{table:?}").into_bytes()));
    }
}

/// A batch does what its operations do one after the other.
fn check_order_in_a_batch(store: &dyn MetaStore) {
    commit(store, &[put(Table::Leaves, "b", "old")]);

    commit(
        store,
        &[
            put(Table::Leaves, "a", "gone"),
            delete_range(Table::Leaves, "a", "c"),
            append(Table::Leaves, "b", "new"),
            put(Table::Leaves, "c", "first"),
            delete(Table::Leaves, "c"),
            append(Table::Leaves, "c", "second"),
        ],
    );

    assert_eq!(get(store, Table::Leaves, b"a"), None);
    assert_eq!(get(store, Table::Leaves, b"b"), Some(b"new".to_vec()));
    assert_eq!(get(store, Table::Leaves, b"c"), Some(b"second".to_vec()));
}

fn check_seek(store: &dyn MetaStore) {
    for table in Table::ALL {
        commit(store, &["aa", "ab", "b", "ca"].map(|key| put(table, key, key)));
        let found = |key: &str| Some((key.as_bytes().to_vec(), key.as_bytes().to_vec()));

        assert_eq!(seek(store, table, b"", b""), found("aa"));
        assert_eq!(seek(store, table, b"a", b"a"), found("aa"));
        assert_eq!(seek(store, table, b"a", b"aaa"), found("ab"));
        assert_eq!(seek(store, table, b"a", b"ac"), None);
        assert_eq!(seek(store, table, b"", b"ac"), found("b"));
        assert_eq!(seek(store, table, b"b", b"b"), found("b"));
        assert_eq!(seek(store, table, b"bb", b"bb"), None);
        assert_eq!(seek(store, table, b"", b"d"), None);
    }
}

/// The newest leaf at or before an epoch, as the map asks for it; also at the ends of the number range.
fn check_leaf_seek(store: &dyn MetaStore) {
    let keys = [(1, 7, 2), (1, 7, 5), (1, 8, 1), (2, 7, 3), (u64::MAX, u64::MAX, u64::MAX), (u64::MAX, u64::MAX, 0)];
    commit(store, &keys.map(|(tree, leaf, epoch)| put(Table::Leaves, leaf_key(tree, leaf, epoch), [1])));
    let newest = |tree, leaf, epoch| {
        let from = leaf_key(tree, leaf, epoch);
        seek(store, Table::Leaves, &from[..16], &from).map(|(key, _)| key)
    };

    assert_eq!(newest(1, 7, 9), Some(leaf_key(1, 7, 5)));
    assert_eq!(newest(1, 7, 5), Some(leaf_key(1, 7, 5)));
    assert_eq!(newest(1, 7, 4), Some(leaf_key(1, 7, 2)));
    assert_eq!(newest(1, 7, 1), None);
    assert_eq!(newest(1, 6, 9), None);
    assert_eq!(newest(1, 9, 9), None);
    assert_eq!(newest(u64::MAX, u64::MAX, u64::MAX), Some(leaf_key(u64::MAX, u64::MAX, u64::MAX)));
    assert_eq!(newest(u64::MAX, u64::MAX, 7), Some(leaf_key(u64::MAX, u64::MAX, 0)));
    let first = |places: &[(u64, u64, u64)]| {
        let keys = places.iter().map(|(tree, leaf, epoch)| leaf_key(*tree, *leaf, *epoch));
        let mut places = keys.map(|from| (from[..16].to_vec(), from));
        let mut again = places.clone();
        let in_store = store.seek_first(Table::Leaves, &mut places).expect("the store seeks").map(|(key, _)| key);
        let mut in_view = None;
        store.view(&mut |view| in_view = view.seek_first(Table::Leaves, &mut again).expect("the view seeks"));
        assert_eq!(in_store, in_view.map(|(key, _)| key));
        in_store
    };
    assert_eq!(first(&[(3, 7, 9), (1, 6, 9), (1, 7, 1), (1, 7, 4), (1, 8, 9)]), Some(leaf_key(1, 7, 2)));
    assert_eq!(first(&[(u64::MAX, u64::MAX, 7), (1, 7, 9)]), Some(leaf_key(u64::MAX, u64::MAX, 0)));
    assert_eq!(first(&[(3, 7, 9), (1, 9, 9), (2, 8, 9)]), None);
    assert_eq!(first(&[]), None);
    // A prefix that is shorter or longer than the filter's.
    let tree = 1_u64.to_be_bytes();
    assert_eq!(seek(store, Table::Leaves, &tree, &leaf_key(1, 7, 1)).map(|(key, _)| key), Some(leaf_key(1, 8, 1)));
    assert_eq!(seek(store, Table::Leaves, &tree, &leaf_key(1, 8, 0)), None);
    let whole = leaf_key(1, 7, 2);
    assert_eq!(seek(store, Table::Leaves, &whole, &whole).map(|(key, _)| key), Some(whole));
    assert_eq!(scan(store, Table::Leaves, &leaf_key(1, 7, 2), &leaf_key(2, 7, 3), 9).len(), 2);

    let walk = |from: &[u8], count| {
        let mut found = Vec::new();
        let mut visit = |key: &[u8], value: &[u8]| {
            assert_eq!(value, [1]);
            found.push(key.to_vec());
            found.len() < count
        };
        store.walk(Table::Leaves, &from[..16], from, &mut visit).expect("the store walks");
        found
    };
    assert_eq!(walk(&leaf_key(1, 7, 9), 9), [leaf_key(1, 7, 5), leaf_key(1, 7, 2)]);
    assert_eq!(walk(&leaf_key(1, 7, 9), 1), [leaf_key(1, 7, 5)]);
    assert_eq!(walk(&leaf_key(1, 7, 4), 9), [leaf_key(1, 7, 2)]);
    assert!(walk(&leaf_key(1, 6, 9), 9).is_empty());
}

/// One to eight operations on few keys, so that they meet.
pub(super) fn random_batch(random: &mut SmallRng) -> Vec<MetaOp> {
    let count = random.random_range(1..=8);
    (0..count).map(|_| random_op(random)).collect()
}

fn random_op(random: &mut SmallRng) -> MetaOp {
    let table = Table::ALL[random.random_range(0..Table::ALL.len())];
    let key = random_key(random);
    let value = vec![random.random(); random.random_range(0..40)];
    match random.random_range(0..10) {
        0..4 => MetaOp::Put(table, key, value),
        4..7 => MetaOp::Append(table, key, value),
        7..9 => MetaOp::Delete(table, key),
        _ => MetaOp::DeleteRange(table, key, random_key(random)),
    }
}

fn random_key(random: &mut SmallRng) -> Vec<u8> {
    leaf_key(random.random_range(1..3), random.random_range(0..4), random.random_range(1..4))
}
