//! Key slots: who opens a pool after which change, and what is left of a key that was taken away.

use std::fs;

use crate::scan::Needles;
use crate::support::{Finished, Home, OTHER_PASSPHRASE, PASSPHRASE, Serving};

/// Where the first key slot is in a copy of the superblock: salt and wrapped master key.
const FIRST_SLOT: std::ops::Range<usize> = 48 + 64 + 4..48 + 64 + 4 + 32 + 60;

/// Pieces of what the pool's first key slot holds now.
fn first_slot(home: &Home) -> Needles {
    let mut needles = Needles::default();
    needles.add_pieces("slot", &fs::read(home.path("pool/superblock")).expect("readable")[FIRST_SLOT]);
    needles
}

fn is_in_pool(needles: &Needles, home: &Home) -> bool {
    !needles.in_directory(&home.path("pool")).0.is_empty()
}

/// Runs `key` with these arguments behind `place`, which says how the pool is reached.
fn key(home: &Home, place: &[&str], arguments: &[&str]) -> Finished {
    home.run(["key"].iter().chain(&arguments[..1]).chain(place).chain(&arguments[1..]))
}

/// Adds, rotates and removes keys of the pool `pool`, whose first key is `pool.key`. At its end the passphrase of
/// `second` opens it, in slot 1, and nothing else.
fn change_keys(home: &Home, place: &[&str]) {
    let (pool_key, spare_key) = (home.text("pool.key"), home.text("spare.key"));
    let (first, second) =
        (home.passphrase_file("first", PASSPHRASE), home.passphrase_file("second", "second passphrase"));
    let first_key = ["--key-file", pool_key.as_str()];
    let run = |arguments: &[&[&str]]| key(home, place, &arguments.concat());

    assert_eq!(run(&[&["add"], &first_key, &["--new-passphrase-file", &first]]).success(), "1\n");
    assert_eq!(run(&[&["add"], &first_key, &["--new-key-file", &spare_key, "--generate-key"]]).success(), "2\n");
    assert_eq!(
        run(&[&["ls", "-o", "plain", "--bytes"]]).success(),
        "0\tkey-file\t-\n1\tpassphrase\t67108864, 3 passes, parallelism 4\n2\tkey-file\t-\n"
    );

    let old_slot = first_slot(home);
    assert!(is_in_pool(&old_slot, home), "the search finds what is there");
    let by_passphrase = ["--passphrase-file", first.as_str()];
    let rotated = run(&[&["rotate", "0"], &by_passphrase, &["--new-passphrase-file", &second]]);
    assert!(rotated.stderr.contains("Data was not encrypted anew"), "{rotated:?}");
    assert_eq!(rotated.success(), "0\n");
    assert!(!is_in_pool(&old_slot, home), "nothing of the old wrapping is left");
    run(&[&["rm", "2"], &first_key]).failure(10);

    run(&[&["rotate", "1"], &["--passphrase-file", &second], &["--new-passphrase-file", &second]]).success();
    run(&[&["rm", "2"], &by_passphrase]).failure(10);
    assert_eq!(run(&[&["rm", "2"], &["--passphrase-file", &second]]).success(), "2\n");
    assert_eq!(run(&[&["rm", "0"], &["--passphrase-file", &second]]).success(), "0\n");
    assert_eq!(run(&[&["ls", "-q"]]).success(), "1\n");
}

/// Only the passphrase that [`change_keys`] ends with opens the pool.
fn check_changed_keys(home: &Home) {
    home.serve_fails(&["--key-file", &home.text("pool.key")]).failure(10);
    home.serve_fails(&["--key-file", &home.text("spare.key")]).failure(10);
    home.serve_fails(&["--passphrase-file", &home.text("first")]).failure(10);
    let _serving = home.serve_with(&["--passphrase-file", &home.text("second")]);
    assert_eq!(home.run(["ls", "-q"]).success(), "vol1\n", "the data is as it was");
}

#[test]
fn keys_of_a_pool_that_nobody_serves_are_changed_in_its_directory() {
    let home = Home::with_pool();
    let serving = home.serve(&[]);
    home.run(["create", "vol1", "--size", "1G"]).success();
    serving.stop();

    change_keys(&home, &["--pool", &home.text("pool")]);

    check_changed_keys(&home);
}

#[test]
fn keys_of_a_served_pool_are_changed_by_its_daemon() {
    let home = Home::with_pool();
    let serving = home.serve(&[]);
    home.run(["create", "vol1", "--size", "1G"]).success();

    change_keys(&home, &[]);

    assert_eq!(home.run(["pool", "show", "--json"]).json()["key_slots"][0]["slot"], 1);
    home.run(["show", "vol1"]).success();
    // Changes are durable when they return, not when the daemon ends well.
    serving.kill();
    check_changed_keys(&home);
}

#[test]
fn a_served_pool_is_not_changed_in_its_directory() {
    let home = Home::with_pool();
    let _serving = home.serve(&[]);
    let before = fs::read(home.path("pool/superblock")).expect("readable");
    let (pool, key_file) = (home.text("pool"), home.text("pool.key"));

    let message = home
        .run(
            ["key", "add", "--pool", &pool, "--key-file", &key_file, "--new-passphrase-file"]
                .iter()
                .chain(&[home.passphrase_file("passphrase", PASSPHRASE).as_str()]),
        )
        .failure(7);

    assert!(message.contains("is in use") && message.contains("--pool"), "{message}");
    assert!(fs::read(home.path("pool/superblock")).expect("readable") == before);
    let listed = home.run(["key", "ls", "--pool", &pool, "--json"]).json();
    assert_eq!(listed, home.run(["key", "ls", "--json"]).json(), "listing needs neither lock nor key");
    assert_eq!((&listed["kind"], &listed["items"][0]["method"]), (&"KeyList".into(), &"key-file".into()));
}

#[test]
fn changes_of_keys_that_are_not_possible_say_why() {
    let home = Home::with_pool();
    let (pool, key_file) = (home.text("pool"), home.text("pool.key"));
    let file = home.passphrase_file("passphrase", PASSPHRASE);
    let wrong = home.passphrase_file("wrong", OTHER_PASSPHRASE);
    let with_key = ["--key-file", key_file.as_str()];
    let new = ["--new-passphrase-file", file.as_str()];
    let cases: [(&[&[&str]], i32, &str); 10] = [
        (&[&["rm", "0"], &with_key], 6, "the last one"),
        (&[&["rm", "5"], &with_key], 4, "key ls"),
        (&[&["rotate", "5"], &with_key, &new], 4, "key ls"),
        (&[&["rm", "8"], &with_key], 2, "0..=7"),
        (&[&["rotate", "0"], &["--passphrase-file", &wrong], &new], 10, "does not open"),
        (&[&["add"], &["--passphrase-file", &wrong], &new], 10, "does not open"),
        (&[&["add"], &new], 2, "--key-file"),
        (&[&["add"], &with_key], 2, "--new-key-file"),
        (&[&["add"], &with_key, &["--new-key-file", &key_file, "--generate-key"]], 5, "there already"),
        (&[&["add"], &["--passphrase-file", "-", "--new-passphrase-file", "-"]], 2, "both"),
    ];

    for place in [["--pool", pool.as_str()].as_slice(), &[]] {
        let _serving = place.is_empty().then(|| home.serve(&[]));
        for (arguments, code, words) in cases {
            let before = fs::read(home.path("pool/superblock")).expect("readable");
            let message = key(&home, place, &arguments.concat()).failure(code);
            assert!(message.contains(words), "{arguments:?}: {message}");
            assert!(fs::read(home.path("pool/superblock")).expect("readable") == before, "{arguments:?}");
        }
    }
    key(&home, &[], &["ls"]).failure(11);
    key(&home, &["--pool", &home.text("nowhere")], &["ls"]).failure(4);
}

#[test]
fn there_are_eight_slots_and_no_more() {
    let home = Home::with_pool();
    let place = ["--pool", &home.text("pool")];
    let key_file = home.text("pool.key");
    let add = |name: &str| {
        key(&home, &place, &["add", "--key-file", &key_file, "--new-key-file", &home.text(name), "--generate-key"])
    };
    for slot in 1..8 {
        assert_eq!(add(&slot.to_string()).success(), format!("{slot}\n"));
    }

    assert!(add("ninth").failure(8).contains("key rm"));

    let _serving = home.serve_with(&["--key-file", &home.text("7")]);
}

#[test]
fn a_dry_run_of_a_change_of_keys_changes_nothing() {
    let home = Home::with_pool();
    let pool = home.text("pool");
    let (key_file, new_key) = (home.text("pool.key"), home.text("new.key"));
    let file = home.passphrase_file("passphrase", PASSPHRASE);
    let before = fs::read(home.path("pool/superblock")).expect("readable");
    let plans: [&[&str]; 2] = [
        &["add", "--key-file", &key_file, "--new-key-file", &new_key, "--generate-key", "-n"],
        &["rotate", "0", "--key-file", &key_file, "--new-passphrase-file", &file, "-n"],
    ];
    for (plan, slot) in plans.into_iter().zip(["1\n", "0\n"]) {
        let plan = key(&home, &["--pool", &pool], plan);
        assert!(plan.stderr.starts_with("Would "), "{plan:?}");
        assert_eq!(plan.success(), slot);
    }

    assert!(fs::read(home.path("pool/superblock")).expect("readable") == before);
    assert!(!home.path("new.key").exists());
    let arguments = ["rotate", "0", "--key-file", &key_file, "--new-passphrase-file", &file, "--json"];
    let plan = key(&home, &["--pool", &pool], &[&arguments[..], &["-n"]].concat()).json();
    let real = key(&home, &["--pool", &pool], &arguments).json();
    assert_eq!((&plan["is_dry_run"], &real["is_dry_run"]), (&true.into(), &false.into()));
    assert_eq!((&plan["before"], &plan["after"]), (&real["before"], &real["after"]));
    assert_eq!((&real["kind"], &real["action"], &real["ref"]), (&"KeyChange".into(), &"rotate".into(), &"0".into()));
}

#[test]
fn passphrases_that_go_through_the_daemon_are_not_in_its_log_or_its_pool() {
    let home = Home::with_pool();
    let (pool, key_file) = (home.text("pool"), home.text("pool.key"));
    let mut command = home.command(["serve", "--pool", &pool, "--key-file", &key_file]);
    command.env("ROK_LOG", "trace");
    let serving = Serving::start(command);
    let (file, wrong) = (home.passphrase_file("file", PASSPHRASE), home.passphrase_file("wrong", OTHER_PASSPHRASE));
    key(&home, &[], &["add", "--key-file", &key_file, "--new-passphrase-file", &file]).success();
    key(&home, &[], &["rm", "0", "--passphrase-file", &wrong]).failure(10);
    key(&home, &[], &["rm", "0", "--passphrase-file", &file]).success();

    serving.signal(libc::SIGTERM);
    let (_, _, said) = serving.wait();

    let mut needles = Needles::default();
    needles.add("passphrase", PASSPHRASE.as_bytes());
    needles.add("wrong passphrase", OTHER_PASSPHRASE.as_bytes());
    needles.add("change", b"a key slot was changed");
    let log = needles.in_bytes(said.join("\n").as_bytes());
    assert_eq!(log.into_iter().collect::<Vec<_>>(), ["change"], "{said:#?}");
    assert!(!is_in_pool(&needles, &home));
}
