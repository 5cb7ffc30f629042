//! The layers of `src/`: a file names only its own layer and lower ones, and leaves alone what its layer must not do.

use crate::tokens::{NamedPath, paths_of, tokens_of};
use crate::tree::{SourceFile, Violation};

/// The folders and files of `src/` with their layer, lowest first. What shares a number is one layer.
pub(crate) const LAYERS: &[(&str, usize)] = &[
    ("units", 0),
    ("error", 0),
    ("planted", 0),
    ("atomics", 0),
    ("crypto", 1),
    ("format", 2),
    ("disk", 3),
    ("meta", 4),
    ("map", 5),
    ("pool", 6),
    ("volume", 7),
    ("lane", 8),
    ("daemon", 9),
    ("cli", 10),
];

/// Files of `src/` that tie the layers together and belong to none.
const ROOTS: &[&str] = &["src/lib.rs", "src/main.rs"];

/// What a layer must not name although it is lower, or outside of the project.
struct Ban {
    layers: &'static [&'static str],
    /// Parts of a path, one after the other.
    parts: &'static [&'static [&'static str]],
    reason: &'static str,
}

const BELOW_LANE: &[&str] =
    &["units", "error", "planted", "atomics", "crypto", "format", "disk", "meta", "map", "pool", "volume"];

const BANS: &[Ban] = &[
    Ban {
        layers: &["crypto", "format"],
        parts: &[&["std", "fs"], &["std", "net"], &["std", "os", "unix", "net"], &["io_uring"], &["File", "open"]],
        reason: "this layer does no I/O: take the bytes as an argument",
    },
    Ban {
        layers: &["meta", "map"],
        parts: &[&["crate", "disk"], &["io_uring"]],
        reason: "this layer does not know of disks: what needs both belongs into pool",
    },
    Ban {
        layers: BELOW_LANE,
        parts: &[&["rok_nbd"], &["rok_ublk"]],
        reason: "this layer does not know of frontends: lane serves them",
    },
    Ban {
        layers: BELOW_LANE,
        parts: &[
            &["Instant", "now"],
            &["Timestamp", "now"],
            &["Zoned", "now"],
            &["SystemTime"],
            &["UNIX_EPOCH"],
            &["thread", "spawn"],
            &["thread", "scope"],
            &["thread", "sleep"],
            &["thread", "Builder"],
            &["aws_lc_rs", "rand"],
            &["SystemRandom"],
            &["RAND_bytes"],
            &["thread_rng"],
            &["rand", "rng"],
            &["rand", "random"],
            &["OsRng"],
            &["from_os_rng"],
            &["from_entropy"],
            &["getrandom"],
            &["Uuid", "new_v4"],
            &["Uuid", "now_v7"],
        ],
        reason: "no clock, randomness, thread or spawn below lane: pass it in, so that one seed replays the engine",
    },
    Ban {
        layers: &["crypto", "format", "disk", "meta", "map", "pool", "volume", "lane"],
        parts: &[&["tokio"], &["axum"], &["hyper"]],
        reason: "tokio is the control plane: only daemon and cli await it",
    },
    Ban {
        layers: &["daemon"],
        parts: &[&["crate", "disk"]],
        reason: "the daemon touches no pool device: a lane or the pool does",
    },
];

/// A ban that a file may break.
struct Exception {
    path: &'static str,
    parts: &'static [&'static str],
    reason: &'static str,
}

const EXCEPTIONS: &[Exception] = &[
    Exception {
        path: "src/crypto/random.rs",
        parts: &["getrandom"],
        reason: "the system's random numbers, which the daemon passes in",
    },
    Exception {
        path: "src/disk/file.rs",
        parts: &["thread", "sleep"],
        reason: "the kernel gives a killed daemon's lock back late, and tells nobody when",
    },
    Exception {
        path: "src/meta/rocks.rs",
        parts: &["thread", "sleep"],
        reason: "RocksDB stalls writers without an event to wait for; the simulation has a store of its own",
    },
];

/// Names of modules that say nothing, so that anything ends up in them.
const FORBIDDEN_NAMES: &[&str] = &["util", "utils", "common", "helper", "helpers", "types", "misc"];

/// A file that names a higher layer, a module in no layer, or is in none itself.
pub(crate) fn order_violations(files: &[SourceFile]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in layered_files(files) {
        let Some((own_name, own_layer)) = layer_of_file(file) else {
            violations.push(Violation::new(file, 0, "is in no layer: add its folder to the table of the layers"));
            continue;
        };
        for path in paths_of(&tokens_of(file)) {
            let Some(named) = module_of_path(file, &path) else { continue };
            match layer_named(named) {
                None => violations.push(Violation::new(
                    file,
                    path.line,
                    format!(
                        "`{}` is in no layer: name what it is, from the module that owns it",
                        path.segments.join("::")
                    ),
                )),
                Some(layer) if layer > own_layer => violations.push(Violation::new(
                    file,
                    path.line,
                    format!("`{own_name}` names `{named}`, a higher layer"),
                )),
                Some(_) => {}
            }
        }
    }
    violations
}

/// A file that does what its layer must not do.
pub(crate) fn ban_violations(files: &[SourceFile]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in layered_files(files) {
        let Some((own_name, _)) = layer_of_file(file) else { continue };
        let bans: Vec<&Ban> = BANS.iter().filter(|ban| ban.layers.contains(&own_name)).collect();
        for path in paths_of(&tokens_of(file)).iter().filter(|path| !path.is_test) {
            for ban in &bans {
                let broken = ban.parts.iter().find(|parts| path.has(parts) && !is_excepted(file, parts));
                violations.extend(broken.map(|parts| {
                    Violation::new(
                        file,
                        path.line,
                        format!("`{own_name}` names `{}`: {}", parts.join("::"), ban.reason),
                    )
                }));
            }
        }
    }
    violations
}

/// An exception whose file is gone, or that gives no reason.
pub(crate) fn exception_violations(files: &[SourceFile]) -> Vec<Violation> {
    EXCEPTIONS
        .iter()
        .filter(|exception| exception.reason.is_empty() || !files.iter().any(|file| file.path == exception.path))
        .map(|exception| Violation::of_path(exception.path, "is an exception of the layers without file or reason"))
        .collect()
}

/// A folder, file or module with a name that says nothing.
pub(crate) fn name_violations(files: &[SourceFile]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in files.iter().filter(|file| file.is_rust()) {
        let stem_path = file.path.trim_end_matches(".rs");
        if let Some(part) = stem_path.split('/').find(|part| FORBIDDEN_NAMES.contains(part)) {
            violations.push(Violation::new(file, 0, format!("`{part}` says nothing: name the noun that is in it")));
        }
        for pair in tokens_of(file).windows(2) {
            if pair[0].text == "mod" && FORBIDDEN_NAMES.contains(&pair[1].text.as_str()) {
                let message = format!("`mod {}` says nothing: name the noun that is in it", pair[1].text);
                violations.push(Violation::new(file, pair[1].line, message));
            }
        }
    }
    violations
}

fn layered_files(files: &[SourceFile]) -> impl Iterator<Item = &SourceFile> {
    files.iter().filter(|file| file.is_rust() && file.path.starts_with("src/") && !ROOTS.contains(&file.path.as_str()))
}

/// Name and number of the layer that a file of `src/` is in.
fn layer_of_file(file: &SourceFile) -> Option<(&'static str, usize)> {
    let name = module_path(file).into_iter().next()?;
    LAYERS.iter().copied().find(|(layer, _)| *layer == name)
}

fn layer_named(name: &str) -> Option<usize> {
    LAYERS.iter().find(|(layer, _)| *layer == name).map(|(_, number)| *number)
}

/// `src/map/leaf.rs` is `map`, `leaf`; `src/map/mod.rs` is `map`.
fn module_path(file: &SourceFile) -> Vec<&str> {
    let path = file.path.trim_start_matches("src/").trim_end_matches(".rs");
    path.split('/').filter(|part| *part != "mod").collect()
}

/// The top-level module of this crate that the path names, if it does: by `crate::` or by enough `super::`.
fn module_of_path<'path>(file: &SourceFile, path: &'path NamedPath) -> Option<&'path str> {
    let segments = &path.segments;
    let up_count = segments.iter().take_while(|segment| *segment == "super").count();
    // `rock_tests.rs` is a module of `rock.rs`, by a path attribute there.
    let file_depth = module_path(file).len() + usize::from(file.path.ends_with("_tests.rs"));
    let is_from_root = segments[0] == "crate" || (up_count > 0 && up_count == file_depth + path.module_depth);
    let position = if segments[0] == "crate" { 1 } else { up_count };
    let named = segments.get(position)?;
    // A macro of this crate is at its root, wherever it was written.
    let is_macro = path.is_macro && segments.len() == position + 1;
    (is_from_root && !is_macro).then_some(named)
}

fn is_excepted(file: &SourceFile, parts: &[&str]) -> bool {
    EXCEPTIONS.iter().any(|exception| exception.path == file.path && exception.parts == parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{assert_lines, assert_none, read_tree};

    #[test]
    fn files_name_only_their_own_layer_and_lower_ones() {
        assert_none(&order_violations(&read_tree()));
    }

    #[test]
    fn a_higher_layer_is_found_however_it_is_named() {
        let sample = "use crate::units::X;\nuse crate::{error, pool::Y};\nfn f() { crate::volume::z() }\n\
                      use super::super::lane::A;\nuse super::B;";
        assert_lines(&order_violations(&[SourceFile::sample("src/map/leaf.rs", sample)]), &[2, 3, 4]);
    }

    #[test]
    fn super_in_a_module_of_a_file_stays_in_the_file() {
        let sample = "mod tests { use super::super::pool; use super::super::super::pool; }\nuse super::pool;";
        assert_lines(&order_violations(&[SourceFile::sample("src/map/leaf.rs", sample)]), &[1]);
        assert_lines(&order_violations(&[SourceFile::sample("src/map/mod.rs", sample)]), &[1, 2]);
        let sample = "use super::super::pool;\nuse super::super::super::pool;";
        assert_lines(&order_violations(&[SourceFile::sample("src/map/leaf_tests.rs", sample)]), &[2]);
    }

    #[test]
    fn a_folder_in_no_layer_is_found() {
        assert_lines(&order_violations(&[SourceFile::sample("src/extra/mod.rs", "")]), &[0]);
        assert_lines(&order_violations(&[SourceFile::sample("src/map/leaf.rs", "use crate::extra::X;")]), &[1]);
    }

    #[test]
    fn a_macro_at_the_root_is_in_every_layer() {
        assert_none(&order_violations(&[SourceFile::sample("src/map/leaf.rs", "fn f() { crate::check!(1) }")]));
    }

    #[test]
    fn layers_leave_alone_what_they_must_not_do() {
        assert_none(&ban_violations(&read_tree()));
        assert_none(&exception_violations(&read_tree()));
    }

    #[test]
    fn every_ban_finds_each_of_its_paths_in_each_of_its_layers() {
        for ban in BANS {
            for (layer, parts) in ban.layers.iter().flat_map(|layer| ban.parts.iter().map(move |parts| (layer, parts)))
            {
                let sample = format!("\nfn f() {{ {}::x() }}", parts.join("::"));
                let found = ban_violations(&[SourceFile::sample(&format!("src/{layer}/x.rs"), &sample)]);
                assert_lines(&found, &[2]);
            }
        }
    }

    #[test]
    fn a_seeded_generator_and_tests_with_a_clock_are_allowed() {
        let sample = "use rand::rngs::SmallRng;\n#[cfg(test)]\nmod tests { fn f() { std::time::Instant::now(); } }";
        assert_none(&ban_violations(&[SourceFile::sample("src/disk/sim.rs", sample)]));
        assert_none(&ban_violations(&[SourceFile::sample("src/lane/mod.rs", "fn f() { Instant::now(); }")]));
    }

    #[test]
    fn no_name_says_nothing() {
        assert_none(&name_violations(&read_tree()));
    }

    #[test]
    fn a_name_that_says_nothing_is_found() {
        let sample = SourceFile::sample("src/map/leaf.rs", "mod a;\nmod helpers;");
        assert_lines(&name_violations(&[sample]), &[2]);
        assert_lines(&name_violations(&[SourceFile::sample("tests/common/mod.rs", "")]), &[0]);
        assert_lines(&name_violations(&[SourceFile::sample("src/map/utils.rs", "")]), &[0]);
    }
}
